"""btrfs's subvolumes by their ioctls (linux/btrfs.h): a process of its own for each would cost ten times the work."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUBVOL_CREATE = 0x5000940E
SNAP_DESTROY = 0x5000940F
SNAP_CREATE_V2 = 0x50009417
SUBVOL_GETFLAGS = 0x80089419
SUBVOL_SETFLAGS = 0x4008941A
INO_LOOKUP = 0xD0009412
QUOTA_CTL = 0xC0109428
QGROUP_CREATE = 0x4010942A
QGROUP_LIMIT = 0x8030942B
READ_ONLY = 2
QUOTA_ENABLE = 1
LIMIT_EXCLUSIVE = 2
TOP_INODE = 256  # of every subvolume


def create_subvolume(path: Path) -> None:
    """Make an empty subvolume, 0755 whatever the umask. Raises OSError."""
    with opened(path.parent) as parent:
        fcntl.ioctl(parent, SUBVOL_CREATE, bytearray(struct.pack("<q4088s", 0, os.fsencode(path.name))))
    os.chmod(path, 0o755)  # noqa: S103


def snapshot_subvolume(source: Path, path: Path) -> None:
    """Make a writable snapshot of a subvolume. Raises OSError."""
    with opened(source) as top, opened(path.parent) as parent:
        name = os.fsencode(path.name)
        fcntl.ioctl(parent, SNAP_CREATE_V2, bytearray(struct.pack("<qQQ32x4040s", top, 0, 0, name)))


def set_read_only(path: Path, read_only: bool = True) -> None:
    """Let nobody write to a subvolume, or everybody again. Raises OSError."""
    with opened(path) as top:
        flags = bytearray(8)
        fcntl.ioctl(top, SUBVOL_GETFLAGS, flags)
        [old] = struct.unpack("<Q", flags)
        new = old | READ_ONLY if read_only else old & ~READ_ONLY
        if new != old:
            fcntl.ioctl(top, SUBVOL_SETFLAGS, struct.pack("<Q", new))


def is_subvolume(path: Path) -> bool:
    """Tell whether a directory is the top of a subvolume; False for what isn't there."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    return found.st_ino == TOP_INODE and os.lstat(path.parent).st_dev != found.st_dev


def destroy_subvolume(path: Path) -> None:
    """Delete a subvolume, those inside it first, with their quota groups. Raises OSError."""
    identity = read_identity(path)
    try:
        _destroy(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EROFS):
            raise
        set_read_only(path, False)
        for inner in find_inner(path):
            destroy_subvolume(inner)
        _destroy(path)
    with opened(path.parent) as parent:
        try:
            fcntl.ioctl(parent, QGROUP_CREATE, struct.pack("<QQ", 0, identity))
        except OSError as error:
            # No quotas here; or the group goes by itself once the kernel has cleaned the subvolume up.
            if error.errno not in (errno.ENOTCONN, errno.ENOENT, errno.EBUSY, errno.EPERM, errno.EINVAL):
                raise


def find_inner(path: Path) -> list[Path]:
    """List the subvolumes inside a subvolume that are not inside another one of these."""
    found: list[Path] = []
    device = os.lstat(path).st_dev
    pending = [path]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    continue
                seen = entry.stat(follow_symlinks=False)
                if seen.st_dev == device:
                    pending.append(Path(entry.path))
                elif seen.st_ino == TOP_INODE:
                    found.append(Path(entry.path))
    return found


def read_identity(path: Path) -> int:
    """Return a subvolume's number."""
    with opened(path) as top:
        argument = bytearray(struct.pack("<QQ4080x", 0, TOP_INODE))
        fcntl.ioctl(top, INO_LOOKUP, argument)
        return int(struct.unpack_from("<Q", argument)[0])


def enable_quotas(path: Path) -> None:
    """Have the file system count what each subvolume takes, from now on. Raises OSError."""
    with opened(path) as top:
        fcntl.ioctl(top, QUOTA_CTL, bytearray(struct.pack("<QQ", QUOTA_ENABLE, 0)))


def limit_exclusive(path: Path, size_bytes: int) -> None:
    """Limit what a subvolume takes for itself alone. Raises OSError, ENOTCONN where quotas are off."""
    with opened(path) as top:
        fcntl.ioctl(top, QGROUP_LIMIT, struct.pack("<QQQQQQ", 0, LIMIT_EXCLUSIVE, 0, size_bytes, 0, 0))


def _destroy(path: Path) -> None:
    with opened(path.parent) as parent:
        fcntl.ioctl(parent, SNAP_DESTROY, bytearray(struct.pack("<q4088s", 0, os.fsencode(path.name))))


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a directory for the length of a block."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
