"""Random trees, tops and prefixes: the kernel equals the slow model, and refuses noise without crashing."""

from __future__ import annotations

import contextlib
import struct
from dataclasses import replace
from stat import S_IFDIR, S_IFLNK, S_IFREG

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylayers._native import graft
from pylayers.store.entry import (
    ENTRY_SIZE_BYTES,
    ENTRY_STRUCT,
    FLAG_HARDLINK,
    FLAG_HASHED,
    FLAG_IMPLICIT,
    SOURCE_PATH,
    SOURCE_RANGE,
    EntryTable,
)
from tests.oracle.graft_model import DESCRIPTORS, model, run, sorted_tree
from tests.oracle.table_model import Node, Tree, build_table

NAMES = st.sampled_from([b"a", b"b", b"a.", b"a b", b"\xff", b"ab"])
PREFIX = st.lists(NAMES, max_size=3).map(b"/".join)


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    tree: Tree = {b"": Node(mode=S_IFDIR | 0o755)}
    for parts in draw(st.lists(st.lists(NAMES, min_size=1, max_size=4), max_size=12)):
        for depth in range(1, len(parts)):
            path = b"/".join(parts[:depth])
            if path in tree and tree[path].mode & 0o170000 != S_IFDIR:
                break
            tree.setdefault(path, Node(mode=S_IFDIR | 0o755))
        else:
            path = b"/".join(parts)
            if path not in tree:
                tree[path] = draw(nodes(sorted(tree)))
    return sorted_tree(tree)


@st.composite
def nodes(draw: st.DrawFn, others: list[bytes]) -> Node:
    kind = draw(st.sampled_from([S_IFREG, S_IFDIR, S_IFLNK, S_IFREG | 1 << 20]))
    common = {"uid": draw(st.integers(0, 2**32 - 1)), "mtime_ns": draw(st.integers(-(10**18), 10**18))}
    if kind == S_IFREG | 1 << 20:
        return Node(mode=S_IFREG | 0o600, flags=FLAG_HARDLINK, link=draw(st.sampled_from(others)), **common)
    link = draw(st.binary(max_size=5)) if kind == S_IFLNK else b""
    size = draw(st.integers(0, 2**40)) if kind == S_IFREG else 0
    return Node(
        mode=kind | draw(st.integers(0, 0o7777)), link=link, size_bytes=size, layer=draw(st.integers(0, 2)),
        data_offset=draw(st.integers(0, 2**40)), flags=draw(st.sampled_from([0, FLAG_HASHED])),
        xattrs=draw(st.dictionaries(st.binary(min_size=1, max_size=3), st.binary(max_size=3), max_size=2)), **common,
    )  # fmt: skip


CHANGE = st.tuples(st.sampled_from([-1, 0, 7]), st.sampled_from([-1, 0, 7]), st.sampled_from([-1, 0, 0o644, 0o7777]))


@given(trees(), PREFIX, st.sampled_from([SOURCE_PATH, SOURCE_RANGE]), CHANGE, st.data())
@settings(deadline=None, max_examples=200)
def test_equals_the_model(tree, prefix, kind, change, data) -> None:
    top = data.draw(st.sampled_from(sorted(tree)))
    assert run(tree, top, prefix, kind, *change) == model(tree, top, prefix, kind, *change)


@given(trees(), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=6), PREFIX)
@settings(deadline=None, max_examples=200)
def test_survives_damaged_tables(tree, damage, prefix) -> None:
    table = build_table(tree)
    records = bytearray(table.records)
    for at, value in damage:
        records[at % len(records)] = value
    packed = struct.pack(f"<{len(DESCRIPTORS)}i", *DESCRIPTORS)
    with contextlib.suppress(ValueError):
        made, heap, _ = graft.graft(
            records, table.heap, 0, len(records) // ENTRY_SIZE_BYTES, prefix, packed, SOURCE_RANGE
        )
        assert len(made) == len(records)
        assert len(heap) < 2**40


