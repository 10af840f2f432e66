"""zfs keeps the rules of every driver, and some of its own: on zfs-fuse here, on OpenZFS where the kernel has it."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from pylayers.errors import Conflict, DriverError, NoSpace, PermissionDenied
from pylayers.snapshot import zfs, zfscommand
from pylayers.snapshot.snapshotter import Snapshotter
from tests.conformance.crash_suite import CrashSuite
from tests.conformance.foreign_suite import ForeignSuite
from tests.conformance.stage import Stage, write

MIB = 1 << 20


class TestZfs(CrashSuite, ForeignSuite):
    file_systems = ("zfs",)

    def open_driver(self, root: Path) -> Snapshotter:
        return zfs.Driver(root)

    def usage_of_copies(self, inodes: int) -> int:
        return inodes

    def datasets(self, ground: Path) -> set[str]:
        above = zfscommand.find_dataset(ground)
        return set(zfscommand.run_zfs("list", "-H", "-o", "name", "-t", "all", "-r", above).split())

    def test_nothing_is_copied(self, stage: Stage) -> None:
        stage.make("base", None, lambda top: write(top, "big", os.urandom(4 * MIB)))
        key = stage.active("base", lambda top: write(top, "small", os.urandom(100_000)))
        assert 100_000 <= stage.driver.usage(key).size_bytes < 400_000

    def test_no_dataset_is_left(self, stage: Stage) -> None:
        before = self.datasets(stage.scratch)
        stage.make("base", None, lambda top: write(top, "file"))
        stage.make("child", "base")
        stage.driver.view("look", "child")
        for key in ("look", "child", "base"):
            stage.driver.remove(key)
        assert self.datasets(stage.scratch) == before

    def test_what_is_mounted_is_not_removed(self, stage: Stage) -> None:
        stage.make("base", None)
        stage.driver.prepare("a", "base")
        with stage.mounted("a"):
            for call in (lambda: stage.driver.remove("a"), lambda: stage.driver.commit("b", "a")):
                with pytest.raises(Conflict):
                    call()
        stage.driver.remove("a")

    def test_limit(self, stage: Stage) -> None:
        stage.make("base", None, lambda top: write(top, "big", os.urandom(6 * MIB)))
        stage.driver.prepare("a", "base")
        stage.driver.limit("a", 4 * MIB)
        self.reopen(stage)

        def overfill(top: Path) -> None:
            with open(top / "new", "wb", buffering=0) as file:
                for _ in range(16):
                    file.write(os.urandom(MIB))
                    os.fsync(file.fileno())

        with pytest.raises(OSError) as caught:
            stage.change("a", overfill)
        assert caught.value.errno in (errno.EDQUOT, errno.ENOSPC)
        stage.driver.remove("a")

    def test_another_dataset_is_named(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        above = zfscommand.find_dataset(stage.scratch)
        stage.make("base", None)
        stage.driver.close()
        run = subprocess.run(["zfs", "create", f"{above}/other"], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        try:
            monkeypatch.setenv(zfscommand.FSNAME_VARIABLE, f"{above}/other")
            with pytest.raises(DriverError, match="are datasets under"):
                self.open_driver(stage.scratch.parent / "root")
        finally:
            monkeypatch.undo()
            zfs.destroy_dataset(f"{above}/other")
        self.reopen(stage).remove("base")

    def test_probe(self, ground: Path, tmp_path: Path) -> None:
        before = self.datasets(ground)
        assert zfs.probe(ground) == zfs.Probe(True)
        assert self.datasets(ground) == before
        assert list(ground.iterdir()) == []
        assert "not on zfs" in zfs.probe(tmp_path).reason


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("cannot create 'tp/x': out of space", NoSpace),
        ("cannot destroy 'tp/x': dataset is busy", Conflict),
        ("cannot create 'tp/x': permission denied", PermissionDenied),
        ("cannot open 'tp/x': dataset does not exist", DriverError),
    ],
)
def test_refusals_are_named(words: str, kind: type[Exception]) -> None:
    error = zfscommand.explain_failure("zfs create tp/x", words)
    assert type(error) is kind
    assert words in str(error)
    assert error.hint


def test_a_missing_program_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(zfscommand.FSNAME_VARIABLE, "tank")
    monkeypatch.setattr(zfscommand.shutil, "which", lambda _, **__: None)
    assert "no zfs program" in zfs.probe(tmp_path).reason
