"""What an archive or layout holds: blobs under their digests, and the descriptors that name what is in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pylayers.oci.descriptor import Descriptor
from pylayers.oci.digest import digest_of
from pylayers.oci.manifest import MEDIA_LAYER_TAR, Index, Manifest
from pylayers.oci.reference import Reference
from pylayers.record import record, replace
from pylayers.store import Store

REFERENCE_ANNOTATION = "org.opencontainers.image.ref.name"
NAME_ANNOTATION = "io.containerd.image.name"
LAYOUT_NAME = "oci-layout"
LAYOUT_CONTENT = b'{"imageLayoutVersion":"1.0.0"}'
INDEX_NAME = "index.json"
DOCKER_NAME = "manifest.json"


@record
class Blob:
    """One blob of an archive: its bytes, or the file that has them."""

    digest: str
    size_bytes: int
    content: bytes | Path

    @classmethod
    def of(cls, content: bytes) -> Blob:
        """Return the blob of some bytes."""
        return cls(digest_of(content), len(content), content)


@record
class DockerImage:
    """One entry of docker's manifest.json."""

    config: str  # digest
    names: tuple[str, ...]
    layers: tuple[str, ...]  # digests of the blobs, lowest first


@record
class Bundle:
    """What goes into one archive or layout. `roots` are index.json's entries."""

    blobs: tuple[Blob, ...]
    roots: tuple[Descriptor, ...]
    docker: tuple[DockerImage, ...] = ()

    def distinct_blobs(self) -> list[Blob]:
        """Return each blob once, sorted by digest."""
        found = {blob.digest: blob for blob in self.blobs}
        return [found[digest] for digest in sorted(found)]

    def index_json(self) -> bytes:
        """Return index.json."""
        return Index(self.roots).to_json()


def name_root(root: Descriptor, names: Sequence[str]) -> tuple[Descriptor, ...]:
    """Return index.json's entries of one image: one for each full name, as BuildKit and containerd write them."""
    named = []
    for name in names:
        reference = Reference.parse(name).with_default_tag()
        annotations = {
            **root.annotations,
            NAME_ANNOTATION: str(reference),
            REFERENCE_ANNOTATION: reference.tag or "latest",
        }
        named.append(replace(root, annotations=annotations))
    return tuple(named) or (root,)


def pack_layers(
    store: Store, diff_ids: Sequence[str], compression: str = "uncompressed", level: int | None = None
) -> list[tuple[Descriptor, Blob]]:
    """Return each layer's descriptor and blob; compressed ones lie in the store's scratch folder."""
    distinct = list(dict.fromkeys(diff_ids))
    if compression == "uncompressed":
        packed = {diff_id: plain_layer(store, diff_id) for diff_id in distinct}
    else:
        from pylayers.transfer.compress import compress_layer

        packed = {diff_id: compress_layer(store, diff_id, compression, level) for diff_id in distinct}
    return [packed[diff_id] for diff_id in diff_ids]


def plain_layer(store: Store, diff_id: str) -> tuple[Descriptor, Blob]:
    """Return a layer as it is stored."""
    layer = store.layers.open(diff_id)
    descriptor = Descriptor(MEDIA_LAYER_TAR, diff_id, layer.size_bytes)
    return descriptor, Blob(diff_id, layer.size_bytes, Path(layer.make_whole()))


def pack_documents(documents: Iterable[Manifest | Index]) -> list[Blob]:
    """Return manifests and indexes as blobs."""
    return [Blob.of(document.to_json()) for document in documents]
