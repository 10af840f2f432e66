"""Random layers: the table kernel against the model, and laws that hold for any tables."""

from __future__ import annotations

import random
import struct
from contextlib import suppress
from dataclasses import replace
from functools import partial
from stat import S_IFCHR, S_IFDIR, S_IFLNK, S_IFREG

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from pylayers._native import tardiff
from pylayers.diff.merge import find_entry
from pylayers.store.entry import (
    FLAG_HARDLINK,
    FLAG_HASHED,
    FLAG_IMPLICIT,
    FLAG_OPAQUE,
    FLAG_WHITEOUT,
    Buffer,
    EntryTable,
    path_key,
)
from tests.oracle import table_model as model
from tests.oracle.table_model import Node, Tree

KINDS = ["file", "directory", "link"] * 4 + ["opaque", "whiteout", "whiteout", "symlink", "device", "empty"]
ITEMS = st.lists(
    st.tuples(
        st.lists(st.sampled_from([b"a", b"b", b"b-", b"\xff"]), min_size=1, max_size=3).map(b"/".join),
        st.sampled_from(KINDS),
        st.integers(0, 3),
    ),
    max_size=12,
)


def make_layer(items: list[tuple[bytes, str, int]], marks: bool = True) -> Tree:
    """Make a canonical layer: parents present, nothing below non-directories, links named by their first path."""
    tree: Tree = {b"": Node(mode=S_IFDIR | 0o755, flags=FLAG_IMPLICIT)}
    groups: dict[int, list[bytes]] = {}
    for path, kind, value in items:
        above = [path[:at] for at in range(len(path)) if path[at : at + 1] == b"/"]
        if any(parent in tree and not tree[parent].is_directory for parent in above) or path in tree:
            continue
        if kind in ("opaque", "whiteout") and not marks:
            continue
        for parent in above:
            tree.setdefault(parent, Node(mode=S_IFDIR | 0o755, flags=FLAG_IMPLICIT))
        data = b"content %d" % value
        if kind == "link":
            groups.setdefault(value, []).append(path)
            tree[path] = Node(mode=S_IFREG | 0o600, uid=value, size_bytes=value and 9, flags=FLAG_HASHED,
                              blake3=blake3(data).digest() if value else bytes(32))  # fmt: skip
            continue
        tree[path] = {
            "file": Node(mode=S_IFREG | 0o640 + value, size_bytes=9, flags=FLAG_HASHED, blake3=blake3(data).digest(),
                         mtime_ns=value, xattrs={b"user.x": data} if value else {}),
            "empty": Node(mode=S_IFREG | 0o640, gid=value),
            "directory": Node(mode=S_IFDIR | 0o700 + value, mtime_ns=value),
            "opaque": Node(mode=S_IFDIR | 0o700 + value, flags=FLAG_OPAQUE),
            "whiteout": Node(flags=FLAG_WHITEOUT),
            "symlink": Node(mode=S_IFLNK | 0o777, link=data),
            "device": Node(mode=S_IFCHR | 0o600, rdev=(value, 3)),
        }[kind]  # fmt: skip
    for paths in groups.values():
        paths.sort(key=path_key)
        for path in paths:
            first = path == paths[0]
            tree[path] = replace(tree[path], nlink=len(paths), link=b"" if first else paths[0],
                                 flags=tree[path].flags | (0 if first else FLAG_HARDLINK))  # fmt: skip
    return model.sort_tree(tree)


LAYERS = ITEMS.map(make_layer)
MERGED = ITEMS.map(lambda items: make_layer(items, marks=False))


def buffers(tree: Tree) -> tuple[Buffer, Buffer]:
    table = model.build_table(tree)
    return table.records, table.heap


def merge(layers: list[Tree]) -> EntryTable:
    return EntryTable(*tardiff.merge([buffers(layer) for layer in layers]))


def changes(old: EntryTable, new: EntryTable, times: bool) -> list[tuple[str, bytes]]:
    found = []
    for kind, old_row, new_row in struct.iter_unpack(
        "<III", tardiff.diff(old.records, old.heap, new.records, new.heap, times)
    ):
        paths = {
            table.path(table.entry(row))
            for table, row in ((old, old_row), (new, new_row))
            if row != 0xFFFFFFFF
        }  # fmt: skip
        (path,) = paths
        assert (old_row == 0xFFFFFFFF, new_row == 0xFFFFFFFF) == (kind == 0, kind == 2)
        found.append((("add", "modify", "delete")[kind], path))
    return found


@settings(deadline=None, max_examples=400)
@given(st.lists(LAYERS, max_size=5))
def test_merge_equals_applying(layers: list[Tree]) -> None:
    merged = merge(layers)
    found = model.read_table(merged)
    expected = model.merge(layers)
    assert list(found) == list(expected)
    assert found == expected


@settings(deadline=None, max_examples=200)
@given(st.lists(MERGED, min_size=1, max_size=4))
def test_merging_a_merged_table_changes_nothing_but_layer(layers: list[Tree]) -> None:
    once = merge(layers)
    again = EntryTable(*tardiff.merge([(once.records, once.heap)]))
    assert model.read_table(again) == {
        path: replace(node, layer=0) for path, node in model.read_table(once).items()
    }  # fmt: skip


