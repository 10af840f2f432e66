"""Write a layer whose size nobody knows yet: a small one into the page cache, the rest of a large one past it."""

from __future__ import annotations

import errno
import mmap
import os
from types import TracebackType
from typing import Self

from pylayers.store.file import write_all
from pylayers.transfer.verbatim import DIRECT_FROM_BYTES, PAGE_BYTES, set_direct

BUFFER_BYTES = 4 << 20


class LayerFile:
    """Take a file's bytes in order, in one thread; leaving the context without `finish` forgets what is gathered.

    Past the page cache nothing has to be flushed at the end, and no page to be found for it (docs/decisions/0006).
    """

    def __init__(self, descriptor: int) -> None:
        self.size_bytes = 0  # taken
        self._descriptor = descriptor
        self._direct_from = DIRECT_FROM_BYTES
        self._direct = False
        self._buffer = mmap.mmap(-1, BUFFER_BYTES)  # aligned
        self._view = memoryview(self._buffer)
        self._gathered = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._view.release()
        self._buffer.close()

    def write(self, piece: bytes) -> None:
        """Write the next bytes. Raises OSError."""
        with memoryview(piece) as left:
            at = 0
            if self.size_bytes < self._direct_from:
                at = min(len(left), self._direct_from - self.size_bytes)
                with left[:at] as part:
                    write_all(self._descriptor, part)
                self.size_bytes += at
                if self.size_bytes == self._direct_from:
                    self._direct = set_direct(self._descriptor, True)
            while at < len(left):
                end = min(at + BUFFER_BYTES - self._gathered, len(left))
                with left[at:end] as part:
                    self._view[self._gathered : self._gathered + len(part)] = part
                self._gathered += end - at
                self.size_bytes += end - at
                at = end
                if self._gathered == BUFFER_BYTES:
                    self._pour(BUFFER_BYTES)

    def finish(self) -> None:
        """Write what is gathered, the part that is no whole page into the page cache. Raises OSError."""
        self._pour(self._gathered - self._gathered % PAGE_BYTES)
        self._leave_direct()
        self._pour(self._gathered)

    def _pour(self, count: int) -> None:
        """Write the first bytes that are gathered; the rest moves to the front."""
        at = 0
        while at < count:
            with self._view[at:count] as part:
                try:
                    at += os.write(self._descriptor, part)
                except OSError as error:
                    if not self._direct or error.errno != errno.EINVAL:  # the file system wants another alignment
                        raise
                    self._leave_direct()
        left = self._gathered - count
        self._view[:left] = self._view[count : self._gathered]
        self._gathered = left

    def _leave_direct(self) -> None:
        if self._direct:
            self._direct = set_direct(self._descriptor, False)
