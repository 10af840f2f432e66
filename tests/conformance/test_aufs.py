"""aufs keeps the rules of every driver where a kernel has it; elsewhere its branches are read through fuse-overlayfs.

fuse-overlayfs honours aufs's marks, and writes them itself when it may not make devices; so everything but the mount
is tried with the driver's own layout on every machine.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import stat
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pylayers.diff.whiteout import convert_upper
from pylayers.errors import DriverError, Unsupported
from pylayers.record import replace
from pylayers.snapshot import aufs, aufsmount, fusemount, fuseoverlayfs
from pylayers.snapshot.catalog import Record
from pylayers.snapshot.mount import mounted
from pylayers.snapshot.namedmark import convert_names
from pylayers.snapshot.snapshotter import Mount, SnapshotKind, Snapshotter
from pylayers.store.layer import Layer
from tests.conformance import crash_suite
from tests.conformance.crash_suite import CrashSuite
from tests.conformance.foreign_suite import ForeignSuite
from tests.conformance.stage import Stage, scanned, write

HAS_AUFS = aufsmount.TYPE in Path("/proc/filesystems").read_text().split()


@pytest.mark.skipif(not HAS_AUFS, reason="this kernel has no aufs; PYLAYERS_UML names one for tests/kernels")
class TestAufs(CrashSuite, ForeignSuite):
    file_systems = ("own",)

    def open_driver(self, root: Path) -> Snapshotter:
        return aufs.Driver(root)

    def test_mounts_at_once(self, stage: Stage) -> None:
        """Each has a file of inode numbers of its own, whose name is gone when the mount is there."""
        stage.make("base", None, lambda top: write(top, "file"))
        for number in range(8):
            stage.driver.prepare(f"k{number}", "base")

        def use(number: int) -> bytes:
            with mounted(stage.driver.mounts(f"k{number}"), stage.scratch) as top:
                return (top / "file").read_bytes()

        with ThreadPoolExecutor(8) as pool:
            for _ in range(20):
                assert list(pool.map(use, range(8))) == [b"x"] * 8
        assert list(Path(aufsmount.XINO_FOLDER).glob("pylayers-*.xino")) == []


class BranchDriver(aufs.Driver):
    """The driver with its branches shown by fuse-overlayfs instead of aufs."""

    def _mounts(self, record: Record) -> list[Mount]:
        [one] = super()._mounts(record)
        if (record.kind == SnapshotKind.VIEW and len(one.lowers) < 2) or not one.lowers:
            return [Mount("bind", source=one.upper or one.lowers[0], readonly=one.readonly)]
        work = Path(self.catalog.directory(record), "work")
        work.mkdir(exist_ok=True)
        return [replace(one, type=fusemount.TYPE, options=(), work=str(work) if one.upper else "")]

    def _refuse_mounted(self, directory: Path, record: Record) -> None:
        fuseoverlayfs.Driver._refuse_mounted(self, directory, record)  # type: ignore[arg-type]

    @staticmethod
    def _convert(records: bytearray, heap: bytearray) -> bytearray:
        convert_upper(records, heap)  # the program leaves attributes of its own beside the names
        return convert_names(records, heap)


@pytest.mark.skipif(
    fusemount.find_program() is None or not Path("/dev/fuse").exists() or shutil.which("setpriv") is None,
    reason="needs fuse-overlayfs and setpriv",
)
class TestBranches(CrashSuite, ForeignSuite):
    file_systems = ("own",)
    marks_of_a_new_directory = 2
    sees_hard_links = False
    unreliable_link_changes = frozenset({"content of all"})
    longest_name = 200

    @pytest.fixture(autouse=True)
    def without_devices(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have fuse-overlayfs write marks by name, as it does where it may not make devices."""
        program = tmp_path / fusemount.PROGRAM
        real = shutil.which(fusemount.PROGRAM)
        program.write_text(f'#!/bin/sh\nexec setpriv --bounding-set -mknod {real} "$@"\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def open_driver(self, root: Path) -> Snapshotter:
        return BranchDriver(root)

    def test_devices_and_fifos(self, stage: Stage) -> None:
        pytest.skip("here fuse-overlayfs may make no devices, so that it writes marks by name")

    def place(self, stage: Stage, name: str) -> Path:
        root = stage.scratch.parent / "root"
        return root / "diff" / os.readlink(root / "by-name" / name)[3:]

    def test_layout(self, stage: Stage) -> None:
        stage.make("one", None, lambda top: write(top, "file"))
        stage.make("two", "one")
        stage.driver.prepare("k", "two")
        root = stage.scratch.parent / "root"
        identities = [os.readlink(root / "by-name" / name)[3:] for name in ("one", "two", "k")]
        assert (root / "layers" / identities[0]).read_text() == ""
        assert (root / "layers" / identities[2]).read_text() == f"{identities[1]}\n{identities[0]}\n"
        assert sorted(os.listdir(root / "diff")) == sorted(identities)
        assert os.listdir(root / "mnt") == [identities[2]]
        [mount] = aufs.Driver._mounts(stage.driver, stage.driver.catalog.get("k"))  # type: ignore[arg-type, attr-defined]
        assert (mount.type, mount.upper) == ("aufs", str(root / "diff" / identities[2]))
        assert mount.lowers == tuple(str(root / "diff" / identity) for identity in (identities[1], identities[0]))
        for name in ("k", "two", "one"):
            stage.driver.remove(name)
        assert [list((root / folder).iterdir()) for folder in ("diff", "layers", "mnt")] == [[], [], []]

    def test_marks_are_names_on_disk(self, stage: Stage) -> None:
        stage.make("base", None, lambda top: [write(top, name) for name in ("a", "d/b", "o/x", "o/y")])
        layer = self.tar(stage, (".wh.a", b""), ("d/.wh.b", b""), ("o", None), ("o/.wh..wh..opq", b""), ("o/z", b"z"))
        stage.driver.prepare("k", "base")
        stage.driver.apply("k", layer)
        top = self.place(stage, "k")
        found = {str(path.relative_to(top)) for path in top.rglob("*")}
        assert found == {".wh.a", "d", "d/.wh.b", "o", "o/.wh..wh..opq", "o/z"}
        assert all(not stat.S_ISCHR(os.lstat(path).st_mode) for path in top.rglob("*"))
        assert os.listxattr(top / "o") == []
        assert [line for line in stage.listed("k", "base") if line[0] != "C"] == [
            ("D", b"a"), ("D", b"d/b"), ("D", b"o/x"), ("D", b"o/y"), ("A", b"o/z"),
        ]  # fmt: skip

    def test_aufs_own_files_are_no_changes(self, stage: Stage) -> None:
        """What aufs keeps in a branch is neither a change nor a mark."""
        stage.make("base", None, lambda top: write(top, "a"))
        stage.driver.prepare("k", "base")
        top = self.place(stage, "k")
        for path in (".wh..wh.aufs", ".wh..wh.orph/.wh.x", ".wh..wh.plnk/3.4", "new"):
            write(top, path)
        assert stage.listed("k", "base") == [("A", b"new")]

    def test_too_many_branches_are_named(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(aufs, "read_branch_limit", lambda: 3)
        for number in range(3):
            stage.make(f"n{number}", f"n{number - 1}" if number else None)
        with pytest.raises(Unsupported, match="takes 3 branches") as caught:
            stage.driver.prepare("k", "n2")
        assert "driver migrate" in (caught.value.hint or "")
        assert {one.name for one in stage.driver.walk()} == {"n0", "n1", "n2"}

    def test_a_lost_list_is_named(self, stage: Stage) -> None:
        stage.make("base", None)
        stage.driver.prepare("k", "base")
        root = stage.scratch.parent / "root"
        (root / "layers" / os.readlink(root / "by-name/k")[3:]).unlink()
        with pytest.raises(DriverError, match="list of parents"):
            stage.driver.mounts("k")


GOLDEN = Path(__file__).parents[1] / "corpus" / "golden" / "aufs.json"
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for marks and owners")
MARKS = (
    (".wh.a", b""), ("d", None), ("d/.wh.b", b""), ("n/.wh.deep", b""), ("o", None), ("o/.wh..wh..opq", b""),
    ("o/z", b"z"), ("x", b"instead of a directory"),
)  # fmt: skip


def make_layer(path: Path, *members: tuple[str, bytes | None]) -> Layer:
    """Write a tar that is the same on every machine, and scan it."""
    with tarfile.open(path, "w") as out:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.mtime, member.size = 1_000_000_000, len(content or b"")
            member.type, member.mode = (tarfile.DIRTYPE, 0o711) if content is None else (tarfile.REGTYPE, 0o640)
            out.addfile(member, io.BytesIO(content or b""))
    return scanned(path)


def fill_root(root: Path, scratch: Path) -> aufs.Driver:
    """Make two committed layers and an active snapshot with marks, without a mount."""
    below = make_layer(scratch / "below.tar", *((name, b"below") for name in ("a", "d/b", "n/deep", "o/y", "x/in")))
    driver = aufs.Driver(root)
    for name, parent, layer in (("base", None, below), ("top", "base", make_layer(scratch / "top.tar", *MARKS))):
        driver.prepare("k", parent)
        driver.apply("k", layer)
        driver.commit(name, "k")
    driver.prepare("k", "top")
    driver.apply("k", make_layer(scratch / "k.tar", ("a", b"again"), ("o/.wh.z", b"")))
    return driver


def describe_root(root: Path) -> dict[str, object]:
    """List what lies in the driver's folder, the random ids replaced by their names."""
    identities = {os.readlink(one)[3:]: one.name for one in (root / "by-name").iterdir()}

    def plain(text: str) -> str:
        for identity, name in identities.items():
            text = text.replace(identity, f"<{name}>")
        return re.sub(r'("(?:created|settled)_ns": )\d+', r"\g<1>0", text)

    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        seen = path.lstat()
        entry: list[object] = [stat.filemode(seen.st_mode)]
        if stat.S_ISREG(seen.st_mode):
            entry.append(plain(path.read_text()))
        elif stat.S_ISLNK(seen.st_mode):
            entry.append(plain(os.readlink(path)))
        found[plain(str(path.relative_to(root)))] = entry + os.listxattr(path, follow_symlinks=False)
    return {name: found[name] for name in sorted(found)}


@AS_ROOT
def test_layout_is_the_golden_one(tmp_path: Path) -> None:
    """What is on disk stays readable by later versions: a change here is a change of the format."""
    before = os.umask(0o022)
    try:
        fill_root(tmp_path / "root", tmp_path).close()
    finally:
        os.umask(before)
    assert describe_root(tmp_path / "root") == json.loads(GOLDEN.read_text())


@AS_ROOT
def test_kills_inside_apply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Marks are spelt in overlayfs's way for a while; whoever opens the driver next puts them back."""
    expected = describe_root(Path(fill_root(tmp_path / "whole", tmp_path).root))
    again = make_layer(tmp_path / "again.tar", ("late", b""), *MARKS)
    killed = 0
    for step in range(200):
        root = tmp_path / f"root-{step}"
        driver = fill_root(root, tmp_path)
        child = os.fork()
        if child == 0:
            for name in ("setxattr", "removexattr", "mknod"):
                monkeypatch.setattr(crash_suite, "STEPS", (*crash_suite.STEPS, name))
            try:
                crash_suite.count_down(step)
                driver.apply("k", again)
            finally:
                os._exit(0)
        status = os.waitpid(child, 0)[1]
        mounts = driver.mounts("k")  # a driver that was open all the time mends it, too
        driver.close()
        driver = aufs.Driver(root)
        assert driver.mounts("k")[0].lowers == mounts[0].lowers
        found = describe_root(root)
        assert not any(len(entry) > 2 or entry[0].startswith("c") for entry in found.values())  # type: ignore[arg-type, index]
        assert not any("applying" in name for name in found)
        assert set(expected) - set(found) <= {"diff/<k>/a", "diff/<k>/o/.wh.z"}  # which the new layer deletes
        assert {"diff/<k>/o/.wh.z", "diff/<k>/o/.wh..wh..opq"} & set(found)
        driver.apply("k", again)
        driver.close()
        done = describe_root(root)
        if status == 0:
            break
        killed += 1
        shutil.rmtree(root)
        if killed == 1:
            first = done
        assert done == first
    assert killed > 5


@pytest.mark.parametrize("name", ["a:b", "a,b"])
def test_roots_that_mount_options_cannot_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(Unsupported, match="would end a branch's name") as caught:
        aufs.Driver(tmp_path / name / "aufs")
    assert "--root" in (caught.value.hint or "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [1, 2, 61, 125])
def test_options_fit_a_page(count: int) -> None:
    branches = [f"/var/lib/pylayers/aufs/diff/{number:032x}=ro+wh" for number in range(count)]
    first, rest = aufsmount.fill_option(branches, 4000)
    assert len("br:" + first) <= 4000
    assert first.split(":") + rest == branches
    assert not rest or len("br:" + first + ":" + rest[0]) > 4000


def test_a_branch_in_use_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aufsmount, "MODULE", tmp_path)
    write(tmp_path, "si_1/br0", b"/d/one=rw\n")
    write(tmp_path, "si_1/br1", b"/d/two=ro+wh\n")
    assert aufsmount.is_branch(Path("/d/one"))
    assert not aufsmount.is_branch(Path("/d/on"))
    assert not aufsmount.is_branch(Path("/d/two"))


def test_probe(tmp_path: Path) -> None:
    found = aufs.probe(tmp_path)
    assert found.usable or "no aufs" in found.reason
    assert list(tmp_path.iterdir()) == []


def test_branch_limit_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aufsmount, "MODULE", tmp_path)
    assert aufsmount.read_branch_limit() == 127
    (tmp_path / "config").write_text("CONFIG_AUFS_FS=y\nCONFIG_AUFS_BRANCH_MAX_511=y\n")
    assert aufsmount.read_branch_limit() == 511
