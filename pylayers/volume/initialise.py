"""Fill an empty volume from what the image holds at the mount point (docker's copy-up)."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from pylayers._native import copyup
from pylayers.diff.extract import extract_tree
from pylayers.diff.merge import merge_layers
from pylayers.diff.resolve import find_path
from pylayers.errors import InvalidInput, translate_os_error
from pylayers.store.file import sync_path
from pylayers.store.layer import Layer
from pylayers.volume.rootpath import open_beneath

MARKER = ".filling"  # beside _data while a copy runs; what is in _data is then rubbish
LOCK = ".lock"


def initialise(data: Path, root_fd: int, target: str) -> bool:
    """Copy what a mounted root file system holds at target into an empty _data directory; tell whether it was made.

    target is resolved inside the root. Owner, mode and xattrs of the directory itself come along. A volume that holds
    anything keeps it. When the process dies in the middle, the next call empties the volume and copies again (a power
    cut may lose data not yet flushed). Concurrent calls wait for each other.
    Raises NoSpace, PermissionDenied, NotFound (no volume).
    """

    def find() -> Callable[[int], object] | None:
        source = _open_directory(root_fd, target)
        if source is None:
            return None

        def put(into: int) -> None:
            try:
                copyup.copy_tree(source, into)
            finally:
                os.close(source)

        return put

    return _fill_once(data, target, find)


def initialise_from_layers(data: Path, layers: Sequence[Layer], target: str) -> bool:
    """Write what stacked layers hold at target into an empty _data directory; tell whether it was done.

    As initialise does it, but straight from the layers' tars, with nothing mounted (docs/decisions/0009).
    """

    def find() -> Callable[[int], object] | None:
        table = merge_layers(layers)
        try:
            found = find_path(table, os.fsencode(target))
        except InvalidInput:  # through a file, or in circles: nothing can be there
            return None
        row = found.row
        if row is None or found.entry is None or not stat.S_ISDIR(found.entry.mode):
            return None
        return lambda into: extract_tree(layers, table, row, into)

    return _fill_once(data, target, find)


def _fill_once(data: Path, target: str, find: Callable[[], Callable[[int], object] | None]) -> bool:
    """Fill an empty volume with what find gives, under its lock; tell whether there was anything to fill it with."""
    try:
        lock = os.open(data.parent / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            recover(data)
            if any(True for _ in os.scandir(data)):
                return False
            put = find()
            if put is None:
                return False
            _fill(data, put)
            return True
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


def _open_directory(root_fd: int, target: str) -> int | None:
    try:
        source = open_beneath(root_fd, target, os.O_PATH)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        if not stat.S_ISDIR(os.fstat(source).st_mode):
            return None
        return os.open(f"/proc/self/fd/{source}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(source)


def _fill(data: Path, put: Callable[[int], object]) -> None:
    marker = data.parent / MARKER
    try:
        into = os.open(data, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            descriptor = os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.fsync(descriptor)
            os.close(descriptor)
            sync_path(data.parent)
            put(into)
            os.fsync(into)
        finally:
            os.close(into)
    except BaseException:
        recover(data)
        raise
    marker.unlink()


def _empty(directory: Path) -> None:
    for entry in list(os.scandir(directory)):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)
