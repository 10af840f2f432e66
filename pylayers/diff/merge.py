"""Merge the tables of stacked layers, and digest trees."""

from __future__ import annotations

import stat
from collections.abc import Sequence

from blake3 import blake3

from pylayers._native import tardiff
from pylayers.errors import IntegrityError
from pylayers.store.entry import FLAG_IMPLICIT, FLAG_OPAQUE, FLAG_WHITEOUT, EntryTable
from pylayers.store.layer import Layer
from pylayers.store.row import Entry


def merge_layers(layers: Sequence[Layer]) -> EntryTable:
    """Merge layers, lowest first, into the table of the tree they make; each row's `layer` indexes `layers`."""
    return merge_tables([layer.table for layer in layers])


def merge_tables(tables: Sequence[EntryTable]) -> EntryTable:
    """Merge layer tables, lowest first: no whiteouts and no OPAQUE are left. Linear in the rows; releases the GIL."""
    records, heap = tardiff.merge([(table.records, table.heap) for table in tables])
    return EntryTable(records, heap)


def tree_digest(table: EntryTable, index: int = 0, top_metadata: bool = True) -> bytes:
    """Return the BLAKE3 Merkle root (32 bytes) of the tree at a row; times do not enter.

    Regular files must be HASHED, as they are in every stored layer. top_metadata=False leaves the top's own mode,
    owner and xattrs out. Raises IntegrityError when a file has no hash.
    """
    try:
        return tardiff.tree_digest(table.records, table.heap, blake3, index, top_metadata)
    except ValueError as error:
        raise IntegrityError(f"no tree digest: {error}") from error


def find_row(table: EntryTable, path: bytes) -> int | None:
    """Return the row of a path (no symlinks followed), or None. Binary search."""
    row = tardiff.find(table.records, table.heap, path)
    return None if row < 0 else row


def find_entry(tables: Sequence[EntryTable], path: bytes) -> tuple[EntryTable, Entry] | None:
    """Return what stacked layer tables, lowest first, show at a path: what their merged table would, without merging.

    Some binary searches a table; for a few paths of a large image. Of a hard link it is the link's own row.
    """
    implicit = None
    for table in reversed(tables):
        row = find_row(table, path)
        if row is not None:
            entry = table.entry(row)
            if entry.flags & FLAG_WHITEOUT or (implicit is not None and not stat.S_ISDIR(entry.mode)):
                return implicit
            if not entry.flags & FLAG_IMPLICIT:
                return table, entry
            implicit = implicit or (table, entry)
        if _is_covered(table, path):
            break
    return implicit


def _is_covered(table: EntryTable, path: bytes) -> bool:
    """Tell whether a layer hides what the layers below it have at a path, by something above the path."""
    while path:
        path = path.rpartition(b"/")[0]
        row = find_row(table, path)
        if row is not None:
            entry = table.entry(row)
            if entry.flags & (FLAG_WHITEOUT | FLAG_OPAQUE) or not stat.S_ISDIR(entry.mode):
                return True
    return False


def subtree_end(table: EntryTable, row: int) -> int:
    """Return the end (exclusive) of the run of rows at and below a row."""
    return tardiff.subtree(table.records, table.heap, row)
