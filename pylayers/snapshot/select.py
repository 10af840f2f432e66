"""Choose the storage driver of a data root. The only module that knows the concrete drivers."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from pylayers.errors import Conflict, DriverError, InvalidInput, translate_os_error
from pylayers.record import record
from pylayers.snapshot.catalog import RECORD_FILE, explain_version
from pylayers.snapshot.snapshotter import Probe, Snapshotter
from pylayers.store.file import read_text, remove_file, remove_tree, write_text
from pylayers.store.mountpoint import detach_below

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any, Protocol

    from _typeshed import StrPath
else:
    Protocol = object

DRIVER_VARIABLE = "PYLAYERS_DRIVER"
MIGRATION_FILE = "migrating"
TRIED_FILE = "tried"
PROBING = "probe-"


@record
class DriverStatus:
    """One row of `pylayers driver ls`."""

    name: str
    probe: Probe
    has_data: bool


class Implementation(Protocol):
    """What a driver's module gives: a driver at its own folder of a data root, and a trial in a directory."""

    def Driver(self, root: StrPath, /) -> Snapshotter:
        """Open the driver."""

    def probe(self, directory: Path, /) -> Probe:
        """Do the real thing in a scratch directory and tell whether it worked; nothing is left behind."""


# In the order of preference. Loaded when first asked for, as most processes need only one.
MODULES = {
    "erofs": "pylayers.snapshot.erofs",
    "overlay2": "pylayers.snapshot.overlay2",
    "fuse-overlayfs": "pylayers.snapshot.fuseoverlayfs",
    "btrfs": "pylayers.snapshot.btrfs",
    "zfs": "pylayers.snapshot.zfs",
    "aufs": "pylayers.snapshot.aufs",
    "overlay": "pylayers.snapshot.overlay",
    "devicemapper": "pylayers.snapshot.devicemapper",
    "vfs": "pylayers.snapshot.vfs",
}
DRIVER_ORDER = tuple(MODULES)


def load_implementation(name: str) -> Implementation:
    """Import a driver's module. Raises KeyError for an unknown name."""
    __import__(MODULES[name])  # importlib would load `warnings` for the same
    found: Any = sys.modules[MODULES[name]]
    implementation: Implementation = found
    return implementation


def list_drivers(root: StrPath) -> list[DriverStatus]:
    """Probe every driver on a data root, in the order of preference. Takes some milliseconds."""
    with _probe_directory(root) as scratch:
        return [_status(root, name, scratch) for name in DRIVER_ORDER]


def probe_driver(root: StrPath, name: str) -> DriverStatus:
    """Probe one driver on a data root. Raises InvalidInput for an unknown name."""
    check_name(name)
    with _probe_directory(root) as scratch:
        return _status(root, name, scratch)


def check_name(name: str) -> str:
    """Return a driver's name. Raises InvalidInput for an unknown one."""
    if name not in DRIVER_ORDER:
        raise InvalidInput(f"there is no storage driver {name!r}", hint=f"choose from: {', '.join(DRIVER_ORDER)}")
    return name


def choose_driver(root: StrPath, requested: str | None = None) -> str:
    """Name the driver for a data root.

    What was asked for (the argument, else PYLAYERS_DRIVER) must work, and mustn't leave another driver's data behind;
    else the driver that has data here is kept; else the first whose probe passes. Raises InvalidInput for an unknown
    name, DriverError where the driver cannot work, Conflict when others have data.
    """
    wanted = requested or os.environ.get(DRIVER_VARIABLE)
    if wanted:
        check_name(wanted)
    with_data = [name for name in DRIVER_ORDER if has_data(root, name)]
    if wanted and (wanted in with_data or not with_data):
        if wanted not in with_data or not is_tried(root, wanted):
            require_driver(root, wanted, "was asked for")
        return wanted
    if wanted:
        raise _other_data(root, wanted, with_data)
    if len(with_data) > 1:
        raise Conflict(
            f"{root} has snapshots of several storage drivers: {', '.join(with_data)}",
            hint=_explain_several(root, with_data),
        )
    if with_data:
        if not is_tried(root, with_data[0]):
            require_driver(root, with_data[0], f"has snapshots in {root}")
        return with_data[0]
    reasons: list[str] = []
    with _probe_directory(root) as scratch:
        for name in DRIVER_ORDER:
            found = _probe(name, scratch)
            if found.usable:
                return name
            reasons.append(f"{name}: {found.reason}")
    raise DriverError(f"no storage driver works in {root}: {'; '.join(reasons)}", hint="pylayers driver ls")


def _other_data(root: StrPath, wanted: str, with_data: Sequence[str]) -> Conflict:
    """Say what to do about a wish for a driver without data in a root that has another's."""
    moves = " && ".join(f"pylayers driver migrate {name} {wanted}" for name in with_data)
    drivers = f"driver {with_data[0]}" if len(with_data) == 1 else f"drivers {', '.join(with_data)}"
    return Conflict(
        f"storage driver {wanted} was asked for, but {root} has snapshots of {drivers}, which would be out of sight",
        hint=f"move them with: {moves}; or leave out --driver and {DRIVER_VARIABLE}",
    )


