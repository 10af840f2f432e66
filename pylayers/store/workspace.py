"""Scratch directories below tmp/: one per open Store, held by a flock that dies with its process.

Half-made ingests live here. Whoever opens the store next removes the scratch directories whose lock is free.
"""

from __future__ import annotations

import os

from pylayers.store.file import fresh_name, remove_tree
from pylayers.store.lock import Lock
from pylayers.store.mountpoint import detach_below
from pylayers.thread import allocate_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _typeshed import StrPath

_OWNER_LOCK = "owner.lock"
_SWEEP_LOCK = "sweep.lock"
_PREFIX = "work"
_GONE = "gone"


class Workspace:
    """Give out scratch paths on the root's file system. The directory is made on first use."""

    def __init__(self, directory: StrPath) -> None:
        self._directory = os.fspath(directory)
        self._mutex = allocate_lock()
        self._owned: tuple[str, Lock] | None = None

    def path(self, prefix: str) -> str:
        """Return a path that doesn't exist yet, in this process's scratch directory."""
        with self._mutex:
            if self._owned is None:
                self._owned = self._claim()
            return f"{self._owned[0]}/{fresh_name(prefix)}"

    def _claim(self) -> tuple[str, Lock]:
        own = f"{self._directory}/{fresh_name(_PREFIX)}"
        # Under the sweep lock no other process can take the directory for an orphan before its own lock is held.
        with Lock(f"{self._directory}/{_SWEEP_LOCK}", exclusive=True):
            os.mkdir(own, 0o700)
            return own, Lock(f"{own}/{_OWNER_LOCK}", exclusive=True)

    def discard(self, path: StrPath) -> None:
        """Remove what is visible elsewhere: move it here first, so that it vanishes at once, then delete it."""
        trash = self.path("trash")
        try:
            os.rename(path, trash)
        except FileNotFoundError:
            return
        remove_tree(trash)

    def owner(self) -> str:
        """Return the name of this process's scratch directory; its lock tells other processes that we live."""
        return os.path.basename(os.path.dirname(self.path("")))

    def lives(self, owner: str) -> bool:
        """Tell whether the process that owns a scratch directory is still there, in whatever PID namespace."""
        try:
            Lock(f"{self._directory}/{owner}/{_OWNER_LOCK}", exclusive=False, wait=False, create=False).close()
        except BlockingIOError:
            return True
        except (FileNotFoundError, NotADirectoryError):
            return False
        return False

    def close(self) -> None:
        """Remove this process's scratch directory."""
        with self._mutex:
            if self._owned is None:
                return
            own, lock = self._owned
            self._owned = None
            with Lock(f"{self._directory}/{_SWEEP_LOCK}", exclusive=True):
                gone = self._retire(own)
            lock.close()
        try:  # as a rule nothing else is in it, and who removes trees need not be loaded
            os.unlink(f"{gone}/{_OWNER_LOCK}")
            os.rmdir(gone)
        except OSError:
            remove_tree(gone)

    def _retire(self, path: str) -> str:
        gone = f"{self._directory}/{fresh_name(_GONE)}"
        os.rename(path, gone)
        return gone

    def sweep(self) -> int:
        """Remove the scratch directories of processes that are gone; return how many. Safe to interrupt and repeat.

        A directory changes its name only under the sweep lock, and is deleted only under its second name.
        """
        names = os.listdir(self._directory)
        gone = [f"{self._directory}/{name}" for name in names if name.startswith(f"{_GONE}-")]
        if any(name.startswith(f"{_PREFIX}-") for name in names):
            with Lock(f"{self._directory}/{_SWEEP_LOCK}", exclusive=True):
                for name in names:
                    if name.startswith(f"{_PREFIX}-"):
                        gone += self._take_orphan(f"{self._directory}/{name}")
        for path in gone:
            # A killed build leaves its root file system mounted here.
            detach_below(path)
            remove_tree(path)
        return len(gone)

    def _take_orphan(self, path: str) -> list[str]:
        try:
            with Lock(f"{path}/{_OWNER_LOCK}", exclusive=True, wait=False):
                return [self._retire(path)]
        except (BlockingIOError, FileNotFoundError):
            return []  # its owner lives, or has just closed
