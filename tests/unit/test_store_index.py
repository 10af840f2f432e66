from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from blake3 import blake3

from pylayers.errors import IntegrityError
from pylayers.store.entry import EntryTable, TableBuilder, encode_xattrs
from pylayers.store.index import (
    CHUNK_STRUCT,
    HEADER_SIZE_BYTES,
    HEADER_STRUCT,
    check_rows,
    decode_index,
    encode_index,
    open_index,
)
from pylayers.store.row import Entry
from tests.unit.store_sample import make_table

GOLDEN = Path(__file__).parents[1] / "corpus" / "golden" / "layer.idx"


def sample() -> tuple[EntryTable, bytes]:
    builder = TableBuilder()
    builder.add(b"", Entry(mode=0o40755, flags=8))
    builder.add(b"bin", Entry(mode=0o120777, mtime_ns=-1, header_offset=512), link=b"usr/bin")
    builder.add(
        b"usr/file",
        Entry(
            mode=0o100644, size_bytes=9, data_offset=1024, mtime_ns=1_700_000_000_123_456_789, uid=1000, gid=2**32 - 1,
            flags=16, chunk_count=2, blake3=bytes(range(32)),
        ),
        xattrs=encode_xattrs({b"user.x": b"\0\xff"}),
    )  # fmt: skip
    chunks = CHUNK_STRUCT.pack(1024, 4, 0, b"\1" * 32) + CHUNK_STRUCT.pack(1028, 5, 0, b"\2" * 32)
    return builder.build()[0], chunks


def encoded(table: EntryTable, chunks: bytes = b"", size_bytes: int = 4096) -> bytes:
    parts = encode_index(table.records, table.heap, chunks, size_bytes=size_bytes, diff_hex="ab" * 32)
    return b"".join(bytes(part) for part in parts)


def test_golden() -> None:
    table, chunks = sample()
    assert encoded(table, chunks) == GOLDEN.read_bytes()
    index = open_index(GOLDEN)
    index.verify(GOLDEN)
    assert (index.size_bytes, index.diff_hex) == (4096, "ab" * 32)
    assert [index.table.path(row) for row in index.table] == [b"", b"bin", b"usr/file"]
    assert list(index.table) == list(table)
    assert index.table.xattrs(index.table.entry(2)) == {b"user.x": b"\0\xff"}
    assert bytes(index.chunks) == chunks


def test_golden_header_read_by_hand() -> None:
    content = GOLDEN.read_bytes()
    assert content[:8] == b"PYLAYIDX"
    assert struct.unpack_from("<IIII", content, 8) == (1, 192, 168, 48)
    places = struct.unpack_from("<6Q", content, 24)
    assert places[0] == 192
    assert all(offset % 64 == 0 for offset in places[::2])
    assert places[1::2] == (3 * 168, places[3], 2 * 48)
    assert struct.unpack_from("<Q", content, 72) == (4096,)
    assert content[80:112] == b"\xab" * 32
    hasher = blake3()
    for offset, length in zip(places[::2], places[1::2], strict=True):
        hasher.update(struct.pack("<Q", length) + content[offset : offset + length])
    assert content[112:144] == hasher.digest()
    assert struct.unpack_from("<I", content, 188) == (zlib.crc32(content[:188]),)
    assert len(content) % 64 == 0


def test_buffers_outlive_the_file(tmp_path: Path) -> None:
    table, chunks = sample()
    path = tmp_path / "layer.idx"
    path.write_bytes(encoded(table, chunks))
    index = open_index(path)
    path.unlink()
    assert list(index.table) == list(table)
    with pytest.raises(TypeError):
        index.table.records[0] = 1  # type: ignore[index]


def test_empty_table(tmp_path: Path) -> None:
    path = tmp_path / "layer.idx"
    path.write_bytes(encoded(EntryTable(b"", b"")))
    index = open_index(path)
    index.verify(path)
    assert len(index.table) == 0


@pytest.mark.parametrize("length", [0, 1, HEADER_SIZE_BYTES - 1, HEADER_SIZE_BYTES, -1, -64])
def test_truncated(tmp_path: Path, length: int) -> None:
    path = tmp_path / "layer.idx"
    path.write_bytes(encoded(*sample())[:length])
    with pytest.raises(IntegrityError):
        open_index(path)


def test_every_flipped_header_byte_is_noticed() -> None:
    content = bytearray(encoded(*sample()))
    for at in range(HEADER_SIZE_BYTES):
        content[at] ^= 0x10
        with pytest.raises(IntegrityError):
            decode_index(memoryview(bytes(content)), Path("x"))
        content[at] ^= 0x10


def test_every_flipped_section_byte_is_noticed_by_verify() -> None:
    content = bytearray(encoded(*sample()))
    index = decode_index(memoryview(content), Path("x"))
    covered = sum(len(section) for section in (index.table.records, index.table.heap, index.chunks))
    noticed = 0
    for at in range(HEADER_SIZE_BYTES, len(content)):
        content[at] ^= 1
        try:
            index.verify(Path("x"))
        except IntegrityError:
            noticed += 1
        content[at] ^= 1
    assert noticed == covered  # the rest is padding


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (1, 2),
        (2, 256),
        (3, 160),
        (5, 0),
        (5, 256),
        (6, 2**63),
        (6, 167),
        (8, 2**64 - 1),
        (9, 64),
        (10, 47),
        (10, 1 << 40),
    ],
)
def test_header_with_a_right_checksum_is_still_bounds_checked(field: int, value: int) -> None:
    content = bytearray(encoded(*sample()))
    fields = list(HEADER_STRUCT.unpack_from(content))
    fields[field] = value
    HEADER_STRUCT.pack_into(content, 0, *fields)
    struct.pack_into("<I", content, HEADER_SIZE_BYTES - 4, zlib.crc32(content[: HEADER_SIZE_BYTES - 4]))
    with pytest.raises(IntegrityError):
        decode_index(memoryview(content), Path("x"))


def test_rows_are_checked() -> None:
    table = make_table(b"a", b"b")
    assert check_rows(table) is None
    assert "row 0: its path" in (check_rows(EntryTable(table.records[168:], b"")) or "")
    turned = table.records[336:] + table.records[168:336]
    assert "row 1: out of order" in (check_rows(EntryTable(turned, table.heap)) or "")
    twice = table.records[168:336] * 2
    assert "row 1: out of order" in (check_rows(EntryTable(twice, table.heap)) or "")
