"""Assemble what `Snapshotter.changes` returns from a walked tree and the choice of its changed rows."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pylayers._native import tardiff
from pylayers.snapshot.snapshotter import Changes
from pylayers.store.entry import (
    ENTRY_STRUCT,
    FLAG_HARDLINK,
    FLAG_IMPLICIT,
    FLAG_WHITEOUT,
    SOURCE_NONE,
    SOURCE_PATH,
    Entry,
    EntryTable,
    path_key,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

KIND_BITS = 0o170000
WALK_ONLY_FIELDS = ("ctime_ns", "device", "inode")


def pack_changes(
    records: bytearray,
    heap: bytearray,
    keep: npt.NDArray[np.bool_],
    deleted: Sequence[bytes],
    *,
    root_changed: bool,
    descriptor: int,
) -> Changes:
    """Build the layer table of the rows that changed, their parents and whiteouts of the deleted paths.

    A hard-link group is taken whole as soon as one of its names changed, so that the layer can be applied on its own.
    Sockets are left out. Row 0 is the root, IMPLICIT unless root_changed. heap grows by the deleted paths;
    the result borrows it, and owns descriptor (the directory that was walked).
    """
    table = EntryTable(records, heap)
    array = table.array
    keep &= (array["mode"] & KIND_BITS) != stat.S_IFSOCK
    _keep_link_groups(array, keep)
    _keep_parents(table, keep, deleted)
    keep[0] = True
    kept = array[keep]  # a copy: records stays as walked
    for field in WALK_ONLY_FIELDS:
        kept[field] = 0
    if not root_changed:
        kept["flags"][0] |= FLAG_IMPLICIT
    chosen = bytearray(kept.tobytes())
    del array, kept
    if deleted:
        chosen = _insert_whiteouts(chosen, heap, deleted)
    return Changes(chosen, heap, _sources(EntryTable(chosen, b"").array, descriptor), (descriptor,))


def _keep_link_groups(array: npt.NDArray[np.void], keep: npt.NDArray[np.bool_]) -> None:
    linked = (
        (array["nlink"] > 1) & ((array["mode"] & KIND_BITS) != stat.S_IFDIR) & (array["flags"] & FLAG_WHITEOUT == 0)
    )
    groups: dict[tuple[int, int], list[int]] = {}
    for row in linked.nonzero()[0].tolist():
        groups.setdefault((int(array["device"][row]), int(array["inode"][row])), []).append(row)
    for rows in groups.values():
        if keep[rows].any():
            keep[rows] = True


def _keep_parents(table: EntryTable, keep: npt.NDArray[np.bool_], deleted: Sequence[bytes]) -> None:
    seen: set[bytes] = {b""}
    paths = [table.path(table.entry(row)) for row in keep.nonzero()[0].tolist()]
    for path in (*paths, *deleted):
        above = path.rpartition(b"/")[0]
        while above not in seen:
            seen.add(above)
            row = tardiff.find(table.records, table.heap, above)
            if row >= 0:
                keep[row] = True
            above = above.rpartition(b"/")[0]


def _insert_whiteouts(chosen: bytearray, heap: bytearray, deleted: Sequence[bytes]) -> bytearray:
    rows = [
        (path_key(bytes(heap[entry.path_offset : entry.path_offset + entry.path_length])), ENTRY_STRUCT.pack(*entry))
        for entry in map(Entry._make, ENTRY_STRUCT.iter_unpack(chosen))
    ]
    for path in deleted:
        whiteout = Entry(path_offset=len(heap), path_length=len(path), mode=stat.S_IFCHR, flags=FLAG_WHITEOUT)
        heap += path
        rows.append((path_key(path), ENTRY_STRUCT.pack(*whiteout)))
    rows.sort()
    return bytearray().join(record for _, record in rows)


def _sources(array: npt.NDArray[np.void], descriptor: int) -> bytes:
    import numpy as np

    dtype = np.dtype([("fd", "<i4"), ("kind", "<u4"), ("offset", "<u8"), ("length", "<u8")])
    sources = np.zeros(len(array), dtype)
    own = ((array["mode"] & KIND_BITS) == stat.S_IFREG) & (array["flags"] & (FLAG_HARDLINK | FLAG_WHITEOUT) == 0)
    sources["fd"] = np.where(own, descriptor, -1)
    sources["kind"] = np.where(own, SOURCE_PATH, SOURCE_NONE)
    sources["offset"] = np.where(own, array["path_offset"], 0)
    sources["length"] = np.where(own, array["path_length"], 0)
    return sources.tobytes()


def disk_usage(directory: int | str | os.PathLike[str]) -> tuple[int, int]:
    """Count the disk bytes (allocated blocks) and inodes of a tree, its top included, hard links once."""
    top = os.stat(directory)
    size_bytes, inodes = top.st_blocks * 512, 1
    seen: set[tuple[int, int]] = set()
    pending = [os.fspath(directory) if not isinstance(directory, int) else f"/proc/self/fd/{directory}"]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                found = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    pending.append(entry.path)
                elif found.st_nlink > 1:
                    if (found.st_dev, found.st_ino) in seen:
                        continue
                    seen.add((found.st_dev, found.st_ino))
                size_bytes += found.st_blocks * 512
                inodes += 1
    return size_bytes, inodes
