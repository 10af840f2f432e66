"""vfs keeps the rules of every driver."""

from __future__ import annotations

from pathlib import Path

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

    def test_untouched_copies_are_not_read(self, stage: Stage) -> None:
        """The ctime rule: a copy that nobody touched since is known to be equal, so only touched files are hashed."""
        stage.make("base", None, lambda top: [write(top, f"f{at}", b"%d" % at) for at in range(10)])
        key = stage.active("base", lambda top: write(top, "f3", b"X"))
        tree = next(iter(stage.driver.mounts(key))).source
        secret = Path(tree) / "f5"
        before = secret.stat()
        assert stage.listed(key, "base") == [("C", b"f3")]
        assert secret.stat().st_atime_ns == before.st_atime_ns
