"""--split-layers: one COPY of many gigabytes as several layers, cut where the content says.

A change of one file makes one layer anew, and sends one: where a cut lies depends only on the names and sizes around
it. Before an entry there is a cut where the hash of its path is the smallest of all within half the wanted size on
both sides; a file of the wanted size or more is a layer of its own; what is still longer than twice the wanted size is
cut at its own smallest hash. Every part names the directories above its entries, and hard links stay with their file,
so that each part is a tree on its own. See docs/internals/split-layer.md.
"""

from __future__ import annotations

import stat
import struct
from collections import deque
from collections.abc import Sequence
from itertools import pairwise

from blake3 import blake3

from pylayers._native import tardiff
from pylayers._native.graft import adopt_hashes
from pylayers.build.cache.key import hash_fields
from pylayers.build.cache.step import CachedStep
from pylayers.build.copy.rows import LayerRows
from pylayers.build.session import BuildSession
from pylayers.build.state import StageState
from pylayers.diff.write import write_layer
from pylayers.errors import InvalidInput
from pylayers.oci.chain import chain_id
from pylayers.record import record
from pylayers.store.entry import (
    ENTRY_SIZE_BYTES,
    ENTRY_STRUCT,
    FLAG_HARDLINK,
    FLAG_HASHED,
    SOURCE_HEAP,
    SOURCE_PATH,
    SOURCE_STRUCT,
    EntryTable,
)

LEAST_BYTES = 1 << 20
BLOCK_BYTES = 512
SOURCE_SIZE_BYTES = SOURCE_STRUCT.size


@record
class Unit:
    """One entry with its hard links: what no cut goes through."""

    rows: tuple[int, ...]
    size_bytes: int
    order: int  # by the hash of its path


def read_split_size(given: str) -> int:
    """Return the wanted size of a part in bytes. Raises InvalidInput."""
    from pylayers.volume.parse import parse_size

    size_bytes = parse_size(given)
    if size_bytes < LEAST_BYTES:
        raise InvalidInput(f"--split-layers {given}: at least 1m is needed", hint="write a size such as 512m")
    return size_bytes


def store_parts(session: BuildSession, state: StageState, rows: LayerRows, size_bytes: int) -> CachedStep:
    """Write a COPY's rows as layers near a size; a part whose content is on record is used again."""
    table = EntryTable(rows.records, rows.heap)
    parts = divide(table, size_bytes)
    known = adopt_known(rows) if len(parts) > 1 else None
    diff_ids: list[str] = []
    total_bytes = 0
    for part in parts:
        key = None if known is None else name_part(EntryTable(*take(known, rows.heap, rows.sources, part)[:2]))
        found = None if key is None else session.reuse(key)
        if found is None or found.diff_id is None:
            found = write_part(session, rows, part)
        diff_ids.append(found.diff_id or "")
        total_bytes += found.size_bytes
    rows.give_back_hashes()
    for diff_id in diff_ids:
        session.hold("layer", diff_id)
    whole = (*state.diff_ids, *diff_ids)
    session.trees.record(whole)
    return CachedStep(diff_ids[-1], total_bytes, chain_id(whole), below=tuple(diff_ids[:-1]))


def write_part(session: BuildSession, rows: LayerRows, part: Sequence[int]) -> CachedStep:
    """Write one part, note it under its content, and hand its hashes back to the whole."""
    records, heap, sources = take(rows.records, rows.heap, rows.sources, part)
    layer = write_layer(session.store, records, heap, sources)
    for at, row in enumerate(part):
        adopt_hashes(rows.records, row, records, at, 1)
    made = CachedStep(layer.diff_id, layer.size_bytes)
    session.cache.record(name_part(EntryTable(records, heap)), "", "part", "", made)
    return made


def name_part(table: EntryTable) -> str:
    """Return the key of a part: that of its tree."""
    return hash_fields("part", (tardiff.tree_digest(table.records, table.heap, blake3),))


def adopt_known(rows: LayerRows) -> bytearray | None:
    """Return the rows with the hashes that their trees know; None where one of them is unknown."""
    known = rows.known_records()
    for entry in EntryTable(known, rows.heap):
        if stat.S_ISREG(entry.mode) and entry.size_bytes and not entry.flags & (FLAG_HASHED | FLAG_HARDLINK):
            return None
    return known


