"""Images as stored: immutable views of a manifest and its config."""

from __future__ import annotations

from pylayers.errors import NotFound
from pylayers.oci.config import ImageConfig
from pylayers.oci.document import DOCUMENT_LIMIT_BYTES
from pylayers.oci.manifest import Manifest
from pylayers.oci.reference import Reference
from pylayers.record import record
from pylayers.store import Store


@record
class Image:
    """View one image. `digest` is the manifest's; `id` is the config's digest, as docker shows it."""

    digest: str
    id: str
    config: ImageConfig
    manifest: Manifest
    size_bytes: int  # of all layers' tars
    built_ns: int
    references: tuple[str, ...] = ()


def load_image(store: Store, digest: str, references: tuple[str, ...] = ()) -> Image:
    """Load an image by its manifest digest. Raises NotFound, IntegrityError."""
    record = store.metadata.images.get(digest)
    if record is None:
        raise NotFound(f"no image {digest}", hint="list images with: pylayers images")
    manifest = Manifest.from_json(store.blobs.read(digest, DOCUMENT_LIMIT_BYTES))
    config = ImageConfig.from_json(store.blobs.read(record.config_digest, DOCUMENT_LIMIT_BYTES))
    return Image(digest, record.config_digest, config, manifest, record.size_bytes, record.built_ns, references)


def resolve_reference(store: Store, name: str) -> str | None:
    """Return the manifest digest that a name, digest or id prefix stands for, or None.

    A tag wins over an id, as in docker. Raises InvalidInput for a name that is no reference, Conflict when a
    prefix fits several images.
    """
    from pylayers.errors import InvalidInput

    invalid: InvalidInput | None = None
    try:
        reference = Reference.parse(name)
        if reference.digest is not None:
            return reference.digest if store.metadata.images.get(reference.digest) else None
        found = store.metadata.references.get(str(reference.with_default_tag()))
        if found is not None:
            return found
    except InvalidInput as error:
        invalid = error
    record = store.metadata.images.find(name.removeprefix("sha256:"))
    if record is not None:
        return record.digest
    if invalid is not None:
        raise invalid
    return None


def find_image(store: Store, name: str) -> Image:
    """Load an image by name, digest or id prefix. Raises NotFound with the next command."""
    digest = resolve_reference(store, name)
    if digest is None:
        raise NotFound(
            f"no such image: {name}",
            hint=f"see what there is with: pylayers images; bring one in with: pylayers import ROOTFS.tar {name}",
        )
    names = tuple(reference for reference, target in store.metadata.references.walk() if target == digest)
    return load_image(store, digest, names)
