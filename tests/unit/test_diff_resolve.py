"""Paths and small files read from layer tars, with tars made by Python's tarfile."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from pylayers._native import tarscan
from pylayers.diff.merge import merge_layers
from pylayers.diff.resolve import find_path, read_file
from pylayers.errors import IntegrityError, InvalidInput, NotFound
from pylayers.store.entry import EntryTable
from pylayers.store.layer import Layer


def layer(path: Path, **members: object) -> Layer:
    """Make a layer: bytes are a file, None a directory, ("link" or "hard", target) a link; "/" is written as "__"."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as out:
        for key, content in members.items():
            name = key.replace("__", "/").replace("WH", ".wh.")
            member = tarfile.TarInfo(name)
            if content is None:
                member.type = tarfile.DIRTYPE
            elif isinstance(content, tuple):
                member.type = tarfile.SYMTYPE if content[0] == "link" else tarfile.LNKTYPE
                member.linkname = content[1]
            else:
                assert isinstance(content, bytes)
                member.size = len(content)
            out.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return Layer(path.name, path.stat().st_size, path, EntryTable(*tarscan.scan(path.read_bytes())))


@pytest.fixture
def layers(tmp_path: Path) -> list[Layer]:
    low = layer(
        tmp_path / "low", etc__passwd=b"old", etc__group=b"root:x:0:", usr__bin__env=b"env", bin=("link", "usr/bin"),
        abs=("link", "/etc/../usr"), up=("link", "../../../etc"), loop1=("link", "loop2"), loop2=("link", "loop1"),
        gone__file=b"x", target=b"shared", hard=("hard", "target"),
    )  # fmt: skip
    high = layer(
        tmp_path / "high", etc__passwd=b"new", WHgone=b"", dangling=("link", "var/none/x"), usr__l=("link", "bin/env")
    )
    return [low, high]


@pytest.mark.parametrize(
    ("path", "canonical", "exists"),
    [
        ("", "", True),
        ("/", "", True),
        ("/etc//passwd/.", "etc/passwd", True),
        ("../../etc/passwd", "etc/passwd", True),
        ("bin/env", "usr/bin/env", True),
        ("abs/bin/../l", "usr/bin/env", True),
        ("up/passwd", "etc/passwd", True),
        ("bin/..", "usr", True),
        ("bin/new/file", "usr/bin/new/file", False),
        ("dangling", "var/none/x", False),
        ("dangling/../y", "var/none/y", False),
        ("gone/file", "gone/file", False),
        ("none/../etc", "etc", True),
    ],
)
def test_find_path(layers: list[Layer], path: str, canonical: str, exists: bool) -> None:
    found = find_path(layers, path.encode())
    assert found.path.decode() == canonical
    assert (found.entry is not None) is exists
    assert (found.row is not None) is exists
    if found.row is not None:
        table = merge_layers(layers)
        assert table.path(table.entry(found.row)).decode() == canonical


def test_last_symlink_may_stay(layers: list[Layer]) -> None:
    table = merge_layers(layers)
    assert find_path(table, b"abs/l", follow_last=False).path == b"usr/l"
    assert find_path(table, b"bin", follow_last=False).path == b"bin"


def test_what_cannot_be_followed(layers: list[Layer]) -> None:
    with pytest.raises(InvalidInput, match="too many symbolic links"):
        find_path(layers, b"loop1/x")
    with pytest.raises(InvalidInput, match="not a directory"):
        find_path(layers, b"etc/passwd/x")


def test_forty_links_are_followed_and_no_more(tmp_path: Path) -> None:
    chain = {f"l{at}": ("link", f"l{at + 1}") for at in range(41)}
    table = layer(tmp_path / "chain", **chain, l41=b"end").table
    assert find_path(table, b"l1").path == b"l41"
    with pytest.raises(InvalidInput):
        find_path(table, b"l0")


def test_read_file(layers: list[Layer]) -> None:
    assert read_file(layers, b"/etc/passwd", 100) == b"new"
    assert read_file(layers, b"up/group", 100) == b"root:x:0:"
    assert read_file(layers, b"hard", 100) == read_file(layers, b"target", 6) == b"shared"
    assert read_file(layers, b"abs/l", 3, table=merge_layers(layers)) == b"env"


@pytest.mark.parametrize(
    ("path", "limit", "error"),
    [
        (b"none", 9, NotFound), (b"gone/file", 9, NotFound), (b"dangling", 9, NotFound),
        (b"etc", 9, InvalidInput), (b"etc/passwd", 2, InvalidInput),
    ],
)  # fmt: skip
def test_read_file_refuses(layers: list[Layer], path: bytes, limit: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        read_file(layers, path, limit)


def test_read_from_a_cut_tar(layers: list[Layer]) -> None:
    os.truncate(layers[1].tar_path, 100)
    with pytest.raises(IntegrityError):
        read_file(layers, b"etc/passwd", 100)


def test_read_sparse_file(tmp_path: Path) -> None:
    """A PAX 1.0 sparse file, spelt out by hand as GNU tar writes it."""
    data = b"2\n4096\n3\n8192\n2\n".ljust(512, b"\0") + b"abcde"
    member = tarfile.TarInfo("GNUSparseFile.0/disk")
    member.size = len(data)
    member.pax_headers = {
        "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "disk", "GNU.sparse.realsize": "8194",
    }  # fmt: skip
    path = tmp_path / "sparse"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as out:
        out.addfile(member, io.BytesIO(data))
    one = Layer("sparse", path.stat().st_size, path, EntryTable(*tarscan.scan(path.read_bytes())))
    expected = bytearray(8194)
    expected[4096:4099] = b"abc"
    expected[8192:8194] = b"de"
    assert read_file([one], b"disk", 10_000) == expected
