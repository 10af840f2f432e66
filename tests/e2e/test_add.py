"""ADD of archives, URLs and repositories: real archives, a real HTTP server, real git."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import zstandard

from pylayers.diff.merge import merge_layers
from pylayers.engine import Engine
from pylayers.errors import IntegrityError, InvalidInput, NotFound, PylayersError
from tests.e2e.build_case import BASE, Member, content, leftovers, make_tar, members, statuses, write
from tests.interop.buildkit.server import Servers

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


class Handler(BaseHTTPRequestHandler):
    """Answer from `answers`: path → (status, headers, body); count the bodies that were sent."""

    answers: ClassVar[dict[str, tuple[int, dict[str, str], bytes]]] = {}
    sent: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        status, headers, body = self.answers.get(path, (404, {}, b""))
        if headers.get("ETag", "") == self.headers.get("If-None-Match", "none"):
            status, body = 304, b""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers and status != 304:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        if body:
            self.sent.append(path)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def http() -> Iterator[str]:
    Handler.answers.clear()
    Handler.sent.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_url_is_a_file_and_unchanged_is_not_sent_again(engine: Engine, context: Path, http: str) -> None:
    headers = {"ETag": '"1"', "Last-Modified": "Thu, 01 Jan 1970 00:01:40 GMT"}
    Handler.answers["/d/f.txt"] = (200, headers, b"hello")
    write(context, {"Dockerfile": f"FROM base\nADD {http}/d/f.txt?q=1 /made/\n"})
    result = engine.build(context)
    member = members(engine, result)["made/f.txt"]
    assert (member.mode, member.mtime, content(engine, result, "made/f.txt")) == (0o600, 100, b"hello")
    assert statuses(engine.build(context))[-1] == "ADD cached"
    assert Handler.sent == ["/d/f.txt"]
    write(context, {"Dockerfile": f"FROM base\nADD {http}/d/f.txt?q=1 /other/\n"})
    assert content(engine, engine.build(context), "other/f.txt") == b"hello"  # its bytes were needed again
    Handler.answers["/d/f.txt"] = (200, {"ETag": '"2"'}, b"changed")
    assert content(engine, engine.build(context), "other/f.txt") == b"changed"


def test_a_downloaded_archive_is_unpacked_when_asked(engine: Engine, context: Path, http: str) -> None:
    Handler.answers["/x.tgz"] = (200, {}, gzip.compress(make_tar((("a", b"1", {"uid": 4}),))))
    write(context, {"Dockerfile": f"FROM base\nADD --unpack {http}/x.tgz /made\nADD {http}/x.tgz /kept\n"})
    result = engine.build(context)
    assert members(engine, result, -2)["made/a"].uid == 4
    assert content(engine, result, "kept") == Handler.answers["/x.tgz"][2]


def test_checksums_and_failures_of_downloads(engine: Engine, context: Path, http: str) -> None:
    Handler.answers["/f"] = (200, {}, b"hello")
    Handler.answers["/loop"] = (302, {"Location": "/loop"}, b"")
    Handler.answers["/hop"] = (302, {"Location": "/f"}, b"")
    Handler.answers["/short"] = (200, {"Content-Length": "100"}, b"hello")
    Handler.answers["/down"] = (503, {}, b"")
    digest = hashlib.sha256(b"hello").hexdigest()
    for source, error, message in (
        (f"--checksum=sha256:{digest} {http}/hop", None, ""),
        (f"--checksum=sha256:{'0' * 64} {http}/f", IntegrityError, "digest mismatch"),
        (f"{http}/nothing", NotFound, "404"),
        (f"{http}/loop", InvalidInput, "10 redirects"),
        (f"{http}/short", IntegrityError, "broke off"),
        (f"{http}/down", PylayersError, "503"),
        ("http://127.0.0.1:1/x", PylayersError, "refused"),
    ):
        write(context, {"Dockerfile": f"FROM base\nADD {source} /made\n"})
        if error is None:
            assert content(engine, engine.build(context), "made") == b"hello"
            continue
        with pytest.raises(error, match=message):
            engine.build(context)


def git(directory: Path, *arguments: str) -> None:
    subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-c", "protocol.file.allow=always", *arguments],
        cwd=directory, check=True, capture_output=True,
        env={**os.environ, "GIT_COMMITTER_DATE": "@1500000000 +0000", "GIT_AUTHOR_DATE": "@1500000000 +0000"},
    )  # fmt: skip


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A git daemon over a folder with the repository `r.git`: two branches, a tag, a folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    with Servers(folder) as servers:
        work = write(folder / "r.git", {"a": "one", "d/b": "two"})
        git(work, "init", "-q", "-b", "main")
        git(work, "add", ".")
        git(work, "commit", "-q", "-m", "first")
        git(work, "tag", "v1")
        git(work, "checkout", "-q", "-b", "side")
        write(work, {"a": "side"})
        git(work, "commit", "-q", "-a", "-m", "second")
        git(work, "checkout", "-q", "main")
        yield f"{servers.git}/r.git", work


def test_a_repository_is_added_without_its_git_folder(
    engine: Engine, context: Path, served: tuple[str, Path]
) -> None:
    url, work = served
    body = f"FROM base\nADD {url} /all\nADD {url}#side /side\nADD {url}#v1:d /sub\nADD {url}?branch=side&subdir=d /q\n"
    write(context, {"Dockerfile": body})
    result = engine.build(context)
    names = paths(engine, result.diff_ids)
    assert {"all/a", "all/d/b", "side/a", "sub/b", "q/b"} <= names
    assert not any(".git" in name for name in names)
    assert content(engine, result, "side/a", -3) == b"side"
    assert members(engine, result, -4)["all/a"].mtime == 1_500_000_000
    assert statuses(engine.build(context))[1:] == ["ADD cached"] * 4
    write(work, {"a": "three"})
    git(work, "commit", "-q", "-a", "-m", "third")
    assert statuses(engine.build(context))[1] == "ADD built"


def test_a_kept_git_folder_is_the_same_each_time(engine: Engine, context: Path, served: tuple[str, Path]) -> None:
    write(context, {"Dockerfile": f"FROM base\nADD --keep-git-dir=true {served[0]} /all\n"})
    first = engine.build(context)
    assert {"all/.git/HEAD", "all/.git/index", "all/a"} <= paths(engine, first.diff_ids)
    assert engine.build(context, no_cache=True).diff_ids == first.diff_ids


def test_refusals_of_repositories(engine: Engine, context: Path, served: tuple[str, Path]) -> None:
    url, work = served
    commit = subprocess.run(["git", "rev-parse", "main"], cwd=work, capture_output=True, text=True).stdout.strip()
    for source, error in (
        (f"--checksum={commit} {url}", None),
        (f"{url}#{commit}", None),
        (f"--checksum={commit[::-1]} {url}", IntegrityError),
        (f"{url}#nothing", NotFound),
        (f"{url}#main:nothing", NotFound),
        (f"{url}?what=1", InvalidInput),
    ):
        write(context, {"Dockerfile": f"FROM base\nADD {source} /made\n"})
        if error is None:
            engine.build(context)
            continue
        with pytest.raises(error):
            engine.build(context)


def test_without_git_the_error_says_so(
    engine: Engine, context: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write(context, {"Dockerfile": "FROM base\nADD git://127.0.0.1:1/r.git /made\n"})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PylayersError, match="needs the git command"):
        engine.build(context)
