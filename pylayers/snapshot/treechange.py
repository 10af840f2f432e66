"""Find what changed between two mounted trees: what a driver without a shorter way derives its changes from."""

from __future__ import annotations

import stat
import struct

from pylayers._native import tardiff, walk
from pylayers.snapshot.changeset import pack_changes
from pylayers.snapshot.snapshotter import Changes
from pylayers.store.entry import FLAG_HARDLINK, FLAG_HASHED, EntryTable, TableBuilder
from pylayers.store.row import Entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CHANGE_STRUCT = struct.Struct("<III")
CHANGE_DELETE = 2
SECOND_NS = 1_000_000_000


def compare_trees(old_fd: int, new_fd: int, untouched_before_ns: int) -> Changes:
    """Return the changes of a tree against an older one (-1: an empty one); they own new_fd.

    untouched_before_ns: see hash_undecided.
    """
    old = EntryTable(*walk.walk(old_fd, xattrs=True)) if old_fd >= 0 else empty_tree()
    new_records, new_heap = walk.walk(new_fd, xattrs=True)
    new = EntryTable(new_records, new_heap)
    hash_undecided(old_fd, old, new_fd, new, untouched_before_ns)
    keep = bytearray(len(new))
    deleted: list[bytes] = []
    for kind, old_row, new_row in CHANGE_STRUCT.iter_unpack(
        tardiff.diff(old.records, old.heap, new_records, new_heap, True)
    ):
        if kind == CHANGE_DELETE:
            deleted.append(old.path(old.entry(old_row)))
        else:
            keep[new_row] = 1
    _drop_hashes(new_records)
    return pack_changes(
        new_records, new_heap, keep, deleted, root_changed=_root_differs(old, new), descriptor=new_fd
    )


def hash_undecided(old_fd: int, old: EntryTable, new_fd: int, new: EntryTable, untouched_before_ns: int) -> None:
    """Hash both sides of the regular files whose metadata is equal without proving equal content.

    That is a file with the old size, mtime, mode and owner, whose ctime is not before untouched_before_ns; when that
    is 0, one with a mtime of whole seconds (as tars give), since any write that sets no time leaves a finer one.
    """
    array = new.array
    undecided = ((array["mode"] & 0o170000) == stat.S_IFREG) & (array["size_bytes"] > 0)
    undecided &= (array["flags"] & FLAG_HARDLINK) == 0
    if untouched_before_ns:
        undecided &= array["ctime_ns"] >= untouched_before_ns
    else:
        undecided &= array["mtime_ns"] % SECOND_NS == 0
    pairs: list[tuple[int, int]] = []
    for row in undecided.nonzero()[0].tolist():
        entry = new.entry(row)
        old_row = tardiff.find(old.records, old.heap, new.path(entry))
        if old_row < 0:
            continue
        before = old.entry(old_row)
        one_file = entry.inode and (before.device, before.inode) == (entry.device, entry.inode)
        if not one_file and _same_stat(before, entry):
            pairs.append((old_row, row))
    del array, undecided
    if pairs:
        _hash_rows(old_fd, old, [pair[0] for pair in pairs])
        _hash_rows(new_fd, new, [pair[1] for pair in pairs])


def empty_tree() -> EntryTable:
    """Give the table of a snapshot without a parent that nobody wrote to."""
    builder = TableBuilder()
    builder.add(b"", Entry(mode=stat.S_IFDIR | 0o755))
    return builder.build()[0]


def _hash_rows(root_fd: int, table: EntryTable, rows: list[int]) -> None:
    from blake3 import blake3

    from pylayers._native import filehash

    records = table.records
    if not isinstance(records, bytearray):
        raise TypeError("only a walked table can be hashed")
    filehash.hash_files(root_fd, records, table.heap, struct.pack(f"={len(rows)}I", *rows), blake3)


def _same_stat(old: Entry, new: Entry) -> bool:
    fields = ("mode", "uid", "gid", "size_bytes", "mtime_ns")
    return all(getattr(old, field) == getattr(new, field) for field in fields)


def _root_differs(old: EntryTable, new: EntryTable) -> bool:
    """Compare the roots; their times don't count, as every entry made at the top changes them."""
    before, after = old.entry(0), new.entry(0)
    same = (before.mode, before.uid, before.gid) == (after.mode, after.uid, after.gid)
    return not same or old.xattrs(before) != new.xattrs(after)


def _drop_hashes(records: bytearray) -> None:
    """Clear the hashes taken for comparing, so that tarwrite takes them from the bytes it really writes."""
    array: npt.NDArray[np.void] = EntryTable(records, b"").array
    array["flags"] &= 0xFFFFFFFF ^ FLAG_HASHED
