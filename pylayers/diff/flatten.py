"""Write the tree that stacked layers make, as files or as one tar, straight from their tars: nothing is mounted."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from pylayers._native import graft, tarwrite, unpack
from pylayers.diff.merge import subtree_end
from pylayers.diff.write import write_layer
from pylayers.errors import InvalidInput, translate_os_error
from pylayers.record import record
from pylayers.store import Store
from pylayers.store.entry import (
    ENTRY_SIZE_BYTES,
    ENTRY_STRUCT,
    FLAG_HARDLINK,
    FLAG_IMPLICIT,
    FLAG_SPARSE,
    SOURCE_RANGE,
    EntryTable,
    encode_xattrs,
    entry_dtype,
    path_key,
)
from pylayers.store.layer import Layer
from pylayers.store.row import Entry

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

WINDOW_BYTES = 1 << 20


@record
class Tree:
    """A merged tree: its layers, their merged table, and the folder it stands in, where that isn't the root."""

    layers: Sequence[Layer]
    table: EntryTable
    prefix: bytes = b""


class _Unhashed:
    """Stand in for a hasher where nobody asks for the digest of what is written."""

    def update(self, content: object, /) -> None:
        """Take bytes, and do nothing."""

    def digest(self) -> bytes:
        """Return nothing."""
        return b""


@contextmanager
def open_tars(layers: Sequence[Layer]) -> Iterator[list[int]]:
    """Open every layer's tar, and close them in the end."""
    descriptors: list[int] = []
    try:
        for layer in layers:
            descriptors.append(layer.open_tar())
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def write_tree_tar(out_fd: int, trees: Sequence[Tree]) -> int:
    """Write merged trees as one canonical tar from offset 0 of a regular file; return its size in bytes.

    The root itself is left out, as in docker's tar output. Trees with a prefix stand below it. Raises NoSpace,
    IntegrityError.
    """
    records, heap, sources = bytearray(), bytearray(), bytearray()
    try:
        with ExitStack() as stack:
            for tree in sorted(trees, key=lambda tree: path_key(tree.prefix)):
                descriptors = stack.enter_context(open_tars(tree.layers))
                packed = struct.pack(f"<{len(descriptors)}i", *descriptors)
                rows, names, found = graft.graft(
                    tree.table.records, tree.table.heap, 0, len(tree.table), tree.prefix, packed, SOURCE_RANGE
                )
                if not tree.prefix:
                    _hide_root(rows)
                _shift_heap(rows, len(heap))
                records += rows
                heap += names
                sources += found
            return tarwrite.write(out_fd, records, heap, sources, _Unhashed, _Unhashed)[0]
    except OSError as error:
        raise translate_os_error(error, "write the tree as a tar") from error
    except ValueError as error:
        raise InvalidInput(f"the tree cannot be written as a tar: {error}") from error


def rewrite_times(store: Store, layer: Layer, latest_ns: int) -> Layer:
    """Write a layer anew with no mtime after latest_ns and return it; the same layer where none is."""
    import numpy as np

    times = np.frombuffer(layer.table.records, dtype=entry_dtype())["mtime_ns"]
    if not (times > latest_ns).any():
        return layer
    with open_tars([layer]) as descriptors:
        packed = struct.pack("<i", *descriptors)
        table = layer.table
        records, heap, sources = graft.graft(
            table.records, table.heap, 0, len(table), b"", packed, SOURCE_RANGE
        )
        rows = np.frombuffer(records, dtype=entry_dtype())
        # A graft is a tree of its own; this is still the layer, whose implied directories it doesn't hold.
        rows["flags"] |= np.frombuffer(table.records, dtype=entry_dtype())["flags"] & FLAG_IMPLICIT
        np.minimum(rows["mtime_ns"], latest_ns, out=rows["mtime_ns"])
        del rows
        return write_layer(store, records, heap, sources)


def stamp_table(table: EntryTable, time_ns: int) -> EntryTable:
    """Return a table in which every row has this time, as BuildKit's local and tar outputs have under an epoch."""
    import numpy as np

    records = bytearray(table.records)
    np.frombuffer(records, dtype=entry_dtype())["mtime_ns"][:] = time_ns
    return EntryTable(records, table.heap)


def _shift_heap(records: bytearray, by_bytes: int) -> None:
    """Let rows point into a heap that has that much more in front."""
    import numpy as np

    rows = np.frombuffer(records, dtype=entry_dtype())
    for name in ("path_offset", "link_offset", "xattr_offset"):
        rows[name] += by_bytes


