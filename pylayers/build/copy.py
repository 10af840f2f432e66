"""COPY and ADD of trees: the destination is resolved in the parent's merged table, the layer written from the sources.

Nothing is mounted or unpacked. The rules are those of BuildKit's COPY: directories give their content, a destination
with a trailing slash (or several sources) is a directory, an existing top directory keeps its metadata, missing
parents are made 0755, symlinks in the destination's parents are followed inside the root.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Sequence
from typing import NamedTuple

from pylayers._native import tardiff
from pylayers.build.source import GraftedRows, SourceTree, unhashed_rows
from pylayers.diff.resolve import find_path
from pylayers.errors import InvalidInput, SourceSpan
from pylayers.record import record
from pylayers.store.entry import (
    ENTRY_SIZE_BYTES,
    FLAG_IMPLICIT,
    SOURCE_PATH,
    SOURCE_STRUCT,
    Entry,
    EntryTable,
    TableBuilder,
    encode_xattrs,
    path_key,
)

OFFSET_FIELDS = (0, 8, 16)  # path_offset, link_offset, xattr_offset


@record
class Ownership:
    """Say what --chown and --chmod ask for; -1 keeps the source's."""

    uid: int = -1
    gid: int = -1
    mode: int = -1


@record
class Destination:
    """Where a COPY goes: `path` as given, made absolute; `as_directory` when it names a directory."""

    path: str
    as_directory: bool


@record(frozen=False)
class LayerRows:
    """A whole layer table with its sources; `grafts` says which rows came from which tree."""

    records: bytearray
    heap: bytearray
    sources: bytearray
    grafts: list[tuple[GraftedRows, int, int, int]]  # (rows, first row in the graft, first row here, count)

    def give_back_hashes(self) -> None:
        """Hand the hashes that tarwrite computed back to the walked trees."""
        from pylayers._native.graft import adopt_hashes

        for rows, skipped, first, count in self.grafts:
            if rows.origin is not None:
                adopt_hashes(rows.origin.own_table()[0], rows.start + skipped, self.records, first, count)
        for rows, *_ in self.grafts:
            if rows.origin is not None:
                # Rows that another source covered were not written, so their hashes may still be missing.
                rows.origin.unknown = unhashed_rows(rows.origin.records)


def place_destination(destination: str, working_dir: str, source_count: int) -> Destination:
    """Make a COPY destination absolute."""
    as_directory = destination.endswith("/") or destination.rsplit("/", 1)[-1] in (".", "..") or source_count > 1
    path = destination if destination.startswith("/") else f"{working_dir.rstrip('/')}/{destination}"
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            if parts:
                parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return Destination("/".join(parts), as_directory)


def lay_out(
    parent: EntryTable,
    trees: Sequence[SourceTree],
    destination: Destination,
    owner: Ownership,
    epoch_s: int,
    span: SourceSpan | None = None,
) -> LayerRows:
    """Make the layer table that puts trees at a destination over a parent's merged table."""
    made = Ancestors(parent, owner, epoch_s, span)
    grafts: list[tuple[GraftedRows, int]] = []
    for tree in trees:
        grafts.append(place_tree(parent, made, tree, destination, owner, span))
    for rows, skipped in grafts:
        check_collisions(parent, rows, skipped, span)
    return join(made, grafts)


