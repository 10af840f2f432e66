"""tardiff against the slow model: golden digests, the cases one can name, and a large table."""

from __future__ import annotations

import io
import json
import random
import re
import struct
import tarfile
from dataclasses import replace
from hashlib import sha1
from pathlib import Path
from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG

import pytest
from blake3 import blake3

from pylayers._native import tardiff
from pylayers._native.tarscan import scan
from pylayers.store.entry import (
    ENTRY_SIZE_BYTES,
    FLAG_HARDLINK,
    FLAG_HASHED,
    FLAG_IMPLICIT,
    FLAG_OPAQUE,
    FLAG_SPARSE,
    FLAG_WHITEOUT,
    Buffer,
    EntryTable,
)
from tests.oracle import table_model as model
from tests.oracle.table_model import Node, Tree

DOCUMENT = Path(__file__).parents[2] / "docs" / "internals" / "tree-digest.md"
GOLDEN: dict[str, str] = json.loads((Path(__file__).parents[1] / "corpus" / "golden" / "tree-digest.json").read_text())

ROOT = Node(mode=S_IFDIR | 0o755, flags=FLAG_IMPLICIT)
DIRECTORY = Node(mode=S_IFDIR | 0o750, uid=1)
WHITEOUT = Node(flags=FLAG_WHITEOUT)


def file(content: bytes = b"content", **fields: object) -> Node:
    values: dict[str, object] = {
        "mode": S_IFREG | 0o644, "size_bytes": len(content), "flags": FLAG_HASHED, "blake3": blake3(content).digest(),
    }  # fmt: skip
    return Node(**(values | fields))  # type: ignore[arg-type]


def linked(first: Node, path: bytes) -> Node:
    return replace(first, flags=first.flags | FLAG_HARDLINK, link=path)


def buffers(tree: Tree) -> tuple[Buffer, Buffer]:
    table = model.build_table(model.sort_tree({b"": ROOT} | tree))
    return table.records, table.heap


def merged(*layers: Tree) -> Tree:
    """Merge with the kernel, hold against the model, leave the root out."""
    found = model.read_table(EntryTable(*tardiff.merge([buffers(layer) for layer in layers])))
    assert found == model.merge([{b"": ROOT} | layer for layer in layers])
    return {path: node for path, node in found.items() if path}


def digest(tree: Tree, row: int = 0, top_metadata: bool = True) -> bytes:
    return tardiff.tree_digest(*buffers(tree), blake3, row, top_metadata)


GOLDEN_TREES: dict[str, Tree] = {
    "empty": {},
    "file": {b"a": file()},
    "empty file": {b"a": file(b"", flags=0, blake3=bytes(32))},
    "kinds": {
        b"block": Node(mode=S_IFBLK | 0o660, rdev=(8, 1)),
        b"character": Node(mode=S_IFCHR | 0o666, rdev=(1, 3)),
        b"fifo": Node(mode=S_IFIFO | 0o600),
        b"symlink": Node(mode=S_IFLNK | 0o777, link=b"../target"),
        b"setuid": file(mode=S_IFREG | 0o4755, uid=1000, gid=4294967295),
        b"xattr": file(xattrs={b"user.a": b"1", b"security.capability": b"\1\0\0\2"}),
    },
    "nested": {b"d": DIRECTORY, b"d/e": DIRECTORY, b"d/e/f": file(), b"d-": file(), b"g": file()},
    "links": {b"a": file(), b"b": linked(file(), b"a"), b"d": DIRECTORY, b"d/c": linked(file(), b"a")},
    "marks": {b"gone": WHITEOUT, b"opaque": replace(DIRECTORY, flags=FLAG_OPAQUE)},
}


@pytest.mark.parametrize("name", GOLDEN_TREES)
def test_golden_digests(name: str) -> None:
    """The format is part of every cache key: a change here is a new version byte, not a new golden value."""
    assert digest(GOLDEN_TREES[name]).hex() == GOLDEN[name]
    assert model.tree_digest({b"": ROOT} | GOLDEN_TREES[name]).hex() == GOLDEN[name]


def test_the_document_tells_the_golden_digests() -> None:
    text = DOCUMENT.read_text()
    told = dict(re.findall(r"^\| ([a-z ]+?) +\| `([0-9a-f]{64})` \|$", text, re.MULTILINE))
    assert told == GOLDEN