def divide(table: EntryTable, size_bytes: int) -> list[list[int]]:
    """Return the rows of each part, ancestors included; one part with all rows where there is nothing to cut."""
    units, directories = list_units(table)
    runs = [units[begin:end] for begin, end in cut(units, size_bytes)]
    if len(runs) < 2:
        return [list(range(len(table)))]
    parts: list[list[int]] = []
    for run in runs:
        rows = {row for unit in run for row in unit.rows}
        for row in tuple(rows):
            path = table.path(table.entry(row))
            while path:
                path = path.rpartition(b"/")[0]
                above = directories.get(path)
                if above is not None:
                    if above in rows:
                        break
                    rows.add(above)
        parts.append(sorted(rows))
    return parts


def list_units(table: EntryTable) -> tuple[list[Unit], dict[bytes, int]]:
    """Return the units in the order of their first rows, and the directories' rows by path."""
    directories: dict[bytes, int] = {}
    members: dict[int, list[int]] = {}
    first_rows: dict[bytes, int] = {}
    for row, entry in enumerate(table):
        path = table.path(entry)
        if stat.S_ISDIR(entry.mode):
            directories[path] = row
        first = first_rows.get(table.link(entry)) if entry.flags & FLAG_HARDLINK else None
        if first is not None:
            members[first].append(row)
            continue
        first_rows[path] = row
        members[row] = [row]
    units = []
    for row, rows in members.items():
        entry = table.entry(row)
        size_bytes = BLOCK_BYTES * len(rows)
        if stat.S_ISREG(entry.mode):
            size_bytes += -(-entry.size_bytes // BLOCK_BYTES) * BLOCK_BYTES
        order = int.from_bytes(blake3(table.path(entry)).digest(8), "big")
        units.append(Unit(tuple(rows), size_bytes, order))
    return units, directories


def cut(units: Sequence[Unit], size_bytes: int) -> list[tuple[int, int]]:
    """Return the runs of units (begin, end) that make the parts."""
    cuts: set[int] = set()
    begin = 0
    for number, unit in enumerate((*units, None)):
        if unit is not None and unit.size_bytes < size_bytes:
            continue
        cuts.update(find_minima(units[begin:number], begin, size_bytes))
        cuts.update((number, number + 1))
        begin = number + 1
    edges = sorted({0, len(units), *(at for at in cuts if at < len(units))})
    found: list[tuple[int, int]] = []
    waiting = list(pairwise(edges))[::-1]
    while waiting:
        first, last = waiting.pop()
        long = last - first > 1 and sum(unit.size_bytes for unit in units[first:last]) > 2 * size_bytes
        if not long:
            found.append((first, last))
            continue
        middle = min(range(first + 1, last), key=lambda at: units[at].order)
        waiting += [(middle, last), (first, middle)]
    return found


def find_minima(units: Sequence[Unit], offset: int, size_bytes: int) -> list[int]:
    """Return where a unit's hash is the smallest within half the size before and after it, but for the first unit."""
    places: list[int] = []
    at = 0
    for unit in units:
        places.append(at)
        at += unit.size_bytes
    reach = size_bytes // 2
    window: deque[int] = deque()  # units whose hashes rise
    ahead = 0
    found = []
    for number in range(len(units)):
        while ahead < len(units) and places[ahead] - places[number] < reach:
            while window and units[window[-1]].order > units[ahead].order:
                window.pop()
            window.append(ahead)
            ahead += 1
        while places[number] - places[window[0]] >= reach:
            window.popleft()
        if number and window[0] == number and places[number] >= reach and at - places[number] >= reach:
            found.append(offset + number)
    return found


def take(
    records: bytes | bytearray, heap: bytes | bytearray, sources: bytes | bytearray, rows: Sequence[int]
) -> tuple[bytearray, bytearray, bytearray]:
    """Copy rows into a table of their own: records, a heap with what they need of the old one, and sources."""
    taken, text, places = bytearray(), bytearray(), bytearray()
    for row in rows:
        entry = list(ENTRY_STRUCT.unpack_from(records, row * ENTRY_SIZE_BYTES))
        for offset, length in ((0, 10), (1, 11), (2, 12)):  # path, link, xattrs
            start = entry[offset]
            entry[offset] = len(text)
            text += heap[start : start + entry[length]]
        taken += ENTRY_STRUCT.pack(*entry)
        descriptor, kind, start, length = SOURCE_STRUCT.unpack_from(sources, row * SOURCE_SIZE_BYTES)
        if kind in (SOURCE_PATH, SOURCE_HEAP):
            content = heap[start : start + length]
            start = len(text)
            text += content
        places += struct.pack("<iIQQ", descriptor, kind, start, length)
    return taken, text, places
