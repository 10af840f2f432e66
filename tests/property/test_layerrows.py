"""Joined layer rows against a plain dictionary: later trees over earlier ones, links never to another's file."""

from __future__ import annotations

import stat
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from pylayers.build.copy.rows import Graft, LayerRows, join
from pylayers.build.source.local import GraftedRows
from pylayers.store.entry import (
    FLAG_HARDLINK,
    SOURCE_HEAP,
    SOURCE_STRUCT,
    EntryTable,
    TableBuilder,
    path_key,
)
from pylayers.store.row import Entry

NAMES = [b"a", b"b", b"b-", b"c", b"\xff"]


@dataclass(frozen=True)
class Given:
    """One tree at the directory `top`: files' contents, and names that share another's file."""

    top: bytes
    files: dict[bytes, bytes]
    links: dict[bytes, bytes]


@st.composite
def trees(draw: st.DrawFn) -> Given:
    count = draw(st.integers(0, 5))
    top = draw(st.sampled_from([b"d", b"d/e"]))
    files = {name: bytes([draw(st.integers(65, 90))]) * 3 for name in NAMES[:count]}
    links: dict[bytes, bytes] = {}
    for name in list(files)[1:]:
        if draw(st.booleans()):
            first = min(files)
            links[name] = first
    for name in links:
        files.pop(name)
    return Given(top, files, links)


def graft(tree: Given) -> Graft:
    """Make a tree's rows as a grafted directory whose top is left out; contents lie in the heap."""
    builder = TableBuilder()
    builder.add(tree.top, Entry(mode=stat.S_IFDIR | 0o700))
    where = [(-1, 0, 0, 0)]
    for name, content in tree.files.items():
        entry = Entry(mode=stat.S_IFREG | 0o644, size_bytes=len(content), nlink=2)
        builder.add(tree.top + b"/" + name, entry)
        where.append((-1, SOURCE_HEAP, builder.hold(content), 0))
    for name, first in tree.links.items():
        entry = Entry(mode=stat.S_IFREG | 0o644, size_bytes=3, nlink=2, flags=FLAG_HARDLINK)
        builder.add(tree.top + b"/" + name, entry, link=tree.top + b"/" + first)
        where.append((-1, 0, 0, 0))
    table, order = builder.build()
    sources = bytearray().join(SOURCE_STRUCT.pack(*where[number]) for number in order)
    return Graft(GraftedRows(bytearray(table.records), bytearray(table.heap), sources), 1)


def directories(paths: set[bytes]) -> EntryTable:
    builder = TableBuilder()
    for path in paths:
        builder.add(path, Entry(mode=stat.S_IFDIR | 0o755))
    return builder.build()[0]


def read(made: LayerRows) -> dict[bytes, bytes | None]:
    """Return each path's content, through its link where it is one; None for directories."""
    table = EntryTable(made.records, made.heap)
    contents: dict[bytes, bytes | None] = {}
    for row, entry in enumerate(table):
        path = table.path(entry)
        if stat.S_ISDIR(entry.mode):
            contents[path] = None
        elif entry.flags & FLAG_HARDLINK:
            assert path_key(table.link(entry)) < path_key(path)
            contents[path] = contents[table.link(entry)]
        else:
            _, kind, offset, _ = SOURCE_STRUCT.unpack_from(made.sources, row * SOURCE_STRUCT.size)
            assert kind == SOURCE_HEAP
            contents[path] = bytes(made.heap[offset : offset + entry.size_bytes])
    return contents


@settings(max_examples=400, deadline=None)
@given(st.lists(trees(), max_size=5))
def test_joined_rows_are_the_last_of_each_path(given_trees: list[Given]) -> None:
    expected: dict[bytes, bytes | None] = {b"": None, b"d": None}
    for tree in given_trees:
        if tree.top == b"d/e":
            expected[b"d/e"] = None
        for name, content in tree.files.items():
            expected[tree.top + b"/" + name] = content
        for name, first in tree.links.items():
            expected[tree.top + b"/" + name] = tree.files[first]
    above = {path for path, content in expected.items() if content is None}
    grafts = [graft(tree) for tree in given_trees]
    own = {id(graft): [graft.table.path(entry) for entry in graft.table] for graft in grafts}  # join takes the buffers
    made = join(directories(above), grafts)
    table = EntryTable(made.records, made.heap)
    paths = [table.path(entry) for entry in table]
    assert paths == sorted(paths, key=path_key)
    assert len(set(paths)) == len(paths)
    assert read(made) == expected
    for run in made.runs:
        for at in range(run.length):
            assert own[id(run.graft)][run.first + at] == table.path(table.entry(run.here + at))
