"""What a container itself changed: the empty mount points that the runtime made in its root don't count."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Sequence

from pylayers.diff.merge import find_entry
from pylayers.snapshot.snapshotter import Changes
from pylayers.store.entry import ENTRY_SIZE_BYTES, FLAG_OPAQUE, FLAG_WHITEOUT, SOURCE_STRUCT, EntryTable
from pylayers.store.row import Entry

# Where every container has something mounted (runtime specification, and docker's own three files).
RUNTIME_TARGETS = ("/proc", "/sys", "/dev", "/etc/hosts", "/etc/resolv.conf", "/etc/hostname")


def drop_mount_points(changes: Changes, parent: Sequence[EntryTable], targets: Iterable[str]) -> Changes:
    """Leave out empty files and directories at mount targets that the image lacks, and what only leads to them.

    parent are the image's layer tables, lowest first.
    """
    points = {target.strip("/").encode(errors="surrogateescape") for target in (*RUNTIME_TARGETS, *targets)}
    leading = {point[:at] for point in points for at, byte in enumerate(point) if byte == ord("/")}
    table = EntryTable(changes.records, changes.heap)
    kept: list[int] = []
    needed: set[bytes] = {b""}
    for row in range(len(table) - 1, -1, -1):
        entry = table.entry(row)
        path = table.path(entry)
        if path not in needed and (path in points or path in leading) and is_idle(table, entry, parent, path):
            continue
        kept.append(row)
        needed.update(path[:at] for at, byte in enumerate(path) if byte == ord("/"))
    if len(kept) == len(table):
        return changes
    records, sources = bytearray(), bytearray()
    for row in reversed(kept):
        records += memoryview(changes.records)[row * ENTRY_SIZE_BYTES : (row + 1) * ENTRY_SIZE_BYTES]
        sources += memoryview(changes.sources)[row * SOURCE_STRUCT.size : (row + 1) * SOURCE_STRUCT.size]
    return Changes(records, changes.heap, bytes(sources), changes.descriptors)


def is_idle(table: EntryTable, entry: Entry, parent: Sequence[EntryTable], path: bytes) -> bool:
    """Tell whether a row says nothing: an empty new place, or a directory that is as it was but for its time."""
    if entry.flags & (FLAG_WHITEOUT | FLAG_OPAQUE):
        return False
    found = find_entry(parent, path)
    if found is None:
        return stat.S_ISDIR(entry.mode) or (stat.S_ISREG(entry.mode) and entry.size_bytes == 0)
    below, before = found
    same = (before.mode, before.uid, before.gid) == (entry.mode, entry.uid, entry.gid)
    return stat.S_ISDIR(entry.mode) and same and table.xattrs(entry) == below.xattrs(before)
