"""Cutting a table into parts: together they are the whole, and a change stays near where it is made."""

from __future__ import annotations

import stat

from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from pylayers._native import tardiff
from pylayers.build.copy.split import cut, divide, list_units, take
from pylayers.store.entry import (
    FLAG_HARDLINK,
    FLAG_HASHED,
    SOURCE_STRUCT,
    EntryTable,
    TableBuilder,
    path_key,
)
from pylayers.store.row import Entry

SIZE_BYTES = 1 << 20
NAMES = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=4).map(lambda parts: "/".join(parts).encode())
FILES = st.dictionaries(NAMES, st.integers(0, 3 * SIZE_BYTES), max_size=60)


def make_table(files: dict[bytes, int], links: dict[bytes, bytes] | None = None) -> EntryTable:
    """Make a layer's table of files with sizes, the directories above them, and hard links."""
    kept = {path: size for path, size in files.items() if not any(other.startswith(path + b"/") for other in files)}
    builder = TableBuilder()
    builder.add(b"", Entry(mode=stat.S_IFDIR | 0o755))
    for path in sorted({above for name in (*kept, *(links or {})) for above in ancestors(name)}):
        builder.add(path, Entry(mode=stat.S_IFDIR | 0o755))
    for path, size_bytes in kept.items():
        digest = blake3(path + str(size_bytes).encode()).digest()
        builder.add(path, Entry(mode=stat.S_IFREG | 0o644, size_bytes=size_bytes, flags=FLAG_HASHED, blake3=digest))
    for path, target in (links or {}).items():
        entry = Entry(mode=stat.S_IFREG | 0o644, size_bytes=files[target], flags=FLAG_HARDLINK)
        builder.add(path, entry, link=target)
    return builder.build()[0]


def ancestors(path: bytes) -> list[bytes]:
    parts = path.split(b"/")
    return [b"/".join(parts[:count]) for count in range(1, len(parts))]


def paths(table: EntryTable, rows: list[int]) -> list[bytes]:
    return [table.path(table.entry(row)) for row in rows]


@settings(deadline=None, max_examples=80)
@given(FILES)
def test_the_parts_are_the_whole(files: dict[bytes, int]) -> None:
    table = make_table(files)
    parts = divide(table, SIZE_BYTES)
    assert sorted({row for part in parts for row in part}) == list(range(len(table)))
    for part in parts:
        names = paths(table, part)
        assert names == sorted(names, key=path_key)
        assert all(above in names for name in names for above in ancestors(name))
        assert b"" in names
    regular = [row for part in parts for row in part if stat.S_ISREG(table.entry(row).mode)]
    assert len(regular) == len(set(regular)), "a file is in one part alone"


@settings(deadline=None, max_examples=150)
@given(FILES)
def test_no_part_is_longer_than_it_must_be(files: dict[bytes, int]) -> None:
    units, _ = list_units(make_table(files))
    runs = cut(units, SIZE_BYTES)
    assert [number for begin, end in runs for number in range(begin, end)] == list(range(len(units)))
    for begin, end in runs:
        total = sum(unit.size_bytes for unit in units[begin:end])
        assert end - begin == 1 or total <= 2 * SIZE_BYTES
        assert end - begin == 1 or all(unit.size_bytes < SIZE_BYTES for unit in units[begin:end])


def many(count: int) -> dict[bytes, int]:
    return {f"d{number % 7}/f{number:05}".encode(): 20_000 + number * 37 % 50_000 for number in range(count)}


def contents(table: EntryTable, size_bytes: int) -> set[bytes]:
    """Return the digest of each part."""
    sources = bytes(SOURCE_STRUCT.size * len(table))
    taken = (take(bytes(table.records), bytes(table.heap), sources, part) for part in divide(table, size_bytes))
    return {tardiff.tree_digest(records, heap, blake3) for records, heap, _ in taken}


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 599), st.sampled_from(["changed", "grown", "removed", "added"]))
def test_a_change_stays_near(number: int, kind: str) -> None:
    files = many(600)
    before = contents(make_table(files), SIZE_BYTES)
    path = sorted(files)[number]
    if kind == "removed":
        del files[path]
    elif kind == "added":
        files[path + b"-new"] = 30_000
    else:
        files[path] += 1 if kind == "changed" else 200_000
    after = contents(make_table(files), SIZE_BYTES)
    assert len(before) > 12
    assert len(after - before) <= (1 if kind == "changed" else 5)


def test_links_stay_with_their_file() -> None:
    files = many(500)
    links = {b"z/link": b"d0/f00000", b"z/other": b"d3/f00003"}
    table = make_table(files, links)
    parts = [paths(table, part) for part in divide(table, SIZE_BYTES)]
    assert len(parts) > 10
    for link, target in links.items():
        assert [link in part for part in parts] == [target in part for part in parts]
    units, _ = list_units(table)
    assert sum(len(unit.rows) for unit in units) == len(table)
