"""What an archive or layout holds: blobs under their digests, and the descriptors that name what is in it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from pylayers.errors import IntegrityError, translate_os_error
from pylayers.oci.descriptor import Descriptor
from pylayers.oci.digest import digest_from_hex, digest_of
from pylayers.oci.manifest import MEDIA_LAYER_GZIP, MEDIA_LAYER_TAR, MEDIA_LAYER_ZSTD, Index, Manifest
from pylayers.oci.reference import Reference
from pylayers.record import record, replace
from pylayers.store import Store
from pylayers.store.file import write_all

REFERENCE_ANNOTATION = "org.opencontainers.image.ref.name"
NAME_ANNOTATION = "io.containerd.image.name"
LAYOUT_NAME = "oci-layout"
LAYOUT_CONTENT = b'{"imageLayoutVersion":"1.0.0"}'
INDEX_NAME = "index.json"
PIECE_BYTES = 1 << 20
GZIP_LEVEL = 2  # of isal, where none is asked for: as small as zlib's 4 or 5, several times as fast
ZSTD_LEVEL = 3
MEDIA_TYPES = {"uncompressed": MEDIA_LAYER_TAR, "gzip": MEDIA_LAYER_GZIP, "zstd": MEDIA_LAYER_ZSTD}


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
    """Return each layer's descriptor and blob; layers are compressed side by side into the store's scratch folder."""
    distinct = list(dict.fromkeys(diff_ids))
    if compression == "uncompressed":
        packed = {diff_id: plain_layer(store, diff_id) for diff_id in distinct}
    else:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="compress") as pool:
            made = pool.map(lambda diff_id: compress_layer(store, diff_id, compression, level), distinct)
            packed = dict(zip(distinct, made, strict=True))
    return [packed[diff_id] for diff_id in diff_ids]


def plain_layer(store: Store, diff_id: str) -> tuple[Descriptor, Blob]:
    """Return a layer as it is stored."""
    layer = store.layers.open(diff_id)
    descriptor = Descriptor(MEDIA_LAYER_TAR, diff_id, layer.size_bytes)
    return descriptor, Blob(diff_id, layer.size_bytes, layer.tar_path)


def compress_layer(store: Store, diff_id: str, compression: str, level: int | None) -> tuple[Descriptor, Blob]:
    """Compress a layer into a scratch file. Equal input gives equal bytes, however many processors there are.

    Raises IntegrityError when the layer's tar isn't what its digest says, NoSpace.
    """
    layer = store.layers.open(diff_id)
    target = store.scratch("packed")
    compressor = open_compressor(compression, level)
    plain, packed, size_bytes = hashlib.sha256(), hashlib.sha256(), 0
    try:
        with layer.tar_path.open("rb", buffering=0) as stream, target.open("wb", buffering=0) as out:

            def put(piece: bytes) -> int:
                packed.update(piece)
                write_all(out.fileno(), piece)
                return len(piece)

            while piece := stream.read(PIECE_BYTES):
                plain.update(piece)
                size_bytes += put(compressor.compress(piece))
            size_bytes += put(compressor.flush())
    except OSError as error:
        raise translate_os_error(error, "compress a layer") from error
    if digest_from_hex(plain.hexdigest()) != diff_id:
        raise IntegrityError(
            f"layer {diff_id}: its tar's digest is sha256:{plain.hexdigest()}",
            hint="run: pylayers system check --repair",
        )
    digest = digest_from_hex(packed.hexdigest())
    return Descriptor(MEDIA_TYPES[compression], digest, size_bytes), Blob(digest, size_bytes, target)


class Compressor:
    """What compressobj of gzip and zstd have in common."""

    def __init__(self, compression: str, level: int | None) -> None:
        self._inner = make_compressor(compression, level)

    def compress(self, piece: bytes) -> bytes:
        """Take bytes and return what is ready."""
        return bytes(self._inner.compress(piece))

    def flush(self) -> bytes:
        """End the stream and return the rest."""
        return bytes(self._inner.flush())


def open_compressor(compression: str, level: int | None) -> Compressor:
    """Begin a gzip or zstd stream."""
    return Compressor(compression, level)


def make_compressor(compression: str, level: int | None):  # type: ignore[no-untyped-def]
    """Return the library's object: isal for gzip's default, zlib for a level that was asked for, zstandard."""
    if compression == "zstd":
        import zstandard

        # With workers the frame is the same for every number of them; without, it would be another one.
        return zstandard.ZstdCompressor(level=ZSTD_LEVEL if level is None else level, threads=2).compressobj()
    if level is None:
        from isal import isal_zlib

        return isal_zlib.compressobj(GZIP_LEVEL, isal_zlib.DEFLATED, 31)
    import zlib

    return zlib.compressobj(level, zlib.DEFLATED, 31)


def pack_documents(documents: Iterable[Manifest | Index]) -> list[Blob]:
    """Return manifests and indexes as blobs."""
    return [Blob.of(document.to_json()) for document in documents]
