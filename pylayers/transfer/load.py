"""Bring the images of a docker-archive into the store: documents and layers bit for bit, verified by their digests."""

from __future__ import annotations

import io
import json
import os
import re
import stat
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, cast

from pylayers.errors import IntegrityError, InvalidInput, PylayersError, Unsupported, translate_os_error
from pylayers.oci.config import ImageConfig
from pylayers.oci.descriptor import Descriptor
from pylayers.oci.digest import digest_hex, digest_of
from pylayers.oci.document import DOCUMENT_LIMIT_BYTES
from pylayers.oci.manifest import MEDIA_CONFIG, MEDIA_LAYER_TAR, Index, Manifest, parse_manifest
from pylayers.oci.reference import Reference
from pylayers.record import record
from pylayers.store import Store
from pylayers.store.entry import EntryTable
from pylayers.store.layer import Layer
from pylayers.store.lease import Lease
from pylayers.store.mappedfile import MappedFile
from pylayers.store.metadata import ImageRecord
from pylayers.store.row import Entry
from pylayers.store.tarindex import scan_content
from pylayers.transfer.archive import BLOCK_BYTES, detect_compression, is_tar, read_pieces
from pylayers.transfer.content import DOCKER_NAME, INDEX_NAME
from pylayers.transfer.rootfs import Prefixed, import_stream
from pylayers.transfer.verbatim import RangeIngest

MOST_LINKS = 8
LAYERS_AT_ONCE = 4  # bounds the tables that are held; the second largest fills the time that the largest leaves
HEX_NAME = re.compile(r"(?:^|/)([0-9a-f]{64})(?:\.json)?$")


@record
class LoadedImage:
    """Say what one image of an archive became; `replaced` are the images that lost a name to it."""

    digest: str
    id: str
    names: tuple[str, ...]
    replaced: tuple[tuple[str, str], ...] = ()  # name, id


class ArchiveView(MappedFile):
    """Look into a tar that is mapped whole. Its symlinks lead to members, never out of it."""

    def __init__(self, descriptor: int, name: str) -> None:
        if not os.fstat(descriptor).st_size:
            raise InvalidInput(f"{name} is empty")
        super().__init__(descriptor, name)
        try:
            self._table = EntryTable(*scan_content(self.content, name))
        except BaseException as error:
            self.close()
            self.check(error)
            raise
        self._entries = {self._table.path(entry): entry for entry in self._table}

    def find(self, path: str) -> Entry | None:
        """Return the regular file at a path, through symlinks inside the archive; None when there is none."""
        name = os.path.normpath(path.lstrip("/"))
        for _ in range(MOST_LINKS):
            entry = self._entries.get(os.fsencode(name))
            if entry is None or stat.S_ISREG(entry.mode):
                return entry
            if not stat.S_ISLNK(entry.mode):
                return None
            target = os.fsdecode(self._table.link(entry))
            name = os.path.normpath(os.path.join(os.path.dirname(name), target))
            if target.startswith("/") or name.startswith(".."):
                raise InvalidInput(f"{self.name}: {path} is a link that leads out of the archive")
        raise InvalidInput(f"{self.name}: {path} is a link that leads in circles")

    def require(self, path: str) -> Entry:
        """Return the regular file at a path. Raises InvalidInput when it is missing."""
        entry = self.find(path)
        if entry is None:
            raise InvalidInput(f"{self.name}: {path} is named by {DOCKER_NAME} but not in the archive")
        return entry

    def read(self, entry: Entry, path: str) -> bytes:
        """Return a document's bytes, which are bounded."""
        if entry.size_bytes > DOCUMENT_LIMIT_BYTES:
            raise InvalidInput(f"{self.name}: {path} has {entry.size_bytes} bytes, too many for a document")
        return bytes(self.content[entry.data_offset : entry.data_offset + entry.size_bytes])


def load_archive(store: Store, source: Path | IO[bytes]) -> list[LoadedImage]:
    """Store every image of a docker-archive, plain or compressed, a file or a stream, and set its names.

    A stream and a compressed file are first written out to the store's scratch folder. Layers that are stored already
    are not read. Raises InvalidInput for what is no such archive, IntegrityError where a digest differs; no name is
    set then.
    """
    if not isinstance(source, Path):
        return _load_stream(store, source, "standard input")
    try:
        with source.open("rb") as stream:
            head = stream.read(BLOCK_BYTES)
            stream.seek(0)
            if not is_tar(head) or not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                return _load_stream(store, stream, str(source))
            return _load_file(store, stream.fileno(), str(source))
    except OSError as error:
        raise translate_os_error(error, f"read {source}") from error


