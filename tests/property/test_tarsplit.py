"""A tar read by two threads against the same tar read by one, and against the model.

`helper_first` has the second thread's part done before the first's, so that small tars meet it at any timing.
"""

from __future__ import annotations

import os
import random
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylayers._native.tarscan import TarFormatError, scan, scan_split
from pylayers.store.entry import EntryTable
from tests.oracle.tar_model import Refused, model_rows, table_rows
from tests.oracle.test_tarscan import END, member, pax
from tests.property.test_tarscan import FORMATS, MEMBERS, Member, mend, pack

GOOD = sorted((Path(__file__).parent.parent / "corpus" / "good").glob("tar_*.tar"))
LARGE_BYTES = 8 << 20  # from here on two threads read without being told, where there are two processors


def outcome(tar: bytes | bytearray, max_entries: int = 10_000_000, *, helper_first: bool) -> object:
    """Return what a scan returns or raises."""
    try:
        return scan_split(tar, max_entries, helper_first=True)[:2] if helper_first else scan(tar, max_entries)
    except TarFormatError as error:
        return str(error), error.offset


def check_same(tar: bytes | bytearray, max_entries: int = 10_000_000) -> None:
    assert outcome(tar, max_entries, helper_first=True) == outcome(tar, max_entries, helper_first=False)


@settings(deadline=None, max_examples=200)
@given(st.lists(MEMBERS, min_size=16, max_size=40), FORMATS)
def test_two_read_what_extracting_leaves(members: list[Member], form: int) -> None:
    tar = pack(members, form)
    check_same(tar)
    try:
        expected = model_rows(tar)
    except Refused:
        return
    assert table_rows(tar, EntryTable(*scan_split(tar, helper_first=True)[:2])) == expected


def plain_tar(numbers: range) -> bytes:
    """Make a tar in a table's order, which needs no resolving."""
    return member("d", tarfile.DIRTYPE) + b"".join(member(f"d/{number:05}", data=b"x") for number in numbers)


# entries, some with headers of their own before them, and files whose content looks like entries
INNER = plain_tar(range(5))
TARGETS = member("f") + member("g" * 120)  # of the hard links among them
PARTS = [
    member("f", data=b"y" * 700),
    member("d", tarfile.DIRTYPE),
    member("d/.wh.f"),
    member("s", tarfile.SYMTYPE, link="to"),
    member("h", tarfile.LNKTYPE, link="f"),
    member("h" * 120, tarfile.LNKTYPE, link="g" * 120),
    member("./", tarfile.DIRTYPE),
    member("label", b"V"),
    pax([("uid", b"9"), ("SCHILY.xattr.user.a", b"1")]) + member("x"),
    pax([("GNU.sparse.size", b"5000"), ("GNU.sparse.numblocks", b"1"), ("GNU.sparse.map", b"0,4")])
    + member("sparse", data=b"full"),
    pax([("GNU.sparse.size", b"4"), ("GNU.sparse.numblocks", b"1"), ("GNU.sparse.map", b"0,4")])
    + member("whole", data=b"full"),
    pax([("path", b"big"), ("size", b"%d" % len(INNER))]) + member("lies") + INNER,
    pax([("comment", INNER)]) + member("commented"),
    member("inner.tar", data=INNER + END),
    member("cut.tar", data=INNER[512:-300]),
    member("outer.tar", data=member("inner.tar", data=INNER * 8) + INNER + END),
    member("nearly.tar", data=INNER[:512] + b"z" * 512 + INNER[512:]),
]
FAULTS = [
    pax([("uid", b"7"), ("SCHILY.xattr.user.g", b"2")], tarfile.XGLTYPE),
    pax([("uid", b"7")]),  # before whatever follows
    member("../out"),
    member("h2", tarfile.LNKTYPE, link="./"),
    member("odd", b"?"),
    b"\xff" * 512,
    bytes(512),
    END,
]


