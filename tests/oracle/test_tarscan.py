"""tarscan against a slow model and against hand-made headers, good and bad."""

from __future__ import annotations

import io
import json
import mmap
import struct
import tarfile
from pathlib import Path

import pytest

from pylayers._native.tarscan import TarFormatError, scan
from pylayers.store.entry import (
    FLAG_HARDLINK,
    FLAG_IMPLICIT,
    FLAG_OPAQUE,
    FLAG_SPARSE,
    FLAG_WHITEOUT,
    EntryTable,
)
from tests.oracle.tar_model import model_rows, read_data, table_rows

CORPUS = Path(__file__).parent.parent / "corpus"
FAILURES: dict[str, dict[str, object]] = json.loads((CORPUS / "should_fail" / "tar_failures.json").read_text())
END = bytes(1024)


def table_of(tar: bytes) -> EntryTable:
    return EntryTable(*scan(tar))


def member(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", link: str = "", **fields: object) -> bytes:
    """Make one entry in GNU format."""
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = link
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + data + bytes(-len(data) % 512)


def pax(records: list[tuple[str, bytes]], kind: bytes = tarfile.XHDTYPE) -> bytes:
    """Make a PAX header from records, in order, duplicates allowed."""
    body = b""
    for key, value in records:
        rest = b" " + key.encode() + b"=" + value + b"\n"
        length = len(rest)
        while length != len(rest) + len(str(length)):
            length = len(rest) + len(str(length))
        body += str(length).encode() + rest
    return member("pax", kind, body)


def names(tar: bytes) -> dict[str, int]:
    table = table_of(tar)
    return {table.path(entry).decode(): entry.flags for entry in table}


@pytest.mark.parametrize("tar", sorted((CORPUS / "good").glob("tar_*.tar")), ids=lambda path: path.stem)
def test_corpus_matches_the_model(tar: Path) -> None:
    content = tar.read_bytes()
    assert table_rows(content, table_of(content)) == model_rows(content)


@pytest.mark.parametrize("name", sorted(FAILURES))
def test_corpus_fails_where_expected(name: str) -> None:
    with pytest.raises(TarFormatError, match=str(FAILURES[name]["message"])) as caught:
        scan((CORPUS / "should_fail" / name).read_bytes())
    assert caught.value.offset == FAILURES[name]["offset"]
    assert str(caught.value).startswith("expected ")


def test_every_failing_tar_is_listed() -> None:
    assert {path.name for path in (CORPUS / "should_fail").glob("tar_*.tar")} == set(FAILURES)


@pytest.mark.parametrize("tar", [b"", bytes(512), bytes(1024), bytes(10240), END + b"garbage"])
def test_empty_tar_is_the_implicit_root(tar: bytes) -> None:
    table = table_of(tar)
    (root,) = table
    assert (table.path(root), root.flags, root.mode, root.nlink) == (b"", FLAG_IMPLICIT, 0o40755, 1)


def test_any_buffer_will_do(tmp_path: Path) -> None:
    tar = member("a", data=b"x") + END
    file = tmp_path / "a.tar"
    file.write_bytes(tar)
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert scan(mapped) == scan(tar)  # type: ignore[arg-type]
    assert scan(bytearray(tar)) == scan(memoryview(tar)) == scan(tar)


def test_an_end_mark_is_not_needed_and_garbage_after_it_is_ignored() -> None:
    entry = member("a", data=b"x")
    assert names(entry) == names(entry + bytes(512)) == names(entry + END) == names(entry + END + b"\xff" * 700)


@pytest.mark.parametrize("length", [511, 513, 700, 1023])
def test_cut_off_tars(length: int) -> None:
    tar = member("a", data=b"x" * 600)
    with pytest.raises(TarFormatError):
        scan(tar[:length])


def test_paths_are_normalised() -> None:
    tar = member("/./a//b/./c/") + member("./", tarfile.DIRTYPE, mode=0o700) + END
    assert names(tar) == {"": 0, "a": FLAG_IMPLICIT, "a/b": FLAG_IMPLICIT, "a/b/c": 0}


def test_component_order_is_not_byte_order() -> None:
    paths = ["a-b", "a", "a/z", "a.b", "a/b", "a0"]
    tar = b"".join(member(path, tarfile.DIRTYPE) for path in paths)
    assert list(names(tar)) == ["", "a", "a/b", "a/z", "a-b", "a.b", "a0"]


def test_the_last_entry_wins_and_a_directory_keeps_its_children() -> None:
    tar = (
        member("d", tarfile.DIRTYPE, mode=0o700)
        + member("d/f", data=b"old")
        + member("d/f", data=b"newer")
        + member("d", tarfile.DIRTYPE, mode=0o711)
    )
    table = table_of(tar)
    _, directory, file = table
    assert directory.mode == 0o40711
    assert read_data(tar, table, file) == b"newer"


def test_a_file_hides_what_its_directory_held_before() -> None:
    tar = (
        member("d", tarfile.DIRTYPE)
        + member("d/old")
        + member("d/.wh.gone")
        + member("d/.wh..wh..opq")
        + member("d", tarfile.SYMTYPE, link="x")
        + member("d", tarfile.DIRTYPE)
        + member("d/new")
    )
    assert names(tar) == {"": FLAG_IMPLICIT, "d": 0, "d/new": 0}


def test_a_hard_link_means_what_its_target_was_then() -> None:
    tar = (
        member("z", data=b"first")
        + member("b", tarfile.LNKTYPE, link="z")
        + member("z", data=b"second")
        + member("a", tarfile.LNKTYPE, link="./z")
        + member("c", tarfile.LNKTYPE, link="b")
    )
    table = table_of(tar)
    found = {
        table.path(entry): (entry.flags, entry.nlink, table.link(entry), read_data(tar, table, entry))
        for entry in table
        if entry.path_length
    }
    assert found == {
        b"a": (0, 2, b"", b"second"),
        b"b": (0, 2, b"", b"first"),
        b"c": (FLAG_HARDLINK, 2, b"b", b"first"),
        b"z": (FLAG_HARDLINK, 2, b"a", b"second"),
    }


def test_links_do_not_depend_on_the_order_of_the_tar() -> None:
    one = member("a", data=b"x") + member("b", tarfile.LNKTYPE, link="a") + member("c", tarfile.LNKTYPE, link="b")
    two = member("c", data=b"x") + member("a", tarfile.LNKTYPE, link="c") + member("b", tarfile.LNKTYPE, link="c")
    assert table_rows(one, table_of(one)) == table_rows(two, table_of(two))


def test_a_linked_symlink_keeps_its_target() -> None:
    tar = member("s", tarfile.SYMTYPE, link="to") + member("t", tarfile.LNKTYPE, link="s")
    table = table_of(tar)
    _, first, second = table
    assert table.link(first) == b"to"
    assert (second.flags, table.link(second), second.mode & 0o170000) == (FLAG_HARDLINK, b"s", 0o120000)


def test_whiteouts() -> None:
    assert names(member("d/.wh.f") + member(".wh.g") + member("o/.wh..wh..opq")) == {
        "": FLAG_IMPLICIT,
        "d": FLAG_IMPLICIT,
        "d/f": FLAG_WHITEOUT,
        "g": FLAG_WHITEOUT,
        "o": FLAG_IMPLICIT | FLAG_OPAQUE,
    }


@pytest.mark.parametrize("turned", [False, True])
def test_deleted_and_made_again(turned: bool) -> None:
    entries = [member(path) for path in (".wh.d", ".wh.f", "f", ".wh.i", "i/x")] + [member("d", tarfile.DIRTYPE)]
    found = names(b"".join(reversed(entries) if turned else entries))
    assert found == {"": FLAG_IMPLICIT, "d": FLAG_OPAQUE, "f": 0, "i": FLAG_OPAQUE, "i/x": 0}


def test_what_aufs_leaves_is_skipped() -> None:
    tar = member(".wh..wh.aufs") + member(".wh..wh.plnk", tarfile.DIRTYPE) + member(".wh..wh.plnk/1.2") + member("a")
    assert list(names(tar)) == ["", "a"]


def test_pax_records() -> None:
    tar = (
        pax([("uid", b"7"), ("mtime", b"12.5"), ("SCHILY.xattr.user.g", b"global")], tarfile.XGLTYPE)
        + pax([
            ("path", b"long/\xff\xfe"), ("gid", b"4294967295"), ("mtime", b"-1.0000000019"), ("comment", b"x\0y"),
            ("SCHILY.xattr.user.b", b"1"), ("SCHILY.xattr.user.b", b"2=\n\0"), ("SCHILY.xattr.user.a", b""),
        ])
        + member("short", uid=3)
        + member("plain", uid=3)
        + member("third", mtime=5)
    )  # fmt: skip
    table = table_of(tar)
    found = {table.path(entry): entry for entry in table}
    entry = found[b"long/\xff\xfe"]
    assert (entry.uid, entry.gid, entry.mtime_ns) == (7, 4294967295, -1_000_000_001)
    assert table.xattrs(entry) == {b"user.a": b"", b"user.b": b"2=\n\0", b"user.g": b"global"}
    assert entry.header_offset == 1024
    assert (found[b"plain"].uid, found[b"plain"].mtime_ns) == (7, 12_500_000_000)
    assert table.xattrs(found[b"plain"]) == {b"user.g": b"global"}
    assert found[b"plain"].xattr_offset == found[b"third"].xattr_offset


def test_an_empty_pax_value_takes_the_record_back() -> None:
    tar = pax([("path", b"p"), ("uid", b"9"), ("path", b""), ("uid", b"")]) + member("name", uid=3)
    table = table_of(tar)
    _, entry = table
    assert (table.path(entry), entry.uid) == (b"name", 3)


def test_a_pax_size_wins() -> None:
    data = b"y" * 700
    header = tarfile.TarInfo("big").tobuf(tarfile.USTAR_FORMAT)
    table = table_of(pax([("size", b"700")]) + header + data + bytes(1024 - 700) + member("after"))
    assert [(table.path(entry), entry.size_bytes) for entry in table] == [(b"", 0), (b"after", 0), (b"big", 700)]


def test_base_256_and_old_headers() -> None:
    entry = bytearray(member("dir/"))
    entry[156] = 0  # v7: a directory is a file whose name ends in a slash
    entry[136:148] = b"\xff" * 11 + b"\xfe"
    entry[257:265] = bytes(8)
    entry[148:156] = b" " * 8
    entry[148:156] = b"%06o\0 " % sum(entry)
    table = table_of(bytes(entry) + member("u", uid=2**31, size=0))
    _, directory, user = table
    assert (directory.mode & 0o170000, directory.mtime_ns) == (0o40000, -2_000_000_000)
    assert user.uid == 2**31


def test_a_signed_checksum_is_accepted() -> None:
    entry = bytearray(member("\udcff\udcfe", mtime=0))
    entry[148:156] = b" " * 8
    entry[148:156] = b"%06o\0 " % sum(byte - 256 if byte > 127 else byte for byte in entry)
    assert len(table_of(bytes(entry))) == 2


def sparse_map(table: EntryTable, row: int) -> list[tuple[int, int]]:
    entry = table.entry(row)
    assert entry.flags & FLAG_SPARSE
    return list(struct.iter_unpack("<QQ", table.link(entry)))


@pytest.mark.parametrize("form", ["0.0", "0.1", "1.0"])
def test_sparse_pax_forms(form: str) -> None:
    data = b"a" * 10 + b"b" * 20
    size = [("GNU.sparse.size", b"5000"), ("GNU.sparse.numblocks", b"3")]
    if form == "0.0":
        pairs = [(b"0", b"10"), (b"4000", b"20"), (b"5000", b"0")]
        for offset, count in pairs:
            size += [("GNU.sparse.offset", offset), ("GNU.sparse.numbytes", count)]
        tar = pax(size) + member("s", data=data)
    elif form == "0.1":
        size += [("GNU.sparse.name", b"s"), ("GNU.sparse.map", b"0,10,4000,20,5000,0")]
        tar = pax(size) + member("GNUSparseFile.0/s", data=data)
    else:
        head = b"3\n0\n10\n4000\n20\n5000\n0\n"
        tar = pax([("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.name", b"s"),
                   ("GNU.sparse.realsize", b"5000")]) + member("x/s", data=head.ljust(512, b"\0") + data)  # fmt: skip
    tar += member("t")
    table = table_of(tar)
    assert [table.path(entry) for entry in table] == [b"", b"s", b"t"]
    assert sparse_map(table, 1) == [(0, 10), (4000, 20)]
    whole = read_data(tar, table, table.entry(1))
    assert whole == b"a" * 10 + bytes(3990) + b"b" * 20 + bytes(980)


def test_a_file_that_is_all_hole_and_one_that_has_none() -> None:
    hole = pax([("GNU.sparse.size", b"9999"), ("GNU.sparse.numblocks", b"0"), ("GNU.sparse.map", b"")]) + member("h")
    full = pax([("GNU.sparse.size", b"4"), ("GNU.sparse.numblocks", b"2"), ("GNU.sparse.map", b"0,4,4,0")])
    table = table_of(hole + full + member("i", data=b"full"))
    assert sparse_map(table, 1) == []
    assert table.entry(1).size_bytes == 9999
    assert (table.entry(2).flags, table.entry(2).size_bytes, table.entry(2).link_length) == (0, 4, 0)


def test_max_entries_counts_rows() -> None:
    tar = member("a/b/c") + member("d")
    assert len(scan(tar, 5)[0]) == 5 * 168
    for bound in (1, 2, 3, 4):
        with pytest.raises(TarFormatError, match="limit"):
            scan(tar, bound)
    for bound in (0, -1, 2**32):
        with pytest.raises(ValueError):
            scan(tar, bound)


def test_repeated_global_records_are_bounded() -> None:
    attribute = pax([("SCHILY.xattr.user.big", b"x" * 900_000)], tarfile.XGLTYPE)
    one = pax([("SCHILY.xattr.user.own", b"")]) + member("e")
    with pytest.raises(TarFormatError, match="repeat"):
        scan(attribute + one * 100)


def test_many_layers_of_replacement_stay_fast() -> None:
    half = [member("a", tarfile.DIRTYPE)] * 3000 + [member("a", data=b"")] + [member("a", tarfile.DIRTYPE)]
    children = [member(f"a/{number}") for number in range(3000)]
    tar = b"".join(half + children)
    assert len(names(tar)) == 3002


def test_python_tarfile_reads_what_we_read() -> None:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name in ("n" * 300, "p/" * 100 + "q", "é"):
            info = tarfile.TarInfo(name)
            info.type = tarfile.SYMTYPE
            info.linkname = "l" * 400
            archive.addfile(info)
    content = written.getvalue()
    assert table_rows(content, table_of(content)) == model_rows(content)
