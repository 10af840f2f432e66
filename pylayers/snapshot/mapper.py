"""Device-mapper devices by their ioctls: dmsetup would cost a process and a wait for udev at each step.

Source: linux/dm-ioctl.h (interface 4), Documentation/admin-guide/device-mapper/thin-provisioning.rst.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import time
from contextlib import suppress
from pathlib import Path

from pylayers.record import record

CONTROL = Path("/dev/mapper/control")
MAPPED = Path("/dev/mapper")
# version, data size and start, targets, open count, flags, event, padding, device, name, uuid
HEADER = struct.Struct("=3I2IIiIIIQ128s129s7x")
TARGET = struct.Struct("=QQiI16s")  # start and length in sectors, status, offset of the next one, type
INTERFACE = (4, 0, 0)
ROOM_BYTES = 16 << 10
SECTOR_BYTES = 512

LIST, CREATE, REMOVE, SUSPEND, STATUS, LOAD, TABLE, TARGETS, MESSAGE = 2, 3, 4, 6, 7, 9, 12, 13, 14
SUSPENDED, WANT_TABLE, TOO_SMALL, DEFERRED = 1 << 1, 1 << 4, 1 << 8, 1 << 17
# Tell udev that these devices are nobody else's: it needn't look for file systems or make links by content.
UDEV_LET_BE = (0x02 | 0x04 | 0x08) << 16
BUSY_TRIES = 50


@record
class Device:
    """What the kernel says of one device."""

    name: str
    number: int  # as in st_rdev
    opened: int
    deferred: bool  # goes by itself when nobody has it open any more
    loaded: bool


def find_device(name: str) -> Device | None:
    """Look a device up by name; None where there is none. Raises OSError."""
    try:
        header, _ = _call(STATUS, name)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise
    return Device(name, header[9], header[6], bool(header[7] & DEFERRED), header[5] > 0)


def create_device(name: str, sectors: int, target: str, parameters: str) -> Device:
    """Make a device of one target and start it. Raises OSError; nothing is left behind then."""
    _call(CREATE, name)
    try:
        load_table(name, sectors, target, parameters)
        resume_device(name)
    except BaseException:
        with suppress(OSError):
            _call(REMOVE, name)
        raise
    found = find_device(name)
    if found is None:
        raise OSError(errno.ENXIO, "the device went away while it was made", name)
    return found


def load_table(name: str, sectors: int, target: str, parameters: str) -> None:
    """Give a device a table of one target, which counts from the next resume on. Raises OSError."""
    text = parameters.encode() + b"\0"
    text += bytes(-len(text) % 8)
    row = TARGET.pack(0, sectors, 0, TARGET.size + len(text), target.encode())
    _call(LOAD, name, payload=row + text, targets=1)


def resume_device(name: str) -> None:
    """Let a device work, by its newest table. Raises OSError."""
    _call(SUSPEND, name, event=UDEV_LET_BE)


def flush_device(name: str) -> None:
    """Have everything written that a device's file system holds back: it is frozen for a moment. Raises OSError."""
    _call(SUSPEND, name, flags=SUSPENDED)
    resume_device(name)


def remove_device(name: str, *, deferred: bool = False) -> bool:
    """Remove a device; True when it is gone. Who looks at it for a moment (udev) is waited for.

    One that stays open goes with its last user when deferred; else OSError EBUSY. A missing one counts as removed.
    """
    for left in range(BUSY_TRIES, -1, -1):
        try:
            _call(REMOVE, name, event=UDEV_LET_BE)
            return True
        except OSError as error:
            if error.errno == errno.ENXIO:
                return True
            if error.errno != errno.EBUSY:
                raise
            if deferred:
                break
            if not left:
                raise
        time.sleep(0.01)
    header, _ = _call(REMOVE, name, flags=DEFERRED, event=UDEV_LET_BE)
    return not header[7] & DEFERRED


def keep_device(name: str) -> None:
    """Take a deferred removal back. Raises OSError, ENXIO when it came too late."""
    send_message(name, "@cancel_deferred_remove")


