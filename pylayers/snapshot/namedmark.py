"""Marks by name, as aufs and programs without the right to make devices keep them in a layer's directory.

`.wh.NAME` hides NAME below, `.wh..wh..opq` in a directory hides all that is below it. overlayfs's own marks are
character devices and extended attributes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import suppress

from pylayers.diff.overlaymark import is_whiteout
from pylayers.snapshot.lower import Found, LowerStack
from pylayers.store.entry import ENTRY_STRUCT, FLAG_OPAQUE, FLAG_WHITEOUT, EntryTable, path_key
from pylayers.store.row import Entry

PREFIX = b".wh."
OPAQUE = b".wh..wh..opq"
OPAQUE_NAMES = (OPAQUE, b".wh..opq")  # the second is fuse-overlayfs's
OWN_PREFIX = b".wh..wh."  # a file system's own things, as aufs's .wh..wh.orph, .wh..wh.plnk and .wh..wh.aufs
OVERLAY_OPAQUE = b"trusted.overlay.opaque"


class NamedStack(LowerStack):
    """Show layer directories whose marks are names, topmost first, as aufs would."""

    @staticmethod
    def _merge(places: Sequence[bytes]) -> Found | None:
        first: tuple[bytes, os.stat_result] | None = None
        directories: list[bytes] = []
        for place in places:
            above, _, name = place.rpartition(b"/")
            if name.startswith(PREFIX):
                return None
            try:
                seen = os.lstat(place)
            except FileNotFoundError:
                if os.path.lexists(above + b"/" + PREFIX + name):
                    break
                continue
            if first is None:
                first = (place, seen)
            if not stat.S_ISDIR(seen.st_mode):
                break
            directories.append(place)
            if os.path.lexists(place + b"/" + OPAQUE) or os.path.lexists(above + b"/" + PREFIX + name):
                break
        return None if first is None else Found(*first, tuple(directories))


def convert_names(records: bytearray, heap: bytearray) -> bytearray:
    """Turn entries that are marks by their names into WHITEOUT rows and OPAQUE directories; heap grows."""
    if PREFIX not in heap:
        return records
    rows: dict[bytes, Entry] = {}
    opaque: list[bytes] = []
    hidden: list[bytes] = []
    table = EntryTable(bytes(records), bytes(heap))
    for entry in table:
        path = table.path(entry)
        above, slash, name = path.rpartition(b"/")
        if name in OPAQUE_NAMES:
            opaque.append(above)
        elif any(part.startswith(OWN_PREFIX) for part in path.split(b"/")):
            continue
        elif name.startswith(PREFIX):
            hidden.append(above + slash + name[len(PREFIX) :])
        else:
            rows[path] = entry
    for path in hidden:
        if path in rows:  # made anew after it was hidden: nothing from below shows through
            opaque.append(path)
            continue
        rows[path] = Entry(
            path_offset=len(heap), path_length=len(path), mode=stat.S_IFCHR, nlink=1, flags=FLAG_WHITEOUT
        )
        heap += path
    for path in opaque:
        if path in rows and stat.S_ISDIR(rows[path].mode):
            rows[path] = rows[path]._replace(flags=rows[path].flags | FLAG_OPAQUE)
    return bytearray().join(ENTRY_STRUCT.pack(*rows[path]) for path in sorted(rows, key=path_key))


def spell_names(top: bytes) -> None:
    """Replace overlayfs's marks in a directory tree by names; may be killed and done again. Raises OSError."""
    for directory, _, files in os.walk(top):
        kept = os.lstat(directory)
        if has_overlay_mark(directory):
            _make_mark(directory + b"/" + OPAQUE)
            os.removexattr(directory, OVERLAY_OPAQUE)
        for name in files:
            path = directory + b"/" + name
            seen = os.lstat(path)
            if is_whiteout(seen.st_mode, os.major(seen.st_rdev), os.minor(seen.st_rdev)):
                _make_mark(directory + b"/" + PREFIX + name)
                os.unlink(path)
        os.utime(directory, ns=(kept.st_atime_ns, kept.st_mtime_ns))


def spell_overlay(top: bytes) -> None:
    """Replace marks by name in a directory tree by overlayfs's, so that a layer can be unpacked over them.

    Each new mark is made before the old one goes: killed at any moment, spell_names puts all of them back.
    """
    for directory, names, files in os.walk(top):
        kept = os.lstat(directory)
        for name in files:
            if name == OPAQUE:
                os.setxattr(directory, OVERLAY_OPAQUE, b"y")
                os.unlink(directory + b"/" + name)
            elif name.startswith(PREFIX) and not name.startswith(OWN_PREFIX):
                hidden = directory + b"/" + name[len(PREFIX) :]
                if name[len(PREFIX) :] in names:
                    os.setxattr(hidden, OVERLAY_OPAQUE, b"y")
                elif not os.path.lexists(hidden):
                    os.mknod(hidden, stat.S_IFCHR, os.makedev(0, 0))
                os.unlink(directory + b"/" + name)
        os.utime(directory, ns=(kept.st_atime_ns, kept.st_mtime_ns))


def has_overlay_mark(directory: bytes) -> bool:
    """Tell whether a directory is opaque by overlayfs's attribute."""
    with suppress(OSError):
        return os.getxattr(directory, OVERLAY_OPAQUE, follow_symlinks=False) == b"y"
    return False


def _make_mark(path: bytes) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o444))
