"""Random walked tables: the kernel that chooses rows against sets and dictionaries, and noise that it must refuse."""

from __future__ import annotations

import contextlib
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylayers._native import changeset
from pylayers.store.entry import (
    ENTRY_SIZE_BYTES,
    FLAG_HARDLINK,
    FLAG_IMPLICIT,
    FLAG_OPAQUE,
    FLAG_WHITEOUT,
    SOURCE_NONE,
    SOURCE_PATH,
    SOURCE_STRUCT,
    EntryTable,
    TableBuilder,
)
from pylayers.store.row import Entry

KINDS = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO)
NAMES = st.lists(st.sampled_from([b"a", b"b", b"a-", b"\xff"]), min_size=1, max_size=4)


@st.composite
def walked(draw: st.DrawFn) -> tuple[bytearray, bytearray]:
    """Draw a table as a walk leaves it: every directory present, inodes and devices set."""
    builder = TableBuilder()
    rows: dict[bytes, int] = {b"": stat.S_IFDIR}
    for parts in draw(st.lists(NAMES, max_size=14)):
        above = [b"/".join(parts[:depth]) for depth in range(1, len(parts))]
        path = b"/".join(parts)
        if path in rows or any(rows.get(one, stat.S_IFDIR) != stat.S_IFDIR for one in above):
            continue
        rows.update(dict.fromkeys(above, stat.S_IFDIR))
        rows[path] = draw(st.sampled_from(KINDS))
    for path, kind in rows.items():
        entry = Entry(
            mode=kind | 0o640,
            rdev_major=draw(st.sampled_from([0, 0, 1])),
            nlink=draw(st.integers(1, 2)),
            device=draw(st.sampled_from([1, 1 << 40])),
            inode=draw(st.integers(1, 4)),
            ctime_ns=5,
            flags=draw(st.sampled_from([0, 0, 0, FLAG_HARDLINK, FLAG_WHITEOUT, FLAG_OPAQUE])) if path else 0,
        )
        builder.add(path, entry, xattrs=draw(st.sampled_from([b"", b"xattr"])))
    table = builder.build()[0]
    return bytearray(table.records), bytearray(table.heap)


def pack_slowly(table: EntryTable, keep: list[bool]) -> list[Entry]:
    entries = list(table)
    kept = {row for row, one in enumerate(entries) if keep[row] and not stat.S_ISSOCK(one.mode)}

    def linked(one: Entry) -> bool:
        return one.nlink > 1 and not stat.S_ISDIR(one.mode) and not one.flags & FLAG_WHITEOUT

    groups = {(entries[row].device, entries[row].inode) for row in kept if linked(entries[row])}
    kept |= {row for row, one in enumerate(entries) if linked(one) and (one.device, one.inode) in groups}
    paths = {table.path(entries[row]) for row in kept}
    above = {path[:at] for path in paths for at in range(len(path)) if path[at : at + 1] == b"/"}
    kept |= {row for row, one in enumerate(entries) if table.path(one) in above} | {0}
    return [entries[row]._replace(ctime_ns=0, device=0, inode=0) for row in sorted(kept)]


@settings(deadline=None, max_examples=300)
@given(walked(), st.data(), st.booleans())
def test_pack(content: tuple[bytearray, bytearray], data: st.DataObject, root_changed: bool) -> None:
    table = EntryTable(*content)
    keep = data.draw(st.lists(st.booleans(), min_size=len(table), max_size=len(table)))
    wanted = pack_slowly(table, keep)
    if not root_changed:
        wanted[0] = wanted[0]._replace(flags=wanted[0].flags | FLAG_IMPLICIT)
    before = bytes(content[0])
    packed = changeset.pack(*content, bytearray(keep), root_changed)
    assert list(EntryTable(packed, content[1])) == wanted
    assert bytes(content[0]) == before


@settings(deadline=None, max_examples=200)
@given(walked(), st.data(), st.booleans())
def test_marks_trees_and_sources(content: tuple[bytearray, bytearray], data: st.DataObject, hides: bool) -> None:
    records, heap = content
    entries = list(EntryTable(records, heap))
    assert list(memoryview(changeset.find_marked(records)).cast("I")) == [
        row for row, one in enumerate(entries)
        if one.xattr_length or (stat.S_ISCHR(one.mode) and (one.rdev_major, one.rdev_minor) == (0, 0))
    ]  # fmt: skip
    for flags in (FLAG_WHITEOUT, FLAG_OPAQUE | FLAG_HARDLINK):
        assert list(memoryview(changeset.find_flagged(records, flags)).cast("I")) == [
            row for row, one in enumerate(entries) if one.flags & flags
        ]
    assert list(SOURCE_STRUCT.iter_unpack(changeset.list_sources(records, 7))) == [
        (7, SOURCE_PATH, one.path_offset, one.path_length)
        if stat.S_ISREG(one.mode) and not one.flags & (FLAG_HARDLINK | FLAG_WHITEOUT)
        else (-1, SOURCE_NONE, 0, 0)
        for one in entries
    ]
    begin = data.draw(st.integers(0, len(entries) - 1))
    end = data.draw(st.integers(begin + 1, len(entries)))
    keep = bytearray(b"\2" * len(entries))
    changeset.keep_tree(records, keep, begin, end, hides)
    for row, (before, after) in enumerate(zip(entries, EntryTable(records, heap), strict=True)):
        flags = before.flags & ~FLAG_OPAQUE if begin <= row < end else before.flags
        assert after == before._replace(flags=flags | (FLAG_OPAQUE if hides and row == begin else 0))
        assert keep[row] == (int(not before.flags & FLAG_WHITEOUT) if begin <= row < end else 2)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=ENTRY_SIZE_BYTES * 4), st.binary(max_size=40), st.data())
def test_noise_is_refused_or_survived(records: bytes, heap: bytes, data: st.DataObject) -> None:
    keep = bytearray(data.draw(st.binary(max_size=5)))
    for call in (
        lambda: changeset.find_marked(records),
        lambda: changeset.find_flagged(records, 2),
        lambda: changeset.list_sources(records, 3),
        lambda: changeset.pack(records, heap, keep, True),
        lambda: changeset.keep_tree(bytearray(records), keep, data.draw(st.integers(0, 5)), 3, True),
    ):
        with contextlib.suppress(ValueError):
            call()


def test_a_row_outside_the_heap() -> None:
    builder = TableBuilder()
    builder.add(b"", Entry(mode=stat.S_IFDIR))
    builder.add(b"name", Entry(mode=stat.S_IFREG))
    table = builder.build()[0]
    with pytest.raises(ValueError, match="row 1 points outside"):
        changeset.pack(table.records, b"na", bytearray(2), True)
    with pytest.raises(BufferError):
        changeset.keep_tree(bytes(table.records), bytearray(2), 0, 1, False)  # type: ignore[arg-type]
