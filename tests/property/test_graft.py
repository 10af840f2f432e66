"""Random trees, tops and prefixes: the kernel equals the slow model, and refuses noise without crashing."""

from __future__ import annotations

import contextlib
import struct
from stat import S_IFDIR, S_IFLNK, S_IFREG

from hypothesis import given, settings
from hypothesis import strategies as st

from pylayers._native import graft
from pylayers.store.entry import ENTRY_SIZE_BYTES, FLAG_HARDLINK, FLAG_HASHED, SOURCE_PATH, SOURCE_RANGE
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
