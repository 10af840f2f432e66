"""Durable file steps: everything that crash safety is built from goes through here."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path

from pylayers.errors import translate_os_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ParamSpec, TypeVar

    P = ParamSpec("P")
    R = TypeVar("R")


@contextmanager
def translating(doing: str) -> Iterator[None]:
    """Turn an OSError inside the block into the named error for it."""
    try:
        yield
    except OSError as error:
        raise translate_os_error(error, doing) from error


def translates(doing: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function so that an OSError leaves it as the named error for it."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except OSError as error:
                raise translate_os_error(error, doing) from error

        return call

    return decorate


def fresh_name(prefix: str) -> str:
    """Return a name that nothing else has."""
    return f"{prefix}-{os.urandom(12).hex()}"


def write_all(descriptor: int, content: bytes | bytearray | memoryview) -> None:
    """Write a whole buffer; write(2) may take less than it was given."""
    view = memoryview(content).cast("B")
    while view:
        view = view[os.write(descriptor, view) :]


def sync_path(path: Path) -> None:
    """Make a file's content, or a directory's entries, durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, content: bytes | bytearray | memoryview, *, mode: int = 0o600, durable: bool = True) -> None:
    """Replace a file atomically: a reader sees the old content or the new, whole.

    The content is written beside it under a name that starts with a dot. durable=True also survives power loss.
    """
    for again in (True, True, False):
        try:
            _write_beside(path, content, mode, durable)
            break
        except FileNotFoundError:  # a repair in another process took it for what a dead one left
            if not again or not path.parent.is_dir():
                raise
    if durable:
        sync_path(path.parent)


def _write_beside(path: Path, content: bytes | bytearray | memoryview, mode: int, durable: bool) -> None:
    beside = path.with_name(fresh_name(f".{path.name[:64]}"))
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            write_all(descriptor, content)
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def remove_file(path: Path, *, durable: bool = True) -> None:
    """Remove a file if it is there; durable=True also survives power loss."""
    path.unlink(missing_ok=True)
    if durable and path.parent.is_dir():
        sync_path(path.parent)


def remove_tree(path: Path) -> None:
    """Remove a file or a directory tree; what is gone already, or goes to another remover, is no error."""
    from pylayers._native import clear  # by what removes something, and few processes do

    try:
        clear.remove_tree(os.fsencode(path))
    except OSError as error:
        error.filename = str(path)
        raise


def allocated_bytes(path: Path, seen: set[tuple[int, int]] | None = None) -> int:
    """Count the disk bytes of a file or a directory tree, as du does; `seen` gets its inodes, which count once."""
    seen = set() if seen is None else seen
    try:
        found = path.lstat()
        if (found.st_dev, found.st_ino) in seen:
            return 0
        seen.add((found.st_dev, found.st_ino))
        total = found.st_blocks * 512
        if stat.S_ISDIR(found.st_mode):
            with os.scandir(path) as entries:
                children = [Path(entry.path) for entry in entries]
            total += sum(allocated_bytes(child, seen) for child in children)
    except FileNotFoundError:
        return 0
    return total
