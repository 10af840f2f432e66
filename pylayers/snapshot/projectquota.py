"""Limit directories by xfs project quotas: what a project's directories hold together stays below its limit.

Each limited snapshot has a project id of its own, kept in `<id>/project`; `projects/<project id>`, made in one step,
names its snapshot, so that no two share one. The limit lives in the file system: it holds after a reboot, and is
cleared when the snapshot goes. Source: quotactl(2), ioctl_xfs_fsgetxattr(2), linux/dqblk_xfs.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pylayers.errors import InvalidInput, Unsupported
from pylayers.snapshot.backing import find_file_system
from pylayers.snapshot.catalog import PROJECT, PROJECTS

FIRST_PROJECT, LAST_PROJECT = 1 << 20, (1 << 31) - 1  # above what people number by hand in /etc/projid
BLOCK_BYTES = 512

# struct fsxattr: xflags, extsize, nextents, projid, cowextsize, padding
FSXATTR = struct.Struct("=IIIII8x")
FS_IOC_FSGETXATTR = 0x801C581F
FS_IOC_FSSETXATTR = 0x401C5820
FS_XFLAG_PROJINHERIT = 0x200

# struct fs_disk_quota: version, flags, field mask, id, limits (hard and soft blocks, hard and soft inodes), blocks and
# inodes in use, timers and warnings, real-time limits and use
DISK_QUOTA = struct.Struct("=bbHIQQQQQQ16x24x16x")
DISK_QUOTA_VERSION, PROJECT_FLAG, BLOCK_LIMITS = 1, 2, (1 << 2) | (1 << 3)
# struct fs_quota_statv: version, flags and the rest
QUOTA_STATE = struct.Struct("=bBH156x")
PROJECT_ENFORCED = 1 << 5
SYS_QUOTACTL_FD = 443  # on every architecture but alpha
PROJECT_QUOTA = 2
Q_XGETQUOTA, Q_XSETQLIM, Q_XGETQSTATV = 0x5803, 0x5804, 0x5808
DEVICE = "quota-device"  # for kernels before 5.14, whose quotactl wants the block device


def limit_directories(root: Path, directory: Path, names: Sequence[str], size_bytes: int) -> None:
    """Limit what directories of a snapshot hold together, files that are there included; a later call replaces it.

    root is the driver's folder. Raises Unsupported where the file system has no enforced project quotas, InvalidInput,
    OSError.
    """
    if size_bytes <= 0:
        raise InvalidInput(f"a size limit is at least 1 byte, not {size_bytes}")
    _require_quota(root)
    project = _own_project(directory) or _claim_project(root, directory)
    for name in names:
        _tag(directory / name, project)
    set_limit(root, project, size_bytes)


def release_project(root: Path, directory: Path) -> None:
    """Clear the limit of a snapshot that is about to be deleted, if it has one. Safe to repeat."""
    project = _own_project(directory)
    if project:
        _release(root, project)


def sweep_projects(root: Path) -> None:
    """Clear the limits of snapshots that are gone, as a crash between the steps of a removal leaves them."""
    try:
        claims = os.listdir(root / PROJECTS)
    except FileNotFoundError:
        return
    for name in claims:
        if not name.isdecimal():  # half-written by a process that was killed, or is about to link it
            continue
        with suppress(FileNotFoundError):
            owner = (root / PROJECTS / name).read_text()
            if not any((root / f"{prefix}{owner}").exists() for prefix in ("", ".making-", ".removing-")):
                _release(root, int(name))


def get_limit(root: Path, project: int) -> tuple[int, int]:
    """Return a project's limit (0: none) and what it holds, in bytes."""
    quota = bytearray(DISK_QUOTA.size)
    try:
        _quotactl(root, Q_XGETQUOTA, project, quota)
    except OSError as error:
        if error.errno == errno.ENOENT:  # nobody used this id yet
            return 0, 0
        raise
    values = DISK_QUOTA.unpack(quota)
    return values[4] * BLOCK_BYTES, values[8] * BLOCK_BYTES


