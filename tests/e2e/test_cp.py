"""`pylayers cp` beside what docker documents of `docker cp`, on stopped and running containers."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from busybox_rootfs import fill, needs_root, usable_runtimes
from cli_process import Cli

from pylayers.engine import Engine
from pylayers.errors import NotFound, PermissionDenied
from pylayers.snapshot.mount import mount_points_below
from tests.conformance.migration_stage import ACL, CAPABILITY

pytestmark = [pytest.mark.root, needs_root]
SETUP = (
    "mkdir -p /data/sub /empty; echo one > /data/a; echo two > /data/sub/b; chmod 640 /data/a; chown 5:6 /data/a;"
    "ln -s a /data/link; ln -s /data /dirlink; ln -s /etc/passwd /out; ln -s ../../../../../../etc /up; echo x > /file;"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    if "runc" not in usable_runtimes():
        pytest.skip("runc does not work here")
    root = fill(tmp_path_factory.mktemp("rootfs") / "root")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(root, arcname=".")
    return buffer.getvalue()


@pytest.fixture(params=["stopped", "running"])
def cli(request: pytest.FixtureRequest, tmp_path: Path, base: bytes) -> Iterator[Cli]:
    made = Cli(tmp_path)
    made("import", "-", "box", input=base)
    ending = "echo ready; sleep 100" if request.param == "running" else "true"
    detach = ["-d"] if request.param == "running" else []
    (tmp_path / "host").mkdir()
    binds = ["-v", f"{tmp_path / 'host'}:/bound:ro", "-v", "vol:/vol"]
    made("run", *detach, "--name", "c", *binds, "box", "sh", "-c", SETUP + ending)
    while detach and "ready" not in made("logs", "c").stdout:
        time.sleep(0.05)
    try:
        yield made
    finally:
        made("rm", "-f", "c")
        assert not [one for one in mount_points_below(made.root) if b"pylayers-mount" in os.fsencode(one)]
        assert set(os.listdir(made.root / "tmp")) <= {"sweep.lock"}


def names(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def test_file_from_container(cli: Cli) -> None:
    here = cli.directory
    done = cli("cp", "c:/data/a", "new")
    assert done.stdout == ""
    assert "Successfully copied" in done.stderr
    found = (here / "new").stat()
    assert ((here / "new").read_text(), stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (
        "one\n",
        0o640,
        0,
        0,
    )
    assert cli("cp", "-q", "-a", "c:data/a", "kept").stderr == ""
    assert ((here / "kept").stat().st_uid, (here / "kept").stat().st_gid) == (5, 6)
    assert (here / "kept").stat().st_mtime_ns == found.st_mtime_ns
    (here / "there").mkdir()
    cli("cp", "c:/data/a", "there")
    assert (here / "there" / "a").read_text() == "one\n"
    (here / "old").write_text("longer than before")
    cli("cp", "c:/data/a", "old")
    assert (here / "old").read_text() == "one\n"
    assert "missing/" in cli("cp", "c:/data/a", "missing/", code=3).stderr
    cli("cp", "c:/data/a", "missing/deeper", code=3)
    cli("cp", "c:/data/a/", "x", code=3)
    cli("cp", "c:/data/nope", "x", code=3)
    assert not (here / "missing").exists()
    assert not (here / "x").exists()


def test_directory_from_container(cli: Cli) -> None:
    here = cli.directory
    inside = ["a", "link", "sub", "sub/b"]
    cli("cp", "c:/data", "new")
    assert names(here / "new") == inside
    cli("cp", "c:/data", "new")
    assert names(here / "new") == sorted([*inside, "data", *(f"data/{one}" for one in inside)])
    (here / "merged").mkdir(mode=0o700)
    (here / "merged" / "a").write_text("older")
    (here / "merged" / "own").write_text("own")
    cli("cp", "c:/data/.", "merged")
    assert names(here / "merged") == sorted([*inside, "own"])
    assert (here / "merged" / "a").read_text() == "one\n"
    assert stat.S_IMODE((here / "merged").stat().st_mode) == 0o700
    cli("cp", "c:/data/.", "fresh/")
    assert names(here / "fresh") == inside
    (here / "file").write_text("kept")
    cli("cp", "c:/data", "file", code=3)
    assert (here / "file").read_text() == "kept"
    (here / "clash" / "data" / "a").mkdir(parents=True)
    assert "a" in cli("cp", "c:/data", "clash", code=2).stderr


def test_symlinks_stay_inside_the_container(cli: Cli) -> None:
    here = cli.directory
    cli("cp", "c:/data/link", "link")
    assert os.readlink(here / "link") == "a"
    cli("cp", "-L", "c:/data/link", "followed")
    assert (here / "followed").read_text() == "one\n"
    cli("cp", "-L", "c:/out", "passwd")
    assert "app:x:1000" in (here / "passwd").read_text()  # the image's, not the machine's
    cli("cp", "c:/up/passwd", "passwd2")
    assert (here / "passwd2").read_text() == (here / "passwd").read_text()
    cli("cp", "c:/dirlink/.", "content")
    assert "a" in names(here / "content")
    (here / "given").write_text("given")
    cli("cp", "given", "c:/up/escaped-by-cp")
    assert not Path("/etc/escaped-by-cp").exists()
    cli("cp", "c:/etc/escaped-by-cp", "back")
    assert (here / "back").read_text() == "given"


def test_to_container(cli: Cli) -> None:
    here = cli.directory
    tree = here / "tree"
    (tree / "below").mkdir(parents=True)
    (tree / "f").write_text("f")
    (tree / "below" / "g").write_text("g")
    os.chown(tree / "f", 1234, 1234)
    os.link(tree / "f", tree / "below" / "again")
    os.setxattr(tree / "f", "user.x", b"y")
    cli("cp", "tree", "c:/empty")
    cli("cp", "-a", "tree/.", "c:/kept")
    cli("cp", "tree/f", "c:/empty/renamed")
    cli("cp", "-a", "c:/empty", "back")
    cli("cp", "-a", "c:/kept", "kept")
    assert names(here / "back") == ["renamed", "tree", "tree/below", "tree/below/again", "tree/below/g", "tree/f"]
    again = (here / "back" / "tree" / "f").stat()
    assert (again.st_uid, again.st_nlink) == (0, 2)
    assert (here / "kept" / "f").stat().st_uid == 1234
    assert os.getxattr(here / "kept" / "f", "user.x") == b"y"
    cli("cp", "tree/f", "c:/nowhere/", code=3)
    cli("cp", "tree", "c:/file", code=3)
    cli("cp", "tree/nope", "c:/", code=3)


def test_volumes_and_readonly_binds(cli: Cli) -> None:
    here = cli.directory
    (here / "given").write_text("given")
    (here / "host" / "h").write_text("host's")
    cli("cp", "given", "c:/vol/v")
    [volume] = (cli.root / "volumes").glob("vol/_data")
    assert (volume / "v").read_text() == "given"
    cli("cp", "c:/bound/h", "h")
    assert (here / "h").read_text() == "host's"
    assert "read-only" in cli("cp", "given", "c:/bound/no", code=12).stderr
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as file:
        file.add(here / "given", "no")
    cli("cp", "-", "c:/bound", code=12, input=tar.getvalue())
    assert os.listdir(here / "host") == ["h"]


def test_tar_both_ways(cli: Cli) -> None:
    command = cli.command("cp", "c:/data", "-")
    done = subprocess.run(command, capture_output=True, cwd=cli.directory, env=cli.environment, timeout=60, check=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        assert sorted(tar.getnames()) == ["data", "data/a", "data/link", "data/sub", "data/sub/b"]
        member = tar.getmember("data/a")
        assert (member.uid, member.gid, member.mode) == (5, 6, 0o640)
    cli("cp", "-", "c:/empty", input=done.stdout)
    cli("cp", "-a", "c:/empty/data/.", "back")
    assert names(cli.directory / "back") == ["a", "link", "sub", "sub/b"]
    assert (cli.directory / "back" / "a").stat().st_uid == 5
    cli("cp", "-", "c:/file", code=2, input=done.stdout)
    cli("cp", "-", "c:/nowhere", code=3, input=done.stdout)
    cli("cp", "-", "c:/empty", code=6, input=b"no tar" * 1000)


def test_attributes_go_through_a_tar(cli: Cli) -> None:
    """From a container to a tar and back into another place: capabilities, ACLs, any bytes; GNU tar reads them, too."""
    tree = cli.directory / "tree"
    tree.mkdir()
    given = {
        "user.plain": b"text", "user.any": b"\0\xff=\n", "user.none": b"", "user.long": b"x" * 3000,
        "security.capability": CAPABILITY, "trusted.note": "gr\u00fc\u00df".encode(),
        "system.posix_acl_access": ACL,
    }  # fmt: skip
    for path in (tree, tree / "f", tree / "odd name\n"):
        if path != tree:
            path.write_text("f")
        for name, value in given.items():
            if path.is_file() or name != "security.capability":
                os.setxattr(path, name, value)
    cli("cp", "-a", "tree", "c:/empty")

    def take(*arguments: str) -> bytes:
        command = cli.command("cp", *arguments, "-")
        return subprocess.run(command, stdout=subprocess.PIPE, env=cli.environment, timeout=60, check=True).stdout

    written = take("c:/empty/tree")
    with tarfile.open(fileobj=io.BytesIO(written)) as tar:
        records = tar.getmember("tree/f").pax_headers
        assert {name for name in records if "xattr" in name} == {f"SCHILY.xattr.{name}" for name in given}
        assert records["SCHILY.xattr.trusted.note"] == "gr\u00fc\u00df"
    cli("cp", "-", "c:/vol", input=written)
    cli("cp", "-", "c:/data", input=take("c:/empty/tree/."))
    cli("cp", "-", "c:/data/sub", input=take("c:/empty/tree/f"))
    cli("cp", "-a", "c:/vol/tree", "back")
    cli("cp", "-a", "c:/data", "spread")
    back, spread = cli.directory / "back", cli.directory / "spread"
    for path in (back, back / "f", back / "odd name\n", spread / "f", spread / "odd name\n", spread / "sub" / "f"):
        wanted = {name for name in given if path.is_file() or name != "security.capability"}
        assert {name: os.getxattr(path, name) for name in os.listxattr(path)} == {name: given[name] for name in wanted}
    (cli.directory / "gnu").mkdir()
    command = ["tar", "--xattrs", "--xattrs-include=user.*", "-xf", "-"]
    subprocess.run(command, input=written, cwd=cli.directory / "gnu", check=True)
    for name in ("user.plain", "user.any", "user.long"):
        assert os.getxattr(cli.directory / "gnu" / "tree" / "f", name) == given[name]


def test_members_that_would_delete(cli: Cli) -> None:
    for name in ("data/.wh.a", "data/.wh..wh..opq"):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            tar.addfile(tarfile.TarInfo(name))
        assert ".wh." in cli("cp", "-", "c:/", code=2, input=buffer.getvalue()).stderr
    cli("cp", "c:/data/a", "still-there")


def test_failures_say_what_docker_says(cli: Cli) -> None:
    """The words are docker's; the codes are this project's, in place of docker's 1 for all."""
    for arguments, code, words in (
        (("nope:/a", "x"), 3, "no such container: nope"),
        (("c:/nope/a", "x"), 3, "could not find the file /nope/a in container c"),
        (("c:/a", "c:/b"), 2, "copying between containers is not supported"),
        (("a", "b"), 2, "must be CONTAINER:PATH"),
        (("c:/data/a", "nope/x"), 3, "no such directory"),
    ):
        assert words in cli("cp", *arguments, code=code).stderr


