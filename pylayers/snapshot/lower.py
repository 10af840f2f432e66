"""Look paths up in a stack of overlay layers without mounting it, by overlayfs's own rules."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from pylayers.diff.overlaymark import OPAQUE_NAMES, OVERLAY_PREFIXES, is_whiteout
from pylayers.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _typeshed import StrPath


@record
class Found:
    """What the stack shows at a path: the uppermost file (or directory) and every directory that merges into it."""

    path: bytes
    stat: os.stat_result
    directories: tuple[bytes, ...]


class LowerStack:
    """Show committed layer directories, topmost first, as the overlay over them would.

    The layers are no symlinks. They never change while they are parents, so directories are remembered. One lstat per
    layer and path.
    """

    def __init__(self, layers: Sequence[StrPath]) -> None:
        self.layers = tuple(os.fsencode(layer) for layer in layers)
        self._directories: dict[bytes, Found | None] = {}

    def find(self, path: bytes) -> Found | None:
        """Look up a relative path (the root is empty); None where the stack shows nothing. Symlinks aren't followed."""
        if path in self._directories:
            return self._directories[path]
        if not path:
            places: Sequence[bytes] = self.layers
        else:
            above = self.find(path.rpartition(b"/")[0])
            if above is None:
                return None
            name = path.rpartition(b"/")[2]
            places = [directory + b"/" + name for directory in above.directories]
        found = self._merge(places)
        if found is None or found.directories:
            self._directories[path] = found
        return found

    def count_links(self, found: Found) -> int:
        """Count the names of a file that was found."""
        return found.stat.st_nlink

    @staticmethod
    def _merge(places: Sequence[bytes]) -> Found | None:
        first: tuple[bytes, os.stat_result] | None = None
        directories: list[bytes] = []
        for place in places:
            try:
                seen = os.lstat(place)
            except FileNotFoundError:
                continue
            if is_whiteout(seen.st_mode, os.major(seen.st_rdev), os.minor(seen.st_rdev)):
                break
            if first is None:
                first = (place, seen)
            if not stat.S_ISDIR(seen.st_mode):
                break
            directories.append(place)
            if is_opaque(place):
                break
        return None if first is None else Found(*first, tuple(directories))


def read_xattrs(path: bytes) -> dict[bytes, bytes]:
    """Read the extended attributes that a user of the overlay sees: all but overlayfs's own."""
    try:
        names = [os.fsencode(name) for name in os.listxattr(path, follow_symlinks=False)]
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return {}
        raise
    own = (name for name in names if not name.startswith(OVERLAY_PREFIXES))
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in own}


def copy_metadata(source: bytes, seen: os.stat_result, target: bytes) -> None:
    """Give a directory the owner, mode, extended attributes and times of another."""
    os.chown(target, seen.st_uid, seen.st_gid)
    os.chmod(target, stat.S_IMODE(seen.st_mode))
    for name, value in read_xattrs(source).items():
        os.setxattr(target, name, value)
    os.utime(target, ns=(seen.st_mtime_ns, seen.st_mtime_ns))


def is_opaque(directory: bytes) -> bool:
    """Tell whether a directory is marked to hide those below."""
    for name in OPAQUE_NAMES:
        try:
            if os.getxattr(directory, name, follow_symlinks=False) == b"y":
                return True
        except OSError:
            continue
    return False
