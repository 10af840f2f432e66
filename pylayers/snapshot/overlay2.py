"""overlay2: each snapshot holds only its own changes, and the kernel's overlayfs shows them over its parents'."""

from __future__ import annotations

from pathlib import Path

from pylayers.snapshot.snapshotter import Probe
from pylayers.snapshot.stack import StackSnapshotter


class Driver(StackSnapshotter):
    """Keep snapshots as overlay layers. Needs an overlayfs that may use this root as its upper."""

    name = "overlay2"


def probe(directory: Path) -> Probe:
    """Mount an overlay of two lowers inside a directory and change it; nothing is left behind."""
    from pylayers.snapshot.overlaytrial import try_overlay

    return try_overlay(directory)
