"""btrfs keeps the rules of every driver, and some of its own."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from pylayers.snapshot import btrfs, subvolume
from pylayers.snapshot.snapshotter import Snapshotter
from tests.conformance.crash_suite import CrashSuite
from tests.conformance.foreign_suite import ForeignSuite
from tests.conformance.stage import Stage, write


class TestBtrfs(CrashSuite, ForeignSuite):
    file_systems = ("btrfs",)

    def open_driver(self, root: Path) -> Snapshotter:
        return btrfs.Driver(root)

    def usage_of_copies(self, inodes: int) -> int:
        return inodes

    def subvolumes(self, stage: Stage) -> int:
        listed = subprocess.run(
            ["btrfs", "subvolume", "list", str(stage.scratch)], capture_output=True, check=True, text=True
        )
        return len(listed.stdout.splitlines())

    def test_nothing_is_copied(self, stage: Stage) -> None:
        stage.make("base", None, lambda top: write(top, "big", os.urandom(4 << 20)))
        key = stage.active("base", lambda top: write(top, "small", os.urandom(100_000)))
        os.sync()
        assert 100_000 <= stage.driver.usage(key).size_bytes < 200_000

    def test_what_a_container_made_inside_goes_too(self, stage: Stage) -> None:
        before = self.subvolumes(stage)

        def fill(top: Path) -> None:
            subvolume.create_subvolume(top / "inner")
            subvolume.create_subvolume(top / "inner" / "deeper")
            write(top, "inner/deeper/file")
            subvolume.set_read_only(top / "inner" / "deeper")

        key = stage.active(None, fill)
        stage.driver.commit("done", key)
        stage.driver.remove("done")
        assert self.subvolumes(stage) == before

    def test_limit(self, stage: Stage) -> None:
        stage.make("base", None, lambda top: write(top, "big", os.urandom(6 << 20)))
        stage.driver.prepare("a", "base")
        stage.driver.limit("a", 4 << 20)
        self.reopen(stage)

        def overfill(top: Path) -> None:
            with open(top / "new", "wb", buffering=0) as file:
                for _ in range(16):
                    file.write(os.urandom(1 << 20))
                    os.fsync(file.fileno())

        with pytest.raises(OSError, match="quota") as caught:
            stage.change("a", overfill)
        assert caught.value.errno == errno.EDQUOT
        stage.driver.remove("a")

    def test_probe(self, ground: Path, tmp_path: Path) -> None:
        assert btrfs.probe(ground).usable
        assert list(ground.iterdir()) == []
        if os.stat(tmp_path).st_dev != os.stat(ground).st_dev:
            assert "not on btrfs" in btrfs.probe(tmp_path).reason
