"""Locks between processes: flock(2), so that the kernel releases them with the process that held them.

Each Lock has its own open file description: two locks of one file exclude each other within a process as well.
The order in which locks are taken is fixed in docs/internals/locking.md.
"""

from __future__ import annotations

import fcntl
import os
from types import TracebackType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _typeshed import StrPath


class Lock:
    """Hold a flock on a file, made when missing. Leaving the context, or close(), releases it."""

    __slots__ = ("_descriptor",)

    def __init__(self, path: StrPath, *, exclusive: bool, wait: bool = True, create: bool = True) -> None:
        """Take the lock. With wait=False raises BlockingIOError when another holds it."""
        self._descriptor: int | None = None
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o600)
        try:
            kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
            fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def try_upgrade(self) -> bool:
        """Turn a shared lock into an exclusive one if no other holds it.

        A conversion isn't atomic: on failure the shared lock has been dropped and taken again.
        """
        if self._descriptor is None:
            return False
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)
            return False
        return True

    def downgrade(self) -> None:
        """Turn an exclusive lock into a shared one."""
        if self._descriptor is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def close(self) -> None:
        """Release the lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
