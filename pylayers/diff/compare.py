"""List changes as `docker diff` does."""

from __future__ import annotations

import stat
from typing import Literal, NamedTuple

from pylayers.diff.merge import find_row, subtree_end
from pylayers.store.entry import FLAG_IMPLICIT, FLAG_OPAQUE, FLAG_WHITEOUT, EntryTable, path_key

Kind = Literal["A", "C", "D"]


class PathChange(NamedTuple):
    """One line: (A)dded, (C)hanged or (D)eleted, and the path from the root without a leading slash."""

    kind: Kind
    path: bytes


def list_changes(changes: EntryTable, parent: EntryTable) -> list[PathChange]:
    """List what a layer table of changes does to the merged table of its parent, in path order.

    A deleted directory is one line; so is each child that an opaque or replaced directory hides. Directories that only
    lead to changes are C, as in docker.
    """
    lines: list[PathChange] = []
    present = {changes.path(entry) for entry in changes if not entry.flags & FLAG_WHITEOUT}
    for entry in changes:
        path = changes.path(entry)
        if entry.flags & FLAG_IMPLICIT and not entry.flags & FLAG_OPAQUE:
            continue
        row = find_row(parent, path)
        if entry.flags & FLAG_WHITEOUT:
            if row is not None:
                lines.append(PathChange("D", path))
            continue
        lines.append(PathChange("A" if row is None else "C", path))
        hides = entry.flags & FLAG_OPAQUE or not stat.S_ISDIR(entry.mode)
        if row is not None and hides and stat.S_ISDIR(entry.mode):
            lines.extend(_hidden(parent, row, present))
    return sorted(lines, key=lambda line: path_key(line.path))


def _hidden(parent: EntryTable, top: int, present: set[bytes]) -> list[PathChange]:
    """List the topmost paths below a parent's directory that the changes do not bring back."""
    lines: list[PathChange] = []
    row, end = top + 1, subtree_end(parent, top)
    while row < end:
        path = parent.path(parent.entry(row))
        if path in present:
            row += 1
        else:
            lines.append(PathChange("D", path))
            row = subtree_end(parent, row)
    return lines
