"""Merging layers and applying them agree: the merged table describes the tree that unpacking gives."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest
from blake3 import blake3

from pylayers._native import filehash, tarwrite, walk
from pylayers.diff.apply import apply_layer, apply_layers
from pylayers.diff.merge import find_row, merge_layers, merge_tables, subtree_end, tree_digest
from pylayers.errors import IntegrityError, NotFound
from pylayers.store.entry import (
    FLAG_OPAQUE,
    FLAG_WHITEOUT,
    SOURCE_HEAP,
    SOURCE_NONE,
    SOURCE_STRUCT,
    EntryTable,
    TableBuilder,
)
from pylayers.store.layer import Layer
from pylayers.store.row import Entry

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: layers set owners")
DIRECTORY = stat.S_IFDIR | 0o755


def make_layer(path: Path, rows: dict[str, bytes | int]) -> Layer:
    """Write a layer: bytes are a file's content, an int the flags of a directory or whiteout."""
    builder = TableBuilder()
    sources: list[bytes] = []
    for name, content in {"": 0, **rows}.items():
        if isinstance(content, int):
            mode = 0 if content & FLAG_WHITEOUT else DIRECTORY
            sources.append(SOURCE_STRUCT.pack(-1, SOURCE_NONE, 0, 0))
            builder.add(name.encode(), Entry(mode=mode, flags=content))
        else:
            sources.append(SOURCE_STRUCT.pack(-1, SOURCE_HEAP, builder.hold(content), len(content)))
            builder.add(name.encode(), Entry(mode=stat.S_IFREG | 0o640, uid=1, gid=2, size_bytes=len(content)))
    table, order = builder.build()
    records = bytearray(table.records)
    with open(path, "w+b") as out:
        size, _ = tarwrite.write(
            out.fileno(), records, table.heap, b"".join(sources[at] for at in order), hashlib.sha256, blake3
        )
    return Layer(path.name, size, path, EntryTable(records, table.heap))


@pytest.fixture
def layers(tmp_path: Path) -> list[Layer]:
    return [
        make_layer(tmp_path / "one", {"a": 0, "a/1": b"1", "a/2": b"2", "b": 0, "b/x": b"x", "c": b"file"}),
        make_layer(
            tmp_path / "two", {"a": 0, "a/1": FLAG_WHITEOUT, "b": FLAG_OPAQUE, "b/y": b"y", "c": 0, "c/z": b"z"}
        ),
        make_layer(tmp_path / "three", {"a": 0, "a/3": b"three", "a/2": b"two"}),
    ]


def walked(directory: Path) -> EntryTable:
    root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    records, heap = walk.walk(root, xattrs=True)
    table = EntryTable(records, heap)
    rows = b"".join(at.to_bytes(4, "little") for at, entry in enumerate(table) if stat.S_ISREG(entry.mode))
    filehash.hash_files(root, records, heap, rows, blake3)
    os.close(root)
    return table


def test_merged_table_is_the_unpacked_tree(layers: list[Layer], tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    root = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    assert apply_layers(root, layers) == sum(
        len(part) for part in (b"1", b"2", b"x", b"file", b"y", b"z", b"three", b"two")
    )
    os.close(root)
    merged = merge_layers(layers)
    assert [merged.path(entry) for entry in merged] == [
        b"", b"a", b"a/2", b"a/3", b"b", b"b/y", b"c", b"c/z",
    ]  # fmt: skip
    assert {merged.path(entry): entry.layer for entry in merged if stat.S_ISREG(entry.mode)} == {
        b"a/2": 2, b"a/3": 2, b"b/y": 1, b"c/z": 1,
    }  # fmt: skip
    assert tree_digest(merged) == tree_digest(walked(target))
    assert (target / "a" / "2").read_bytes() == b"two"


def test_rows_and_subtrees(layers: list[Layer]) -> None:
    merged = merge_tables([layer.table for layer in layers])
    row = find_row(merged, b"a")
    assert row is not None
    assert [merged.path(merged.entry(at)) for at in range(row, subtree_end(merged, row))] == [b"a", b"a/2", b"a/3"]
    assert find_row(merged, b"a/1") is None


def test_digest_of_a_subtree_ignores_where_it_is(tmp_path: Path) -> None:
    one = make_layer(tmp_path / "one", {"a": 0, "a/f": b"same"}).table
    two = make_layer(tmp_path / "two", {"b": 0, "b/f": b"same"}).table
    three = make_layer(tmp_path / "three", {"b": 0, "b/f": b"Same"}).table
    assert tree_digest(one, 1) == tree_digest(two, 1)
    assert tree_digest(one) != tree_digest(two)
    assert tree_digest(two, 1) != tree_digest(three, 1)


def test_no_digest_without_hashes() -> None:
    builder = TableBuilder()
    builder.add(b"", Entry(mode=DIRECTORY))
    builder.add(b"f", Entry(mode=stat.S_IFREG, size_bytes=3))
    with pytest.raises(IntegrityError):
        tree_digest(builder.build()[0])


def test_lost_tar_is_a_named_error(layers: list[Layer], tmp_path: Path) -> None:
    Path(layers[0].tar_path).unlink()
    with pytest.raises(NotFound):
        apply_layer(-1, layers[0])
