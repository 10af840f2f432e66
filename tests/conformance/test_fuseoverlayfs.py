"""fuse-overlayfs keeps the rules of every driver."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from pylayers.snapshot import fuseoverlayfs
from pylayers.snapshot.fusemount import PROGRAM, find_program
from pylayers.snapshot.snapshotter import Snapshotter
from tests.conformance.crash_suite import CrashSuite
from tests.conformance.foreign_suite import ForeignSuite
from tests.conformance.stage import Stage, write
from tests.conformance.usernamespace import run_in_user_namespace
from tests.kernels import standing

pytestmark = [
    pytest.mark.skipif(find_program() is None, reason=f"{PROGRAM} is not installed"),
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="no /dev/fuse"),
]


class TestFuseOverlayfs(CrashSuite, ForeignSuite):
    file_systems = ("own",)
    marks_of_a_new_directory = 2  # .wh..opq and .wh..wh..opq
    # A name that was copied up by itself keeps the number and the link count of the file below.
    sees_hard_links = False
    unreliable_link_changes = frozenset({"content of all"})
    longest_name = 200  # fuse-overlayfs 1.10 aborts when it deletes a file with a name of 255 bytes

    def open_driver(self, root: Path) -> Snapshotter:
        return fuseoverlayfs.Driver(root)

    def test_marks_by_name(self, stage: Stage) -> None:
        """In a user namespace the program can't make devices: `.wh.NAME` is a whiteout, `.wh..wh..opq` makes opaque."""
        stage.make("base", None, lambda top: [write(top, name) for name in ("a", "d/b", "d/c", "o/x", "o/y")])
        stage.driver.prepare("k", "base")
        root = stage.scratch.parent / "root"
        diff = root / os.readlink(root / "by-name" / "k")[3:] / "diff"
        for mark in (".wh.a", "d/.wh.c", "o/.wh..wh..opq", "o/y", "d/new"):
            write(diff, mark)
        for name in ("d", "o"):
            shutil.copystat(root / os.readlink(root / "by-name" / "base")[3:] / "diff" / name, diff / name)
        assert stage.listed("k", "base") == [
            ("D", b"a"), ("C", b"d"), ("D", b"d/c"), ("A", b"d/new"), ("C", b"o"), ("D", b"o/x"), ("C", b"o/y"),
        ]  # fmt: skip
        self.reproduces(stage, "k", "base")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to map every id")
def test_in_a_user_namespace() -> None:
    """The whole suite once more, without any right that the kernel gives in its first namespace alone."""
    suite = Path(__file__).with_name("namespace_fuseoverlayfs.py")
    done = run_in_user_namespace([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(suite)])
    assert done.returncode == 0, done.stdout[-4000:]
    passed = re.search(r"(\d+) passed in", done.stdout)
    assert passed, done.stdout[-4000:]
    assert int(passed[1]) > 40
    assert "skipped" not in done.stdout
    standing.note("fuseoverlayfs in a user namespace", f"this kernel: {passed[1]} passed")
