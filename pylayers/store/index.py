"""The layer.idx codec: header, entry records, heap, chunk records. Layout: docs/internals/layer-idx.md.

Opening maps the file and checks the header against its own checksum and the file's size; the sections'
checksum is only compared by `verify`, so that opening costs the same for every layer. NumPy is not imported.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Iterator

from pylayers.errors import IntegrityError
from pylayers.record import record
from pylayers.store.entry import ENTRY_SIZE_BYTES, Buffer, EntryTable
from pylayers.store.file import CHECK_HINT, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _typeshed import StrPath

MAGIC = b"PYLAYIDX"
VERSION = 1
ALIGNMENT = 64
CHUNK_STRUCT = struct.Struct("<QII32s")  # offset in the tar, size, reserved, BLAKE3
CHUNK_SIZE_BYTES = CHUNK_STRUCT.size
# magic, version, header size, entry size, chunk size; (offset, length) of entries, heap, chunks; tar size;
# diff_id; BLAKE3 of the sections; zeros; CRC-32 of all before it.
HEADER_STRUCT = struct.Struct("<8sIIII6QQ32s32s44xI")
HEADER_SIZE_BYTES = HEADER_STRUCT.size


@record
class LayerIndex:
    """View an open layer.idx; the buffers are read-only windows of one mapping, which they keep alive."""

    table: EntryTable
    chunks: memoryview
    size_bytes: int  # of layer.tar
    diff_hex: str
    checksum: bytes

    def verify(self, path: StrPath) -> None:
        """Compare the sections with the checksum; raises IntegrityError. Reads the whole file."""
        found = checksum_sections(self.table.records, self.table.heap, self.chunks)
        if found != self.checksum:
            raise IntegrityError(f"{path}: the sections do not match their checksum", hint=CHECK_HINT)


def checksum_sections(records: Buffer, heap: Buffer, chunks: Buffer) -> bytes:
    """Return BLAKE3 of the three sections, each preceded by its length (so that bytes cannot move between them)."""
    from blake3 import blake3

    hasher = blake3()
    for section in (records, heap, chunks):
        hasher.update(struct.pack("<Q", len(section)))
        hasher.update(section)
    return hasher.digest()


def encode_index(
    records: Buffer, heap: Buffer, chunks: Buffer, *, size_bytes: int, diff_hex: str
) -> Iterator[Buffer]:
    """Yield the file's bytes, section by section, without copying the sections. Raises ValueError on a torn record."""
    if len(records) % ENTRY_SIZE_BYTES or len(chunks) % CHUNK_SIZE_BYTES:
        raise ValueError("records or chunks end inside a record")
    offset = HEADER_SIZE_BYTES
    places: list[int] = []
    for section in (records, heap, chunks):
        places += (offset, len(section))
        offset += len(section) + -len(section) % ALIGNMENT
    header = HEADER_STRUCT.pack(
        MAGIC,
        VERSION,
        HEADER_SIZE_BYTES,
        ENTRY_SIZE_BYTES,
        CHUNK_SIZE_BYTES,
        *places,
        size_bytes,
        bytes.fromhex(diff_hex),
        checksum_sections(records, heap, chunks),
        0,
    )
    yield header[:-4] + struct.pack("<I", zlib.crc32(header[:-4]))
    for section in (records, heap, chunks):
        yield section
        yield bytes(-len(section) % ALIGNMENT)


def write_index(
    descriptor: int, records: Buffer, heap: Buffer, chunks: Buffer, *, size_bytes: int, diff_hex: str
) -> None:
    """Write a layer.idx to an empty file; the caller syncs it."""
    for part in encode_index(records, heap, chunks, size_bytes=size_bytes, diff_hex=diff_hex):
        write_all(descriptor, part)


def open_index(path: StrPath) -> LayerIndex:
    """Map a layer.idx. Raises OSError when it cannot be opened, IntegrityError when its header is not believable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        length = os.fstat(descriptor).st_size
        if length < HEADER_SIZE_BYTES:
            raise IntegrityError(f"{path}: {length} bytes, shorter than a header", hint=CHECK_HINT, offset=length)
        mapping = memoryview(mmap.mmap(descriptor, length, access=mmap.ACCESS_READ))
    finally:
        os.close(descriptor)
    return decode_index(mapping, path)


def decode_index(content: memoryview, path: StrPath) -> LayerIndex:
    """View the bytes of a layer.idx; `path` is only named in errors."""

    def refuse(message: str, offset: int | None = None) -> IntegrityError:
        return IntegrityError(f"{path}: {message}", hint=CHECK_HINT, offset=offset)

    if len(content) < HEADER_SIZE_BYTES:
        raise refuse("shorter than a header", len(content))
    fields = HEADER_STRUCT.unpack_from(content)
    magic, version, header_size, entry_size, chunk_size = fields[:5]
    if magic != MAGIC:
        raise refuse("not a layer index", 0)
    if version != VERSION:
        raise refuse(f"layer index version {version}; this pylayers reads version {VERSION}", 8)
    if zlib.crc32(content[: HEADER_SIZE_BYTES - 4]) != fields[-1]:
        raise refuse("the header does not match its checksum", HEADER_SIZE_BYTES - 4)
    if (header_size, entry_size, chunk_size) != (HEADER_SIZE_BYTES, ENTRY_SIZE_BYTES, CHUNK_SIZE_BYTES):
        raise refuse("the header names other record sizes than its version has", 12)
    sections: list[memoryview] = []
    expected = HEADER_SIZE_BYTES
    for name, offset, size in zip(("entries", "heap", "chunks"), fields[5:11:2], fields[6:11:2], strict=True):
        if offset != expected or size > len(content) - offset:
            raise refuse(f"the {name} lie outside the file", offset)
        sections.append(content[offset : offset + size])
        expected = offset + size + -size % ALIGNMENT
    records, heap, chunks = sections
    if expected != len(content):
        raise refuse(f"{len(content)} bytes where the header says {expected}", expected)
    if len(records) % ENTRY_SIZE_BYTES or len(chunks) % CHUNK_SIZE_BYTES:
        raise refuse("a section ends inside a record")
    return LayerIndex(EntryTable(records, heap), chunks, fields[11], fields[12].hex(), fields[13])


def check_rows(table: EntryTable) -> str | None:
    """Say what is wrong with a table's rows: offsets outside the heap, or paths out of order; None when all is well."""
    from pylayers.store.entry import path_key

    limit = len(table.heap)
    previous: bytes | None = None
    for number, entry in enumerate(table):
        for name, offset, length in (
            ("path", entry.path_offset, entry.path_length),
            ("link", entry.link_offset, entry.link_length),
            ("xattrs", entry.xattr_offset, entry.xattr_length),
        ):
            if length and (offset > limit or length > limit - offset):
                return f"row {number}: its {name} lies outside the heap"
        key = path_key(table.path(entry))
        if previous is not None and key <= previous:
            return f"row {number}: out of order"
        previous = key
    return None