def unpack_tree(root_fd: int, tree: Tree, *, owner: bool = False) -> int:
    """Write the merged tree below a directory and return the bytes of file data written.

    What is in the way is replaced; a directory that exists keeps what else it has, and the top keeps its metadata.
    owner=False leaves everything the caller's own, as docker's local output does. Without root, devices and all
    xattrs but user.* are left out. What was written before an error stays.
    """
    import numpy as np

    layers, table = tree.layers, tree.table
    records, heap = bytearray(table.records), bytearray(table.heap)
    flags = 0 if owner else unpack.NO_OWNER
    if os.geteuid() != 0:
        flags |= unpack.NO_OWNER | unpack.NO_DEVICES
        _keep_user_xattrs(records, heap)
    _hide_root(records)
    rows: npt.NDArray[Any] = np.frombuffer(records, dtype=entry_dtype())
    is_directory = rows["mode"] & 0o170000 == stat.S_IFDIR
    ends = _subtree_ends(table, np.flatnonzero(is_directory).tolist())
    used = sorted(set(rows["layer"][~is_directory].tolist())) or ([0] if len(layers) else [])
    written = 0
    try:
        with open_tars(layers) as descriptors:
            for layer in used:
                # A file comes with the directories above it; what those are like is put on them in the last pass.
                own = ~is_directory & (rows["layer"] == layer)
                if layer == used[-1]:
                    chosen = rows[own | is_directory].copy()
                else:
                    chosen = rows[own | _above(own, is_directory, ends)].copy()
                    chosen["flags"][chosen["mode"] & 0o170000 == stat.S_IFDIR] |= FLAG_IMPLICIT
                written += unpack.unpack(
                    root_fd, descriptors[layer], chosen.tobytes(), heap, unpack.WHITEOUT_APPLY, flags
                )
    except OSError as error:
        raise translate_os_error(error, "write the tree") from error
    return written


def hash_files(tree: Tree) -> Iterator[tuple[bytes, str]]:
    """Yield the path and sha256 (hex) of every regular file of the merged tree; reads all of their data."""
    known: dict[tuple[int, int], str] = {}
    table = tree.table
    with open_tars(tree.layers) as descriptors:
        for entry in table:
            if not stat.S_ISREG(entry.mode):
                continue
            place = (entry.layer, entry.data_offset)
            digest = known.get(place) if entry.flags & FLAG_HARDLINK else None
            if digest is None:
                digest = known[place] = _hash_file(descriptors[entry.layer], entry, table)
            yield table.path(entry), digest


def _hash_file(tar: int, entry: Entry, table: EntryTable) -> str:
    hasher = hashlib.sha256()
    spans = [(0, entry.size_bytes)]
    if entry.flags & FLAG_SPARSE:
        spans = list(struct.iter_unpack("<QQ", table.link(entry)))
    at, place = 0, entry.data_offset
    for offset, length in spans:
        _hash_zeros(hasher, offset - at)
        end = place + length
        while place < end:
            piece = os.pread(tar, min(WINDOW_BYTES, end - place), place)
            if not piece:
                raise InvalidInput(f"the layer ends inside {os.fsdecode(table.path(entry))!r}")
            hasher.update(piece)
            place += len(piece)
        at = offset + length
    _hash_zeros(hasher, entry.size_bytes - at)
    return hasher.hexdigest()


def _hash_zeros(hasher: Any, length: int) -> None:
    while length > 0:
        hasher.update(bytes(min(length, WINDOW_BYTES)))
        length -= WINDOW_BYTES


def _hide_root(records: bytearray) -> None:
    """Mark the top row IMPLICIT, so that it is not written and changes nothing of a directory that exists."""
    root = Entry._make(ENTRY_STRUCT.unpack_from(records, 0))
    ENTRY_STRUCT.pack_into(records, 0, *root._replace(flags=root.flags | FLAG_IMPLICIT))


def _subtree_ends(table: EntryTable, directories: Sequence[int]) -> npt.NDArray[np.int64]:
    import numpy as np

    ends = np.zeros(len(table), dtype=np.int64)
    for row in directories:
        ends[row] = subtree_end(table, row)
    return ends


def _above(
    own: npt.NDArray[np.bool_], is_directory: npt.NDArray[np.bool_], ends: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Mark the directories that have one of the rows below them."""
    import numpy as np

    count = np.concatenate(([0], np.cumsum(own)))
    starts = np.arange(len(own))
    marked: npt.NDArray[np.bool_] = is_directory & (count[np.maximum(ends, starts)] > count[starts])
    return marked


def _keep_user_xattrs(records: bytearray, heap: bytearray) -> None:
    table = EntryTable(bytes(records), bytes(heap))
    for row, entry in enumerate(table):
        if entry.xattr_length:
            found = table.xattrs(entry)
            kept = encode_xattrs({name: value for name, value in found.items() if name.startswith(b"user.")})
            offset = len(heap)
            heap += kept
            changed = entry._replace(xattr_offset=offset, xattr_length=len(kept))
            ENTRY_STRUCT.pack_into(records, row * ENTRY_SIZE_BYTES, *changed)
