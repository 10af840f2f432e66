"""Merge the tables of stacked layers, and digest trees."""

from __future__ import annotations

from collections.abc import Sequence

from blake3 import blake3

from pylayers._native import tardiff
from pylayers.errors import IntegrityError
from pylayers.store.entry import EntryTable
from pylayers.store.layer import Layer


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


def subtree_end(table: EntryTable, row: int) -> int:
    """Return the end (exclusive) of the run of rows at and below a row."""
    return tardiff.subtree(table.records, table.heap, row)