def _explain_several(root: StrPath, with_data: Sequence[str]) -> str:
    """Say how to come back to one driver: by ending a migration that was interrupted, or by one."""
    for name in with_data:
        target = migration_target(root, name)
        if target:
            return f"a migration was interrupted; finish it with: pylayers driver migrate {name} {target}"
    ways = f"pylayers driver migrate {with_data[1]} {with_data[0]}"
    return f"choose one with --driver or {DRIVER_VARIABLE}, or move all to one with: {ways}"


def mark_migration(root: StrPath, name: str, target: str) -> None:
    """Note in a driver's folder where its snapshots are being moved to; "" ends that."""
    path = f"{root}/{name}/{MIGRATION_FILE}"
    if target:
        write_text(path, f"{target}\n")
    else:
        remove_file(path, durable=False)


def migration_target(root: StrPath, name: str) -> str:
    """Name the driver that a driver's snapshots are being moved to, "" for none."""
    try:
        target = read_text(f"{root}/{name}/{MIGRATION_FILE}").strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return target if target in DRIVER_ORDER else ""


def open_snapshotter(root: StrPath, requested: str | None = None) -> Snapshotter:
    """Choose the driver of a data root and open it at <root>/<driver>."""
    name = choose_driver(root, requested)
    opened = open_driver(root, name)
    if not is_tried(root, name):
        note_tried(root, name)
    return opened


def open_driver(root: StrPath, name: str) -> Snapshotter:
    """Open a driver at <root>/<driver>, whatever else is there; what killed processes were unpacking goes."""
    driver = load_implementation(name).Driver(f"{root}/{name}")
    driver.sweep()
    return driver


def has_data(root: StrPath, name: str) -> bool:
    """Tell whether a driver's directory holds snapshots."""
    try:
        with os.scandir(f"{root}/{name}/by-name") as entries:
            return any(os.path.exists(f"{entry.path}/{RECORD_FILE}") for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return False


def is_tried(root: StrPath, name: str) -> bool:
    """Tell whether a driver with data here was seen to work since this machine started, by this user and in this place.

    A trial takes longer than most of what it comes before; what fails later is named when it is mounted.
    """
    try:
        return read_text(f"{root}/{name}/{TRIED_FILE}") == _describe_trial(root)
    except OSError:
        return False


def note_tried(root: StrPath, name: str) -> None:
    """Note that a driver works here, where that can be written."""
    with suppress(OSError):
        write_text(f"{root}/{name}/{TRIED_FILE}", _describe_trial(root))


def _describe_trial(root: StrPath) -> str:
    boot = read_text("/proc/sys/kernel/random/boot_id").strip()
    found = os.stat(root)
    return f"{boot} {found.st_dev} {found.st_ino} {os.geteuid()}\n"


def require_driver(root: StrPath, name: str, why: str) -> None:
    """Try a driver that has to work. Raises DriverError with the reason when it doesn't."""
    with _probe_directory(root) as scratch:
        found = _probe(name, scratch)
    if not found.usable:
        raise DriverError(
            f"storage driver {name} {why} but does not work: {found.reason}", hint="see why with: pylayers driver ls"
        )


def _status(root: StrPath, name: str, scratch: Path) -> DriverStatus:
    stranger = explain_version(f"{root}/{name}")
    found = Probe(False, stranger) if stranger else _probe(name, scratch)
    return DriverStatus(name, found, has_data(root, name))


def _probe(name: str, scratch: Path) -> Probe:
    from pylayers.snapshot.backing import refuse_backing

    refused = refuse_backing(name, scratch)
    found = Probe(False, refused) if refused else load_implementation(name).probe(scratch)
    # What was tried in is gone when this is read; it stands for the root.
    return Probe(found.usable, found.reason.replace(str(scratch), str(scratch.parents[1])))


@contextmanager
def _probe_directory(root: StrPath) -> Iterator[Path]:
    """Give a directory to try things in, on the data root's own file system; drop those of processes that are gone."""
    from pathlib import Path

    above = Path(root, "tmp")
    try:
        above.mkdir(parents=True, exist_ok=True)
        _sweep_probes(above)
        scratch, claim = _claim_probe(above)
    except OSError as error:
        raise translate_os_error(error, f"make a directory in {above}") from error
    try:
        yield scratch
    finally:
        with suppress(OSError):
            remove_tree(scratch)
        os.close(claim)


def _claim_probe(above: Path) -> tuple[Path, int]:
    """Make a directory under a flock, which tells others that its maker lives."""
    import tempfile
    from pathlib import Path

    while True:
        scratch = Path(tempfile.mkdtemp(prefix=PROBING, dir=above))
        claim = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(claim, fcntl.LOCK_EX)
        if scratch.exists():
            return scratch, claim
        os.close(claim)  # another process took it for a leftover before it was locked


def _sweep_probes(above: Path) -> None:
    """Remove what killed probes left in a directory, their mounts included."""
    for name in os.listdir(above):
        if not name.startswith(PROBING):
            continue
        try:
            claim = os.open(above / name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            detach_below(above / name)
            with suppress(OSError):
                remove_tree(above / name)
        except BlockingIOError:
            continue
        finally:
            os.close(claim)
