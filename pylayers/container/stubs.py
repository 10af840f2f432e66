"""Undo the mount points that a run makes in its root file system, so that a step that changes nothing leaves nothing.

A runtime creates what is missing at every mount's target (/proc, /dev, /etc/resolv.conf, ...). On an overlay that also
copies the parent directories up. `Stubs` remembers what was there before, and afterwards removes what is still empty,
puts the parents' times back, and drops the parents' untouched copies from the upper directory.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from pylayers.record import record
from pylayers.volume.rootpath import Location, locate


@record
class _Directory:
    """Hold what an existing parent was like before the run."""

    names: frozenset[str]
    mode: int
    uid: int
    gid: int
    times_ns: tuple[int, int]
    xattrs: dict[str, bytes]
    in_upper: bool


class Stubs:
    """Remember the state of the mount targets; call `remove` while still mounted, `prune_upper` after unmounting."""

    def __init__(self, root: Path, targets: Iterable[str], upper: Path | None) -> None:
        """Look at the targets. upper is the overlay's upper directory, or None. Raises OSError."""
        self.root = root
        self.upper = upper
        self._missing: set[tuple[str, ...]] = set()
        self._parents: dict[tuple[str, ...], _Directory] = {}
        root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for target in targets:
                self._remember(locate(root_fd, target))
        finally:
            os.close(root_fd)

    def _remember(self, place: Location) -> None:
        if not place.missing:
            return
        for length in range(1, len(place.missing) + 1):
            self._missing.add(place.existing + place.missing[:length])
        for length in range(len(place.existing) + 1):
            parent = place.existing[:length]
            if parent not in self._parents:
                self._parents[parent] = self._look(parent)

    def _look(self, parent: tuple[str, ...]) -> _Directory:
        path = self.root.joinpath(*parent)
        status = path.lstat()
        return _Directory(
            # The names matter only where something is put in; elsewhere the upper's copy being empty tells enough.
            names=frozenset(os.listdir(path)),
            mode=status.st_mode,
            uid=status.st_uid,
            gid=status.st_gid,
            times_ns=(status.st_atime_ns, status.st_mtime_ns),
            xattrs=_xattrs(path),
            in_upper=self.upper is not None and os.path.lexists(self.upper.joinpath(*parent)),
        )

    def remove(self) -> None:
        """Remove the stubs that are still empty and put back the times of parents whose names are as before."""
        for place in sorted(self._missing, key=len, reverse=True):
            path = self.root.joinpath(*place)
            try:
                status = path.lstat()
            except (FileNotFoundError, NotADirectoryError):
                continue
            if stat.S_ISDIR(status.st_mode):
                with contextlib.suppress(OSError):  # not empty: the step put something there, so it stays
                    path.rmdir()
            elif stat.S_ISREG(status.st_mode) and status.st_size == 0:
                path.unlink()
        for parent, before in self._parents.items():
            path = self.root.joinpath(*parent)
            if self._same(path, before):
                os.utime(path, ns=before.times_ns, follow_symlinks=False)

    def _same(self, path: Path, before: _Directory) -> bool:
        try:
            status = path.lstat()
            return (
                (status.st_mode, status.st_uid, status.st_gid) == (before.mode, before.uid, before.gid)
                and frozenset(os.listdir(path)) == before.names
                and _xattrs(path) == before.xattrs
            )
        except (FileNotFoundError, NotADirectoryError):
            return False

    def prune_upper(self) -> None:
        """Remove parents that were copied into the upper directory for a stub alone; call after unmounting."""
        if self.upper is None:
            return
        for parent in sorted(self._parents, key=len, reverse=True):
            before = self._parents[parent]
            path = self.upper.joinpath(*parent)
            if not parent or before.in_upper or not path.is_dir() or path.is_symlink():
                continue
            status = path.lstat()
            if (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns) != (
                before.mode,
                before.uid,
                before.gid,
                before.times_ns[1],
            ):
                continue
            above = path.parent.lstat()
            with contextlib.suppress(OSError):  # not empty: the step changed something below it
                path.rmdir()
                os.utime(path.parent, ns=(above.st_atime_ns, above.st_mtime_ns))


def _xattrs(path: Path) -> dict[str, bytes]:
    found = {}
    for name in os.listxattr(path, follow_symlinks=False):
        if not name.startswith("trusted.overlay."):
            found[name] = os.getxattr(path, name, follow_symlinks=False)
    return found
