"""Map a file that is somebody else's: it may be written to, or become shorter, while it is read."""

from __future__ import annotations

import mmap
import os

from pylayers._native.mapguard import MapGuard
from pylayers.errors import IntegrityError, PylayersError


class MappedFile:
    """Hold a file mapped whole; its descriptor stays the caller's."""

    def __init__(self, descriptor: int, name: str) -> None:
        """Map a file that has at least one byte."""
        self.descriptor = descriptor
        self.name = name
        self._status = os.fstat(descriptor)
        self._mapping = mmap.mmap(descriptor, self._status.st_size, access=mmap.ACCESS_READ)
        self.content = memoryview(self._mapping)
        self._guard = MapGuard(self.content)

    def forget(self, start: int, end: int) -> None:
        """Let a range that has been read go from the mapping; who reads it again finds it."""
        start -= start % mmap.PAGESIZE
        self._mapping.madvise(mmap.MADV_DONTNEED, start, end - start)

    def check(self, error: BaseException | None = None) -> None:
        """Raise IntegrityError where somebody wrote to the file, of which an error may have come.

        Readers of several passes may have met different bytes; a file that became shorter reads as zeros (mapguard).
        """
        if error is not None and not isinstance(error, PylayersError):
            return
        now = os.fstat(self.descriptor)
        if self._guard.broken or now.st_size < self._status.st_size:
            raise IntegrityError(f"{self.name} became shorter while it was read") from error
        if now.st_mtime_ns != self._status.st_mtime_ns:
            raise IntegrityError(f"{self.name} changed while it was read") from error

    def close(self) -> None:
        """Release the mapping."""
        self._guard.close()
        self.content.release()
        self._mapping.close()
