"""Bring a plain layer out of an archive into the store, bit for bit, written past the page cache."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import threading
from collections.abc import Callable

from pylayers.errors import IntegrityError, translate_os_error
from pylayers.oci.digest import digest_from_hex
from pylayers.store import Store
from pylayers.store.layer import Layer
from pylayers.store.tarindex import index_content

PIECE_BYTES = 8 << 20
WRITERS = 2
PAGE_BYTES = 4096
# Smaller layers are left to the page cache, as their first container wants them there (docs/decisions/0006).
DIRECT_FROM_BYTES = 64 << 20


class Worker(threading.Thread):
    """Run a function in a thread and hand its result or its error to whoever joins it."""

    def __init__(self, function: Callable[[], None]) -> None:
        super().__init__()
        self._function = function
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Call the function."""
        try:
            self._function()
        except BaseException as error:
            self._error = error

    def finish(self) -> None:
        """Wait, and raise what the function raised."""
        self.join()
        if self._error is not None:
            raise self._error


def ingest_range(store: Store, archive_fd: int, archive: memoryview, offset: int, size_bytes: int, name: str) -> Layer:
    """Store size_bytes at offset of an archive as a layer; `archive` is the whole of it, mapped.

    sha256, the entry table with every file's BLAKE3, and writing run beside each other. Raises IntegrityError where
    the tar is malformed, NoSpace.
    """
    with store.layers.ingest() as writer, archive[offset : offset + size_bytes] as tar:
        hasher = hashlib.sha256()
        tables: list[tuple[bytearray, bytearray]] = []

        def index() -> None:
            tables.append(index_content(tar, name))

        workers = [Worker(lambda: hasher.update(tar)), Worker(index)]
        try:
            try:
                write_range(archive_fd, offset, size_bytes, writer.fd)
            finally:
                for worker in workers:
                    worker.join()
            for worker in workers:
                worker.finish()
        except OSError as error:
            raise translate_os_error(error, "write layer") from error
        return writer.commit(*tables[0], size_bytes, digest_from_hex(hasher.hexdigest()))


def write_range(source_fd: int, offset: int, size_bytes: int, target_fd: int) -> None:
    """Copy a range of a file to an empty one: shared blocks where the file system can, else past the page cache."""
    if share_range(source_fd, offset, size_bytes, target_fd):
        return
    direct = size_bytes >= DIRECT_FROM_BYTES and set_direct(target_fd, True)
    tail = size_bytes % PAGE_BYTES if direct else 0
    try:
        if direct:
            # Without it every write grows the file, which one writer at a time may do: 1.2 s instead of 0.8 for 1.4 GB.
            os.posix_fallocate(target_fd, 0, size_bytes - tail)
        copy_pieces(source_fd, offset, size_bytes - tail, target_fd, WRITERS if direct else 1)
    except OSError as error:
        if not direct or error.errno != errno.EINVAL:  # the file system wants another alignment
            raise
        direct = set_direct(target_fd, False)
        copy_pieces(source_fd, offset, size_bytes, target_fd, 1)
        return
    if direct:
        set_direct(target_fd, False)
        copy_pieces(source_fd, offset + size_bytes - tail, tail, target_fd, 1, size_bytes - tail)


def copy_pieces(
    source_fd: int, offset: int, size_bytes: int, target_fd: int, writers: int, target_offset: int = 0
) -> None:
    """Copy a range in pieces, some of them at a time. Raises IntegrityError when the source ends early, OSError."""
    starts = iter(range(0, size_bytes, PIECE_BYTES))
    lock = threading.Lock()

    def copy() -> None:
        with mmap.mmap(-1, PIECE_BYTES) as buffer, memoryview(buffer) as view:
            while True:
                with lock:
                    start = next(starts, None)
                if start is None:
                    return
                end = min(start + PIECE_BYTES, size_bytes)
                at = start
                while at < end:
                    count = os.preadv(source_fd, [view[at - start : end - start]], offset + at)
                    if not count:
                        raise IntegrityError("the archive became shorter while it was read")
                    at += count
                at = start
                while at < end:
                    at += os.pwrite(target_fd, view[at - start : end - start], target_offset + at)

    workers = [Worker(copy) for _ in range(writers - 1)]
    try:
        copy()
    finally:
        for worker in workers:
            worker.join()
    for worker in workers:
        worker.finish()


def share_range(source_fd: int, offset: int, size_bytes: int, target_fd: int) -> bool:
    """Share the whole blocks of a range with a new file; False where that can't be."""
    import struct

    whole = size_bytes // PAGE_BYTES * PAGE_BYTES
    if offset % PAGE_BYTES or not whole:
        return False
    try:
        fcntl.ioctl(target_fd, 0x4020940D, struct.pack("qQQQ", source_fd, offset, whole, 0))  # FICLONERANGE
    except OSError:
        return False
    rest = os.pread(source_fd, size_bytes - whole, offset + whole)
    while rest:
        written = os.pwrite(target_fd, rest, size_bytes - len(rest))
        rest = rest[written:]
    return True


def set_direct(descriptor: int, direct: bool) -> bool:
    """Pass a file's page cache by from now on, or no longer; return whether it does."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    wanted = flags | os.O_DIRECT if direct else flags & ~os.O_DIRECT
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, wanted)
    except OSError:
        return False
    return direct
