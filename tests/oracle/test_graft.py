"""The graft kernel against the slow model, case by case."""

from __future__ import annotations

import struct
from stat import S_IFBLK, S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG

import pytest

from pylayers._native import graft
from pylayers.store.entry import (
    ENTRY_SIZE_BYTES,
    FLAG_HARDLINK,
    FLAG_HASHED,
    FLAG_IMPLICIT,
    SOURCE_PATH,
    SOURCE_RANGE,
    EntryTable,
)
from tests.oracle.graft_model import DESCRIPTORS, model, run, sorted_tree
from tests.oracle.table_model import Node, build_table

TREE = sorted_tree(
    {
        b"": Node(mode=S_IFDIR | 0o755, flags=FLAG_IMPLICIT),
        b"a": Node(mode=S_IFDIR | 0o700, uid=3, gid=4, mtime_ns=-1_500_000_000, xattrs={b"user.x": b"y" * 300}),
        b"a/b": Node(mode=S_IFREG | 0o4755, size_bytes=5, blake3=b"h" * 32, flags=FLAG_HASHED, mtime_ns=1_999_999_999,
                     layer=2, data_offset=512, nlink=3),
        b"a/c": Node(mode=S_IFREG | 0o4755, size_bytes=5, flags=FLAG_HARDLINK, link=b"a/b", layer=2, data_offset=512),
        b"a/l": Node(mode=S_IFLNK | 0o777, link=b"../a/b"),
        b"a/p": Node(mode=S_IFIFO | 0o600),
        b"a.x": Node(mode=S_IFREG | 0o644, size_bytes=1, flags=FLAG_HARDLINK, link=b"a/b", layer=1, data_offset=99),
        b"ab": Node(mode=S_IFBLK | 0o600, rdev=(7, 1)),
    }
)  # fmt: skip


@pytest.mark.parametrize("kind", [SOURCE_PATH, SOURCE_RANGE])
@pytest.mark.parametrize("prefix", [b"", b"n", b"n/m"])
@pytest.mark.parametrize("top", sorted(TREE))
@pytest.mark.parametrize("change", [(-1, -1, -1), (0, 0, -1), (2**32 - 1, 5, 0o7777)])
def test_every_top_and_prefix(top, prefix, kind, change) -> None:
    assert run(TREE, top, prefix, kind, *change) == model(TREE, top, prefix, kind, *change)


def call(table: EntryTable, start: int, end: int, kind: int = SOURCE_RANGE, descriptors: bytes | None = None):
    packed = struct.pack(f"<{len(DESCRIPTORS)}i", *DESCRIPTORS) if descriptors is None else descriptors
    return graft.graft(table.records, table.heap, start, end, b"x", packed, kind)


@pytest.mark.parametrize(("start", "end"), [(0, 0), (3, 2), (0, 99), (8, 9)])
def test_refuses_rows_outside_the_table(start, end) -> None:
    with pytest.raises(ValueError, match="rows"):
        call(build_table(TREE), start, end)


def test_refuses_rows_outside_the_subtree() -> None:
    with pytest.raises(ValueError, match="subtree"):
        call(build_table(TREE), 1, len(TREE))


@pytest.mark.parametrize("field", [0, 8, 16])
def test_refuses_offsets_outside_the_heap(field) -> None:
    table = build_table(TREE)
    struct.pack_into("<Q", table.records, 2 * ENTRY_SIZE_BYTES + field, 2**64 - 1)
    with pytest.raises(ValueError, match="heap"):
        call(table, 0, len(TREE))


def test_refuses_a_layer_without_descriptor_and_unknown_kinds() -> None:
    table = build_table(TREE)
    with pytest.raises(ValueError, match="no descriptor"):
        call(table, 0, len(TREE), descriptors=struct.pack("<i", 3))
    with pytest.raises(ValueError, match="no descriptor"):
        call(table, 0, len(TREE), descriptors=b"")
    with pytest.raises(ValueError, match="kind"):
        call(table, 0, len(TREE), kind=3)


def test_adopts_hashes_of_hashed_rows_only() -> None:
    table = build_table(TREE)
    bare = build_table({path: Node(mode=node.mode) for path, node in TREE.items()})
    assert graft.adopt_hashes(bare.records, 1, table.records, 1, 3) == 1
    assert graft.adopt_hashes(bare.records, 1, table.records, 1, 3) == 0
    bare.records[3 * ENTRY_SIZE_BYTES - 1] ^= 1  # the hash's last byte
    assert graft.adopt_hashes(bare.records, 1, table.records, 1, 3) == 1
    assert graft.adopt_hashes(bare.records, 1, table.records, 1, 0) == 0
    hashed = [path for path, entry in zip(TREE, bare, strict=True) if entry.flags & FLAG_HASHED]
    assert hashed == [b"a/b"]
    assert bare.entry(2).blake3 == b"h" * 32


@pytest.mark.parametrize(("start", "first", "count"), [(0, 0, 9), (8, 0, 1), (0, 8, 1), (2**64 - 1, 0, 2)])
def test_adopt_refuses_rows_outside(start, first, count) -> None:
    table = build_table(TREE)
    with pytest.raises(ValueError, match="outside"):
        graft.adopt_hashes(table.records, start, bytes(table.records), first, count)
