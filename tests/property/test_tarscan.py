"""Random tars, and random damage to them."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylayers._native.tarscan import TarFormatError, scan
from pylayers.store.entry import ENTRY_STRUCT, EntryTable, path_key
from tests.oracle.tar_model import Refused, model_rows, table_rows

Member = tuple[str, bytes, str, int, int, int, bytes, dict[str, str]]
GOOD = sorted((Path(__file__).parent.parent / "corpus" / "good").glob("tar_*.tar"))
FORMATS = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
# few names, so that paths meet: files under files, links to what was replaced, whiteouts of what exists
PARTS = st.sampled_from(["a", "b", "c-", "c", "é", ".wh.a", ".wh.b", ".wh..wh..opq", ".", "x" * 20])
PATHS = st.lists(PARTS, min_size=1, max_size=4).map("/".join)
MEMBERS = st.tuples(
    PATHS,
    st.sampled_from([tarfile.REGTYPE] * 3 + [tarfile.DIRTYPE] * 4 + [tarfile.LNKTYPE] * 3
                    + [tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]),
    PATHS,
    st.integers(0, 0o7777),
    st.integers(0, 2**21 - 1),
    st.integers(0, 8**11 - 1).filter(lambda seconds: seconds < 9_000_000_000),
    st.binary(max_size=600),
    st.dictionaries(st.sampled_from(["user.a", "user.b", "security.c"]), st.text(max_size=5), max_size=2),
)  # fmt: skip


def pack(members: list[Member], form: int) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=form) as archive:
        for path, kind, link, mode, owner, mtime, data, xattrs in members:
            info = tarfile.TarInfo(path)
            info.type, info.mode, info.uid, info.gid, info.mtime = kind, mode, owner, owner // 2, mtime
            info.linkname = link if kind in (tarfile.LNKTYPE, tarfile.SYMTYPE) else ""
            info.size = len(data) if kind == tarfile.REGTYPE else 0
            if form == tarfile.PAX_FORMAT:
                info.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in xattrs.items()}
            archive.addfile(info, io.BytesIO(data))
    return written.getvalue()


@settings(deadline=None, max_examples=300)
@given(st.lists(MEMBERS, max_size=12), FORMATS)
def test_scan_equals_extracting(members: list[Member], form: int) -> None:
    tar = pack(members, form)
    try:
        expected = model_rows(tar)
    except Refused:
        with pytest.raises(TarFormatError):
            scan(tar)
        return
    assert table_rows(tar, EntryTable(*scan(tar))) == expected


@settings(deadline=None, max_examples=100)
@given(st.lists(st.text("ab-./", min_size=1, max_size=12), max_size=30, unique=True))
def test_rows_are_in_component_order_with_parents(paths: list[str]) -> None:
    directories: list[Member] = [
        (path, tarfile.DIRTYPE, "", 0, 0, 0, b"", {}) for path in paths if ".." not in path.split("/")
    ]
    table = EntryTable(*scan(pack(directories, tarfile.GNU_FORMAT)))
    found = [table.path(entry) for entry in table]
    assert found == sorted(set(found), key=path_key)
    assert found[0] == b""
    assert all(path.rpartition(b"/")[0] in found for path in found)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.tuples(st.text("ab-./", min_size=1, max_size=9), st.booleans()), max_size=25),
    st.sampled_from(["none", "swap", "drop", "again", "root", "type"]),
    st.integers(0, 1 << 16),
)
def test_tars_in_order_but_for_one_fault(chosen: list[tuple[str, bool]], fault: str, number: int) -> None:
    """What is written as a table lists it needs no sorting, and whatever breaks that is noticed."""
    kinds: dict[bytes, bytes] = {}
    for text, is_file in chosen:
        names = [name for name in text.split("/") if name not in ("", ".", "..")]
        for depth in range(1, len(names) + 1):
            path = "/".join(names[:depth]).encode()
            kinds[path] = tarfile.REGTYPE if is_file and depth == len(names) and path not in kinds else tarfile.DIRTYPE
    order = sorted(kinds, key=path_key)
    at = number % max(len(order), 1)
    if fault == "swap" and len(order) > 1:
        order[at - 1], order[at] = order[at], order[at - 1]
    elif fault == "drop":
        del order[at : at + 1]
    elif fault == "again":
        order.insert(number // 256 % (len(order) + 1), order[at] if order else b"a")
    elif fault == "root":
        order.insert(0, b".")
    elif fault == "type" and order:
        kinds[order[at]] = tarfile.REGTYPE
    members: list[Member] = [
        (path.decode(), kinds.get(path, tarfile.DIRTYPE), "", 0o644, 0, 7, b"", {}) for path in order
    ]
    tar = pack(members, tarfile.USTAR_FORMAT)
    try:
        expected = model_rows(tar)
    except Refused:
        with pytest.raises(TarFormatError):
            scan(tar)
        return
    assert table_rows(tar, EntryTable(*scan(tar))) == expected


def walk_table(table: tuple[bytearray, bytearray], tar_length: int) -> None:
    """Check that every offset of a table lies where it may."""
    records, heap = table
    view = EntryTable(records, heap)
    assert len(records) % ENTRY_STRUCT.size == 0
    for entry in view:
        for offset, length in (
            (entry.path_offset, entry.path_length),
            (entry.link_offset, entry.link_length),
            (entry.xattr_offset, entry.xattr_length),
        ):
            assert offset + length <= len(heap)
        view.xattrs(entry)
        assert entry.data_offset <= tar_length
        if not entry.flags & 32:
            assert entry.data_offset + entry.size_bytes <= tar_length


def check_offset(error: TarFormatError, tar_length: int) -> None:
    assert 0 <= error.offset <= tar_length
    assert str(error).startswith("expected ")


def mend(tar: bytearray, block: int) -> None:
    """Set the checksum of a block right, so that damage gets past it."""
    header = tar[block * 512 : block * 512 + 512]
    if len(header) == 512:
        header[148:156] = b" " * 8
        tar[block * 512 + 148 : block * 512 + 156] = b"%06o\0 " % sum(header)


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_damage_is_refused_or_read_never_worse(path: Path) -> None:
    content = path.read_bytes()
    chosen = random.Random(path.stem)
    refused = 0
    for _ in range(1500):
        tar = bytearray(content)
        for _ in range(chosen.randint(1, 4)):
            # most damage hits the first blocks, where the headers are; half of it gets a fitting checksum
            block = chosen.randrange(min(len(tar) // 512, 40 if chosen.random() < 0.8 else 10**6))
            at = block * 512 + chosen.randrange(512)
            tar[at] = chosen.choice([0, 255, 128, 32, 47, 48, 55, 57, tar[at] ^ 1 << chosen.randrange(8)])
            if chosen.random() < 0.5:
                mend(tar, block)
        if chosen.random() < 0.3:
            del tar[chosen.randrange(len(tar)) :]
        try:
            table = scan(tar, 10_000)
        except TarFormatError as error:
            refused += 1
            check_offset(error, len(tar))
        else:
            walk_table(table, len(tar))
    assert refused


@pytest.mark.parametrize("path", [path for path in GOOD if path.stat().st_size < 30_000], ids=lambda path: path.stem)
def test_every_cut_is_refused_or_read(path: Path) -> None:
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        try:
            table = scan(content[:length])
        except TarFormatError as error:
            check_offset(error, length)
        else:
            assert length % 512 == 0 or not any(content[length // 512 * 512 - 512 : length])
            walk_table(table, length)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=1500))
def test_noise_is_no_tar(noise: bytes) -> None:
    if any(noise[:512]) or 0 < len(noise) < 512:
        with pytest.raises(TarFormatError):
            scan(noise)