def _load_stream(store: Store, stream: IO[bytes], name: str) -> list[LoadedImage]:
    import tempfile

    with tempfile.TemporaryFile(dir=store.scratch("load").parent) as spooled:
        buffered = io.BufferedReader(stream) if isinstance(stream, io.RawIOBase) else stream
        head = buffered.read(BLOCK_BYTES)
        compression = detect_compression(head)
        if compression is None and not is_tar(head):
            raise InvalidInput(f"{name} is neither a tar nor a compressed one")
        whole = io.BufferedReader(Prefixed(head, buffered), 1 << 20)
        try:
            for piece in read_pieces(whole, compression, name):
                spooled.write(piece)
            spooled.flush()
        except OSError as error:
            raise translate_os_error(error, f"spool {name}") from error
        return _load_file(store, spooled.fileno(), name)


def _load_file(store: Store, descriptor: int, name: str) -> list[LoadedImage]:
    archive = ArchiveView(descriptor, name)
    try:
        listed = _read_listing(archive)
        manifests = _read_manifests(archive)
        with store.lease("load") as lease:
            found = [_load_image(store, lease, archive, one, manifests) for one in listed]
            return [_name_image(store, *one) for one in found]
    except PylayersError as error:
        archive.check(error)
        raise
    finally:
        archive.close()


def _read_listing(archive: ArchiveView) -> list[dict[str, Any]]:
    """Read docker's manifest.json."""
    entry = archive.find(DOCKER_NAME)
    if entry is None:
        if archive.find("repositories") is not None:
            raise Unsupported(f"{archive.name} was written by docker before 1.10 and has no {DOCKER_NAME}")
        raise InvalidInput(
            f"{archive.name} is no docker-archive: it has no {DOCKER_NAME}",
            hint="for a root file system's tar use: pylayers import",
        )
    try:
        listed = json.loads(archive.read(entry, DOCKER_NAME))
    except ValueError as error:
        raise InvalidInput(f"{archive.name}: {DOCKER_NAME} is no JSON: {error}") from None
    if not isinstance(listed, list) or not listed:
        raise InvalidInput(f"{archive.name}: {DOCKER_NAME} lists no image")
    for number, one in enumerate(listed):
        texts = (one.get("Config"), *(one.get("Layers") or ()), *(one.get("RepoTags") or ())) if isinstance(
            one, dict) and isinstance(one.get("Layers") or [], list) and isinstance(
            one.get("RepoTags") or [], list) else (None,)  # fmt: skip
        if not all(isinstance(text, str) and text for text in texts):
            raise InvalidInput(f"{archive.name}: entry {number} of {DOCKER_NAME} is malformed")
    return listed


def _read_manifests(archive: ArchiveView) -> dict[str, tuple[Manifest, bytes]]:
    """Read the manifests that an OCI index beside docker's listing names, by their config's digest."""
    entry = archive.find(INDEX_NAME)
    if entry is None:
        return {}
    index = parse_manifest(archive.read(entry, INDEX_NAME))
    found: dict[str, tuple[Manifest, bytes]] = {}
    for one in index.manifests if isinstance(index, Index) else ():
        path = f"blobs/sha256/{digest_hex(one.digest)}"
        blob = archive.find(path)
        if blob is None:
            continue
        content = archive.read(blob, path)
        if digest_of(content) != one.digest:
            raise IntegrityError(f"{archive.name}: {path} is not what its name says")
        manifest = parse_manifest(content)
        if isinstance(manifest, Manifest):
            found[manifest.config.digest] = (manifest, content)
    return found


