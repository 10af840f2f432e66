"""Make the entry table of a tar that somebody else wrote."""

from __future__ import annotations

import mmap
import stat

from blake3 import blake3

from pylayers._native import tarscan
from pylayers._native.tarfeed import TableFeed
from pylayers.errors import IntegrityError
from pylayers.store.entry import ENTRY_SIZE_BYTES, FLAG_HARDLINK, FLAG_HASHED, FLAG_SPARSE, EntryTable

FLAGS_AT = 116  # byte offsets within a record
BLAKE3_AT = 136
TAKEN_BYTES = 8 << 20  # at a time, so that others get to run Python between


def index_tar(descriptor: int, size_bytes: int, name: str) -> tuple[bytearray, bytearray]:
    """Scan a whole tar file and hash the content of every regular file; return (records, heap).

    Raises IntegrityError with the byte offset where the tar is malformed.
    """
    if size_bytes == 0:
        return tarscan.scan(b"")
    with mmap.mmap(descriptor, size_bytes, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
        return index_content(view, name)


def index_content(tar: memoryview, name: str) -> tuple[bytearray, bytearray]:
    """Scan a mapped tar and hash the content of every regular file; return (records, heap). Raises IntegrityError.

    One pass over the page cache; two where the tar has sparse files or global headers.
    """
    feed = feed_table()
    for at in range(0, len(tar), TAKEN_BYTES):
        with tar[at : at + TAKEN_BYTES] as piece:
            if not feed.take(piece):
                break
    return feed.finish() or _index_whole(tar, name)


def feed_table() -> TableFeed:
    """Begin the table of a tar that will pass in pieces."""
    return TableFeed(blake3)


def finish_table(feed: TableFeed, descriptor: int, size_bytes: int, name: str) -> tuple[bytearray, bytearray]:
    """Return the table of a tar that has passed and is in a file; that is read again only where the feed has declined.

    Raises IntegrityError with the byte offset.
    """
    table = feed.finish()
    if table is not None:
        return table
    with mmap.mmap(descriptor, size_bytes, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
        return _index_whole(view, name)


def _index_whole(tar: memoryview, name: str) -> tuple[bytearray, bytearray]:
    records, heap = scan_content(tar, name)
    hash_contents(records, heap, tar)
    return records, heap


def scan_content(tar: memoryview, name: str) -> tuple[bytearray, bytearray]:
    """Read every header of a mapped tar; return (records, heap). Raises IntegrityError with the byte offset."""
    try:
        return tarscan.scan(tar)
    except tarscan.TarFormatError as error:
        raise IntegrityError(f"{name}: malformed tar at byte {error.offset}: {error}", offset=error.offset) from error


def hash_contents(records: bytearray, heap: bytearray, tar: memoryview) -> None:
    """Set blake3 and FLAG_HASHED of every regular file, from where its data lies in the tar."""
    table = EntryTable(bytes(records), heap)
    hashed: dict[int, bytes] = {}  # data offset → hash: hard links share their data
    for row, entry in enumerate(table):
        if not stat.S_ISREG(entry.mode):
            continue
        digest = hashed.get(entry.data_offset) if entry.flags & FLAG_HARDLINK else None
        if digest is None:
            if entry.flags & FLAG_SPARSE:
                digest = hash_sparse(table.link(entry), entry.size_bytes, tar, entry.data_offset)
            else:
                with tar[entry.data_offset : entry.data_offset + entry.size_bytes] as content:
                    digest = blake3(content).digest()
            hashed[entry.data_offset] = digest
        at = row * ENTRY_SIZE_BYTES
        records[at + BLAKE3_AT : at + BLAKE3_AT + 32] = digest
        flags = entry.flags | FLAG_HASHED
        records[at + FLAGS_AT : at + FLAGS_AT + 4] = flags.to_bytes(4, "little")


def hash_sparse(ranges: bytes, size_bytes: int, tar: memoryview, data_offset: int) -> bytes:
    """Hash a sparse file as if it were written out, without holding its holes."""
    import struct

    hasher = blake3()
    zeros = bytes(1 << 20)
    at = 0
    packed = data_offset

    def skip(length: int) -> None:
        while length:
            hasher.update(zeros[: min(length, len(zeros))])
            length -= min(length, len(zeros))

    for offset, length in struct.iter_unpack("<QQ", ranges):
        skip(offset - at)
        with tar[packed : packed + length] as content:
            hasher.update(content)
        packed += length
        at = offset + length
    skip(size_bytes - at)
    return hasher.digest()
