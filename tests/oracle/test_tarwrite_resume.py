"""A tar that is written from one of its rows on is the whole one from there."""

from __future__ import annotations

import hashlib
import random
import stat
from pathlib import Path

import pytest
from blake3 import blake3

from pylayers._native import tarwrite
from pylayers.store.entry import FLAG_HARDLINK, SOURCE_HEAP, SOURCE_PATH, SOURCE_RANGE
from tests.oracle.canonical import Given, Item, make_table
from tests.oracle.resume import UNUSABLE, check_resumed
from tests.oracle.test_tarwrite import every_kind

FILE = stat.S_IFREG | 0o644
SIZES = (0, 1, 513, 65535, 65537, 1 << 20, (3 << 20) + 5, 4000, 0, (2 << 20) - 512, 700_000, 20)


@pytest.mark.parametrize("first_row", range(len(every_kind()) + 1))
def test_every_kind_from_every_row(tmp_path: Path, first_row: int) -> None:
    given = make_table(every_kind(), tmp_path / "source")
    check_resumed(given, first_row, tmp_path, 4096, 4096)
    given.close()


@pytest.mark.parametrize("direct_from", [0, 1 << 62])
@pytest.mark.parametrize("first_row", range(0, len(SIZES) + 1, 2))
def test_slots_that_begin_elsewhere(tmp_path: Path, first_row: int, direct_from: int) -> None:
    """Files that span slots of the ring, hashed and written at the whole tar's offsets."""
    draw = random.Random(first_row)
    kinds = (SOURCE_HEAP, SOURCE_PATH, SOURCE_RANGE)
    items = [Item(b"f%02d" % at, FILE, draw.randbytes(size), kind=kinds[at % 3]) for at, size in enumerate(SIZES)]
    given = make_table(items, tmp_path / "source")
    check_resumed(given, first_row, tmp_path, direct_from=direct_from)
    given.close()


@pytest.mark.parametrize("direct_from", [0, 1 << 62])
def test_more_than_the_ring_from_the_second_row(tmp_path: Path, direct_from: int) -> None:
    content = random.Random(1).randbytes(9 << 20)
    items = [Item(b"f%d" % at, FILE, content[at * 5000 :], kind=SOURCE_PATH) for at in range(5)]
    given = make_table(items, tmp_path / "source")
    check_resumed(given, 1, tmp_path, direct_from=direct_from)
    given.close()


def test_links_to_what_lies_before(tmp_path: Path) -> None:
    """From every row: the target laid, the target written, both links written, one laid."""
    items = [
        Item(b"a", FILE, b"first" * 3000),
        Item(b"b", FILE, b"second"),
        Item(b"c", FILE, link=b"a", flags=FLAG_HARDLINK),
        Item(b"d", FILE, link=b"b", flags=FLAG_HARDLINK),
        Item(b"e", FILE, link=b"a", flags=FLAG_HARDLINK),
    ]
    for first_row in range(len(items) + 1):
        folder = tmp_path / str(first_row)
        folder.mkdir()
        given = make_table(items, folder / "source")
        check_resumed(given, first_row, folder)
        given.close()


@pytest.fixture
def laid(tmp_path: Path) -> Given:
    """Give a table of two files that lie in tmp_path/whole, two blocks each."""
    given = make_table([Item(b"a", FILE, b"1"), Item(b"b", FILE, b"2")], tmp_path / "source")
    given.write(tmp_path / "whole")
    given.close()
    return given


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"start_bytes": 512}, "start_bytes must be a multiple of 4096"),
        ({"start_bytes": -4096}, "start_bytes must be a multiple of 4096"),
        ({"start_bytes": 1 << 61}, "start_bytes must be a multiple of 4096"),
        ({"first_row": 3}, "first_row lies beyond the table"),
        ({"first_row": -1}, "first_row lies beyond the table"),
        ({"first_row": 1 << 64}, "first_row lies beyond the table"),
        ({"lead": bytes(4096)}, "lead must be whole blocks of 512 bytes, less than 4096 in all"),
        ({"lead": bytes(511)}, "lead must be whole blocks of 512 bytes, less than 4096 in all"),
    ],
)
def test_starts_that_are_refused(laid: Given, tmp_path: Path, options: dict[str, int | bytes], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        laid.write(tmp_path / "tar", **options)  # type: ignore[arg-type]
    assert (tmp_path / "tar").read_bytes() == b""


def test_nothing_but_the_end_is_left_to_write(laid: Given, tmp_path: Path) -> None:
    before = bytes(laid.records)
    whole = (tmp_path / "whole").read_bytes()
    with open(tmp_path / "tar", "wb") as out:
        tarwrite.write(
            out.fileno(), laid.records, laid.table.heap, UNUSABLE * 2, hashlib.sha256, blake3,
            first_row=2, lead=whole[:2048],
        )  # fmt: skip
    assert laid.records == before
    assert (tmp_path / "tar").read_bytes() == whole


def test_rows_from_the_first_on_are_checked(laid: Given, tmp_path: Path) -> None:
    given = (laid.records, laid.table.heap, UNUSABLE * 2, hashlib.sha256, blake3)
    with open(tmp_path / "tar", "wb") as out, pytest.raises(ValueError, match=r"'b'.*a regular file has no source"):
        tarwrite.write(out.fileno(), *given, first_row=1, lead=bytes(1024))