def _load_image(
    store: Store,
    lease: Lease,
    archive: ArchiveView,
    listed: dict[str, Any],
    manifests: dict[str, tuple[Manifest, bytes]],
) -> tuple[str, str, Sequence[str]]:
    """Store one image; return its manifest digest, its id and its names."""
    path = listed["Config"]
    content = archive.read(archive.require(path), path)
    config_digest = digest_of(content)
    named = HEX_NAME.search(path)
    if named and f"sha256:{named[1]}" != config_digest:
        raise IntegrityError(f"{archive.name}: {path} is not what its name says; its digest is {config_digest}")
    config = ImageConfig.from_json(content)
    paths = listed.get("Layers") or []
    if len(paths) != len(config.diff_ids):
        raise IntegrityError(
            f"{archive.name}: {path} names {len(config.diff_ids)} layers, and {DOCKER_NAME} lists {len(paths)}"
        )
    names = [str(Reference.parse(tag).with_default_tag()) for tag in listed.get("RepoTags") or ()]
    sizes = _load_layers(store, lease, archive, paths, config.diff_ids)
    layers = tuple(
        Descriptor(MEDIA_LAYER_TAR, diff_id, size) for diff_id, size in zip(config.diff_ids, sizes, strict=True)
    )
    manifest, document = manifests.get(config_digest, (None, b""))
    if manifest is None or tuple(layer.digest for layer in manifest.layers) != config.diff_ids:
        document = Manifest(Descriptor(MEDIA_CONFIG, config_digest, len(content)), layers).to_json()
    digest = digest_of(document)
    if store.metadata.images.get(digest) is None:
        store.blobs.put(content)
        store.blobs.put(document)
        if config.diff_ids:
            store.metadata.chains.add_stack(config.diff_ids)
        store.metadata.images.add(
            ImageRecord(
                digest=digest,
                config_digest=config_digest,
                diff_ids=config.diff_ids,
                size_bytes=sum(sizes),
                built_ns=time.time_ns(),
            )
        )
    return digest, config_digest, names


def _load_layers(
    store: Store, lease: Lease, archive: ArchiveView, paths: Sequence[str], diff_ids: Sequence[str]
) -> list[int]:
    """Store the layers that aren't there, the largest first, some at a time; return every one's size."""
    wanted: dict[str, tuple[Entry, str]] = {}
    for path, diff_id in zip(paths, diff_ids, strict=True):
        entry = archive.require(path)
        lease.hold("layer", diff_id)
        if diff_id not in wanted and not store.layers.exists(diff_id):
            wanted[diff_id] = entry, f"{archive.name}: {path}"
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), "load") as pool, ExitStack() as stack:
        begun: deque[tuple[str, str, RangeIngest]] = deque()
        for diff_id, (entry, place) in sorted(wanted.items(), key=lambda one: -one[1][0].size_bytes):
            ingest = _begin_layer(store, pool, archive, entry, place, diff_id)
            if ingest is not None:
                begun.append((place, diff_id, stack.enter_context(ingest)))
            if len(begun) == LAYERS_AT_ONCE:
                _finish_layer(*begun.popleft())
        while begun:
            _finish_layer(*begun.popleft())
    return [store.layers.size_bytes(diff_id) for diff_id in diff_ids]


def _begin_layer(
    store: Store, pool: Executor, archive: ArchiveView, entry: Entry, place: str, diff_id: str
) -> RangeIngest | None:
    """Return how a plain layer comes in; store a compressed one at once."""
    start, end = entry.data_offset, entry.data_offset + entry.size_bytes
    head = bytes(archive.content[start : min(end, start + BLOCK_BYTES)])
    if detect_compression(head) is not None:
        with archive.content[start:end] as part:
            _check_layer(import_stream(store, cast(IO[bytes], _Viewed(part)), place), place, diff_id)
        return None
    if is_tar(head):
        return RangeIngest(store, pool, archive, start, entry.size_bytes, place)
    raise InvalidInput(f"{place} is neither a tar nor a compressed one")


def _finish_layer(place: str, diff_id: str, ingest: RangeIngest) -> None:
    _check_layer(ingest.finish(), place, diff_id)


def _check_layer(layer: Layer, place: str, diff_id: str) -> None:
    if layer.diff_id != diff_id:
        raise IntegrityError(f"{place} holds {layer.diff_id}, and the image's config says {diff_id}")


class _Viewed(io.RawIOBase):
    """Read a part of a mapped file as a stream."""

    def __init__(self, part: memoryview) -> None:
        self._part = part
        self._at = 0

    def readable(self) -> bool:
        """Say that this can be read."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer as far as there is something left."""
        view = memoryview(buffer).cast("B")
        piece = self._part[self._at : self._at + len(view)]
        view[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)


def _name_image(store: Store, digest: str, config_digest: str, names: Sequence[str]) -> LoadedImage:
    replaced = []
    for name in names:
        before = store.metadata.references.get(name)
        if before is not None and before != digest:
            known = store.metadata.images.get(before)
            replaced.append((name, known.config_digest if known is not None else before))
        store.metadata.references.set(name, digest)
    return LoadedImage(digest, config_digest, tuple(names), tuple(replaced))