def set_limit(root: Path, project: int, size_bytes: int) -> None:
    """Set a project's hard and soft limit; 0 takes it away."""
    blocks = -(-size_bytes // BLOCK_BYTES)
    quota = DISK_QUOTA.pack(DISK_QUOTA_VERSION, PROJECT_FLAG, BLOCK_LIMITS, project, blocks, blocks, 0, 0, 0, 0)
    _quotactl(root, Q_XSETQLIM, project, bytearray(quota))


def _require_quota(root: Path) -> None:
    """Raise Unsupported, with what to do, unless project quotas are enforced where root lies."""
    kind = find_file_system(root)
    if kind != "xfs":
        raise Unsupported(
            f"a container's size can be limited here only on xfs with project quotas, and {root} is on {kind}",
            hint="use an xfs mounted with -o pquota as the root, or the storage driver btrfs, zfs or devicemapper",
        )
    state = bytearray(QUOTA_STATE.pack(1, 0, 0))
    try:
        _quotactl(root, Q_XGETQSTATV, 0, state)
        enforced = bool(QUOTA_STATE.unpack(state)[2] & PROJECT_ENFORCED)
    except OSError as error:
        if error.errno == errno.EPERM:
            raise
        enforced = False
    if not enforced:
        raise Unsupported(
            f"the xfs that holds {root} is not mounted with project quotas, so no container's size can be limited",
            hint="unmount it and mount it with -o pquota (a remount does not switch quotas on)",
        )


def _own_project(directory: Path) -> int:
    """Read a snapshot's project id; 0 for none."""
    try:
        return int((directory / PROJECT).read_text())
    except FileNotFoundError:
        return 0


def _claim_project(root: Path, directory: Path) -> int:
    """Take a project id that no snapshot of this driver has, and nobody else on the file system."""
    claims = root / PROJECTS
    claims.mkdir(mode=0o700, exist_ok=True)
    fresh = claims / f".{os.urandom(8).hex()}"
    fresh.write_text(directory.name)
    try:
        while True:
            project = FIRST_PROJECT + int.from_bytes(os.urandom(8), "big") % (LAST_PROJECT - FIRST_PROJECT)
            if any(get_limit(root, project)):
                continue
            try:
                os.link(fresh, claims / str(project))
                break
            except FileExistsError:
                continue
    finally:
        fresh.unlink()
    hidden = directory / f".{PROJECT}"
    hidden.write_text(str(project))
    os.rename(hidden, directory / PROJECT)
    return project


def _release(root: Path, project: int) -> None:
    with suppress(OSError):  # quotas may be off by now; then there is nothing to clear
        set_limit(root, project, 0)
    (root / PROJECTS / str(project)).unlink(missing_ok=True)


def _tag(top: Path, project: int) -> None:
    """Put a directory and what is in it into a project; what is made in it later inherits that."""
    _set_project(top, project, FS_XFLAG_PROJINHERIT)
    for entry in os.scandir(top):
        found = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            _tag(Path(entry.path), project)
        elif stat.S_ISREG(found.st_mode):  # others hold no data
            _set_project(Path(entry.path), project, 0)


def _set_project(path: Path, project: int, flag: int) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        attributes = bytearray(FSXATTR.size)
        fcntl.ioctl(descriptor, FS_IOC_FSGETXATTR, attributes)
        flags, extent_size, extents, _, cow_extent_size = FSXATTR.unpack(attributes)
        changed = FSXATTR.pack(flags | flag, extent_size, extents, project, cow_extent_size)
        fcntl.ioctl(descriptor, FS_IOC_FSSETXATTR, changed)
    finally:
        os.close(descriptor)


def _quotactl(root: Path, command: int, project: int, buffer: bytearray) -> None:
    """Call quotactl_fd(2), on older kernels quotactl(2) with a node of the block device. Raises OSError."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    address = (ctypes.c_char * len(buffer)).from_buffer(buffer)
    full = ctypes.c_uint((command << 8) | PROJECT_QUOTA)
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        call = ctypes.c_long(SYS_QUOTACTL_FD)
        done = libc.syscall(call, ctypes.c_int(descriptor), full, ctypes.c_uint(project), address)
    finally:
        os.close(descriptor)
    if done and ctypes.get_errno() == errno.ENOSYS and not _has_quotactl_fd():
        done = libc.quotactl(full, os.fsencode(_device(root)), ctypes.c_int(project), address)
    if done:
        code = ctypes.get_errno()
        raise OSError(code, f"quotactl: {os.strerror(code)}", str(root))


def _has_quotactl_fd() -> bool:
    """Tell whether this kernel (5.14) knows the call: a file system without quotas answers ENOSYS as well."""
    return tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2]) >= (5, 14)


def _device(root: Path) -> Path:
    """Give a node of the block device that holds root, made on first use."""
    path = root / DEVICE
    device = os.stat(root).st_dev
    with suppress(FileNotFoundError):
        if os.stat(path).st_rdev == device:
            return path
        path.unlink()
    with suppress(FileExistsError):
        os.mknod(path, stat.S_IFBLK | 0o600, device)
    return path