def test_wrong_command_lines(cli: Cli) -> None:
    for arguments in (("a", "b"), ("c:/a", "c:/b"), ("c:", "x"), ("only",)):
        cli("cp", *arguments, code=2)
    cli("cp", "nope:/a", "x", code=3)


def test_library(cli: Cli) -> None:
    with Engine.open(cli.root) as engine:
        (cli.directory / "given").write_text("by call")
        engine.containers.copy_to("c", cli.directory / "given", "/empty/")
        engine.containers.copy_from("c", "/empty/given", cli.directory / "back")
        assert (cli.directory / "back").read_text() == "by call"
        out = io.BytesIO()
        engine.containers.copy_from("c", "/empty/.", out)
        with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
            assert tar.getnames() == [".", "./given"]
        with pytest.raises(NotFound):
            engine.containers.copy_from("c", "/nope", cli.directory / "x")
        with pytest.raises(PermissionDenied):
            engine.containers.copy_to("c", cli.directory / "given", "/bound/x")


def test_readonly_root(tmp_path: Path, base: bytes) -> None:
    cli = Cli(tmp_path)
    cli("import", "-", "box", input=base)
    cli("create", "--read-only", "--name", "r", "box", "true")
    (tmp_path / "given").write_text("given")
    assert "read-only" in cli("cp", "given", "r:/etc/given", code=12).stderr
    cli("cp", "r:/etc/passwd", "passwd")
    cli("rm", "r")
