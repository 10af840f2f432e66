"""tarfeed against a scan of the whole tar, each file hashed where the scan says that its data lies."""

from __future__ import annotations

import stat
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from pylayers._native.tarfeed import TableFeed
from pylayers._native.tarscan import TarFormatError, scan
from pylayers.store.entry import ENTRY_SIZE_BYTES, ENTRY_STRUCT, FLAG_HASHED, FLAG_SPARSE, EntryTable
from tests.oracle.test_tarscan import CORPUS, END, FAILURES, member, pax

Table = tuple[bytearray, bytearray]
GOOD = sorted((CORPUS / "good").glob("tar_*.tar"))
LENGTHS = (1, 7, 511, 512, 513, 1024, 4096, 10_000, 1 << 20)


def feed(tar: bytes, length: int, max_entries: int = 10_000_000) -> Table | None:
    """Feed a tar in pieces of one length, each of which is gone when the next one comes."""
    table = TableFeed(blake3, max_entries)
    for at in range(0, len(tar), length):
        piece = bytearray(tar[at : at + length])
        table.take(piece)
        piece[:] = b"\xa5" * len(piece)
    return table.finish()


def model(tar: bytes) -> Table | None:
    """Scan the whole, then hash each file; None for what the scan refuses, and for sparse files."""
    try:
        records, heap = scan(tar)
    except TarFormatError:
        return None
    for row, entry in enumerate(EntryTable(bytes(records), heap)):
        if entry.flags & FLAG_SPARSE:
            return None
        if stat.S_ISREG(entry.mode):
            data = tar[entry.data_offset : entry.data_offset + entry.size_bytes]
            fields = list(ENTRY_STRUCT.unpack_from(records, row * ENTRY_SIZE_BYTES))
            fields[fields.index(entry.blake3)] = blake3(data).digest()
            ENTRY_STRUCT.pack_into(records, row * ENTRY_SIZE_BYTES, *fields)
            at = row * ENTRY_SIZE_BYTES + 116
            records[at : at + 4] = struct.pack("<I", entry.flags | FLAG_HASHED)
    return records, heap


def rows(table: Table | None) -> list[object]:
    """Return a table's rows with their texts, wherever these lie in the heap."""
    if table is None:
        return ["declined"]
    view = EntryTable(*table)
    return [
        (view.path(one), view.link(one), sorted(view.xattrs(one).items()), one.mode, one.uid, one.gid, one.mtime_ns,
         one.size_bytes, one.header_offset, one.data_offset, one.flags, one.nlink, one.blake3)
        for one in view
    ]  # fmt: skip


def agree(tar: bytes, lengths: tuple[int, ...] = LENGTHS) -> None:
    expected = model(tar)
    assert expected is not None
    for length in lengths:
        found = feed(tar, length)
        assert found == expected, (length, rows(found), rows(expected))


@pytest.mark.parametrize("path", [path for path in GOOD if "sparse" not in path.stem], ids=lambda path: path.stem)
def test_the_corpus_gives_the_whole_scans_table(path: Path) -> None:
    agree(path.read_bytes())


@pytest.mark.parametrize("path", [path for path in GOOD if "sparse" in path.stem], ids=lambda path: path.stem)
def test_sparse_files_are_declined(path: Path) -> None:
    for length in LENGTHS:
        assert feed(path.read_bytes(), length) is None


@pytest.mark.parametrize("name", sorted(FAILURES))
def test_malformed_tars_are_declined(name: str) -> None:
    tar = (CORPUS / "should_fail" / name).read_bytes()
    for length in LENGTHS:
        assert feed(tar, length) is None


@pytest.mark.parametrize("tar", [b"", bytes(512), bytes(1024), bytes(10240), END + b"garbage"])
def test_an_empty_tar(tar: bytes) -> None:
    agree(tar)


def test_file_sizes_around_the_blocks_and_pieces() -> None:
    sizes = (0, 1, 511, 512, 513, 1023, 1024, 1025, 4095, 4096, 4097, 9_999, 10_000, 70_001)
    agree(b"".join(member(f"{size}", data=bytes([size & 255]) * size) for size in sizes) + END)
    agree(b"".join(member(f"{size}", data=bytes([size & 255]) * size) for size in sizes))
    agree(member("last", data=b"x") + bytes(512))


