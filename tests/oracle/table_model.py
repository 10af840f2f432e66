"""Merge, tree digest and diff the slow way: dictionaries, sets and recursion."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG

from blake3 import blake3

from pylayers.store.entry import (
    FLAG_HARDLINK,
    FLAG_HASHED,
    FLAG_IMPLICIT,
    FLAG_OPAQUE,
    FLAG_WHITEOUT,
    EntryTable,
    TableBuilder,
    encode_xattrs,
    path_key,
)
from pylayers.store.row import Entry


@dataclass(frozen=True)
class Node:
    """What one row says, without offsets."""

    mode: int = 0
    flags: int = 0
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size_bytes: int = 0
    blake3: bytes = bytes(32)
    link: bytes = b""
    rdev: tuple[int, int] = (0, 0)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    nlink: int = 1
    layer: int = 0
    data_offset: int = 0

    @property
    def is_directory(self) -> bool:
        return S_IFMT(self.mode) == S_IFDIR


Tree = dict[bytes, Node]


def build_table(tree: Tree) -> EntryTable:
    """Make a table of a tree given by path."""
    builder = TableBuilder()
    for path, node in tree.items():
        entry = Entry(
            mode=node.mode,
            flags=node.flags,
            uid=node.uid,
            gid=node.gid,
            mtime_ns=node.mtime_ns,
            size_bytes=node.size_bytes,
            blake3=node.blake3,
            rdev_major=node.rdev[0],
            rdev_minor=node.rdev[1],
            nlink=node.nlink,
            layer=node.layer,
            data_offset=node.data_offset,
        )
        builder.add(path, entry, link=node.link, xattrs=encode_xattrs(node.xattrs))
    return builder.build()[0]


def read_table(table: EntryTable) -> Tree:
    """Read a table back, in its order."""
    return {
        table.path(entry): Node(
            mode=entry.mode,
            flags=entry.flags,
            uid=entry.uid,
            gid=entry.gid,
            mtime_ns=entry.mtime_ns,
            size_bytes=entry.size_bytes,
            blake3=entry.blake3,
            link=table.link(entry),
            rdev=(entry.rdev_major, entry.rdev_minor),
            xattrs=table.xattrs(entry),
            nlink=entry.nlink,
            layer=entry.layer,
            data_offset=entry.data_offset,
        )
        for entry in table
    }


def sort_tree(tree: Tree) -> Tree:
    return {path: tree[path] for path in sorted(tree, key=path_key)}


def is_below(path: bytes, top: bytes) -> bool:
    return path != top and (not top or path.startswith(top + b"/"))


def merge(layers: Sequence[Tree]) -> Tree:
    """Apply layers one after another to a dictionary, as one would to a directory; then name the links anew."""
    seen: dict[bytes, tuple[Node, tuple[int, bytes]]] = {}  # path → row, inode (layer and first path there)
    for number, layer in enumerate(layers):
        before = dict(seen)

        def drop(top: bytes, whole: bool, before: dict[bytes, tuple[Node, tuple[int, bytes]]] = before) -> None:
            for path in before:
                if is_below(path, top) or (whole and path == top):
                    seen.pop(path, None)

        # first everything that deletes from the layers below, then what this layer holds
        for path, node in layer.items():
            if node.flags & FLAG_WHITEOUT:
                drop(path, True)
            elif node.flags & FLAG_OPAQUE:
                drop(path, False)
            elif not node.is_directory:
                drop(path, True)
        for path, node in layer.items():
            if node.flags & FLAG_WHITEOUT:
                continue
            kept = seen.get(path)
            if node.flags & FLAG_IMPLICIT and kept is not None and kept[0].is_directory:
                continue
            inode = (number, node.link if node.flags & FLAG_HARDLINK else path)
            file = layer[inode[1]]
            seen[path] = (replace(file, flags=file.flags & ~FLAG_OPAQUE, layer=number), inode)
    seen.setdefault(b"", (Node(mode=S_IFDIR | 0o755, flags=FLAG_IMPLICIT), (-1, b"")))
    names: dict[tuple[int, bytes], list[bytes]] = {}
    for path in sorted(seen, key=path_key):
        names.setdefault(seen[path][1], []).append(path)
    merged: Tree = {}
    for path in sorted(seen, key=path_key):
        node, inode = seen[path]
        if not node.is_directory:
            node = replace(node, nlink=len(names[inode]))
            if names[inode][0] != path:
                node = replace(node, flags=node.flags | FLAG_HARDLINK, link=names[inode][0])
        merged[path] = node
    return merged


def text(content: bytes) -> bytes:
    return struct.pack("<I", len(content)) + content


def tree_digest(tree: Tree, top: bytes = b"", top_metadata: bool = True) -> bytes:
    """Hash a tree recursively, exactly as docs/internals/tree-digest.md says."""
    below = [path for path in sort_tree(tree) if path == top or is_below(path, top)]
    first: dict[bytes, bytes] = {}
    for path in below:
        node = tree[path]
        first.setdefault(node.link if node.flags & FLAG_HARDLINK else path, path)

    def directory(path: bytes) -> bytes:
        content = b"pylayers directory\0\1"
        for child in below:
            if is_below(child, path) and b"/" not in child[len(path) + 1 if path else 0 :]:
                content += text(child.rpartition(b"/")[2]) + row(child, True)
        return blake3(content).digest()

    def row(path: bytes, metadata: bool) -> bytes:
        node = tree[path]
        if node.flags & FLAG_WHITEOUT:
            return b"\2"
        file_path = node.link if node.flags & FLAG_HARDLINK else path
        file = tree[file_path]
        mark, link = b"\0", b""
        if node.flags & FLAG_OPAQUE:
            mark = b"\4"
        elif first[file_path] != path:
            mark, link = b"\1", text(first[file_path][len(top) + 1 if top else 0 :])
        meta = struct.pack("<III", file.mode, file.uid, file.gid) + text(encode_xattrs(file.xattrs))
        if not metadata:
            meta = struct.pack("<III", S_IFMT(file.mode), 0, 0) + text(b"")
        return mark + meta + link + content_of(path, file)

    def content_of(path: bytes, file: Node) -> bytes:
        kind = S_IFMT(file.mode)
        if kind == S_IFREG:
            if file.size_bytes and not file.flags & FLAG_HASHED:
                raise ValueError(path)
            return struct.pack("<Q", file.size_bytes) + (file.blake3 if file.size_bytes else blake3(b"").digest())
        if kind == S_IFDIR:
            return directory(path)
        if kind == S_IFLNK:
            return text(file.link)
        return struct.pack("<II", *file.rdev) if kind in (S_IFCHR, S_IFBLK) else b""

    return blake3(b"pylayers tree\0\1" + bytes([top_metadata]) + row(top, top_metadata)).digest()


def changes(old: Tree, new: Tree, times: bool = True) -> list[tuple[str, bytes]]:
    """List (kind, path) in component order."""

    def view(tree: Tree, path: bytes, other: Tree) -> tuple[object, ...]:
        node = tree[path]
        file = tree[node.link] if node.flags & FLAG_HARDLINK else node
        seen: list[object] = [node.flags & (FLAG_HARDLINK | FLAG_OPAQUE | FLAG_WHITEOUT), node.mode, node.uid, node.gid]
        seen += [node.xattrs, node.link if node.flags & FLAG_HARDLINK else b"", node.mtime_ns if times else 0]
        kind = S_IFMT(node.mode)
        if kind == S_IFREG:
            there = other[path]
            twin = other[there.link] if there.flags & FLAG_HARDLINK else there
            hashed = file.flags & twin.flags & FLAG_HASHED
            seen += [file.size_bytes, (file.blake3 if hashed else file.mtime_ns) if file.size_bytes else 0]
        elif kind == S_IFLNK:
            seen.append(file.link)
        elif kind in (S_IFCHR, S_IFBLK):
            seen.append(file.rdev)
        return tuple(seen)

    def found() -> Iterator[tuple[str, bytes]]:
        gone: bytes | None = None
        for path in sorted(set(old) | set(new), key=path_key):
            if path not in new:
                if gone is None or not is_below(path, gone):
                    gone = path
                    if not any(is_below(path, above) and not node.is_directory for above, node in new.items()):
                        yield "delete", path
            elif path not in old:
                yield "add", path
            elif view(old, path, new) != view(new, path, old):
                yield "modify", path

    return list(found())
