"""Fill an empty volume from what the image holds at the mount point (docker's copy-up)."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from pathlib import Path

from pylayers._native import copyup
from pylayers.errors import translate_os_error
from pylayers.volume.rootpath import open_beneath
from pylayers.volume.volumes import sync_directory

MARKER = ".filling"  # beside _data while a copy runs; what is in _data is then rubbish
LOCK = ".lock"


def initialise(data: Path, root_fd: int, target: str, *, nocopy: bool = False) -> bool:
    """Copy the image's content at target into the volume's empty _data directory; tell whether a copy was made.

    root_fd is the mounted root file system; target is resolved inside it. Owner, mode and xattrs of the directory
    itself come along. A volume that holds anything keeps it. When the process dies in the middle, the next call empties
    the volume and copies again (a power cut may lose data not yet flushed). Concurrent calls wait for each other.
    Raises NoSpace, PermissionDenied, NotFound (no volume).
    """
    try:
        lock = os.open(data.parent / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            recover(data)
            if nocopy or any(True for _ in os.scandir(data)):
                return False
            return _fill(data, root_fd, target)
        finally:
            os.close(lock)
    except OSError as error:
        raise translate_os_error(error, f"fill volume {data.parent.name} from {target}") from error


def recover(data: Path) -> None:
    """Empty a volume whose filling was interrupted; the caller holds its lock."""
    if not (data.parent / MARKER).exists():
        return
    _empty(data)
    (data.parent / MARKER).unlink()


def _fill(data: Path, root_fd: int, target: str) -> bool:
    try:
        source = open_beneath(root_fd, target, os.O_PATH)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        if not stat.S_ISDIR(os.fstat(source).st_mode):
            return False
        readable = os.open(f"/proc/self/fd/{source}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(source)
    marker = data.parent / MARKER
    try:
        into = os.open(data, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            descriptor = os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.fsync(descriptor)
            os.close(descriptor)
            sync_directory(data.parent)
            copyup.copy_tree(readable, into)
            os.fsync(into)
        finally:
            os.close(into)
    except BaseException:
        recover(data)
        raise
    finally:
        os.close(readable)
    marker.unlink()
    return True


def _empty(directory: Path) -> None:
    for entry in list(os.scandir(directory)):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)