def send_message(name: str, text: str) -> None:
    """Tell a device's target something. Raises OSError."""
    _call(MESSAGE, name, payload=struct.pack("=Q", 0) + text.encode() + b"\0")


def read_status(name: str) -> str:
    """Return what a device's only target says of itself. Raises OSError."""
    return _read_target(name, 0)[1]


def read_table(name: str) -> tuple[int, str]:
    """Return a device's length in sectors and its target's parameters. Raises OSError."""
    return _read_target(name, WANT_TABLE)


def list_devices() -> list[str]:
    """Name every device of this machine. Raises OSError."""
    room = ROOM_BYTES
    while True:
        header, answer = _call(LIST, "", room=room)
        if not header[7] & TOO_SMALL:
            break
        room *= 4
    names: list[str] = []
    at = 0
    while at + 12 < len(answer):
        number, following = struct.unpack_from("=QI", answer, at)
        if number:
            names.append(answer[at + 12 : answer.index(b"\0", at + 12)].decode("ascii", "replace"))
        if not following:
            break
        at += following
    return names


def list_targets() -> set[str]:
    """Name the targets that this kernel has loaded. Raises OSError."""
    _, answer = _call(TARGETS, "")
    names: set[str] = set()
    at = 0
    while at < len(answer) - 16:
        [following] = struct.unpack_from("=I", answer, at)
        names.add(answer[at + 16 :].partition(b"\0")[0].decode())
        if not following:
            break
        at += following
    return names


def find_node(device: Device) -> str:
    """Name a node of a device: the kernel's own, else one that is made where no devtmpfs does it."""
    own = f"/dev/dm-{os.minor(device.number)}"
    for _ in range(2):
        for path in (own, str(MAPPED / device.name)):
            with suppress(FileNotFoundError):
                found = os.stat(path)
                if stat.S_ISBLK(found.st_mode) and found.st_rdev == device.number:
                    return path
        with suppress(FileNotFoundError):
            (MAPPED / device.name).unlink()  # of a device that had this name before
        with suppress(FileExistsError):
            os.mknod(MAPPED / device.name, stat.S_IFBLK | 0o600, device.number)
    raise OSError(errno.ENOENT, "no node of the device", str(MAPPED / device.name))


def forget_node(name: str) -> None:
    """Drop the node that find_node made for a device that is gone."""
    path = MAPPED / name
    with suppress(OSError):
        if stat.S_ISBLK(os.lstat(path).st_mode):
            path.unlink()


def _read_target(name: str, flags: int) -> tuple[int, str]:
    header, answer = _call(TABLE, name, flags=flags)
    if not header[5]:
        raise OSError(errno.ENXIO, "the device has no table", name)
    length = TARGET.unpack_from(answer)[1]
    return length, answer[TARGET.size :].partition(b"\0")[0].decode("ascii", "replace")


def _call(
    command: int, name: str, *, flags: int = 0, event: int = 0, payload: bytes = b"", targets: int = 0,
    room: int = ROOM_BYTES,
) -> tuple[tuple[int, ...], bytes]:
    """Do one ioctl; return its header and what follows it. Raises OSError that names the device."""
    buffer = bytearray(max(room, HEADER.size + len(payload)))
    HEADER.pack_into(
        buffer, 0, *INTERFACE, len(buffer), HEADER.size, targets, 0, flags, event, 0, 0, name.encode(), b""
    )
    buffer[HEADER.size : HEADER.size + len(payload)] = payload
    control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(control, 0xC138FD00 | command, buffer)
    except OSError as error:
        raise OSError(error.errno, f"device mapper: {error.strerror}", name) from None
    finally:
        os.close(control)
    header = HEADER.unpack_from(buffer)
    # version is three numbers: indexes from here on are data size 3, start 4, targets 5, opened 6, flags 7, device 10
    start = header[4]
    return (*header[:8], header[8], header[10]), bytes(buffer[start:])
