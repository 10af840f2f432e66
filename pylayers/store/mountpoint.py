"""Find what is mounted below a directory, and take it away: a recursive delete must never reach into a mount."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _typeshed import StrPath


def read_mount_table() -> str:
    """Return the mountinfo of the calling thread's mount namespace."""
    with open("/proc/thread-self/mountinfo", errors="surrogateescape") as file:
        return file.read()


def is_mounted_from(identity: str) -> bool:
    """Tell whether any mount here names a snapshot's id: as bind source, overlay upper or mount point."""
    return identity in read_mount_table()


def mount_points_below(directory: StrPath) -> list[str]:
    """List this mount namespace's mount points at or below a directory, deepest first."""
    top = os.path.realpath(directory)
    points = [unescape(line.split(" ")[4]) for line in read_mount_table().splitlines()]
    found = [point for point in points if point == top or point.startswith(top.rstrip("/") + "/")]
    return found[::-1]


def detach_below(directory: StrPath) -> int:
    """Unmount everything at or below a directory, in use or not, and return how many mounts that were."""
    from pylayers._native import sysmount

    points = mount_points_below(directory)
    for point in points:
        sysmount.unmount(os.fsencode(point), sysmount.MNT_DETACH)
    return len(points)


def unescape(field: str) -> str:
    """Undo mountinfo's octal escapes."""
    if "\\" not in field:
        return field
    head, *parts = field.split("\\")
    return head + "".join(chr(int(part[:3], 8)) + part[3:] for part in parts)
