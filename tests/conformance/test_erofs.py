"""erofs keeps the rules of every driver, and some of its own."""

from __future__ import annotations

from pathlib import Path

from pylayers.snapshot import erofs
from pylayers.snapshot.snapshotter import Snapshotter
from tests.conformance.crash_suite import CrashSuite
from tests.conformance.foreign_suite import ForeignSuite


class TestErofs(CrashSuite, ForeignSuite):
    def open_driver(self, root: Path) -> Snapshotter:
        return erofs.Driver(root)
