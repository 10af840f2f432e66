"""Durable file steps: everything that crash safety is built from goes through here."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import wraps

from pylayers.errors import translate_os_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ParamSpec, TypeVar

    from _typeshed import StrPath

    P = ParamSpec("P")
    R = TypeVar("R")

CHECK_HINT = "run: pylayers system check --repair"  # of a file that isn't as it was written


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


def sync_path(path: StrPath) -> None:
    """Make a file's content, or a directory's entries, durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(
    path: StrPath, content: bytes | bytearray | memoryview, *, mode: int = 0o600, durable: bool = True
) -> None:
    """Replace a file atomically: a reader sees the old content or the new, whole.

    The content is written beside it under a name that starts with a dot. durable=True also survives power loss.
    """
    write_files(((path, content),), mode=mode, durable=durable)


def write_files(
    contents: Sequence[tuple[StrPath, bytes | bytearray | memoryview]], *, mode: int = 0o600, durable: bool = True
) -> None:
    """Replace several files, each as write_file does; all are written before the first flush, which is cheaper then.

    They appear one after another: after a crash only the first may be new.
    """
    places = [os.path.split(path) for path, _ in contents]
    for again in (True, True, False):
        try:
            _write_beside(contents, places, mode, durable)
            break
        except FileNotFoundError:  # a repair in another process took one for what a dead one left
            if not again or not all(os.path.isdir(folder or ".") for folder, _ in places):
                raise
    if durable:
        for folder in dict.fromkeys(folder for folder, _ in places):
            sync_path(folder or ".")


def _write_beside(
    contents: Sequence[tuple[StrPath, bytes | bytearray | memoryview]],
    places: Sequence[tuple[str, str]],
    mode: int,
    durable: bool,
) -> None:
    made: list[tuple[str, StrPath]] = []
    descriptors: list[int] = []
    try:
        for (path, content), (folder, name) in zip(contents, places, strict=True):
            beside = os.path.join(folder, fresh_name(f".{name[:64]}"))
            made.append((beside, path))
            descriptors.append(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode))
            write_all(descriptors[-1], content)
        if durable:
            for descriptor in descriptors:
                os.fsync(descriptor)
        for beside, path in made:
            os.rename(beside, path)
    except BaseException:
        for beside, _ in made:
            remove_file(beside, durable=False)
        raise
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def read_file(path: StrPath) -> bytes:
    """Return all of a file."""
    with open(path, "rb", buffering=0) as file:
        return file.readall()


def read_text(path: StrPath) -> str:
    """Return all of a file as text; bytes that are none come as a file name's do."""
    return os.fsdecode(read_file(path))


def write_text(path: StrPath, content: str) -> None:
    """Write a note in place: for what nobody reads yet, or reads again when it is torn."""
    with open(path, "wb", buffering=0) as file:
        file.write(os.fsencode(content))


def remove_file(path: StrPath, *, durable: bool = True) -> None:
    """Remove a file if it is there; durable=True also survives power loss."""
    with suppress(FileNotFoundError):
        os.unlink(path)
    if durable and os.path.isdir(folder := os.path.dirname(path) or "."):
        sync_path(folder)


def remove_tree(path: StrPath) -> None:
    """Remove a file or a directory tree; what is gone already, or goes to another remover, is no error."""
    from pylayers._native import clear  # by what removes something, and few processes do

    try:
        clear.remove_tree(os.fsencode(path))
    except OSError as error:
        error.filename = str(path)
        raise


def allocated_bytes(path: StrPath, seen: set[tuple[int, int]] | None = None) -> int:
    """Count the disk bytes of a file or a directory tree, as du does; `seen` gets its inodes, which count once."""
    seen = set() if seen is None else seen
    try:
        found = os.lstat(path)
        if (found.st_dev, found.st_ino) in seen:
            return 0
        seen.add((found.st_dev, found.st_ino))
        total = found.st_blocks * 512
        if stat.S_ISDIR(found.st_mode):
            with os.scandir(path) as entries:
                children = [entry.path for entry in entries]
            total += sum(allocated_bytes(child, seen) for child in children)
    except FileNotFoundError:
        return 0
    return total