def lay_out(tree: Tree) -> EntryTable:
    """Give rows offsets as a tar would: 512 bytes a row that is in it, and its data."""
    table = build_table(tree)
    records = bytearray(table.records)
    at = 0
    for row, entry in enumerate(table):
        placed = entry._replace(header_offset=0, data_offset=0)
        if not entry.flags & FLAG_IMPLICIT:
            placed = entry._replace(header_offset=at, data_offset=at + 512)
            at += 512 + (entry.size_bytes + 511) // 512 * 512
        ENTRY_STRUCT.pack_into(records, row * ENTRY_SIZE_BYTES, *placed)
    return EntryTable(bytes(records), table.heap)


def says_the_same(path: bytes, one: Node | None, other: Node | None) -> bool:
    """Compare two nodes by all that a tar and its index hold; content that is not known on both sides differs."""
    if one is None or other is None:
        return False
    hashes = one.flags & other.flags & FLAG_HASHED
    bare = [
        replace(node, flags=node.flags & ~FLAG_HASHED, blake3=b"", layer=0, data_offset=0, nlink=0)
        for node in (one, other)
    ]
    if bare[0] != bare[1]:
        return False
    if one.mode & 0o170000 != S_IFREG or one.flags & FLAG_HARDLINK or not one.size_bytes:
        return True
    return bool(hashes) and one.blake3 == other.blake3


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tree, Tree]:
    old = draw(trees())
    old = {
        path: replace(node, blake3=bytes([len(path)]) * 32, mtime_ns=node.mtime_ns if draw(st.booleans()) else 0)
        for path, node in old.items()
    }
    if draw(st.booleans()):
        old[b""] = replace(old[b""], flags=FLAG_IMPLICIT)
    new = dict(old)
    for path in draw(st.lists(st.sampled_from(sorted(old)), max_size=2)):
        field = draw(st.sampled_from(["uid", "mtime_ns", "blake3", "flags", "xattrs", "link", "gone", "size_bytes"]))
        if field == "gone":
            new.pop(path, None)
        elif path in new:
            other = {"blake3": b"\1" * 32, "flags": new[path].flags ^ FLAG_HASHED, "xattrs": {b"n": b"w"}, "link": b"o"}
            new[path] = replace(new[path], **{field: other.get(field, 77)})
    return sorted_tree(old), sorted_tree(new)


@given(pairs(), st.one_of(st.just(2**63 - 1), st.integers(0, 6000)))
@settings(deadline=None, max_examples=300)
def test_counts_the_rows_that_begin_a_tar_in_the_same_way(pair: tuple[Tree, Tree], limit: int) -> None:
    before, after = pair
    old, new = lay_out(before), build_table(after)
    paths = list(before)
    expected = 0
    for row, path in enumerate(list(after)):
        same = row < len(paths) and paths[row] == path and says_the_same(path, before[path], after[path])
        if not same or old.entry(row).header_offset >= limit:
            break
        expected = row + 1
    while expected and expected < len(old) and old.entry(expected).flags & FLAG_IMPLICIT:
        expected -= 1
    count = graft.count_same(new.records, new.heap, old.records, old.heap, limit)
    assert count == expected
    records = bytearray(new.records)
    graft.take_places(records, old.records, count)
    made = EntryTable(records, new.heap)
    for row in range(len(new)):
        given_row, known, now = new.entry(row), old.entry(row) if row < count else None, made.entry(row)
        if known is None:
            assert now == given_row
            continue
        hashed = known.flags & FLAG_HASHED
        assert now == given_row._replace(
            header_offset=known.header_offset,
            data_offset=known.data_offset,
            ctime_ns=0,
            flags=given_row.flags | hashed,
            blake3=known.blake3 if hashed else given_row.blake3,
        )


@given(trees(), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6), st.integers(0, 2**64 - 1))
@settings(deadline=None, max_examples=200)
def test_counting_survives_damaged_tables(tree, damage, limit) -> None:
    table = build_table(tree)
    records = bytearray(table.records)
    for at, value in damage:
        records[at % len(records)] = value
    count = graft.count_same(records, table.heap, table.records, table.heap, limit)
    assert 0 <= count <= len(table)
    assert graft.count_same(table.records, table.heap[:3], records, table.heap, limit) <= len(table)
    with pytest.raises(ValueError, match="fewer rows"):
        graft.take_places(records, table.records, len(table) + 1)
    with pytest.raises(ValueError, match="inside a record"):
        graft.count_same(records[:-1], table.heap, table.records, table.heap, limit)