def place_tree(
    parent: EntryTable,
    made: Ancestors,
    tree: SourceTree,
    destination: Destination,
    owner: Ownership,
    span: SourceSpan | None,
) -> tuple[GraftedRows, int]:
    """Graft one tree; the second value is 1 when its top row is left out for the directory that is there."""
    wanted = destination.path.encode(errors="surrogateescape")
    found = find_path(parent, wanted)
    existing = found.entry
    is_directory = existing is not None and stat.S_ISDIR(existing.mode)
    if tree.is_directory:
        if existing is not None and not is_directory:
            raise InvalidInput(f"cannot copy a directory to non-directory /{destination.path}", span=span)
        target = found.path
        if existing is not None:
            made.need(target)
            return tree.rows(target, owner.uid, owner.gid, owner.mode), 1
        made.need(target.rpartition(b"/")[0])
        return tree.rows(target, owner.uid, owner.gid, owner.mode), 0
    name = tree.name.encode(errors="surrogateescape")
    if destination.as_directory or is_directory:
        if existing is not None and not is_directory:
            raise InvalidInput(f"cannot copy into /{destination.path}: it is not a directory", span=span)
        target = b"/".join(part for part in (found.path, name) if part)
    else:
        # The last component is replaced, not followed.
        head, _, last = wanted.rpartition(b"/")
        target = b"/".join(part for part in (find_path(parent, head).path, last) if part)
    made.need(target.rpartition(b"/")[0])
    return tree.rows(target, owner.uid, owner.gid, owner.mode), 0


class Ancestors:
    """Collect the directories above what is copied: existing ones as they are, missing ones new."""

    def __init__(self, parent: EntryTable, owner: Ownership, epoch_s: int, span: SourceSpan | None) -> None:
        self.parent = parent
        self.owner = owner
        self.epoch_s = epoch_s
        self.span = span
        self.rows: dict[bytes, tuple[Entry, bytes]] = {
            b"": (Entry(mode=stat.S_IFDIR | 0o755, flags=FLAG_IMPLICIT), b"")
        }

    def need(self, path: bytes) -> None:
        """Add a directory and everything above it."""
        while path and path not in self.rows:
            row = tardiff.find(self.parent.records, self.parent.heap, path)
            if row >= 0:
                entry = self.parent.entry(row)
                if not stat.S_ISDIR(entry.mode):
                    raise InvalidInput(
                        f"cannot copy below /{path.decode(errors='replace')}: it is not a directory", span=self.span
                    )
                self.rows[path] = (fresh(entry), encode_xattrs(self.parent.xattrs(entry)))
            else:
                self.rows[path] = (
                    Entry(
                        mode=stat.S_IFDIR | 0o755,
                        uid=max(self.owner.uid, 0),
                        gid=max(self.owner.gid, 0),
                        mtime_ns=self.epoch_s * 1_000_000_000,
                    ),
                    b"",
                )
            path = path.rpartition(b"/")[0]

    def table(self) -> EntryTable:
        """Return the collected rows as a table."""
        builder = TableBuilder()
        for path, (entry, xattrs) in self.rows.items():
            builder.add(path, entry, xattrs=xattrs)
        return builder.build()[0]


def fresh(entry: Entry) -> Entry:
    """Clear what belongs to the table that an entry came from."""
    return Entry(
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        mtime_ns=entry.mtime_ns // 1_000_000_000 * 1_000_000_000,
    )


def check_collisions(parent: EntryTable, rows: GraftedRows, skipped: int, span: SourceSpan | None) -> None:
    """Refuse a directory over something else, and something else over a directory."""
    grafted = EntryTable(rows.records, rows.heap)
    if skipped >= len(grafted):
        return
    top = tardiff.find(parent.records, parent.heap, grafted.path(grafted.entry(0)))
    if top < 0:
        return
    end = tardiff.subtree(parent.records, parent.heap, top)
    # The smaller side is gone through, the other searched.
    swap = end - top < len(grafted)
    few, many = (parent, grafted) if swap else (grafted, parent)
    for row in range(top, end) if swap else range(skipped, len(grafted)):
        entry = few.entry(row)
        path = few.path(entry)
        found = tardiff.find(many.records, many.heap, path)
        if found < 0 or (swap and found < skipped):
            continue
        is_directory, other = stat.S_ISDIR(entry.mode), stat.S_ISDIR(many.entry(found).mode)
        if is_directory == other:
            continue
        shown = "/" + path.decode(errors="replace")
        if is_directory == swap:
            raise InvalidInput(f"cannot copy to directory {shown}: the source is not a directory", span=span)
        raise InvalidInput(f"cannot copy to non-directory {shown}: the source is a directory", span=span)


