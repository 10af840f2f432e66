"""Prepare a layer's table for an EROFS image that lies in a stack: exact marks and passed-through directories."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from pylayers._native import changeset
from pylayers.diff.overlaymark import OVERLAY_PREFIXES
from pylayers.snapshot.lower import read_xattrs
from pylayers.snapshot.lowertable import TableStack
from pylayers.store.entry import (
    ENTRY_SIZE_BYTES,
    ENTRY_STRUCT,
    FLAG_IMPLICIT,
    FLAG_OPAQUE,
    FLAG_WHITEOUT,
    EntryTable,
    encode_xattrs,
)
from pylayers.store.row import Entry

MARKED = FLAG_WHITEOUT | FLAG_OPAQUE | FLAG_IMPLICIT


def settle_table(table: EntryTable, top: Path, below: Callable[[], AbstractContextManager[TableStack]]) -> EntryTable:
    """Return a layer's table as it has to be shown over what lies below it.

    Directories that the layer only passes through get the metadata that they have below (the root: `top`'s), since an
    overlay shows the uppermost's; marks that hide nothing are dropped, since an overlay lists those of a directory
    that merges with nothing. `below` is entered only when a row needs a look-up.
    """
    marked = [row for row in memoryview(changeset.find_flagged(table.records, MARKED)).cast("I") if row]
    implicit_root = bool(table.entry(0).flags & FLAG_IMPLICIT)
    if not marked and not implicit_root:
        return table
    changed = _Rows(table)
    if implicit_root:
        changed.take(0, os.stat(top), read_xattrs(os.fsencode(top)))
    if marked:
        with below() as stack:
            for row in marked:
                _settle_row(changed, stack, row, table.entry(row), table.path(table.entry(row)))
    return changed.build()


class _Rows:
    """Collect changes to a copy of a table."""

    def __init__(self, table: EntryTable) -> None:
        self._table = table
        self._records = bytearray(table.records)
        self._more = bytearray()
        self._dropped: list[int] = []

    def drop(self, row: int) -> None:
        """Leave a row out."""
        self._dropped.append(row)

    def put(self, row: int, entry: Entry) -> None:
        """Replace a row."""
        ENTRY_STRUCT.pack_into(self._records, row * ENTRY_SIZE_BYTES, *entry)

    def take(self, row: int, seen: os.stat_result, xattrs: dict[bytes, bytes]) -> None:
        """Give a directory's row the metadata of another directory."""
        encoded = encode_xattrs(xattrs)
        entry = self._table.entry(row)
        self.put(
            row,
            entry._replace(
                mode=seen.st_mode,
                uid=seen.st_uid,
                gid=seen.st_gid,
                mtime_ns=seen.st_mtime_ns,
                xattr_offset=len(self._table.heap) + len(self._more),
                xattr_length=len(encoded),
            ),
        )
        self._more += encoded

    def build(self) -> EntryTable:
        """Return the changed table."""
        records = self._records
        if self._dropped:
            starts = [0, *(row + 1 for row in self._dropped)]
            ends = [*self._dropped, len(self._table)]
            kept = memoryview(records)
            records = bytearray().join(
                kept[start * ENTRY_SIZE_BYTES : end * ENTRY_SIZE_BYTES]
                for start, end in zip(starts, ends, strict=True)
            )
        heap = self._table.heap
        return EntryTable(records, bytearray().join((heap, self._more)) if self._more else heap)


def _settle_row(changed: _Rows, stack: TableStack, row: int, entry: Entry, path: bytes) -> None:
    found = stack.find(path)
    if entry.flags & FLAG_WHITEOUT:
        if found is None:
            changed.drop(row)
        return
    merges = found is not None and bool(found.directories)
    if entry.flags & FLAG_OPAQUE and not merges:
        changed.put(row, entry._replace(flags=entry.flags & ~FLAG_OPAQUE))
    if entry.flags & FLAG_IMPLICIT and found is not None and merges:
        changed.take(row, *stack.read(path, found))


def give_metadata(directory: Path, entry: Entry, xattrs: dict[bytes, bytes]) -> None:
    """Give a directory the owner, mode, extended attributes and times of a row."""
    place = os.fsencode(directory)
    os.chown(place, entry.uid, entry.gid)
    os.chmod(place, stat.S_IMODE(entry.mode))
    wanted = {name: value for name, value in xattrs.items() if not name.startswith(OVERLAY_PREFIXES)}
    for name in read_xattrs(place):
        if name not in wanted:
            os.removexattr(place, name)
    for name, value in wanted.items():
        os.setxattr(place, name, value)
    os.utime(place, ns=(entry.mtime_ns, entry.mtime_ns))
