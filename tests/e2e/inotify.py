"""Watch which files of a tree are opened, as the kernel tells it: a proof that something read no content."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path
from types import TracebackType

IN_ACCESS, IN_OPEN, IN_Q_OVERFLOW, IN_ISDIR = 0x1, 0x20, 0x4000, 0x40000000
EVENT = struct.Struct("=iIII")
BUFFER_BYTES = 1 << 16

libc = ctypes.CDLL(None, use_errno=True)


class Opened:
    """Collect the names of regular files below a directory that anybody opened or read inside the block.

    A file must be opened before it can be read, mapped or cloned, whatever the call; so no name means no content.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.names: set[str] = set()
        self._folders: dict[int, Path] = {}
        self._fd = -1

    def __enter__(self) -> Opened:
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        for folder in (self.directory, *(path for path in self.directory.rglob("*") if path.is_dir())):
            watch = libc.inotify_add_watch(self._fd, os.fsencode(folder), IN_OPEN | IN_ACCESS)
            if watch < 0:
                raise OSError(ctypes.get_errno(), "inotify_add_watch", str(folder))
            self._folders[watch] = folder.relative_to(self.directory)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while True:
                self._take(os.read(self._fd, BUFFER_BYTES))
        except BlockingIOError:
            pass
        finally:
            os.close(self._fd)

    def _take(self, content: bytes) -> None:
        at = 0
        while at < len(content):
            watch, mask, _, length = EVENT.unpack_from(content, at)
            name = content[at + EVENT.size : at + EVENT.size + length].rstrip(b"\0")
            at += EVENT.size + length
            if mask & IN_Q_OVERFLOW:
                raise OverflowError("more events than inotify keeps: the proof has a hole")
            if not mask & IN_ISDIR:
                self.names.add(str(self._folders[watch] / os.fsdecode(name)))
