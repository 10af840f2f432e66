"""graft() the slow way: dictionaries and joins of path components."""

from __future__ import annotations

import struct
from dataclasses import replace
from stat import S_IFMT, S_ISLNK, S_ISREG

from pylayers._native import graft
from pylayers.store.entry import (
    ENTRY_SIZE_BYTES,
    FLAG_HARDLINK,
    FLAG_HASHED,
    FLAG_SPARSE,
    SOURCE_NONE,
    SOURCE_PATH,
    SOURCE_STRUCT,
    EntryTable,
)
from tests.oracle.table_model import Tree, build_table, is_below, read_table

Source = tuple[int, int, bytes, int, int]  # descriptor, kind, path, offset, length
DESCRIPTORS = (11, 12, 13)
CTIME_AT = 56


def move(path: bytes, top: bytes, prefix: bytes) -> bytes:
    parts = path.split(b"/") if path else []
    rest = parts[len(top.split(b"/")) if top else 0 :]
    return b"/".join([*(prefix.split(b"/") if prefix else []), *rest])


def model(tree: Tree, top: bytes, prefix: bytes, kind: int, uid: int, gid: int, mode: int) -> tuple[Tree, list[Source]]:
    made: Tree = {}
    sources: list[Source] = []
    for path, node in tree.items():
        if path != top and not is_below(path, top):
            continue
        flags = node.flags & (FLAG_HARDLINK | FLAG_HASHED | FLAG_SPARSE)
        link = node.link
        if flags & FLAG_HARDLINK:
            if link == top or is_below(link, top):
                link = move(link, top, prefix)
            else:
                flags, link = flags & ~FLAG_HARDLINK, b""
        if S_ISREG(node.mode) and not flags & FLAG_HARDLINK:
            if kind == SOURCE_PATH:
                sources.append((DESCRIPTORS[0], kind, path, 0, len(path)))
            else:
                sources.append((DESCRIPTORS[node.layer], kind, b"", node.data_offset, node.size_bytes))
        else:
            sources.append((0, SOURCE_NONE, b"", 0, 0))
        made[move(path, top, prefix)] = replace(
            node,
            flags=flags,
            link=link,
            uid=node.uid if uid < 0 else uid,
            gid=node.gid if gid < 0 else gid,
            mode=node.mode if mode < 0 or S_ISLNK(node.mode) else S_IFMT(node.mode) | mode,
            mtime_ns=node.mtime_ns // 10**9 * 10**9,
            layer=0,
            data_offset=0,
        )
    return made, sources


def run(
    tree: Tree, top: bytes, prefix: bytes, kind: int, uid: int = -1, gid: int = -1, mode: int = -1
) -> tuple[Tree, list[Source]]:
    """Call the kernel and read its tables back."""
    table = build_table(tree)
    paths = [table.path(entry) for entry in table]
    start = paths.index(top)
    end = start + sum(path == top or is_below(path, top) for path in paths)
    packed = struct.pack(f"<{len(DESCRIPTORS)}i", *DESCRIPTORS)
    for row in range(len(table)):
        struct.pack_into("<q", table.records, row * ENTRY_SIZE_BYTES + CTIME_AT, row + 1)
    records, heap, sources = graft.graft(table.records, table.heap, start, end, prefix, packed, kind, uid, gid, mode)
    found: list[Source] = []
    for descriptor, given, offset, length in SOURCE_STRUCT.iter_unpack(sources):
        if given == SOURCE_PATH:
            found.append((descriptor, given, bytes(heap[offset : offset + length]), 0, length))
        else:
            found.append((descriptor, given, b"", offset, length))
    made = EntryTable(records, heap)
    before = [table.entry(row).ctime_ns for row in range(start, end)]
    for entry, ctime_ns, (_, given, *_) in zip(made, before, found, strict=True):
        assert (entry.header_offset, entry.device, entry.inode) == (0, 0, 0)
        assert entry.ctime_ns == (ctime_ns if given == SOURCE_PATH else 0)
        assert (entry.chunk_first, entry.chunk_count) == (0, 0)
    return read_table(made), found


def sorted_tree(tree: Tree) -> Tree:
    """Return a tree in component order, as build_table sorts it."""
    return read_table(build_table(tree))
