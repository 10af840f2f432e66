"""Tell in words how two trees differ."""

from __future__ import annotations

import stat
import struct
from typing import NamedTuple

from pylayers._native import tardiff
from pylayers.store.entry import EntryTable
from pylayers.store.row import Entry

CHANGE_STRUCT = struct.Struct("=III")
KIND_ADD, KIND_DELETE = 0, 2
TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


class Difference(NamedTuple):
    """One path without a leading slash, and what differs about it."""

    path: bytes
    differences: tuple[str, ...]


def list_differences(old: EntryTable, new: EntryTable, limit: int) -> tuple[list[Difference], int]:
    """Return the first differences of two merged tables in path order, and how many there are; times don't count.

    A removed directory is one difference, an added one as many as it holds. Linear in the rows.
    """
    changes = tardiff.diff(old.records, old.heap, new.records, new.heap, False)
    found: list[Difference] = []
    for kind, old_row, new_row in CHANGE_STRUCT.iter_unpack(changes[: limit * CHANGE_STRUCT.size]):
        if kind == KIND_DELETE:
            found.append(Difference(old.path(old.entry(old_row)), ("removed",)))
        elif kind == KIND_ADD:
            found.append(Difference(new.path(new.entry(new_row)), ("added",)))
        else:
            before, after = old.entry(old_row), new.entry(new_row)
            found.append(Difference(new.path(after), compare_entries(old, before, new, after)))
    return found, len(changes) // CHANGE_STRUCT.size


def compare_entries(old: EntryTable, before: Entry, new: EntryTable, after: Entry) -> tuple[str, ...]:
    """Name what differs between two entries of one path."""
    kinds = stat.S_IFMT(before.mode), stat.S_IFMT(after.mode)
    if kinds[0] != kinds[1]:
        return (f"type {TYPES.get(kinds[0], 'unknown')} → {TYPES.get(kinds[1], 'unknown')}",)
    found: list[str] = []
    if stat.S_ISLNK(after.mode) and old.link(before) != new.link(after):
        found.append(f"link target {shown(old.link(before))} → {shown(new.link(after))}")
    elif (before.size_bytes, before.blake3) != (after.size_bytes, after.blake3):
        found.append("content")
    elif old.link(before) != new.link(after):
        found.append("hard link")
    if before.mode != after.mode:
        found.append(f"mode {stat.S_IMODE(before.mode):04o} → {stat.S_IMODE(after.mode):04o}")
    if (before.uid, before.gid) != (after.uid, after.gid):
        found.append(f"owner {before.uid}:{before.gid} → {after.uid}:{after.gid}")
    if (before.rdev_major, before.rdev_minor) != (after.rdev_major, after.rdev_minor):
        found.append(
            f"device {before.rdev_major}:{before.rdev_minor} → {after.rdev_major}:{after.rdev_minor}"
        )
    had, has = old.xattrs(before), new.xattrs(after)
    found += [f"xattr {shown(name)}" for name in sorted(had.keys() | has.keys()) if had.get(name) != has.get(name)]
    return tuple(found)


def shown(name: bytes) -> str:
    """Return a name as text."""
    return name.decode(errors="backslashreplace")