def test_long_names_links_and_pax_records_that_a_piece_cuts() -> None:
    tar = b"".join((
        member("l" * 300, data=b"long"),
        pax([("path", b"p" * 2000), ("mtime", b"12.5"), ("SCHILY.xattr.user.a", b"value" * 400)]),
        member("short", data=b"x" * 700),
        member("target/", tarfile.DIRTYPE),
        pax([("linkpath", b"p" * 2000)]),
        member("hard", tarfile.LNKTYPE, link="short"),
        member("soft", tarfile.SYMTYPE, link="q" * 200),
        member("label", b"V"),
        member("labelled", data=b"y"),
        END,
    ))  # fmt: skip
    agree(tar, (*LENGTHS, *range(1400, 1700, 31)))


def test_entries_that_replace_hide_and_delete() -> None:
    tar = b"".join((
        member("a", data=b"first" * 200), member("a", data=b"second"), member("b/.wh.c"), member("b/d", data=b"d"),
        member("b/.wh..wh..opq"), member(".wh..wh.plnk/x", data=b"aufs' own" * 99),
        member("e", tarfile.LNKTYPE, link="a"), member("a", tarfile.DIRTYPE), member("fifo", tarfile.FIFOTYPE), END,
    ))  # fmt: skip
    agree(tar)


@pytest.mark.parametrize("make", [
    lambda: pax([("path", b"g")], tarfile.XGLTYPE) + member("a") + END,
    lambda: pax([("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0")]) + member("a") + END,
    lambda: member("a", data=b"x" * 600)[:-1],
    lambda: member("a", data=b"x" * 600)[:700],
    lambda: member("a") + bytes(512) + b"x" * 512,
    lambda: member("a") + bytes(512) + b"x",
    lambda: member("a") + bytes(511),
    lambda: pax([("path", b"b")]),
    lambda: pax([("path", b"b")]) + END,
    lambda: pax([("path", b"b")]) * 9000 + member("a") + END,
    lambda: pax([("comment", b"b" * (1 << 20))]) + member("a") + END,
], ids=["global", "sparse 1.0", "padding cut", "data cut", "one zero block", "half a block", "a short one", "no entry",
        "no entry before the end", "many headers", "a large header"])  # fmt: skip
def test_what_it_cannot_know_is_declined(make: Callable[[], bytes]) -> None:
    for length in (300, 5000, 1 << 24):
        assert feed(make(), length) is None


def test_large_headers_below_the_bound_are_read() -> None:
    records = pax([("comment", b"b" * 900_000)])
    agree(records + records + member("a", data=b"x") + END, (100_000, 1 << 20, 1 << 22))


def test_more_entries_than_allowed_are_declined() -> None:
    tar = b"".join(member(f"{number}") for number in range(5))
    assert feed(tar, 600, 4) is None
    found = feed(tar, 600, 6)  # the root is a row too
    assert found == model(tar)


def test_it_says_when_it_has_declined_and_finishes_once() -> None:
    table = TableFeed(blake3)
    assert table.take(member("a"))
    assert not table.take(b"\xff" * 512)
    assert not table.take(member("b"))
    assert table.finish() is None
    with pytest.raises(ValueError, match="finished"):
        table.finish()
    with pytest.raises(ValueError, match="finished"):
        table.take(b"")
    for wrong in (0, 1 << 32):
        with pytest.raises(ValueError, match="max_entries"):
            TableFeed(blake3, wrong)


def test_a_hasher_that_fails_or_lies() -> None:
    class Short:
        def __init__(self, piece: bytes) -> None:
            pass

        def digest(self) -> bytes:
            return b"short"

    def fail(piece: bytes) -> object:
        raise RuntimeError("no hasher")

    for hasher, error in ((Short, ValueError), (fail, RuntimeError)):
        table = TableFeed(hasher)
        with pytest.raises(error):
            table.take(member("a", data=b"x"))
        assert table.finish() is None
