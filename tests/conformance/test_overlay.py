"""overlay (v1) keeps the rules of every driver, and some of its own."""

from __future__ import annotations

import os
from pathlib import Path

from pylayers.snapshot import overlay
from pylayers.snapshot.snapshotter import Snapshotter
from tests.conformance.crash_suite import CrashSuite
from tests.conformance.foreign_suite import ForeignSuite
from tests.conformance.stage import Stage, write


class TestOverlay(CrashSuite, ForeignSuite):
    def open_driver(self, root: Path) -> Snapshotter:
        return overlay.Driver(root)

    def place(self, stage: Stage, name: str) -> Path:
        root = stage.scratch.parent / "root"
        return root / os.readlink(root / "by-name" / name)[3:]

    def test_dockers_layout(self, stage: Stage) -> None:
        stage.make("base", None, lambda top: [write(top, "kept"), write(top, "changed")])
        stage.driver.prepare("a", "base")
        directory = self.place(stage, "a")
        assert {entry.name for entry in directory.iterdir()} >= {"upper", "work", "merged", "lower-id"}
        assert (directory / "lower-id").read_text() == self.place(stage, "base").name
        stage.change("a", lambda top: write(top, "changed", b"new"))
        stage.driver.commit("top", "a")
        top, base = self.place(stage, "top") / "root", self.place(stage, "base") / "root"
        assert not (top.parent / "upper").exists()
        assert (top / "kept").samefile(base / "kept")
        assert not (top / "changed").samefile(base / "changed")
        assert (base / "changed").read_bytes() == b"x"
        assert not [name for name in os.listxattr(top / "changed") if "overlay" in name]

    def test_only_one_lower(self, stage: Stage) -> None:
        parent = None
        for number in range(5):
            parent = stage.make(f"n{number}", parent, lambda top: write(top, f"f{number}"))  # noqa: B023
        stage.driver.prepare("a", parent)
        assert len(stage.driver.mounts("a")[0].lowers) == 1
        usage = stage.driver.usage("n4")
        assert usage.inodes == 2  # its top and its own file; the four others are its parents'

    def test_probe(self, ground: Path) -> None:
        assert overlay.probe(ground).usable
        assert list(ground.iterdir()) == []
