"""The oracle of the walk kernel: a tree as os.lstat and os.walk see it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pylayers.store.entry import FLAG_HARDLINK, EntryTable, path_key
from pylayers.store.row import Entry

FOREVER_NS = 1 << 62

Row = tuple[bytes, Entry, bytes, dict[bytes, bytes]]


@contextmanager
def opened(path: Path | bytes) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def observe_tree(root: bytes, *, xattrs: bool = False) -> list[Row]:
    """Walk slowly and obviously; the offsets of the entries are 0."""
    paths = [b""]
    for directory, directories, files in os.walk(root):
        inside = os.path.relpath(directory, root)
        paths += [name if inside == b"." else os.path.join(inside, name) for name in directories + files]
    first: dict[tuple[int, int], bytes] = {}
    rows: list[Row] = []
    for path in sorted(paths, key=path_key):
        full = os.path.join(root, path) if path else root
        found = os.lstat(full)
        link = os.readlink(full) if stat.S_ISLNK(found.st_mode) else b""
        flags = 0
        if not stat.S_ISDIR(found.st_mode):
            known = first.setdefault((found.st_dev, found.st_ino), path)
            if known != path:
                flags, link = FLAG_HARDLINK, known
        attributes = {}
        if xattrs:
            names = os.listxattr(full, follow_symlinks=False)
            attributes = {os.fsencode(name): os.getxattr(full, name, follow_symlinks=False) for name in names}
        entry = Entry(
            size_bytes=found.st_size if stat.S_ISREG(found.st_mode) else 0,
            mtime_ns=found.st_mtime_ns,
            ctime_ns=found.st_ctime_ns,
            device=found.st_dev,
            inode=found.st_ino,
            path_length=len(path),
            link_length=len(link),
            xattr_length=sum(6 + len(name) + len(value) for name, value in attributes.items()),
            mode=found.st_mode,
            uid=found.st_uid,
            gid=found.st_gid,
            rdev_major=os.major(found.st_rdev),
            rdev_minor=os.minor(found.st_rdev),
            nlink=found.st_nlink,
            flags=flags,
        )
        rows.append((path, entry, link, attributes))
    return rows


def unpack(records: bytearray, heap: bytearray) -> list[Row]:
    table = EntryTable(records, heap)
    return [
        (
            table.path(entry),
            entry._replace(path_offset=0, link_offset=0, xattr_offset=0),
            table.link(entry),
            table.xattrs(entry),
        )
        for entry in table
    ]


def paths_of(rows: list[Row]) -> list[bytes]:
    return [row[0] for row in rows]