def test_what_enters_the_digest_and_what_does_not() -> None:
    tree = GOLDEN_TREES["kinds"]
    name = b"setuid"
    same = [{"mtime_ns": 5}, {"layer": 3}, {"data_offset": 512}, {"nlink": 7}]
    other: list[dict[str, object]] = [
        {"mode": S_IFREG | 0o755}, {"uid": 0}, {"gid": 1}, {"size_bytes": 8}, {"blake3": bytes(32)},
        {"xattrs": {b"user.a": b""}}, {"mode": S_IFIFO | 0o4755}, {"flags": FLAG_WHITEOUT},
    ]  # fmt: skip
    for change in same:
        assert digest(tree | {name: replace(tree[name], **change)}) == digest(tree)  # type: ignore[arg-type]
    found = [digest(tree | {name: replace(tree[name], **change)}) for change in other]  # type: ignore[arg-type]
    assert len({digest(tree), *found}) == len(other) + 1
    assert digest({b"": replace(ROOT, flags=0)}) == digest({b"": ROOT})


def test_a_sparse_file_digests_like_its_content() -> None:
    sparse = file(flags=FLAG_HASHED | FLAG_SPARSE, link=struct.pack("<QQ", 1, 6))
    assert digest({b"a": sparse}) == digest({b"a": file()})


def test_the_top_without_its_metadata() -> None:
    one: Tree = {b"d": DIRECTORY, b"d/f": file()}
    two: Tree = {b"e": replace(DIRECTORY, mode=S_IFDIR | 0o700, xattrs={b"user.x": b""}), b"e/f": file()}
    assert digest(one, 1, top_metadata=False) == digest(two, 1, top_metadata=False)
    assert digest(one, 1) != digest(two, 1)
    assert digest(one, 1) != digest(one, 1, top_metadata=False)


def test_the_digest_of_one_file() -> None:
    tree: Tree = {b"d": DIRECTORY, b"d/f": file(), b"g": file(), b"h": file(b"other")}
    assert digest(tree, 2) == digest(tree, 3) != digest(tree, 4)


def test_links_from_outside_count_from_the_first_name_inside() -> None:
    outside: Tree = {b"a": file(), b"d": DIRECTORY, b"d/b": linked(file(), b"a"), b"d/c": linked(file(), b"a")}
    inside: Tree = {b"d": DIRECTORY, b"d/b": file(), b"d/c": linked(file(), b"d/b")}
    apart: Tree = {b"d": DIRECTORY, b"d/b": file(), b"d/c": file()}
    assert digest(outside, 2) == digest(inside, 1) != digest(apart, 1)


def test_digest_refuses() -> None:
    with pytest.raises(ValueError, match=r"row 1 .*BLAKE3"):
        digest({b"a": file(flags=0)})
    for tree in ({b"a/b": file()}, {b"a": file(), b"a/b": file()}):
        with pytest.raises(ValueError, match="has no row for the directory"):
            digest(tree)
    with pytest.raises(ValueError, match="row 1 is a hard link"):
        digest({b"a": linked(file(), b"b"), b"b": file()})
    for index in (-1, 1, 2**64):
        with pytest.raises((IndexError, OverflowError)):
            digest({}, index)
    with pytest.raises(ValueError, match="32 bytes"):
        tardiff.tree_digest(*buffers({}), sha1)


def test_merge_of_nothing_is_the_implicit_root() -> None:
    for tables in ([], [(b"", b"")], [buffers({})], [buffers({}), (b"", b"")]):
        table = EntryTable(*tardiff.merge(tables))
        assert model.read_table(table) == {b"": ROOT}


def test_whiteouts() -> None:
    low: Tree = {b"d": DIRECTORY, b"d/f": file(), b"e": file()}
    assert merged(low, {b"d": WHITEOUT, b"nothing": WHITEOUT}) == {b"e": file()}
    assert merged(low, {b"d": replace(ROOT, layer=1), b"d/f": WHITEOUT}) == {b"d": DIRECTORY, b"e": file()}
    assert merged(low, {b"d": WHITEOUT}, {b"d": DIRECTORY}) == {b"d": replace(DIRECTORY, layer=2), b"e": file()}
    assert merged({b"x": WHITEOUT}) == {}


def test_opaque_directories() -> None:
    low: Tree = {b"d": DIRECTORY, b"d/f": file(), b"d/g": DIRECTORY, b"d/g/h": file()}
    again: Tree = {b"d": replace(DIRECTORY, uid=9, flags=FLAG_OPAQUE), b"d/new": file()}
    assert merged(low, again) == {b"d": replace(DIRECTORY, uid=9, layer=1), b"d/new": file(layer=1)}
    # a bare .wh..wh..opq empties the directory but knows nothing of its mode or owner
    bare: Tree = {b"d": replace(ROOT, flags=FLAG_IMPLICIT | FLAG_OPAQUE)}
    assert merged(low, bare) == {b"d": DIRECTORY}
    assert merged(again) == {b"d": replace(DIRECTORY, uid=9), b"d/new": file()}


