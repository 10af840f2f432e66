"""Mount what `Snapshotter.mounts` describes, and find what is mounted."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pylayers._native import sysmount
from pylayers.errors import Conflict, DriverError, InvalidInput, PermissionDenied, translate_os_error
from pylayers.record import replace
from pylayers.snapshot.imagemount import mount_image, mount_over_images
from pylayers.snapshot.snapshotter import Mount
from pylayers.store.file import remove_tree
from pylayers.store.mountpoint import mount_points_below

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from _typeshed import StrPath

__all__ = ["flush", "mount", "mount_points_below", "mounted", "unmount"]

MOUNT_FLAGS = {"nosuid": sysmount.MS_NOSUID, "nodev": sysmount.MS_NODEV, "noexec": sysmount.MS_NOEXEC}
# What a remount must repeat, as a user namespace may not clear it: statvfs bit -> mount flag.
KEPT_FLAGS = (
    (os.ST_RDONLY, sysmount.MS_RDONLY),
    (os.ST_NOSUID, sysmount.MS_NOSUID),
    (os.ST_NODEV, sysmount.MS_NODEV),
    (os.ST_NOEXEC, sysmount.MS_NOEXEC),
)
BUSY_TRIES = 20
CLONE_FS = 0x200  # linux/sched.h
AUFS_MODULE = "/sys/fs/aufs"


def mount(mounts: Sequence[Mount], target: StrPath, *, nodev: bool = False, volatile: bool = False) -> None:
    """Mount a snapshot at an existing directory, as one private mount; nodev: its device files are shut.

    volatile: what is written need not outlive a power cut, so that an overlay (Linux 5.10) waits for no disk, neither
    when it is unmounted nor for fsync.

    Raises PermissionDenied, DriverError (with the kernel's words); nothing stays mounted on failure.
    """
    done = 0
    try:
        for one in mounts:
            _mount_one(one, target, volatile=volatile)
            done += 1
            sysmount.mount(b"", os.fsencode(target), b"", sysmount.MS_PRIVATE)
        if nodev:
            _restrict(target, sysmount.MS_NODEV)
    except OSError as error:
        for _ in range(done):
            sysmount.unmount(os.fsencode(target), sysmount.MNT_DETACH)
        if error.errno in (errno.EPERM, errno.EACCES):
            raise PermissionDenied(f"mount at {target}: {error}", hint="run as root, or use --driver vfs") from error
        raise DriverError(f"mount at {target}: {error}") from error


def unmount(target: StrPath, *, detach: bool = False) -> None:
    """Unmount one mount; a busy one is tried again for a fifth of a second.

    Raises Conflict when it stays busy. detach=True hides it at once and lets the kernel finish when the last user ends.
    """
    if os.path.exists(AUFS_MODULE):
        from pathlib import Path

        from pylayers.snapshot.aufsmount import keep_links

        keep_links(Path(target))
    for left in range(BUSY_TRIES, -1, -1):
        try:
            sysmount.unmount(os.fsencode(target), sysmount.MNT_DETACH if detach else 0)
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise translate_os_error(error, f"unmount {target}") from error
            if not left:
                raise Conflict(f"{target} is still in use and cannot be unmounted") from error
        time.sleep(0.01)


@contextmanager
def mounted(mounts: Sequence[Mount], directory: StrPath | None = None) -> Iterator[Path]:
    """Mount a snapshot for the length of a with block, on a directory of its own made in `directory` (default: tmp).

    On the way out a mount that is still busy is detached and Conflict raised.
    """
    import tempfile
    from pathlib import Path

    target = Path(tempfile.mkdtemp(prefix="pylayers-mount-", dir=directory))
    try:
        mount(mounts, target)
        try:
            yield target
        finally:
            try:
                unmount(target)
            except Conflict:
                unmount(target, detach=True)
                raise
    finally:
        target.rmdir()  # never rmtree: were it still mounted, that would delete the snapshot


def flush(top: StrPath) -> None:
    """Write the file system of a directory to disk (syncfs(2)); an overlay writes its upper's. Raises OSError."""
    descriptor = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sysmount.sync_file_system(descriptor)
    finally:
        os.close(descriptor)


def _mount_one(one: Mount, target: StrPath, *, volatile: bool) -> None:
    mounter = MOUNTERS.get(one.type, _mount_file_system)
    if one.type == "overlay" and one.work:
        _accept_upper(one.work)
        if volatile:
            try:
                mounter(replace(one, options=(*one.options, "volatile")), target)
                return
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise  # a kernel that doesn't know the option mounts as ever
    mounter(one, target)


def _accept_upper(work: str) -> None:
    """Take away the mark by which the kernel refuses an upper after a volatile mount, as a power cut may have cut it.

    Such an upper is a --rm container's: of an earlier boot's, nothing but the removal is left (engine/reap.py).
    """
    mark = f"{work}/work/incompat"
    if os.path.exists(mark):
        remove_tree(mark)


def _mount_bind(one: Mount, target: StrPath) -> None:
    place = os.fsencode(target)
    flags = sysmount.MS_BIND
    sysmount.mount(os.fsencode(one.source), place, b"", flags)
    extra = _flags(one.options) | (sysmount.MS_RDONLY if one.readonly else 0)
    if extra:
        try:
            _restrict(target, extra)
        except BaseException:
            sysmount.unmount(place, sysmount.MNT_DETACH)
            raise


def _restrict(target: StrPath, flags: int) -> None:
    """Add flags to a mount."""
    kept = os.statvfs(target).f_flag
    flags |= sum(flag for bit, flag in KEPT_FLAGS if kept & bit and not flags & flag)
    sysmount.mount(b"", os.fsencode(target), b"", sysmount.MS_BIND | sysmount.MS_REMOUNT | flags)


def _mount_overlay(one: Mount, target: StrPath) -> None:
    if any(one.devices):
        mount_over_images(one.lowers, one.devices, one.upper, one.work, target, one.options, one.readonly)
        return
    try:
        _overlay(one, one.lowers, target)
    except OSError as error:
        if error.errno != errno.E2BIG:
            raise
        _overlay_from_above(one, target, error)


def _overlay(one: Mount, lowers: Sequence[str], target: StrPath) -> None:
    sysmount.mount_overlay(
        [os.fsencode(lower) for lower in lowers],
        os.fsencode(one.upper),
        os.fsencode(one.work),
        os.fsencode(target),
        [os.fsencode(option) for option in one.options],
        one.readonly,
    )


def _overlay_from_above(one: Mount, target: StrPath, refused: OSError) -> None:
    """Mount by names relative to the directory above the lowers: kernels before 6.7 take a page of options, no more.

    The directory is a thread's own, which ends with the mount.
    """
    above = os.path.commonpath(one.lowers)
    failures: list[OSError] = []

    def work() -> None:
        try:
            sysmount.unshare(CLONE_FS)
            os.chdir(above)
            _overlay(one, [os.path.relpath(lower, above) for lower in one.lowers], target)
        except OSError as error:
            failures.append(error)

    import threading

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failures:
        raise failures[0] if failures[0].errno != errno.E2BIG else refused


def _mount_file_system(one: Mount, target: StrPath) -> None:
    """Call mount(2) for a file system of the kernel: zfs, aufs, ext4 or xfs on a device."""
    flags = sysmount.MS_RDONLY if one.readonly else 0
    options = b",".join(os.fsencode(option) for option in one.options)
    sysmount.mount(os.fsencode(one.source), os.fsencode(target), one.type.encode(), flags, options)


def _mount_erofs(one: Mount, target: StrPath) -> None:
    mount_image(one.source, one.devices[0], target)


def _mount_aufs(one: Mount, target: StrPath) -> None:
    from pathlib import Path

    from pylayers.snapshot.aufsmount import mount_branches

    mount_branches(one, Path(target))


def _mount_thin_device(one: Mount, target: StrPath) -> None:
    from pathlib import Path

    from pylayers.snapshot.thinmount import mount_device

    mount_device(one, Path(target))


def _mount_by_program(one: Mount, target: StrPath) -> None:
    from pathlib import Path

    from pylayers.snapshot.fusemount import mount_by_program

    mount_by_program(one, Path(target))


MOUNTERS: dict[str, Callable[[Mount, StrPath], None]] = {
    "aufs": _mount_aufs,
    "bind": _mount_bind,
    "devicemapper": _mount_thin_device,
    "erofs": _mount_erofs,
    "fuse-overlayfs": _mount_by_program,
    "overlay": _mount_overlay,
}


def _flags(options: Sequence[str]) -> int:
    unknown = [option for option in options if option not in MOUNT_FLAGS]
    if unknown:
        raise InvalidInput(f"bind mount options are not known: {', '.join(unknown)}")
    return sum({MOUNT_FLAGS[option] for option in options})
