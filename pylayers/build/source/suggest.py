"""Say what a source that is not there was probably meant to be."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pylayers.dockerfile.suggest import find_nearest
from pylayers.errors import InvalidInput

if TYPE_CHECKING:
    from pylayers.build.source.local import LocalSource
    from pylayers.store.entry import EntryTable

NAMES_LIMIT = 10_000  # of one directory


def suggest_path(source: LocalSource, path: str) -> str:
    """Return the hint for a path that a context lacks: it is excluded, nearly there under another name, or neither."""
    done = ""
    for name in path.split("/"):
        here = f"{done}/{name}" if done else name
        place = source.directory / here
        if os.path.lexists(place):
            if not source.included(here, is_directory=place.is_dir()):
                return f".dockerignore excludes {here}"
            done = here
            continue
        try:
            names = os.listdir(source.directory / done)[:NAMES_LIMIT]
        except OSError:
            names = []
        known = [f"{done}/{one}" if done else one for one in names]
        nearest = nearest_path(here, [one for one in known if is_held(source, one)])
        return f"did you mean {nearest}{path[len(here) :]}?" if nearest else "paths are relative to the build context"
    if not source.holds(path):
        return f"what {path} leads to is not in the build context"
    return f".dockerignore excludes all that is in {path}"


def is_held(source: LocalSource, path: str) -> bool:
    """Tell whether a context has a path; one that leads in circles is nothing that could be meant."""
    try:
        return source.holds(path)
    except InvalidInput:
        return False


def suggest_entry(table: EntryTable, path: str) -> str | None:
    """Return the hint for a path that an image lacks, or None."""
    above = path.rpartition("/")[0]
    depth = path.count("/")
    known = []
    for entry in table:
        one = table.path(entry).decode(errors="surrogateescape")
        if one.count("/") == depth and one.rpartition("/")[0] == above and one:
            known.append(one)
            if len(known) > NAMES_LIMIT:
                break
    nearest = nearest_path(path, known)
    return f"did you mean /{nearest}?" if nearest else None


def nearest_path(path: str, known: Iterable[str]) -> str | None:
    """Return the path whose last component is nearest, or None."""
    names = {one.rsplit("/", 1)[-1]: one for one in known}
    nearest = find_nearest(path.rsplit("/", 1)[-1], names, fold_case=True)
    return None if nearest is None else names[nearest]
