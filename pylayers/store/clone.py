"""Copy files whole: shared blocks where the file system has them, otherwise inside the kernel."""

from __future__ import annotations

import fcntl
import os
import stat

from pylayers._native import copyup
from pylayers.store.file import translates, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _typeshed import StrPath

PIECE_BYTES = 1 << 20


@translates("copy a file")
def clone_file(source: StrPath, target: StrPath, *, mode: int = 0o644) -> None:
    """Copy a file's data to a new file, which shares no inode with it: writing to one never harms the other."""
    with open(source, "rb") as reading:
        descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            copyup.copy_file(reading.fileno(), descriptor, os.fstat(reading.fileno()).st_size)
            os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)


def append_file(source_fd: int, target_fd: int, size_bytes: int) -> None:
    """Copy a whole file to another's current offset, which moves on; the target may be a pipe. Raises OSError."""
    appends = fcntl.fcntl(target_fd, fcntl.F_GETFL) & os.O_APPEND
    if stat.S_ISREG(os.fstat(target_fd).st_mode) and not appends:
        at = os.lseek(target_fd, 0, os.SEEK_CUR)
        copyup.copy_range(source_fd, 0, target_fd, at, size_bytes)
        os.lseek(target_fd, at + size_bytes, os.SEEK_SET)
        return
    offset = 0
    while offset < size_bytes:
        try:
            sent = os.sendfile(target_fd, source_fd, offset, size_bytes - offset)
        except OSError:
            if offset:
                raise
            break  # a target that takes no sendfile
        if sent == 0:
            raise OSError(5, "the source ends too early")
        offset += sent
    while offset < size_bytes:
        piece = os.pread(source_fd, min(PIECE_BYTES, size_bytes - offset), offset)
        if not piece:
            raise OSError(5, "the source ends too early")
        write_all(target_fd, piece)
        offset += len(piece)
