"""Mount a thin device: it is activated on the way, as nobody keeps it active while it isn't mounted.

What is kept of a mount (a container's is written down) names the snapshot's directory and never a device's node, whose
number is somebody else's after the next start of the machine, or of the pool.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from pylayers._native import sysmount
from pylayers.errors import DriverError
from pylayers.snapshot.snapshotter import Mount
from pylayers.snapshot.thinformat import MOUNT_OPTIONS
from pylayers.snapshot.thinpool import Pool

TYPE = "devicemapper"
DEVICE = "device"


def mount_device(one: Mount, target: Path) -> None:
    """Activate the device of a snapshot's directory and mount its file system. Raises OSError, DriverError."""
    directory = Path(one.source)
    number, size_bytes = read_device(directory)
    pool = Pool(directory.parent)
    made = pool.start()
    try:
        node = pool.activate(pool.device_name(directory.name), number, size_bytes)
        flags = sysmount.MS_RDONLY if one.readonly else 0
        options = ",".join(MOUNT_OPTIONS[made.file_system]).encode()
        sysmount.mount(node.encode(), os.fsencode(target), made.file_system.encode(), flags, options)
    finally:
        pool.stop()


def read_device(directory: Path) -> tuple[int, int]:
    """Read a snapshot's device number and size. Raises DriverError when they are lost."""
    path = directory / DEVICE
    try:
        fields = json.loads(path.read_bytes())
        return int(fields["number"]), int(fields["size_bytes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DriverError(f"the snapshot's device record {path} cannot be read: {error}") from error


def write_device(directory: Path, number: int, size_bytes: int) -> None:
    """Record a snapshot's device, durably and in one step."""
    fresh = directory / f"{DEVICE}.new"
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, json.dumps({"number": number, "size_bytes": size_bytes}).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(fresh, directory / DEVICE)
    with suppress(OSError):
        above = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(above)
        finally:
            os.close(above)