def test_one_kind_over_another() -> None:
    low: Tree = {b"x": DIRECTORY, b"x/f": file(), b"y": file()}
    high: Tree = {b"x": file(), b"y": DIRECTORY, b"y/g": file()}
    assert merged(low, high) == {
        b"x": file(layer=1), b"y": replace(DIRECTORY, layer=1), b"y/g": file(layer=1),
    }  # fmt: skip
    assert merged(low, high, low) == {
        b"x": replace(DIRECTORY, layer=2), b"x/f": file(layer=2), b"y": file(layer=2),
    }  # fmt: skip


def test_implicit_directories_do_not_change_lower_ones() -> None:
    implicit: Tree = {b"d": ROOT, b"d/f": file()}
    assert merged({b"d": DIRECTORY}, implicit)[b"d"] == DIRECTORY
    assert merged(implicit, {b"d": DIRECTORY})[b"d"] == replace(DIRECTORY, layer=1)
    assert merged(implicit, implicit)[b"d"] == ROOT
    assert merged({b"d": file()}, implicit)[b"d"] == replace(ROOT, layer=1)


def test_links_after_their_first_name_is_gone() -> None:
    first = file(nlink=3)
    low: Tree = {b"a": first, b"b": linked(first, b"a"), b"c": linked(first, b"a")}
    assert merged(low, {b"a": WHITEOUT}) == {b"b": file(nlink=2), b"c": linked(file(nlink=2), b"b")}
    assert merged(low, {b"a": file(b"new")}) == {
        b"a": file(b"new", layer=1), b"b": file(nlink=2), b"c": linked(file(nlink=2), b"b"),
    }  # fmt: skip
    assert merged(low, {b"b": WHITEOUT}) == {b"a": file(nlink=2), b"c": linked(file(nlink=2), b"a")}
    assert merged(low, low)[b"c"] == replace(linked(first, b"a"), layer=1)


def test_linked_symlinks_and_sparse_files_pass_their_link_on() -> None:
    symlink = Node(mode=S_IFLNK | 0o777, link=b"to", nlink=2)
    sparse = file(flags=FLAG_HASHED | FLAG_SPARSE, link=struct.pack("<QQ", 1, 6), nlink=2)
    low: Tree = {
        b"a": symlink, b"b": linked(symlink, b"a"), b"c": sparse, b"d": linked(sparse, b"c"),
    }  # fmt: skip
    assert merged(low, {b"a": WHITEOUT, b"c": WHITEOUT}) == {
        b"b": replace(symlink, nlink=1), b"d": replace(sparse, nlink=1),
    }  # fmt: skip


def test_merge_refuses() -> None:
    good = buffers({})
    with pytest.raises(ValueError, match="layer table 1: row 1 has no row for the directory"):
        tardiff.merge([good, buffers({b"a/b": file()})])
    with pytest.raises(ValueError, match="layer table 0: row 2 lies below a row that is no directory"):
        tardiff.merge([buffers({b"a": file(), b"a/b": file()})])
    with pytest.raises(ValueError, match="layer table 1: row 1 is a hard link"):
        tardiff.merge([buffers({b"a": file()}), buffers({b"b": linked(file(), b"a")})])
    with pytest.raises(ValueError, match="row 0 is the root but no directory"):
        tardiff.merge([buffers({b"": WHITEOUT})])
    records, heap = buffers({b"a": file(), b"b": file()})
    assert isinstance(records, bytearray)
    root, first, second = (records[at : at + ENTRY_SIZE_BYTES] for at in range(0, len(records), ENTRY_SIZE_BYTES))
    turned = root + second + first
    with pytest.raises(ValueError, match="row 2 is not after"):
        tardiff.merge([(turned, heap)])
    with pytest.raises(ValueError, match="outside the heap"):
        tardiff.merge([(records, b"")])
    with pytest.raises(ValueError, match="multiple of 168"):
        tardiff.merge([(records[:-1], heap)])


def test_deep_trees_need_no_stack() -> None:
    tree: Tree = {b"/".join([b"d"] * depth): DIRECTORY for depth in range(1, 2000)}
    records, heap = buffers(tree)
    assert tardiff.subtree(records, heap, 1) == 2000
    assert len(tardiff.tree_digest(records, heap, blake3)) == 32
    assert len(tardiff.merge([(records, heap)] * 3)[0]) == 2000 * ENTRY_SIZE_BYTES


