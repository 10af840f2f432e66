"""Find what an overlay's upper directory really changes against the layers below it."""

from __future__ import annotations

import os
import stat

from pylayers._native import changeset, tardiff
from pylayers.snapshot.changeset import KIND_BITS, pack_changes
from pylayers.snapshot.lower import Found, LowerStack, read_xattrs
from pylayers.snapshot.snapshotter import Changes
from pylayers.store.entry import FLAG_OPAQUE, FLAG_WHITEOUT, EntryTable
from pylayers.store.row import Entry

NO_PARENT_ROOT = (stat.S_IFDIR | 0o755, 0, 0)
BLOCK_BYTES = 1 << 20


def find_upper_changes(records: bytearray, heap: bytearray, descriptor: int, below: LowerStack) -> Changes:
    """Choose the rows of a converted upper table that differ from what the layers below show.

    The work is in proportion to the entries in directories that exist below; a new directory is taken in one step.
    The result owns descriptor.
    """
    table = EntryTable(records, heap)
    keep = bytearray(len(table))
    row = 1
    while row < len(table):
        entry = table.entry(row)
        found = below.find(table.path(entry))
        if entry.flags & FLAG_WHITEOUT:
            keep[row] = found is not None
        elif stat.S_ISDIR(entry.mode) and (found is None or not found.directories or entry.flags & FLAG_OPAQUE):
            end = tardiff.subtree(records, heap, row)
            changeset.keep_tree(records, keep, row, end, found is not None and bool(found.directories))
            row = end
            continue
        else:
            keep[row] = found is None or not _is_same(table, entry, found, descriptor, below)
        row += 1
    root_changed = _root_differs(table, below.find(b""))
    return pack_changes(records, heap, keep, (), root_changed=root_changed, descriptor=descriptor)


def _is_same(table: EntryTable, entry: Entry, found: Found, descriptor: int, below: LowerStack) -> bool:
    """Tell whether an upper entry is a mere copy of what is below."""
    seen = found.stat
    if (entry.mode, entry.uid, entry.gid, entry.mtime_ns) != (
        seen.st_mode,
        seen.st_uid,
        seen.st_gid,
        seen.st_mtime_ns,
    ):
        return False
    kind = entry.mode & KIND_BITS
    if os.makedev(entry.rdev_major, entry.rdev_minor) != seen.st_rdev:
        return False
    if (kind == stat.S_IFREG and entry.size_bytes != seen.st_size) or table.xattrs(entry) != read_xattrs(found.path):
        return False
    if kind == stat.S_IFLNK:
        return os.readlink(found.path) == _read_upper_link(table, entry, descriptor)
    if kind != stat.S_IFREG:
        return True
    # Copying one name of a hard link up takes it out of its group, which is a change in itself.
    return below.count_links(found) == 1 and _same_content(table.path(entry), descriptor, found.path)


def _read_upper_link(table: EntryTable, entry: Entry, descriptor: int) -> bytes:
    """Read a symlink itself, as a row that is a hard link to a symlink holds the other name instead."""
    return os.readlink(table.path(entry), dir_fd=descriptor)


def _same_content(path: bytes, descriptor: int, other_path: bytes) -> bool:
    with (
        open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor), "rb", buffering=0) as one,
        open(os.open(other_path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb", buffering=0) as other,
    ):
        while True:
            block = one.read(BLOCK_BYTES)
            if block != other.read(BLOCK_BYTES):
                return False
            if not block:
                return True


def _root_differs(table: EntryTable, found: Found | None) -> bool:
    """Compare the roots; their times don't count, as every entry made at the top changes them."""
    root = table.entry(0)
    if found is None:
        return (root.mode, root.uid, root.gid) != NO_PARENT_ROOT or root.xattr_length > 0
    seen = found.stat
    same = (root.mode, root.uid, root.gid) == (seen.st_mode, seen.st_uid, seen.st_gid)
    return not same or table.xattrs(root) != read_xattrs(found.path)
