"""Make a layer's entry table again from its tar, file hashes included."""

from __future__ import annotations

import mmap
import os
import stat
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from pylayers.errors import IntegrityError
from pylayers.store.entry import (
    ENTRY_SIZE_BYTES,
    ENTRY_STRUCT,
    FLAG_HASHED,
    FLAG_SPARSE,
    FLAG_WHITEOUT,
    Entry,
    EntryTable,
)

if TYPE_CHECKING:
    from blake3 import blake3

_ZEROS = bytes(1 << 20)
_SPAN = struct.Struct("<QQ")


def index_tar(path: Path) -> EntryTable:
    """Scan a tar and hash its files. Raises OSError, IntegrityError for a malformed tar. Reads the whole tar."""
    from pylayers._native.tarscan import TarFormatError, scan

    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_size == 0:
            raise IntegrityError(f"{path}: empty", offset=0)
        tar = memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
    finally:
        os.close(descriptor)
    try:
        records, heap = scan(tar)
    except TarFormatError as error:
        raise IntegrityError(f"{path}: {error}", offset=error.offset) from error
    table = EntryTable(records, heap)
    for number, entry in enumerate(table):
        if stat.S_ISREG(entry.mode) and not entry.flags & FLAG_WHITEOUT:
            hashed = entry._replace(blake3=hash_entry(tar, table, entry), flags=entry.flags | FLAG_HASHED)
            ENTRY_STRUCT.pack_into(records, number * ENTRY_SIZE_BYTES, *hashed)
    return table


def hash_entry(tar: memoryview, table: EntryTable, entry: Entry) -> bytes:
    """Hash a regular file's content; a sparse file's holes count as the zeros that they read as."""
    from blake3 import blake3

    if not entry.flags & FLAG_SPARSE:
        return blake3(tar[entry.data_offset : entry.data_offset + entry.size_bytes]).digest()
    hasher = blake3()
    at, data = 0, entry.data_offset
    for offset, length in _SPAN.iter_unpack(table.link(entry)):
        _feed_zeros(hasher, offset - at)
        hasher.update(tar[data : data + length])
        at, data = offset + length, data + length
    _feed_zeros(hasher, entry.size_bytes - at)
    return hasher.digest()


def _feed_zeros(hasher: blake3, count: int) -> None:
    while count > 0:
        part = min(count, len(_ZEROS))
        hasher.update(_ZEROS[:part])
        count -= part
