"""vfs keeps the rules of every driver."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pylayers.snapshot import vfs
from pylayers.snapshot.snapshotter import Snapshotter
from tests.conformance.crash_suite import CrashSuite
from tests.conformance.foreign_suite import ForeignSuite
from tests.conformance.stage import Stage, write


class TestVfs(CrashSuite, ForeignSuite):
    def open_driver(self, root: Path) -> Snapshotter:
        return vfs.Driver(root)

    def usage_of_copies(self, inodes: int) -> int:
        return inodes

    def test_untouched_copies_are_not_read(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        """The ctime rule: a copy that nobody touched since is known to be equal, so only touched files are read."""
        make = vfs.Driver._make

        def make_slowly(self: vfs.Driver, *arguments: object) -> None:
            make(self, *arguments)  # type: ignore[arg-type]
            time.sleep(0.02)  # a copy as long as a real one: the clock of file timestamps ticks before its end

        monkeypatch.setattr(vfs.Driver, "_make", make_slowly)
        stage.make("base", None, lambda top: [write(top, f"f{at}", b"%d" % at) for at in range(10)])
        key = stage.active("base", lambda top: write(top, "f3", b"X"))
        tree = Path(stage.driver.mounts(key)[0].source)
        before_ns = [(tree / f"f{at}").stat().st_atime_ns for at in range(10)]
        with stage.changes(key):
            pass
        after_ns = [(tree / f"f{at}").stat().st_atime_ns for at in range(10)]
        assert [at for at in range(10) if before_ns[at] != after_ns[at]] == [3]
