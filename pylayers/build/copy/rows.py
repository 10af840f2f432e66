"""A layer's rows made of directories and grafted trees: joined to one sorted table, later trees over earlier ones."""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pylayers._native import tardiff
from pylayers._native.graft import adopt_hashes
from pylayers.build.source.local import GraftedRows
from pylayers.build.source.selector import unhashed_rows
from pylayers.record import field, record
from pylayers.store.entry import (
    ENTRY_SIZE_BYTES,
    FLAG_HARDLINK,
    SOURCE_HEAP,
    SOURCE_PATH,
    SOURCE_STRUCT,
    EntryTable,
    path_key,
)

SOURCE_SIZE_BYTES = SOURCE_STRUCT.size
OFFSET_FIELDS = (0, 8, 16)  # path_offset, link_offset, xattr_offset
LINK_OFFSET_AT = 8
LINK_LENGTH_AT = 84
FLAGS_AT = 116
WORDS_PER_ENTRY = ENTRY_SIZE_BYTES // 4
WORD_FLAGS = 29
NOTHING = SOURCE_STRUCT.pack(-1, 0, 0, 0)
FEW = 16  # so many rows of the large side for one of the small: search, don't list the keys


@record(frozen=False)
class Graft:
    """A tree's rows at their place; the first `skipped` are not written (a directory's top is the layout's)."""

    rows: GraftedRows
    skipped: int = 0

    @property
    def table(self) -> EntryTable:
        """Return the rows as a table."""
        return EntryTable(self.rows.records, self.rows.heap)

    @property
    def count(self) -> int:
        """Return how many rows are written."""
        return len(self.rows.records) // ENTRY_SIZE_BYTES - self.skipped

    def find(self, path: bytes) -> int:
        """Return the row of a path that is written, or -1."""
        row = tardiff.find(self.rows.records, self.rows.heap, path)
        return row if row >= self.skipped else -1


class Run(NamedTuple):
    """Rows that are consecutive both in a graft and in the layer."""

    graft: Graft
    first: int  # in the graft
    here: int  # in the layer
    length: int


@record(frozen=False)
class LayerRows:
    """A whole layer table with its sources; `runs` says which rows came from which tree."""

    records: bytearray
    heap: bytearray
    sources: bytearray
    runs: list[Run] = field(default_factory=list)

    def known_records(self) -> bytearray:
        """Return the rows with the hashes that the walked trees know."""
        known = bytearray(self.records)
        for graft, first, here, length in self.runs:
            if graft.rows.origin is not None:
                adopt_hashes(known, here, graft.rows.origin.records, graft.rows.start + first, length)
        return known

    def give_back_hashes(self) -> None:
        """Hand the hashes that tarwrite computed back to the walked trees."""
        for graft, first, here, length in self.runs:
            if graft.rows.origin is not None:
                graft.rows.origin.adopt(graft.rows.start + first, self.records, here, length)
        for graft, *_ in self.runs:
            if graft.rows.origin is not None and graft.rows.origin.unknown:
                # Rows that another source covered were not written, so their hashes may still be missing.
                graft.rows.origin.unknown = unhashed_rows(graft.rows.origin.records)


class Piece(NamedTuple):
    """One row that goes between (or in place of) the rows of the largest graft."""

    key: bytes
    record: bytearray
    source: bytes
    order: int  # the number of its graft, or -1
    row: int


class Keys(Sequence[bytes]):
    """The sort keys of a graft's written rows, read when asked for."""

    def __init__(self, graft: Graft) -> None:
        self._table = graft.table
        self._skipped = graft.skipped
        self._count = graft.count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return path_key(self._table.path(self._table.entry(self._skipped + index)))


def join(directories: EntryTable, grafts: Sequence[Graft]) -> LayerRows:
    """Join directories and grafts (which any of the grafts may override, later ones earlier ones) to one table.

    The largest graft's buffers become the layer's; the rows of all others are put between its own one by one. Only the
    origin and start of its GraftedRows hold afterwards.
    """
    written = [graft for graft in grafts if graft.count]
    large = max(range(len(written)), key=lambda number: written[number].count) if written else -1
    heap = written[large].rows.heap if written else bytearray()
    pieces: dict[bytes, Piece] = {}
    covered: dict[int, dict[bytes, Piece]] = {}  # by graft: rows that another graft's took the place of
    base = len(heap)
    heap += directories.heap
    for row, entry in enumerate(directories):
        path = directories.path(entry)
        pieces[path] = Piece(path_key(path), rebase(directories.records, row, base), NOTHING, -1, row)
    for number, graft in enumerate(written):
        if number != large:
            base = len(heap)
            heap += graft.rows.heap
            take_pieces(graft, number, base, pieces, covered)
    if not written:
        ordered = sorted(pieces.values(), key=lambda piece: piece.key)
        records = bytearray().join(piece.record for piece in ordered)
        return LayerRows(records, heap, bytearray(NOTHING * len(ordered)))
    made = weave(written, large, sorted(pieces.values(), key=lambda piece: piece.key), heap, covered)
    if covered:
        mend_links(made, written, covered)
    return made


def take_pieces(
    graft: Graft, number: int, base: int, pieces: dict[bytes, Piece], covered: dict[int, dict[bytes, Piece]]
) -> None:
    """Add a small graft's rows to the pieces; its heap lies at `base` of the layer's."""
    table = graft.table
    for row in range(graft.skipped, graft.skipped + graft.count):
        path = table.path(table.entry(row))
        previous = pieces.get(path)
        if previous is not None:
            covered.setdefault(previous.order, {})[path] = previous
        pieces[path] = make_piece(graft, number, row, base, path)


