"""Bring a plain layer out of an archive into the store, bit for bit, written past the page cache."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, wait
from contextlib import ExitStack
from typing import Protocol, Self

from pylayers.errors import IntegrityError, translate_os_error
from pylayers.oci.digest import digest_from_hex
from pylayers.store import Store
from pylayers.store.layer import Layer
from pylayers.store.proof import new_hasher
from pylayers.store.state import EVERY_BYTES, kept_states
from pylayers.store.tarindex import index_content

PIECE_BYTES = 8 << 20
HASHED_BYTES = 64 << 20
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


class Archive(Protocol):
    """A file that is mapped whole."""

    descriptor: int
    content: memoryview

    def forget(self, start: int, end: int) -> None:
        """Let a range that has been read go from the mapping; who reads it again finds it."""

    def check(self) -> None:
        """Raise IntegrityError where the file is no longer what was mapped."""


class RangeIngest:
    """A layer on its way from a mapped archive into the store: enter to begin, then finish; leaving drops the rest.

    Writing has threads of its own, which wait for the disk. sha256 and the entry table with every file's BLAKE3 are
    the pool's: with a thread for each processor, and the largest layer begun first, the longest work, its sha256,
    shares its processor with no other.
    """

    def __init__(
        self, store: Store, pool: Executor, archive: Archive, offset: int, size_bytes: int, name: str
    ) -> None:
        self._range = (offset, size_bytes)
        self._name = name
        self._store = store
        self._pool = pool
        self._archive = archive
        self._hasher = new_hasher(EVERY_BYTES)
        self._stopped = False
        self._left = ExitStack()

    def __enter__(self) -> Self:
        offset, size_bytes = self._range
        with ExitStack() as stack:
            self._layer = stack.enter_context(self._store.layers.ingest())
            self._tar = stack.enter_context(self._archive.content[offset : offset + size_bytes])
            self._hashing = self._pool.submit(self._hash)
            self._indexing = self._pool.submit(self._index)
            stack.callback(lambda: wait((self._hashing, self._indexing)))
            stack.callback(self._stop)
            self._writing = Worker(self._write)
            stack.callback(self._writing.join)
            self._left = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.close()

    def _stop(self) -> None:
        self._stopped = True
        self._hashing.cancel()
        self._indexing.cancel()

    def finish(self) -> Layer:
        """Wait until the layer is whole and make it visible. Raises IntegrityError for a malformed tar, NoSpace."""
        with self._left:
            try:
                self._writing.finish()
                records, heap = self._indexing.result()
                self._hashing.result()
            except OSError as error:
                raise translate_os_error(error, "write layer") from error
            self._archive.check()  # what was hashed may be right, and what was indexed or written something else
            digest = digest_from_hex(self._hasher.digest().hex())
            return self._layer.commit(records, heap, self._range[1], digest, states=kept_states(self._hasher))

    def _hash(self) -> None:
        for at in range(0, len(self._tar), HASHED_BYTES):
            if self._stopped:
                return
            with self._tar[at : at + HASHED_BYTES] as piece:
                self._hasher.update(piece)
            # At the end it would take as long as the hashing of 70 MB, with nothing else to do meanwhile.
            start, end = (self._range[0] + place for place in (at, min(at + HASHED_BYTES, len(self._tar))))
            self._pool.submit(self._archive.forget, start, end)

    def _index(self) -> tuple[bytearray, bytearray]:
        return index_content(self._tar, self._name)

    def _write(self) -> None:
        offset, size_bytes = self._range
        write_range(self._archive.descriptor, self._tar, offset, size_bytes, self._layer.fd)
        os.fsync(self._layer.fd)  # here it waits for the disk beside the hashing, and commit's finds nothing to do


def write_range(source_fd: int, source: memoryview, offset: int, size_bytes: int, target_fd: int) -> None:
    """Copy a mapped range of a file to an empty one: shared blocks where that can be, else past the page cache.

    Past it, the disk takes the bytes from the mapping, with no copy between.
    """
    if share_range(source_fd, offset, size_bytes, target_fd):
        return
    direct = size_bytes >= DIRECT_FROM_BYTES and set_direct(target_fd, True)
    whole = size_bytes - size_bytes % PAGE_BYTES if direct else 0
    try:
        if direct:
            # Without it every write grows the file, which one writer at a time may do: 1.2 s instead of 0.8 for 1.4 GB.
            os.posix_fallocate(target_fd, 0, whole)
            copy_pieces(source, 0, whole, target_fd, WRITERS)
    except OSError as error:
        if error.errno != errno.EINVAL:  # the file system wants another alignment
            raise
        whole = 0
    if direct:
        set_direct(target_fd, False)
    copy_pieces(source, whole, size_bytes, target_fd, 1)


def copy_pieces(source: memoryview, first: int, last: int, target_fd: int, writers: int) -> None:
    """Write source[first:last] to the same place of a file in pieces, some of them at a time.

    Raises IntegrityError when the source's file became shorter, OSError.
    """
    starts = iter(range(first, last, PIECE_BYTES))
    lock = threading.Lock()

    def copy() -> None:
        while True:
            with lock:
                at = next(starts, None)
            if at is None:
                return
            end = min(at + PIECE_BYTES, last)
            while at < end:
                with source[at:end] as piece:  # not left to an error's traceback: the archive has to be closed
                    at += os.pwrite(target_fd, piece, at)

    workers = [Worker(copy) for _ in range(writers - 1)]
    try:
        copy()
        for worker in workers:
            worker.finish()
    except OSError as error:
        if error.errno == errno.EFAULT:
            raise IntegrityError("the archive became shorter while it was read") from error
        raise
    finally:
        for worker in workers:
            worker.join()


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
    if len(rest) < size_bytes - whole:
        raise IntegrityError("the archive became shorter while it was read")
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
