"""ADD of archives, URLs and repositories: real archives, a real HTTP server, real git."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from pylayers.diff.merge import merge_layers
from pylayers.engine import Engine
from pylayers.errors import IntegrityError, InvalidInput, PylayersError
from tests.e2e.build_case import BASE, Member, content, leftovers, make_tar, members, statuses, write

DIR, LINK = {"type": tarfile.DIRTYPE}, {"type": tarfile.SYMTYPE}
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda tar: tar,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with Engine.open(tmp_path / "root", driver="overlay2" if os.geteuid() == 0 else "vfs") as opened:
        opened.images.import_(io.BytesIO(make_tar((*BASE, ("data/sub/f", b"old", {}), ("file", b"f", {})))), "base")
        yield opened
    assert leftovers(tmp_path / "root") == []


@pytest.fixture
def context(tmp_path: Path) -> Path:
    return tmp_path / "context"


def paths(engine: Engine, diff_ids: tuple[str, ...]) -> set[str]:
    table = merge_layers([engine.store.layers.open(diff_id) for diff_id in diff_ids])
    return {table.path(entry).decode() for entry in table}


@pytest.mark.parametrize("packing", PACKED)
def test_an_archive_is_found_by_its_content(engine: Engine, context: Path, packing: str) -> None:
    tar = make_tar((("d", None, {**DIR, "mode": 0o750, "uid": 5}), ("d/f", b"hello", {"mode": 0o600, "uid": 6})))
    write(context, {"Dockerfile": "FROM base\nADD thing /made\n", "thing": PACKED[packing](tar)})
    result = engine.build(context)
    made = members(engine, result)
    assert (made["made/d"].mode, made["made/d"].uid) == (0o750, 5)
    assert (made["made/d/f"].mode, made["made/d/f"].uid, made["made/d/f"].mtime) == (0o600, 6, 1_000_000_000)
    assert content(engine, result, "made/d/f") == b"hello"


def test_the_key_is_the_members_and_not_the_archive(engine: Engine, context: Path) -> None:
    tar = make_tar((("a", b"1", {}),))
    write(context, {"Dockerfile": "FROM base\nADD x.tar /made\n", "x.tar": tar})
    assert statuses(engine.build(context))[-1] == "ADD built"
    (context / "x.tar").write_bytes(gzip.compress(tar))
    (context / "x.tar").chmod(0o600)
    assert statuses(engine.build(context))[-1] == "ADD cached"
    (context / "x.tar").write_bytes(make_tar((("a", b"2", {}),)))
    assert statuses(engine.build(context))[-1] == "ADD built"


def test_members_replace_what_is_there(engine: Engine, context: Path) -> None:
    tar = make_tar((("data", b"now a file", {}), ("file/inside", b"x", {}), ("file", None, DIR), ("lib/x", b"x", {})))
    write(context, {"Dockerfile": "FROM base\nADD x.tar /\n", "x.tar": tar})
    found = paths(engine, engine.build(context).diff_ids)
    assert {"data", "file/inside", "usr/lib/x"} <= found
    assert not {"data/sub", "data/sub/f", "lib/x"} & found


def test_links_xattrs_and_devices(engine: Engine, context: Path) -> None:
    tar = make_tar(
        (
            ("a", b"data", {"pax_headers": {"SCHILY.xattr.user.k": "v"}}),
            ("b", None, {"type": tarfile.LNKTYPE, "linkname": "a"}),
            ("null", None, {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}),
            ("s", None, {**LINK, "linkname": "a"}),
        )
    )
    write(context, {"Dockerfile": "FROM base\nADD x.tar /made\n", "x.tar": tar})
    made = members(engine, engine.build(context))
    assert made["made/a"].pax_headers["SCHILY.xattr.user.k"] == "v"
    assert made["made/b"].islnk()
    assert made["made/b"].linkname == "made/a"
    assert (made["made/null"].ischr(), made["made/null"].devminor) == (True, 3)
    assert made["made/s"].linkname == "a"


def test_chown_is_for_members_and_exclude_is_not(engine: Engine, context: Path) -> None:
    body = "FROM base\nADD --chown=app --chmod=600 --exclude=*.md x.tar /made\n"
    write(context, {"Dockerfile": body, "x.tar": make_tar((("a.md", b"1", {"uid": 3, "mode": 0o644}),))})
    member = members(engine, engine.build(context))["made/a.md"]
    assert (member.uid, member.gid, member.mode) == (1000, 1001, 0o644)


@pytest.mark.parametrize("flag", ["--unpack=false", ""])
def test_what_is_no_archive_or_not_wanted_is_copied(engine: Engine, context: Path, flag: str) -> None:
    thing = make_tar((("a", b"1", {}),)) if flag else bytes(10240)
    write(context, {"Dockerfile": f"FROM base\nADD {flag} thing /made/\n", "thing": thing})
    assert content(engine, engine.build(context), "made/thing") == thing


def test_damaged_archives_are_told_with_the_byte(engine: Engine, context: Path) -> None:
    tar = bytearray(make_tar((("a", b"1", {}), ("b", b"2", {}))))
    tar[1024 + 3] ^= 0xFF  # the second header's name: its checksum no longer fits
    write(context, {"Dockerfile": "FROM base\nADD x.tar /made\n", "x.tar": bytes(tar)})
    with pytest.raises(IntegrityError, match="byte 1024"):
        engine.build(context)
    packed = gzip.compress(make_tar((("a", os.urandom(100_000), {}),)))
    write(context, {"x.tar": packed[:50_000]})
    with pytest.raises(PylayersError, match="damaged"):
        engine.build(context)
    climbing: tuple[Member, ...] = (("../out", b"x", {}),)
    write(context, {"x.tar": make_tar(climbing)})
    with pytest.raises(IntegrityError, match=r"byte 0"):
        engine.build(context)


def test_a_local_file_takes_no_checksum(engine: Engine, context: Path) -> None:
    write(context, {"Dockerfile": f"FROM base\nADD --checksum=sha256:{'0' * 64} a /made\n", "a": "a"})
    with pytest.raises(InvalidInput, match="checksum"):
        engine.build(context)