def join(made: Ancestors, grafts: Sequence[tuple[GraftedRows, int]]) -> LayerRows:
    """Join the ancestors' rows and the grafted trees to one sorted table."""
    ancestors = made.table()
    if len(grafts) == 1:
        return join_one(ancestors, *grafts[0])
    none = SOURCE_STRUCT.pack(-1, 0, 0, 0)
    chosen: dict[bytes, ChosenRow] = {}
    heap = bytearray(ancestors.heap)
    for row, entry in enumerate(ancestors):
        path = ancestors.path(entry)
        chosen[path] = ChosenRow(path_key(path), entry.mode, rebase(ancestors.records, row, 0), none, -1, row)
    for number, (rows, skipped) in enumerate(grafts):
        base = len(heap)
        heap += rows.heap
        table = EntryTable(rows.records, rows.heap)
        for row in range(skipped, len(table)):
            entry = table.entry(row)
            path = table.path(entry)
            previous = chosen.get(path)
            if previous is not None and stat.S_ISDIR(previous.mode) != stat.S_ISDIR(entry.mode):
                raise InvalidInput(
                    f"sources disagree whether /{path.decode(errors='replace')} is a directory", span=made.span
                )
            descriptor, kind, offset, length = SOURCE_STRUCT.unpack_from(rows.sources, row * SOURCE_STRUCT.size)
            source = SOURCE_STRUCT.pack(descriptor, kind, offset + (base if kind == SOURCE_PATH else 0), length)
            chosen[path] = ChosenRow(path_key(path), entry.mode, rebase(rows.records, row, base), source, number, row)
    ordered = sorted(chosen.values(), key=lambda row: row.key)
    return LayerRows(
        bytearray().join(row.record for row in ordered),
        heap,
        bytearray().join(row.source for row in ordered),
        find_runs(ordered, grafts),
    )


class ChosenRow(NamedTuple):
    """One row of a join: where it sorts, what it is, and the graft (-1: an ancestor) and row it came from."""

    key: bytes
    mode: int
    record: bytearray
    source: bytes
    graft: int
    row: int


def find_runs(
    ordered: Sequence[ChosenRow], grafts: Sequence[tuple[GraftedRows, int]]
) -> list[tuple[GraftedRows, int, int, int]]:
    """Group joined rows that are consecutive in one graft, so that hashes can be handed back in runs."""
    runs: list[tuple[GraftedRows, int, int, int]] = []
    begin = 0
    for at in range(1, len(ordered) + 1):
        first = ordered[begin]
        if at < len(ordered) and ordered[at].graft == first.graft and ordered[at].row == first.row + at - begin:
            continue
        if first.graft >= 0:
            runs.append((grafts[first.graft][0], first.row, begin, at - begin))
        begin = at
    return runs


def join_one(ancestors: EntryTable, rows: GraftedRows, skipped: int) -> LayerRows:
    """Join a single tree: its rows already follow those of its ancestors."""
    heap = rows.heap
    base = len(heap)
    heap += ancestors.heap
    above = len(ancestors)
    records = bytearray()
    for row in range(above):
        records += rebase(ancestors.records, row, base)
    count = len(rows.records) // ENTRY_SIZE_BYTES - skipped
    records += memoryview(rows.records)[skipped * ENTRY_SIZE_BYTES :]
    sources = bytearray(SOURCE_STRUCT.pack(-1, 0, 0, 0) * above)
    sources += memoryview(rows.sources)[skipped * SOURCE_STRUCT.size :]
    return LayerRows(records, heap, sources, [(rows, skipped, above, count)])


def rebase(records: bytes | bytearray | memoryview, row: int, base: int) -> bytearray:
    """Copy one record with its heap offsets moved by base."""
    record = bytearray(memoryview(records)[row * ENTRY_SIZE_BYTES : (row + 1) * ENTRY_SIZE_BYTES])
    for at in OFFSET_FIELDS:
        struct.pack_into("<Q", record, at, struct.unpack_from("<Q", record, at)[0] + base)
    return record
