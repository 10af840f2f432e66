"""Assemble what `Snapshotter.changes` returns from a walked tree and the choice of its changed rows."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from pylayers._native import changeset, tardiff
from pylayers.snapshot.snapshotter import Changes
from pylayers.store.entry import ENTRY_STRUCT, FLAG_WHITEOUT, path_key
from pylayers.store.row import Entry

KIND_BITS = 0o170000


def pack_changes(
    records: bytearray,
    heap: bytearray,
    keep: bytearray,
    deleted: Sequence[bytes],
    *,
    root_changed: bool,
    descriptor: int,
) -> Changes:
    """Build the layer table of the rows that changed, their parents and whiteouts of the deleted paths.

    keep has a byte for each row, not 0 for those that changed. A hard-link group is taken whole as soon as one of its
    names changed, so that the layer can be applied on its own. Sockets are left out. Row 0 is the root, IMPLICIT unless
    root_changed. heap grows by the deleted paths; the result borrows it, and owns descriptor (the directory that was
    walked).
    """
    for path in deleted:
        _keep_above(records, heap, keep, path)
    chosen = changeset.pack(records, heap, keep, root_changed)
    if deleted:
        chosen = _insert_whiteouts(chosen, heap, deleted)
    return Changes(chosen, heap, changeset.list_sources(chosen, descriptor), (descriptor,))


def _keep_above(records: bytearray, heap: bytearray, keep: bytearray, path: bytes) -> None:
    """Keep the nearest directory above a path that is gone; its own parents follow from it."""
    while path:
        path = path.rpartition(b"/")[0]
        row = tardiff.find(records, heap, path)
        if row >= 0:
            keep[row] = 1
            return


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