@settings(deadline=None, max_examples=200)
@given(LAYERS, st.booleans(), st.integers(0, 20))
def test_tree_digest_equals_the_recursive_one(tree: Tree, metadata: bool, pick: int) -> None:
    paths = list(tree)
    row = pick % len(paths)
    records, heap = buffers(tree)
    found = tardiff.tree_digest(records, heap, blake3, row, metadata)
    assert found == model.tree_digest(tree, paths[row], metadata)


@settings(deadline=None, max_examples=200)
@given(MERGED)
def test_a_subtree_digests_like_the_same_tree_elsewhere(tree: Tree) -> None:
    """What COPY relies on: a directory's digest does not know where the directory lies, nor links from outside."""
    records, heap = buffers(tree)
    for row, path in enumerate(list(tree)):
        if not tree[path].is_directory:
            continue
        alone: Tree = {}
        first: dict[bytes, bytes] = {}
        for below, node in tree.items():
            if below != path and not model.is_below(below, path):
                continue
            moved = below[len(path) :].lstrip(b"/")
            file = node.link if node.flags & FLAG_HARDLINK else below
            alone[moved] = node if node.is_directory else tree[file]
            if file in first:
                alone[moved] = replace(tree[file], flags=tree[file].flags | FLAG_HARDLINK, link=first[file])
            first.setdefault(file, moved)
        moved_records, moved_heap = buffers(alone)
        assert tardiff.tree_digest(records, heap, blake3, row) == tardiff.tree_digest(moved_records, moved_heap, blake3)


@settings(deadline=None, max_examples=300)
@given(MERGED, MERGED)
def test_different_trees_have_different_digests(one: Tree, two: Tree) -> None:
    def known(tree: Tree) -> Tree:
        """Forget what does not enter; an empty file needs no hash."""
        return {
            path: replace(node, mtime_ns=0, nlink=1, flags=node.flags & FLAG_HARDLINK,
                          blake3=node.blake3 if node.size_bytes else b"")
            for path, node in tree.items()
        }  # fmt: skip

    digests = [tardiff.tree_digest(*buffers(tree), blake3) for tree in (one, two)]
    assert (digests[0] == digests[1]) == (known(one) == known(two))


@settings(deadline=None, max_examples=300)
@given(MERGED, MERGED, st.booleans())
def test_diff_equals_comparing_sets(old: Tree, new: Tree, times: bool) -> None:
    assert changes(model.build_table(old), model.build_table(new), times) == model.changes(old, new, times)


@settings(deadline=None, max_examples=100)
@given(MERGED)
def test_a_table_differs_from_itself_in_nothing(tree: Tree) -> None:
    table = model.build_table(tree)
    assert changes(table, table, True) == []


@settings(deadline=None, max_examples=100)
@given(LAYERS, ITEMS)
def test_find_and_subtree(tree: Tree, others: list[tuple[bytes, str, int]]) -> None:
    records, heap = buffers(tree)
    paths = list(tree)
    for row, path in enumerate(paths):
        assert tardiff.find(records, heap, path) == row
        end = tardiff.subtree(records, heap, row)
        assert paths[row:end] == [found for found in paths if found == path or model.is_below(found, path)]
    for path, _, _ in others:
        if path not in tree:
            assert tardiff.find(records, heap, path) == -1


@pytest.mark.parametrize("seed", range(4))
def test_damaged_tables_are_refused_or_read(seed: int) -> None:
    """Tables come from mapped files: no byte in one may lead outside it."""
    chosen = random.Random(seed)
    for _ in range(400):
        items = [
            (b"/".join(chosen.choices([b"a", b"b"], k=chosen.randint(1, 3))), chosen.choice(KINDS), chosen.randrange(4))
            for _ in range(12)
        ]  # fmt: skip
        table = model.build_table(make_layer(items))
        records, heap = bytearray(table.records), bytearray(table.heap)
        for _ in range(chosen.randint(1, 3)):
            if chosen.random() < 0.2 and heap:
                heap[chosen.randrange(len(heap))] = chosen.choice([0, 47, 255])
            elif chosen.random() < 0.1:
                del heap[chosen.randrange(len(heap) + 1) :]
            else:
                records[chosen.randrange(len(records))] = chosen.choice([0, 1, 255, 64, chosen.randrange(256)])
        good, bad = (table.records, table.heap), (records, heap)
        for attempt in (
            partial(tardiff.merge, [bad, good, bad]),
            partial(tardiff.tree_digest, *bad, blake3, chosen.randrange(len(records) // 168)),
            partial(tardiff.diff, *bad, *good),
            partial(tardiff.diff, *good, *bad),
            partial(tardiff.find, *bad, b"a/b"),
            partial(tardiff.subtree, *bad, 0),
        ):
            with suppress(ValueError):
                attempt()


@settings(deadline=None, max_examples=200)
@given(st.lists(LAYERS, min_size=1, max_size=4), ITEMS)
def test_looking_a_path_up_in_stacked_layers(layers: list[Tree], others: list[tuple[bytes, str, int]]) -> None:
    tables = [model.build_table(layer) for layer in layers]
    merged = model.merge(layers)
    for path in {*(path for layer in layers for path in layer), *(item[0] for item in others)}:
        found = find_entry(tables, path)
        wanted = merged.get(path)
        if found is None or wanted is None:
            assert found is None and wanted is None, path  # noqa: PT018
            continue
        table, entry = found
        assert (entry.mode, entry.uid, entry.gid, table.xattrs(entry)) == (
            wanted.mode, wanted.uid, wanted.gid, wanted.xattrs
        ), path  # fmt: skip
