"""Look paths up in what lies below an erofs snapshot by the layers' tables; only what has to be read is mounted.

By the same rules as lower.LowerStack, which needs every image mounted: a layer that names no directories has each of
its own looked up, and most of a hundred layers below show nothing at such a path.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from enum import Enum
from pathlib import Path

from pylayers._native import tardiff
from pylayers.diff.overlaymark import is_whiteout
from pylayers.record import record
from pylayers.snapshot.imagemount import open_image
from pylayers.snapshot.layerplace import INDEX, Head, Lower
from pylayers.snapshot.lower import is_opaque, read_xattrs
from pylayers.store.entry import FLAG_OPAQUE, FLAG_WHITEOUT, EntryTable
from pylayers.store.index import open_index


class _Kind(Enum):
    """Say what one lower has at a path."""

    HIDDEN = "a whiteout"
    FILE = "anything that merges with nothing"
    DIRECTORY = "a directory"
    OPAQUE = "a directory that hides those below"


@record
class Sight:
    """Tell what the stack shows at a path: the number of the uppermost lower that has it, and of those that merge."""

    uppermost: int
    directories: tuple[int, ...]


class TableStack:
    """Show lowers, topmost first, as the overlay over them would. They never change, so directories are remembered.

    Tables are read as far as a look-up goes down; a merged image is mounted when one reaches it, any other when it is
    read from. close() ends the mounts.
    """

    def __init__(self, heads: Sequence[Head], find_lower: Callable[[Head], Lower]) -> None:
        self._heads = heads
        self._find_lower = find_lower
        self._tables: dict[int, EntryTable] = {}
        self._tops: dict[int, bytes] = {}
        self._mounts = ExitStack()
        self._directories: dict[bytes, Sight | None] = {}

    def find(self, path: bytes) -> Sight | None:
        """Look up a relative path (the root is empty); None where the stack shows nothing. Symlinks aren't followed."""
        if path in self._directories:
            return self._directories[path]
        numbers: Sequence[int] = range(len(self._heads))
        if path:
            above = self.find(path.rpartition(b"/")[0])
            if above is None:
                return None
            numbers = above.directories
        found = self._merge(numbers, path)
        if found is None or found.directories:
            self._directories[path] = found
        return found

    def read(self, path: bytes, sight: Sight) -> tuple[os.stat_result, dict[bytes, bytes]]:
        """Read the metadata that the stack shows at a path that was found."""
        place = self._top(sight.uppermost) + b"/" + path
        return os.lstat(place), read_xattrs(place)

    def close(self) -> None:
        """End the mounts."""
        self._mounts.close()

    def _merge(self, numbers: Sequence[int], path: bytes) -> Sight | None:
        uppermost = -1
        directories: list[int] = []
        for number in numbers:
            kind = self._look(number, path)
            if kind is None:
                continue
            if kind is _Kind.HIDDEN:
                break
            if uppermost < 0:
                uppermost = number
            if kind is _Kind.FILE:
                break
            directories.append(number)
            if kind is _Kind.OPAQUE:
                break
        return None if uppermost < 0 else Sight(uppermost, tuple(directories))

    def _look(self, number: int, path: bytes) -> _Kind | None:
        head = self._heads[number]
        if head.count > 1 and not path:
            return _Kind.DIRECTORY  # and the last one: a merged image has no marks
        return self._look_up(number, path) if head.count == 1 else _look_at(self._top(number) + b"/" + path)

    def _look_up(self, number: int, path: bytes) -> _Kind | None:
        """Look in a layer's table. It shows what its image does but for marks that hide nothing."""
        table = self._tables.get(number)
        if table is None:
            table = self._tables[number] = open_index(Path(self._heads[number].place, INDEX)).table
        row = tardiff.find(table.records, table.heap, path)
        if row < 0:
            return None
        entry = table.entry(row)
        if entry.flags & FLAG_WHITEOUT or is_whiteout(entry.mode, entry.rdev_major, entry.rdev_minor):
            return _Kind.HIDDEN
        if not stat.S_ISDIR(entry.mode):
            return _Kind.FILE
        return _Kind.OPAQUE if entry.flags & FLAG_OPAQUE else _Kind.DIRECTORY

    def _top(self, number: int) -> bytes:
        """Name the directory that a lower is, mounted where it is an image."""
        top = self._tops.get(number)
        if top is None:
            lower = self._find_lower(self._heads[number])
            top = os.fsencode(lower.path)
            if lower.devices:
                descriptor = open_image(lower.path, lower.devices)
                self._mounts.callback(os.close, descriptor)
                top = b"/proc/self/fd/%d/." % descriptor  # the name itself is a symlink
            self._tops[number] = top
        return top


def _look_at(place: bytes) -> _Kind | None:
    """Look in a file system."""
    try:
        seen = os.lstat(place)
    except FileNotFoundError:
        return None
    if is_whiteout(seen.st_mode, os.major(seen.st_rdev), os.minor(seen.st_rdev)):
        return _Kind.HIDDEN
    if not stat.S_ISDIR(seen.st_mode):
        return _Kind.FILE
    return _Kind.OPAQUE if is_opaque(place) else _Kind.DIRECTORY