def make_piece(graft: Graft, number: int, row: int, base: int, path: bytes) -> Piece:
    """Return one row of a graft with its offsets moved."""
    descriptor, kind, offset, length = SOURCE_STRUCT.unpack_from(graft.rows.sources, row * SOURCE_SIZE_BYTES)
    source = SOURCE_STRUCT.pack(descriptor, kind, offset + (base if kind in (SOURCE_PATH, SOURCE_HEAP) else 0), length)
    return Piece(path_key(path), rebase(graft.rows.records, row, base), source, number, row)


def weave(
    written: Sequence[Graft], large: int, pieces: list[Piece], heap: bytearray, covered: dict[int, dict[bytes, Piece]]
) -> LayerRows:
    """Put sorted pieces between the rows of the large graft; where both have a path, the later graft's row stays.

    The layer takes over the graft's own rows, which are moved within their buffers: a second copy of a large table
    would be the most that a build holds.
    """
    graft = written[large]
    count, skipped = graft.count, graft.skipped
    keys: Sequence[bytes] = Keys(graft)
    if len(pieces) * FEW > count:
        keys = [keys[row] for row in range(count)]
    runs: list[Run] = []
    placed: list[tuple[int, Piece]] = []
    at = here = 0

    def keep_until(end: int) -> None:
        nonlocal here
        if end > at:
            runs.append(Run(graft, skipped + at, here, end - at))
            here += end - at

    for piece in pieces:
        place = bisect_left(keys, piece.key, at)
        keep_until(place)
        at = place
        if place < count and keys[place] == piece.key:
            path = graft.table.path(graft.table.entry(skipped + place))
            if piece.order < large:
                covered.setdefault(piece.order, {})[path] = piece
                continue
            covered.setdefault(large, {})[path] = make_piece(graft, large, skipped + place, 0, path)
            at = place + 1
        if piece.order >= 0:
            add_run(runs, written[piece.order], piece.row, here)
        placed.append((here, piece))
        here += 1
    keep_until(count)
    moves = [(run.first, run.here, run.length) for run in runs if run.graft is graft]
    records, sources = graft.rows.records, graft.rows.sources
    rearrange(records, ENTRY_SIZE_BYTES, moves, [(row, piece.record) for row, piece in placed], here)
    rearrange(sources, SOURCE_SIZE_BYTES, moves, [(row, piece.source) for row, piece in placed], here)
    return LayerRows(records, heap, sources, runs)


def rearrange(
    table: bytearray,
    size_bytes: int,
    moves: Sequence[tuple[int, int, int]],
    placed: Sequence[tuple[int, bytes | bytearray]],
    count: int,
) -> None:
    """Move runs of a table's rows (from, to, length; in order), put others at theirs, and end it at `count` rows."""
    table += bytes(max(0, count * size_bytes - len(table)))
    # Those towards the front from the front on, then the others from the back on: none lands on one that still waits.
    ordered = [move for move in moves if move[1] < move[0]] + [move for move in moves if move[1] > move[0]][::-1]
    with memoryview(table) as view:
        for first, here, length in ordered:
            view[here * size_bytes : (here + length) * size_bytes] = view[
                first * size_bytes : (first + length) * size_bytes
            ]
        for row, content in placed:
            view[row * size_bytes : (row + 1) * size_bytes] = content
    del table[count * size_bytes :]


def add_run(runs: list[Run], graft: Graft, row: int, here: int) -> None:
    """Note one row's origin, with the run before it where it goes on."""
    if runs:
        last = runs[-1]
        if last.graft is graft and last.first + last.length == row and last.here + last.length == here:
            runs[-1] = last._replace(length=last.length + 1)
            return
    runs.append(Run(graft, row, here, 1))


def mend_links(made: LayerRows, written: Sequence[Graft], covered: dict[int, dict[bytes, Piece]]) -> None:
    """Give hard links whose first name was covered the file that they were: the next name becomes the first."""
    for number, graft in enumerate(written):
        lost = covered.get(number)
        if not lost:
            continue
        firsts: dict[bytes, bytes] = {}
        for here in rows_of(made, graft):
            table = EntryTable(made.records, made.heap)
            entry = table.entry(here)
            if not entry.flags & FLAG_HARDLINK or (target := table.link(entry)) not in lost:
                continue
            at = here * ENTRY_SIZE_BYTES
            first = firsts.setdefault(target, table.path(entry))
            if first == table.path(entry):
                record = bytearray(lost[target].record)
                record[0:8] = made.records[at : at + 8]  # where its own path is, and how long
                record[80:84] = made.records[at + 80 : at + 84]
                made.records[at : at + ENTRY_SIZE_BYTES] = record
                made.sources[here * SOURCE_SIZE_BYTES : (here + 1) * SOURCE_SIZE_BYTES] = lost[target].source
            else:
                struct.pack_into("<Q", made.records, at + LINK_OFFSET_AT, len(made.heap))
                struct.pack_into("<I", made.records, at + LINK_LENGTH_AT, len(first))
                made.heap += first


def rows_of(made: LayerRows, graft: Graft) -> Iterator[int]:
    """Yield the layer's rows that came from a graft."""
    for run in made.runs:
        if run.graft is graft:
            yield from range(run.here, run.here + run.length)


def rebase(records: bytes | bytearray | memoryview, row: int, base: int) -> bytearray:
    """Copy one record with its heap offsets moved by base."""
    record = bytearray(memoryview(records)[row * ENTRY_SIZE_BYTES : (row + 1) * ENTRY_SIZE_BYTES])
    for at in OFFSET_FIELDS:
        struct.pack_into("<Q", record, at, struct.unpack_from("<Q", record, at)[0] + base)
    return record
