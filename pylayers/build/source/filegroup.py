"""Put files that one wildcard matched together, so that their directory is walked once and not once for each."""

from __future__ import annotations

import stat
from collections.abc import Sequence

from pylayers.build.copy.destination import place_destination
from pylayers.build.source.local import LocalSource, resolve_inside


def group_files(context: LocalSource, paths: Sequence[str], destination: str) -> list[list[str]]:
    """Split paths into runs of plain files of one directory, and all others alone, in order.

    Where the destination isn't a directory by its name, each file may go to another place: none are put together.
    """
    if not place_destination(destination, "/").as_directory:
        return [[path] for path in paths]
    groups: list[list[str]] = []
    open_directory: str | None = None
    for path in paths:
        above = path.rpartition("/")[0]
        if not is_plain(context, path):
            groups.append([path])
            open_directory = None
        elif above == open_directory:
            groups[-1].append(path)
        else:
            groups.append([path])
            open_directory = above
    return groups


def is_plain(context: LocalSource, path: str) -> bool:
    """Tell whether a path is a regular file itself, not a symlink to one."""
    above, _, last = path.rpartition("/")
    try:
        return stat.S_ISREG((context.directory / resolve_inside(context.directory, above) / last).lstat().st_mode)
    except OSError:  # it vanished: opening it tells
        return False
