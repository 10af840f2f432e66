"""Any table gives the oracle's bytes, whatever its names, numbers, attributes, sources and alignment."""

from __future__ import annotations

import stat
import tempfile
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pylayers.store.entry import (
    FLAG_HARDLINK,
    FLAG_IMPLICIT,
    FLAG_OPAQUE,
    FLAG_WHITEOUT,
    SOURCE_HEAP,
    SOURCE_PATH,
    SOURCE_RANGE,
    path_key,
)
from tests.oracle.canonical import EVERY_LANES, Item, check_against_oracle, make_table
from tests.oracle.resume import check_resumed

names = st.one_of(
    st.sampled_from([b"a", b"b", b"c-", b"c", b"\xff", "é".encode(), b".hidden", b"...", b"-"]),
    st.binary(min_size=1, max_size=6),
    st.integers(40, 130).map(lambda length: b"n" * length),
    st.integers(20, 60).map(lambda length: "ü".encode() * length),
).filter(lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..") and name[:4] != b".wh.")
paths = st.lists(names, min_size=1, max_size=5).map(b"/".join)
numbers = st.one_of(st.integers(0, 100), st.sampled_from([2097151, 2097152, 2**32 - 1]))
seconds = st.one_of(st.integers(-(2**63), 2**63 - 1), st.sampled_from([0, -1, 8589934591 * 10**9, 8589934592 * 10**9]))
attributes = st.dictionaries(
    st.binary(min_size=1, max_size=12).filter(lambda name: b"=" not in name and b"\0" not in name),
    st.one_of(st.binary(max_size=40), st.integers(0, 1200).map(bytes)),
    max_size=3,
)
contents = st.one_of(st.just(b""), st.binary(max_size=50), st.integers(500, 6000).map(lambda size: b"x" * size))


@st.composite
def items(draw: st.DrawFn) -> list[Item]:
    made: list[Item] = []
    for path in draw(st.lists(paths, max_size=8, unique=True)):
        kind = draw(st.sampled_from("fffdlspcbhw"))
        common: dict[str, Any] = {
            "uid": draw(numbers),
            "gid": draw(numbers),
            "mtime_ns": draw(seconds),
            "xattrs": draw(attributes),
        }
        bits = draw(st.integers(0, 0o7777))
        files = sorted(item.path for item in made if item.has_data and path_key(item.path) < path_key(path))
        if kind == "d":
            flags = draw(st.sampled_from([0, FLAG_OPAQUE, FLAG_IMPLICIT, FLAG_OPAQUE | FLAG_IMPLICIT]))
            made.append(Item(path, stat.S_IFDIR | bits, flags=flags, **common))
        elif kind == "l":
            made.append(Item(path, stat.S_IFLNK | 0o777, link=draw(paths), **common))
        elif kind == "p":
            made.append(Item(path, stat.S_IFIFO | bits, **common))
        elif kind in "bc":
            mode = {"b": stat.S_IFBLK, "c": stat.S_IFCHR}[kind]
            made.append(
                Item(path, mode | bits, rdev=(draw(st.integers(0, 4095)), draw(st.integers(0, 2097151))), **common)
            )
        elif kind == "w":
            made.append(
                Item(path, draw(st.sampled_from([0, stat.S_IFREG, stat.S_IFDIR])), flags=FLAG_WHITEOUT, **common)
            )
        elif kind == "h" and files:
            made.append(
                Item(path, stat.S_IFREG | bits, link=draw(st.sampled_from(files)), flags=FLAG_HARDLINK, **common)
            )
        elif kind == "s":
            size = draw(st.integers(1, 9000))
            cuts = sorted(draw(st.lists(st.integers(0, size), min_size=2, max_size=6, unique=True)))
            ranges = tuple((a, b - a) for a, b in zip(cuts[::2], cuts[1::2], strict=False))
            content = bytearray(size)
            for offset, length in ranges:
                content[offset : offset + length] = b"s" * length
            made.append(Item(path, stat.S_IFREG | bits, bytes(content), ranges=ranges, **common))
        else:
            source = draw(st.sampled_from([SOURCE_HEAP, SOURCE_PATH, SOURCE_RANGE]))
            made.append(Item(path, stat.S_IFREG | bits, draw(contents), kind=source, **common))
    return made


@settings(deadline=None, max_examples=150)
@given(
    items(),
    st.sampled_from([512, 1024, 1536, 4096, 65536]),
    st.sampled_from([0, 1, 512, 4096, 65536]),
    st.sampled_from(EVERY_LANES),
)
def test_bytes_equal_the_oracles(table: list[Item], align: int, align_from: int, lanes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = make_table(table, Path(folder) / "source")
        try:
            check_against_oracle(made, Path(folder) / "tar", align, align_from, lanes=lanes)
        finally:
            made.close()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.one_of(st.integers(0, 130), st.integers(900, 5000), st.integers(0, 140_000)), min_size=1, max_size=60),
    st.sampled_from(EVERY_LANES),
    st.randoms(use_true_random=False),
)
def test_files_are_hashed_side_by_side(sizes: list[int], lanes: int, random: Random) -> None:
    """Whatever lengths meet in the lanes, each file gets its own BLAKE3."""
    table = [Item(b"f%03d" % at, content=random.randbytes(size), kind=SOURCE_RANGE) for at, size in enumerate(sizes)]
    with tempfile.TemporaryDirectory() as folder:
        made = make_table(table, Path(folder) / "source")
        try:
            check_against_oracle(made, Path(folder) / "tar", lanes=lanes)
        finally:
            made.close()


@settings(deadline=None, max_examples=150)
@given(items(), st.integers(0, 8), st.sampled_from([512, 4096, 65536]), st.sampled_from([0, 1, 4096, 65536]))
def test_a_tar_goes_on_from_any_row(table: list[Item], row: int, align: int, align_from: int) -> None:
    """The same bytes from there on, the same size, records and digest; the rows before have no sources any more."""
    with tempfile.TemporaryDirectory() as folder:
        made = make_table(table, Path(folder) / "source")
        try:
            check_resumed(made, min(row, len(table)), Path(folder), align, align_from)
        finally:
            made.close()
