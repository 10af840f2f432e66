"""Carry a snapshot's changes into another snapshot as they are: holes, nanoseconds and all, with no tar in between."""

from __future__ import annotations

import os
import stat
import tempfile
from typing import TYPE_CHECKING

from pylayers._native import copyup, unpack
from pylayers.snapshot.changeset import KIND_BITS
from pylayers.snapshot.snapshotter import Changes
from pylayers.store.entry import (
    FLAG_HARDLINK,
    FLAG_HASHED,
    FLAG_SPARSE,
    FLAG_WHITEOUT,
    SOURCE_PATH,
    SOURCE_STRUCT,
    EntryTable,
)
from pylayers.store.row import Entry

if TYPE_CHECKING:
    from pathlib import Path

CAPABILITY = b"security.capability"


def carry_changes(changes: Changes, target: Path) -> int:
    """Make the changes in a mounted snapshot over the same parent and return the bytes of file data copied.

    Whiteouts delete. Nobody else may change the target meanwhile. What was made before an error stays. Raises OSError.
    """
    top = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with tempfile.TemporaryFile() as nothing:
            unpack.unpack(top, nothing.fileno(), _without_data(changes), changes.heap, unpack.WHITEOUT_APPLY)
        table = EntryTable(changes.records, changes.heap)
        copied = 0
        for row, source in enumerate(SOURCE_STRUCT.iter_unpack(changes.sources)):
            descriptor, kind, offset, length = source
            if kind == SOURCE_PATH:
                path = bytes(changes.heap[offset : offset + length])
                copied += _carry_data(table, table.entry(row), descriptor, path, top)
        root = table.entry(0)
        os.utime(top, ns=(root.mtime_ns, root.mtime_ns))
        return copied
    finally:
        os.close(top)


def _without_data(changes: Changes) -> bytearray:
    """Copy a table with every file empty, so that unpacking makes all but the data."""
    records = bytearray(changes.records)
    array = EntryTable(records, b"").array
    files = (array["mode"] & KIND_BITS) == stat.S_IFREG
    files &= (array["flags"] & FLAG_WHITEOUT) == 0
    array["size_bytes"][files] = 0
    array["data_offset"] = 0
    array["flags"][files] &= 0xFFFFFFFF ^ (FLAG_HASHED | FLAG_SPARSE)
    return records


def _carry_data(table: EntryTable, entry: Entry, source_fd: int, source_path: bytes, top: int) -> int:
    """Fill an empty file; what writing changes or drops (time, capabilities, set-id bits) is put back.

    The directories on the way were made by unpacking a moment ago, so no symlink can be among them.
    """
    if entry.flags & FLAG_HARDLINK:
        return 0
    source = os.open(source_path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source_fd)
    try:
        size_bytes = os.fstat(source).st_size
        if size_bytes:
            target = os.open(table.path(entry), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
            try:
                copyup.copy_file(source, target, size_bytes)
                if entry.mode & (stat.S_ISUID | stat.S_ISGID):
                    os.fchmod(target, stat.S_IMODE(entry.mode))
                capability = table.xattrs(entry).get(CAPABILITY)
                if capability is not None:
                    os.fsync(target)  # a FUSE file system writes later what it cached, and that drops it again
                    os.setxattr(target, CAPABILITY, capability)
                os.utime(target, ns=(entry.mtime_ns, entry.mtime_ns))
            finally:
                os.close(target)
        return size_bytes
    finally:
        os.close(source)


def find_name(changes: Changes, prefix: bytes) -> bytes | None:
    """Return the first path that makes something with a prefix in one of its names; None for none."""
    if prefix not in changes.heap:
        return None
    table = EntryTable(changes.records, changes.heap)
    for entry in table:
        path = table.path(entry)
        if not entry.flags & FLAG_WHITEOUT and any(part.startswith(prefix) for part in path.split(b"/")):
            return path
    return None


