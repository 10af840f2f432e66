"""Layers whose tars begin as another layer's does, without those bytes being stored twice.

`layer.tar` then has its whole size, but a hole up to the page that holds byte P; beside it lies `base-<P>.tar`, a link
to a tar whose bytes [0, P) are the layer's. P is where an entry's headers begin, so every entry lies whole in one of
the two files, at the same offset. Where the file system shares blocks there is no base: they are cloned into the tar.

That a base lies there is what counts, not that there is a hole: a root that was copied by something that knows no
holes has zeros in its place.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress

from pylayers.errors import IntegrityError
from pylayers.record import record
from pylayers.store.file import translates

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _typeshed import StrPath

PAGE_BYTES = 4096
_PIECE_BYTES = 1 << 20
_PREFIX, _SUFFIX = "base-", ".tar"
_FICLONERANGE = 0x4020940D
# EAGAIN: zfs, of what it has not written yet.
_CANNOT_CLONE = (errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EAGAIN)
_CANNOT_LINK = (errno.EMLINK, errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
_PUNCH_HOLE, _KEEP_SIZE = 2, 1  # of fallocate(2)


@record
class Base:
    """Name the file that holds a tar's bytes [0, end_bytes)."""

    path: str
    end_bytes: int

    @property
    def start_bytes(self) -> int:
        """Return from where on the layer's own file holds its bytes, up to end_bytes both do."""
        return whole_pages(self.end_bytes)


def whole_pages(end_bytes: int) -> int:
    """Return where a spliced tar's own file begins: the page in which the beginning that it shares ends."""
    return end_bytes // PAGE_BYTES * PAGE_BYTES


def base_name(end_bytes: int) -> str:
    """Return the name of a base that holds so many bytes of a tar."""
    return f"{_PREFIX}{end_bytes}{_SUFFIX}"


def find_base(directory: StrPath) -> Base | None:
    """Return the base that lies in a layer's directory."""
    end_bytes = read_end(os.listdir(directory))
    return None if end_bytes is None else Base(os.path.join(directory, base_name(end_bytes)), end_bytes)


def read_end(names: list[str]) -> int | None:
    """Return how much the base among a directory's names holds; None where there is none."""
    for name in names:
        if name.startswith(_PREFIX) and name.endswith(_SUFFIX):
            end = name[len(_PREFIX) : -len(_SUFFIX)]
            if end.isascii() and end.isdigit():
                return int(end)
    return None


def share_beginning(source: StrPath, target_fd: int, directory: StrPath, end_bytes: int) -> bool:
    """Give a new tar the first bytes of another: by a clone, or a base in its directory; False where neither can be.

    The writer's own bytes begin at Base.start_bytes. Raises OSError (a full disk, the source gone).
    """
    import struct

    whole = whole_pages(end_bytes)
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
        os.link(source, os.path.join(directory, base_name(end_bytes)))
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        return False
    return True


@translates("fill a layer's tar")
def fill_hole(tar_path: StrPath) -> None:
    """Copy what only the base holds into the layer's own file, which is durable before the base goes.

    One fills; who comes meanwhile waits, and finds it done. A crash leaves the base, so the layer is as it was, and so
    does a full disk, which gets back what was copied. Raises NoSpace, IntegrityError for a base that ends too early.
    """
    folder, name = os.path.split(tar_path)
    with ExitStack() as stack:
        # All by this descriptor: the base of a layer that takes this one's place is never taken for this one's.
        directory = keep(stack, os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        target = keep(stack, os.open(name, os.O_RDWR | os.O_CLOEXEC, dir_fd=directory))
        fcntl.flock(target, fcntl.LOCK_EX)
        end_bytes = read_end(os.listdir(directory))
        if end_bytes is None:
            return
        base = base_name(end_bytes)
        source = keep(stack, os.open(base, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory))
        copy_beginning(source, target, os.path.join(folder, base), end_bytes)
        os.unlink(base, dir_fd=directory)
        os.fsync(directory)


def copy_beginning(source: int, target: int, path: str, end_bytes: int) -> None:
    """Copy a base's whole pages into the tar, and make them durable; the tar is as it was when that fails."""
    from pylayers._native import copyup

    if os.fstat(source).st_size < end_bytes:
        raise IntegrityError(f"{path} ends too early")
    start_bytes = whole_pages(end_bytes)
    try:
        copyup.copy_range(source, 0, target, 0, start_bytes)
        os.fsync(target)
    except BaseException:
        empty_range(target, start_bytes)
        raise


def empty_range(descriptor: int, end_bytes: int) -> None:
    """Give back the disk blocks of a file's beginning, where the file system can."""
    import ctypes

    libc = ctypes.CDLL(None)
    call = getattr(libc, "fallocate64", libc.fallocate)
    call(descriptor, _PUNCH_HOLE | _KEEP_SIZE, ctypes.c_int64(0), ctypes.c_int64(end_bytes))


def keep(stack: ExitStack, descriptor: int) -> int:
    """Have a descriptor closed with the stack."""
    stack.callback(os.close, descriptor)
    return descriptor


def read_range(tar_path: StrPath, base: Base | None, at: int, end: int) -> Iterator[memoryview]:
    """Yield a tar's bytes [at, end) from the files that hold them, as far as they go; the tar may be filled meanwhile.

    A piece is valid until the next one is asked for.
    """
    buffer = memoryview(bytearray(min(_PIECE_BYTES, max(0, end - at))))
    with ExitStack() as stack:
        parts = [(keep(stack, os.open(tar_path, os.O_RDONLY | os.O_CLOEXEC)), end)]
        if base is not None:
            with suppress(FileNotFoundError):  # filled since the layer was opened
                source = keep(stack, os.open(base.path, os.O_RDONLY | os.O_CLOEXEC))
                parts.insert(0, (source, min(base.end_bytes, end)))
        for descriptor, limit in parts:
            while at < limit and (count := os.preadv(descriptor, [buffer[: limit - at]], at)):
                yield buffer[:count]
                at += count
            if at < limit:
                return  # what a base lacks is a hole in the tar


def is_same_between(tar_path: StrPath, base: Base) -> bool:
    """Tell whether both files hold the same in the page that they share: the tar's is what counts once it is filled."""
    own = b"".join(bytes(piece) for piece in read_range(tar_path, None, base.start_bytes, base.end_bytes))
    try:
        return own == b"".join(bytes(piece) for piece in read_range(base.path, None, base.start_bytes, base.end_bytes))
    except FileNotFoundError:  # filled meanwhile: then the tar's digest tells
        return True