def large_layers() -> list[Tree]:
    """Make a lower layer of some 6,000 rows with links, and an upper one that changes some of them."""
    chosen = random.Random(7)
    low: Tree = {}
    for number in range(250):
        folder = b"p%03d" % chosen.randrange(40) + b"/lib-%d" % number
        low.setdefault(folder[:4], DIRECTORY)
        low[folder] = replace(DIRECTORY, mtime_ns=number)
        for name in range(25):
            low[folder + b"/f%d" % name] = file(b"%d" % (number * name % 7))
        low[folder + b"/link"] = linked(low[folder + b"/f0"], folder + b"/f0")
    high: Tree = {}
    for path in chosen.sample(sorted(low), 300):
        if any(model.is_below(path, above) and not node.is_directory for above, node in high.items()):
            continue
        if any(model.is_below(below, path) for below in high):
            continue
        for at in range(len(path)):
            if path[at : at + 1] == b"/":
                high.setdefault(path[:at], ROOT)
        high[path] = chosen.choice([WHITEOUT, file(b"new"), replace(DIRECTORY, flags=FLAG_OPAQUE), DIRECTORY])
    return [low, high]


def test_a_large_merge_digest_and_diff() -> None:
    low, high = large_layers()
    found = merged(low, high)
    old = buffers(merged(low))
    new = EntryTable(*tardiff.merge([buffers(low), buffers(high)]))
    assert tardiff.tree_digest(new.records, new.heap, blake3) == model.tree_digest({b"": ROOT} | found)
    changes = struct.iter_unpack("<III", tardiff.diff(*old, new.records, new.heap))
    tables = (EntryTable(*old), new)
    seen = []
    for kind, old_row, new_row in changes:
        table, row = (tables[0], old_row) if kind == 2 else (tables[1], new_row)
        seen.append((("add", "modify", "delete")[kind], table.path(table.entry(row))))
    assert {kind for kind, _ in seen} >= {"modify", "delete"}
    assert seen == model.changes(model.read_table(tables[0]), model.read_table(new))


def test_diff_of_contents_without_hashes_goes_by_mtime() -> None:
    plain = file(flags=0, mtime_ns=1)
    later = replace(plain, mtime_ns=2)
    hashed = file(mtime_ns=2)
    for old, new, times, modified in (
        (plain, plain, False, False), (plain, later, False, True), (plain, hashed, False, True),
        (file(mtime_ns=1), hashed, False, False), (file(mtime_ns=1), hashed, True, True),
    ):  # fmt: skip
        found = tardiff.diff(*buffers({b"a": old}), *buffers({b"a": new}), times)
        assert found == (struct.pack("<III", 1, 1, 1) if modified else b"")


def test_a_changed_target_of_linked_symlinks_is_a_change_of_all_names() -> None:
    one = Node(mode=S_IFLNK | 0o777, link=b"x")
    two = replace(one, link=b"y")
    old, new = ({b"a": node, b"b": linked(node, b"a")} for node in (one, two))
    assert tardiff.diff(*buffers(old), *buffers(new)) == struct.pack("<6I", 1, 1, 1, 1, 2, 2)


def test_scanned_layers_merge() -> None:
    """From tars to the merged tree: a hard link whose first name an upper layer deletes still reads its data."""

    def tar(*members: tuple[str, bytes, str, bytes]) -> bytes:
        written = io.BytesIO()
        with tarfile.open(fileobj=written, mode="w") as archive:
            for name, kind, link, data in members:
                info = tarfile.TarInfo(name)
                info.type, info.linkname, info.size = kind, link, len(data)
                archive.addfile(info, io.BytesIO(data))
        return written.getvalue()

    low = tar(
        ("z", b"0", "", b"data"), ("a", b"1", "z", b""), ("e", b"0", "", b""), ("f", b"1", "e", b""),
        ("g", b"0", "", b""),
    )  # fmt: skip
    high = tar((".wh.a", b"0", "", b""), ("d/x", b"0", "", b"new"))
    table = EntryTable(*tardiff.merge([scan(low), scan(high)]))
    found = {table.path(entry): entry for entry in table}
    assert list(found) == [b"", b"d", b"d/x", b"e", b"f", b"g", b"z"]
    entry = found[b"z"]
    assert (entry.flags, entry.nlink, entry.layer) == (0, 1, 0)
    assert low[entry.data_offset : entry.data_offset + entry.size_bytes] == b"data"
    assert (found[b"f"].flags, table.link(found[b"f"]), found[b"g"].flags) == (FLAG_HARDLINK, b"e", 0)
    assert (found[b"d"].flags, found[b"d"].layer) == (FLAG_IMPLICIT, 1)
