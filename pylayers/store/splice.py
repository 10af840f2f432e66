"""Layers whose tars begin as another layer's does, without those bytes being stored twice.

`layer.tar` then has its whole size, but a hole up to the page that holds byte P; beside it lies `base-<P>.tar`, a link
to a tar whose bytes [0, P) are the layer's. P is where an entry's headers begin, so every entry lies whole in one of
the two files, at the same offset. Where the file system shares blocks there is no base: they are cloned into the tar.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

from pylayers.record import record
from pylayers.store.file import sync_path, translates

PAGE_BYTES = 4096
_PIECE_BYTES = 1 << 20
_PREFIX, _SUFFIX = "base-", ".tar"
_FICLONERANGE = 0x4020940D
_CANNOT_CLONE = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL)
_CANNOT_LINK = (errno.EMLINK, errno.EXDEV, errno.EPERM)


@record
class Base:
    """Name the file that holds a tar's bytes [0, end_bytes)."""

    path: Path
    end_bytes: int

    @property
    def start_bytes(self) -> int:
        """Return from where on the layer's own file holds its bytes, up to end_bytes both do."""
        return self.end_bytes // PAGE_BYTES * PAGE_BYTES


def base_name(end_bytes: int) -> str:
    """Return the name of a base that holds so many bytes of a tar."""
    return f"{_PREFIX}{end_bytes}{_SUFFIX}"


def find_base(directory: Path) -> Base | None:
    """Return the base that lies in a layer's directory."""
    for name in os.listdir(directory):
        if name.startswith(_PREFIX) and name.endswith(_SUFFIX):
            end = name[len(_PREFIX) : -len(_SUFFIX)]
            if end.isascii() and end.isdigit():
                return Base(directory / name, int(end))
    return None


def look_for_base(tar_path: Path, found: os.stat_result) -> Base | None:
    """Return a tar's base; its directory is only listed where the tar has holes."""
    return find_base(tar_path.parent) if found.st_blocks * 512 < found.st_size else None


def share_beginning(source: Path, target_fd: int, directory: Path, end_bytes: int) -> bool:
    """Give a new tar the first bytes of another: by a clone, or a base in its directory; False where neither can be.

    The writer's own bytes begin at Base.start_bytes. Raises OSError (a full disk, the source gone).
    """
    whole = end_bytes // PAGE_BYTES * PAGE_BYTES
    descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(target_fd, _FICLONERANGE, struct.pack("=qQQQ", descriptor, 0, whole, 0))
        return True
    except OSError as error:
        if error.errno not in _CANNOT_CLONE:
            raise
    finally:
        os.close(descriptor)
    try:
        os.link(source, directory / base_name(end_bytes))
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        return False
    return True


@translates("fill a layer's tar")
def fill_hole(tar_path: Path, base: Base) -> None:
    """Copy what only the base holds into the layer's own file, which is durable before the base goes.

    Nothing is done where another did it already. A crash leaves the base, so the layer is as it was. Raises NoSpace.
    """
    from pylayers._native import copyup

    try:
        source = os.open(base.path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        target = os.open(tar_path, os.O_RDWR | os.O_CLOEXEC)
        try:
            copyup.copy_range(source, 0, target, 0, base.start_bytes)
            os.fsync(target)
        finally:
            os.close(target)
    finally:
        os.close(source)
    base.path.unlink(missing_ok=True)
    sync_path(tar_path.parent)


def read_range(tar_path: Path, base: Base | None, at: int, end: int) -> Iterator[memoryview]:
    """Yield a tar's bytes [at, end) from the files that hold them, as far as they go; the tar may be filled meanwhile.

    A piece is valid until the next one is asked for.
    """
    buffer = memoryview(bytearray(min(_PIECE_BYTES, max(0, end - at))))
    with ExitStack() as stack:
        tar = os.open(tar_path, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, tar)
        parts = [(tar, end)]
        if base is not None:
            with suppress(FileNotFoundError):  # filled since the layer was opened
                source = os.open(base.path, os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, source)
                parts.insert(0, (source, min(base.end_bytes, end)))
        for descriptor, limit in parts:
            while at < limit and (count := os.preadv(descriptor, [buffer[: limit - at]], at)):
                yield buffer[:count]
                at += count
