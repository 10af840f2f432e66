"""Choose the storage driver of a data root. The only module that knows the concrete drivers."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from pylayers.errors import Conflict, DriverError, InvalidInput, translate_os_error
from pylayers.snapshot.snapshotter import Probe, Snapshotter

DRIVER_ORDER = ("erofs", "overlay2", "fuse-overlayfs", "btrfs", "zfs", "aufs", "overlay", "devicemapper", "vfs")
DRIVER_VARIABLE = "PYLAYERS_DRIVER"


@dataclass(frozen=True, slots=True)
class DriverStatus:
    """One row of `pylayers driver ls`."""

    name: str
    probe: Probe
    implemented: bool
    has_data: bool


class Implementation(Protocol):
    """What a driver's module gives: a driver at its own folder of a data root, and a trial in a directory."""

    def Driver(self, root: Path, /) -> Snapshotter:
        """Open the driver."""

    def probe(self, directory: Path, /) -> Probe:
        """Do the real thing in a scratch directory and tell whether it worked; nothing is left behind."""


# Loaded when first asked for, as most processes need only one.
MODULES = {
    "erofs": "pylayers.snapshot.erofs",
    "overlay2": "pylayers.snapshot.overlay2",
    "vfs": "pylayers.snapshot.vfs",
}


def load_implementation(name: str) -> Implementation:
    """Import a driver's module. Raises KeyError for one that this version doesn't have."""
    return cast("Implementation", importlib.import_module(MODULES[name]))


def list_drivers(root: Path) -> list[DriverStatus]:
    """Probe every driver of the design on a data root, in the order of preference. Takes some milliseconds."""
    with _probe_directory(root) as scratch:
        return [DriverStatus(name, _probe(name, scratch), name in MODULES, has_data(root, name))
                for name in DRIVER_ORDER]  # fmt: skip


def choose_driver(root: Path, requested: str | None = None) -> str:
    """Name the driver for a data root.

    What was asked for (the argument, else PYLAYERS_DRIVER) wins and must work; else the driver that has data here is
    kept; else the first whose probe passes. Raises InvalidInput for an unknown name, DriverError where the driver
    cannot work, Conflict when several have data.
    """
    wanted = requested or os.environ.get(DRIVER_VARIABLE)
    if wanted:
        if wanted not in DRIVER_ORDER:
            raise InvalidInput(f"there is no storage driver {wanted!r}", hint=f"choose from: {', '.join(DRIVER_ORDER)}")
        _require(root, wanted, "was asked for")
        return wanted
    with_data = [name for name in DRIVER_ORDER if has_data(root, name)]
    if len(with_data) > 1:
        raise Conflict(
            f"{root} has snapshots of several storage drivers: {', '.join(with_data)}",
            hint=f"choose one with --driver or {DRIVER_VARIABLE}",
        )
    if with_data:
        _require(root, with_data[0], f"has snapshots in {root}")
        return with_data[0]
    reasons: list[str] = []
    with _probe_directory(root) as scratch:
        for name in DRIVER_ORDER:
            found = _probe(name, scratch)
            if found.usable:
                return name
            reasons.append(f"{name}: {found.reason}")
    raise DriverError(f"no storage driver works in {root}: {'; '.join(reasons)}", hint="pylayers driver ls")


def open_snapshotter(root: Path, requested: str | None = None) -> Snapshotter:
    """Choose the driver of a data root and open it at <root>/<driver>."""
    name = choose_driver(root, requested)
    return load_implementation(name).Driver(root / name)


def has_data(root: Path, name: str) -> bool:
    """Tell whether a driver's directory holds snapshots (for a driver this version lacks: anything)."""
    try:
        with os.scandir(root / name / "by-name" if name in MODULES else root / name) as entries:
            return any(True for _ in entries)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _require(root: Path, name: str, why: str) -> None:
    with _probe_directory(root) as scratch:
        found = _probe(name, scratch)
    if not found.usable:
        raise DriverError(
            f"storage driver {name} {why} but does not work: {found.reason}", hint="see why with: pylayers driver ls"
        )


def _probe(name: str, scratch: Path) -> Probe:
    if name in MODULES:
        return load_implementation(name).probe(scratch)
    missing = "; ".join(_missing(name, scratch))
    here = f"; this machine also lacks what it would need: {missing}" if missing else ""
    return Probe(False, f"not in this version of pylayers{here}")


def _missing(name: str, scratch: Path) -> Iterator[str]:
    """Name what a driver that isn't written yet would need and does not find here."""
    file_systems = Path("/proc/filesystems").read_text().split()
    wanted = {"erofs": "erofs", "btrfs": "btrfs", "aufs": "aufs", "overlay": "overlay"}.get(name)
    if wanted and wanted not in file_systems:
        yield f"the running kernel has no {wanted} (or its module is not loaded)"
    if name == "btrfs" and _file_system_of(scratch) != "btrfs":
        yield f"the data root is on {_file_system_of(scratch)}, not on btrfs"
    if name == "fuse-overlayfs":
        if shutil.which("fuse-overlayfs") is None:
            yield "no fuse-overlayfs program on the PATH"
        if not Path("/dev/fuse").exists():
            yield "no /dev/fuse"
    if name == "zfs":
        if shutil.which("zfs") is None:
            yield "no zfs program on the PATH"
        if not Path("/dev/zfs").exists():
            yield "no /dev/zfs"
    if name == "devicemapper":
        if shutil.which("dmsetup") is None:
            yield "no dmsetup program on the PATH"
        if not Path("/dev/mapper/control").exists():
            yield "no /dev/mapper/control"


def _file_system_of(directory: Path) -> str:
    """Name the type of the file system that holds a directory."""
    best, best_length = "unknown", -1
    place = os.path.realpath(directory)
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields = line.split(" ")
        point = fields[4]
        inside = place == point or place.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= best_length:
            best, best_length = fields[fields.index("-") + 1], len(point)
    return best


@contextmanager
def _probe_directory(root: Path) -> Iterator[Path]:
    """Give a directory to try things in, on the data root's own file system: its tmp/."""
    scratch = root / "tmp"
    try:
        scratch.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise translate_os_error(error, f"make {scratch}") from error
    yield scratch
