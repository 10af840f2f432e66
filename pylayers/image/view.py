"""Images as stored: immutable views of a manifest and its config."""

from __future__ import annotations

import os

from pylayers.errors import NotFound
from pylayers.oci.config import ImageConfig
from pylayers.oci.descriptor import Descriptor
from pylayers.oci.document import DOCUMENT_LIMIT_BYTES
from pylayers.oci.manifest import Manifest
from pylayers.oci.reference import Reference
from pylayers.record import record
from pylayers.store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pylayers.oci.platform import Platform
    from pylayers.store.metadata import ImageRecord


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
    record = _find_record(store, digest)
    manifest = Manifest.from_json(store.blobs.read(digest, DOCUMENT_LIMIT_BYTES))
    config = ImageConfig.from_json(store.blobs.read(record.config_digest, DOCUMENT_LIMIT_BYTES))
    return Image(digest, record.config_digest, config, manifest, record.size_bytes, record.built_ns, references)


def view_image(
    store: Store, digest: str, config: ImageConfig, manifest: Manifest, references: tuple[str, ...] = ()
) -> Image:
    """Return the view of an image that was just stored from these documents. Raises NotFound."""
    record = _find_record(store, digest)
    return Image(digest, record.config_digest, config, manifest, record.size_bytes, record.built_ns, references)


def _find_record(store: Store, digest: str) -> ImageRecord:
    record = store.metadata.images.get(digest)
    if record is None:
        raise NotFound(f"no image {digest}", hint="list images with: pylayers images")
    return record


def resolve_reference(store: Store, name: str, platform: Platform | None = None) -> str | None:
    """Return the manifest digest that a name, digest or id prefix stands for, or None.

    Of an index it is the image that fits the platform (this machine's) best. A tag wins over an id, as in docker.
    Raises InvalidInput for a name that is no reference, Conflict when a prefix fits several images.
    """
    from pylayers.errors import InvalidInput

    invalid: InvalidInput | None = None
    try:
        reference = Reference.parse(name)
        if reference.digest is not None:
            return choose_image(store, reference.digest, platform)
        found = store.metadata.references.get(str(reference.with_default_tag()))
        if found is not None:
            return choose_image(store, found, platform)
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
    return load_image(store, digest, list_own_names(store, digest))


def read_children(store: Store, digest: str) -> tuple[Descriptor, ...]:
    """Return the images of an index, without attestations; nothing for what is no index."""
    from pylayers.image.attestation import is_attestation
    from pylayers.oci.manifest import Index, parse_manifest

    try:
        document = parse_manifest(store.blobs.read(digest, DOCUMENT_LIMIT_BYTES))
    except NotFound:
        return ()
    if not isinstance(document, Index):
        return ()
    return tuple(manifest for manifest in document.manifests if not is_attestation(manifest))


def choose_image(store: Store, digest: str, platform: Platform | None) -> str | None:
    """Return the digest itself where it is an image's, else the one in the index that fits best; None for neither.

    Where none fits, the first is returned: whoever needs another platform says so in words of their own.
    """
    images = store.metadata.images
    if images.get(digest) is not None:
        return digest
    children = [child for child in read_children(store, digest) if images.get(child.digest) is not None]
    if platform is None:
        from pylayers.oci.platform import Platform

        platform = Platform.from_machine(os.uname().machine)
    ranked = [(platform.rank(child.platform), child.digest) for child in children if child.platform is not None]
    fitting = sorted((rank, number) for number, (rank, _) in enumerate(ranked) if rank is not None)
    if fitting:
        return ranked[fitting[0][1]][1]
    return children[0].digest if children else None


def list_own_names(store: Store, digest: str) -> tuple[str, ...]:
    """Return the names of one image, those of indexes that hold it included, sorted; reads no other image."""
    names = store.metadata.references.names(digest)
    for reference, target in store.metadata.references.walk_others():
        if any(child.digest == digest for child in read_children(store, target)):
            names.append(reference)
    return tuple(sorted(names))


def list_names(store: Store) -> dict[str, tuple[str, ...]]:
    """Return the names of every image that has one, by its digest; an index's names are those of its images."""
    found: dict[str, tuple[str, ...]] = {}
    for reference, target in store.metadata.references.walk():
        digests = [target]
        if store.metadata.images.get(target) is None:
            digests = [child.digest for child in read_children(store, target)]
        for digest in digests:
            found[digest] = (*found.get(digest, ()), reference)
    return found
