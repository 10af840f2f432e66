"""Resolve paths inside a mounted root file system, component by component, never leaving it.

Works on every kernel that has O_PATH. A symlink's absolute target starts again at the root and `..` stops there,
as a process inside the container would see it.
"""

from __future__ import annotations

import errno
import os
import stat

from pylayers.record import record

SYMLINK_LIMIT = 40  # the kernel's own limit
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


@record
class Location:
    """Say where a path leads: `existing` is canonical (no symlink in it), `missing` are the names below it."""

    existing: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def path(self) -> str:
        """Return the canonical path relative to the root ("" for the root itself)."""
        return "/".join(self.existing + self.missing)


class _Walk:
    """Hold the chain of open directories from the root to the place reached."""

    def __init__(self, root_fd: int) -> None:
        self.descriptors = [os.open(".", _LOOK | os.O_DIRECTORY, dir_fd=root_fd)]
        self.names: list[str] = []

    def __enter__(self) -> _Walk:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)

    def up(self) -> None:
        if self.names:
            self.names.pop()
            os.close(self.descriptors.pop())

    def rewind(self) -> None:
        while self.names:
            self.up()

    def follow(self, path: str, follow_last: bool) -> tuple[str, ...]:
        """Walk as far as the path exists and return the names that are missing."""
        waiting = path.split("/")[::-1]
        links = 0
        while waiting:
            name = waiting.pop()
            if name in ("", "."):
                continue
            if name == "..":
                self.up()
                continue
            try:
                descriptor = os.open(name, _LOOK, dir_fd=self.descriptors[-1])
            except FileNotFoundError:
                return _normalise([name, *waiting[::-1]])
            if stat.S_ISLNK(os.fstat(descriptor).st_mode) and (
                follow_last or any(part not in ("", ".") for part in waiting)
            ):
                try:
                    target = os.readlink("", dir_fd=descriptor)
                finally:
                    os.close(descriptor)
                links += 1
                if links > SYMLINK_LIMIT:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                if target.startswith("/"):
                    self.rewind()
                waiting.extend(target.split("/")[::-1])
                continue
            self.names.append(name)
            self.descriptors.append(descriptor)
        return ()


def _normalise(names: list[str]) -> tuple[str, ...]:
    """Apply "." and ".." to names that don't exist yet; they cannot be symlinks."""
    kept: list[str] = []
    for name in names:
        if name == "..":
            if kept:
                kept.pop()
        elif name not in ("", "."):
            kept.append(name)
    return tuple(kept)


def locate(root_fd: int, path: str, *, follow_last: bool = True) -> Location:
    """Find where path leads inside the root; raises OSError (ELOOP, ENOTDIR) for a path that cannot lead anywhere."""
    with _Walk(root_fd) as walk:
        missing = walk.follow(path, follow_last)
        return Location(tuple(walk.names), missing)


def open_beneath(root_fd: int, path: str, flags: int = os.O_RDONLY, *, follow_last: bool = True) -> int:
    """Open an existing path inside the root; the caller closes the descriptor. Raises OSError.

    Without O_PATH only regular files and directories are opened, so that a FIFO or device in an image cannot block
    or act on the host.
    """
    with _Walk(root_fd) as walk:
        if walk.follow(path, follow_last):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        descriptor = walk.descriptors[-1]
        if flags & os.O_PATH:
            return os.dup(descriptor)
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise OSError(errno.EINVAL, "neither a regular file nor a directory", path)
        return os.open(f"/proc/self/fd/{descriptor}", flags | os.O_CLOEXEC)


def read_beneath(root_fd: int, path: str, limit_bytes: int) -> bytes | None:
    """Read a small regular file inside the root; None when it isn't there. Raises OSError (EFBIG over the limit)."""
    try:
        descriptor = open_beneath(root_fd, path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    with open(descriptor, "rb") as file:
        content = file.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
    return content


def make_directories(root_fd: int, path: str, mode: int = 0o755) -> int:
    """Create the missing directories of path inside the root and open the last one; the caller closes it."""
    with _Walk(root_fd) as walk:
        missing = walk.follow(path, True)
        descriptor = os.open(f"/proc/self/fd/{walk.descriptors[-1]}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for name in missing:
        try:
            os.mkdir(name, mode, dir_fd=descriptor)
            child = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = child
    return descriptor