@settings(deadline=None, max_examples=500)
@given(
    st.lists(st.sampled_from(PARTS), min_size=8, max_size=60),
    st.lists(st.tuples(st.integers(0, 60), st.sampled_from(FAULTS)), max_size=2),
    st.one_of(st.just(10_000_000), st.integers(1, 80)),
    st.integers(0, 700),
)
def test_two_read_what_one_reads(
    parts: list[bytes], faults: list[tuple[int, bytes]], max_entries: int, cut: int
) -> None:
    for at, fault in faults:
        parts.insert(at, fault)
    tar = TARGETS + b"".join(parts) + END
    check_same(tar[: len(tar) - cut], max_entries)


@settings(deadline=None, max_examples=100)
@given(st.integers(32, 300), st.integers(0, 300), st.sampled_from(["none", "swap", "again", "drop"]))
def test_order_is_noticed_over_the_seams(count: int, at: int, fault: str) -> None:
    blocks = [member("d", tarfile.DIRTYPE), *(member(f"d/{number:05}") for number in range(count))]
    at = 1 + at % (count - 1)
    if fault == "swap":
        blocks[at], blocks[at + 1] = blocks[at + 1], blocks[at]
    elif fault == "again":
        blocks.insert(at, blocks[at])
    elif fault == "drop":
        blocks[0] = member("e", tarfile.DIRTYPE)
    tar = b"".join(blocks)
    check_same(tar)
    assert table_rows(tar, EntryTable(*scan_split(tar, helper_first=True)[:2])) == model_rows(tar)


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_damage_is_found_where_one_finds_it(path: Path) -> None:
    content = path.read_bytes()[:-1024] + plain_tar(range(40)) + END
    chosen = random.Random(path.stem)
    for _ in range(500):
        tar = bytearray(content)
        for _ in range(chosen.randint(1, 3)):
            block = chosen.randrange(len(tar) // 512)
            tar[block * 512 + chosen.randrange(512)] = chosen.choice([0, 255, 128, 32, 47, 48, 55, 57])
            if chosen.random() < 0.5:
                mend(tar, block)
        check_same(tar, 10_000)


@pytest.mark.parametrize("heads", [b"", FAULTS[0]], ids=["plain", "global records"])
def test_large_tars_at_whatever_timing(heads: bytes) -> None:
    pieces = [*PARTS, member("zeros", data=bytes(100_000)), member("tar in tar", data=plain_tar(range(300)) + END)]
    chosen = random.Random(len(heads))
    tar = heads + TARGETS
    while len(tar) < LARGE_BYTES:
        tar += b"".join(chosen.choice(pieces) for _ in range(500))
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(processors)})
    try:
        expected = scan(tar)  # by one thread
    finally:
        os.sched_setaffinity(0, processors)
    assert scan_split(tar, helper_first=True)[:2] == expected
    for _ in range(20):
        assert scan(tar) == expected


@pytest.mark.parametrize("count", [64, 5000])
def test_the_second_thread_reads_most_of_a_tar(count: int) -> None:
    """All but the first of its 32 pieces, and of the others what lies before the first header that it can trust."""
    *table, threads, taken = scan_split(plain_tar(range(count)) + END, helper_first=True)
    assert len(EntryTable(*table)) == count + 2
    assert threads == 1, "its part was done by the calling one"
    assert count * 9 // 10 < taken < count


def test_large_tars_have_a_second_thread() -> None:
    """Whatever it gets to read: that is the scheduler's affair."""
    processors = os.sched_getaffinity(0)
    small, large = (plain_tar(range(10)) + bytes(size) for size in (LARGE_BYTES // 2, LARGE_BYTES))
    assert scan_split(small)[2] == 1
    assert scan_split(large)[2] == min(2, len(processors))
    os.sched_setaffinity(0, {min(processors)})
    try:
        assert scan_split(large)[2:] == (1, 0)
    finally:
        os.sched_setaffinity(0, processors)
