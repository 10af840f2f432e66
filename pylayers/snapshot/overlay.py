"""overlay (v1): one lower only; every committed snapshot is a full tree whose unchanged files are hard links.

An active snapshot with a parent has `upper`, `work`, `merged` and `lower-id`, which names the snapshot below; it is
mounted over that one's `root`. One without a parent, and every committed one, has `root`. A commit links the parent's
tree and what the upper changed into a new `root` first, and then takes the one step that counts. Nothing writes to a
committed tree, and what shows it is an overlay or read-only, so files that are shared are never changed in place.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pylayers._native import walk
from pylayers.diff.overlaymark import OVERLAY_PREFIXES
from pylayers.diff.whiteout import convert_upper
from pylayers.snapshot.catalog import CHILDREN, Record
from pylayers.snapshot.default import DefaultSnapshotter, translated
from pylayers.snapshot.lower import Found, LowerStack, copy_metadata
from pylayers.snapshot.overlaytrial import try_overlay
from pylayers.snapshot.snapshotter import Changes, Mount, Probe, SnapshotKind, Usage
from pylayers.snapshot.stack import StackSnapshotter, overlay_options
from pylayers.store.entry import FLAG_OPAQUE, FLAG_WHITEOUT, EntryTable
from pylayers.store.file import remove_tree, write_text
from pylayers.store.mountpoint import is_mounted_from
from pylayers.store.row import Entry

ROOT = "root"


class Driver(StackSnapshotter):
    """Keep committed snapshots as hard-linked trees. Needs an overlayfs that may use this root as its upper."""

    name = "overlay"
    writable = ("upper", "work")

    def __init__(self, root: Path) -> None:
        """Open the driver's directory, making it when needed, and drop what a crash left half-made."""
        DefaultSnapshotter.__init__(self, root)
        self._sweep_limits()
        self._options = overlay_options()

    # -- hooks -------------------------------------------------------------------------------------------------

    def _make(self, directory: str, record: Record, parent: Record | None) -> None:
        if parent is None:
            make_directory(f"{directory}/{ROOT}")
            return
        write_text(f"{directory}/lower-id", parent.id)
        if record.kind == SnapshotKind.VIEW:
            return
        make_directory(f"{directory}/upper")
        for name in ("work", "merged"):
            os.mkdir(f"{directory}/{name}", 0o700)
        top = os.fsencode(f"{self.catalog.directory(parent)}/{ROOT}")
        copy_metadata(top, os.stat(top), os.fsencode(f"{directory}/upper"))

    _flush = DefaultSnapshotter._flush  # stack's looks into `diff`

    def _seal(self, directory: str) -> None:
        for unneeded in ("upper", "work", "merged"):
            if os.path.exists(f"{directory}/{unneeded}"):
                remove_tree(f"{directory}/{unneeded}")

    def _content(self, record: Record) -> str:
        directory = self.catalog.directory(record)
        if record.kind == SnapshotKind.COMMITTED or record.parent_id is None:
            return f"{directory}/{ROOT}"
        return f"{directory}/{'upper' if record.kind == SnapshotKind.ACTIVE else CHILDREN}"

    def _mounts(self, record: Record) -> list[Mount]:
        directory = self.catalog.directory(record)
        view = record.kind == SnapshotKind.VIEW
        if record.parent_id is None:
            return [Mount("bind", source=f"{directory}/{ROOT}", readonly=view)]
        below = f"{self.root}/{record.parent_id}/{ROOT}"
        if view:
            return [Mount("bind", source=below, readonly=True)]
        upper, work = f"{directory}/upper", f"{directory}/work"
        return [Mount("overlay", lowers=(below,), upper=upper, work=work, options=self._options)]

    # -- the protocol ------------------------------------------------------------------------------------------

    def usage(self, key: str) -> Usage:
        """Count a snapshot's files but those that it shares with its parent. Walks both. Raises NotFound."""
        record = self.catalog.get(key)
        if record.kind != SnapshotKind.COMMITTED or record.parent_id is None:
            return super().usage(key)
        with translated(f"count the usage of snapshot {key!r}"):
            shared = set(count_names(f"{self.root}/{record.parent_id}/{ROOT}"))
            size_bytes, inodes = 0, 0
            for found in walk_stats(self._content(record)):
                if found.st_ino not in shared:
                    size_bytes += found.st_blocks * 512
                    inodes += 1
                    shared.add(found.st_ino)
            return Usage(size_bytes, inodes)

    def commit(self, name: str, key: str) -> None:
        """Link a whole tree together and commit it. Costs one link a file. Raises Conflict while it is mounted."""
        record = self._active(key)
        if record.parent_id is None:
            super().commit(name, key)
            return
        with translated(f"commit snapshot {key!r}"):
            directory = self.catalog.directory(record)
            if is_mounted_from(record.id):
                self._refuse(record)
            flat = f"{directory}/flat-{os.urandom(8).hex()}"
            try:
                link_tree(f"{self.root}/{record.parent_id}/{ROOT}", flat)
                lay_over(f"{directory}/upper", flat)
                self._flush(directory)

                def ready(place: str, found: Record) -> None:
                    self._refuse_mounted(place, found)
                    if os.path.exists(f"{place}/{ROOT}"):  # of a commit that was killed
                        remove_tree(f"{place}/{ROOT}")
                    os.rename(flat, f"{place}/{ROOT}")

                self.catalog.commit(name, key, ready, self._seal)
            finally:
                if os.path.exists(flat):
                    remove_tree(flat)

    def changes(self, key: str) -> Changes:
        """Return a snapshot's changes: by walking its upper, or its tree and its parent's once it is committed."""
        if self.catalog.get(key).kind == SnapshotKind.COMMITTED:
            return DefaultSnapshotter.changes(self, key)
        return super().changes(key)

    # -- inside ------------------------------------------------------------------------------------------------

    def _lowers(self, record: Record) -> list[str]:
        return [] if record.parent_id is None else [f"{self.root}/{record.parent_id}/{ROOT}"]

    @contextmanager
    def _below(self, record: Record) -> Iterator[LowerStack]:
        yield LinkedStack(self._lowers(record))


class LinkedStack(LowerStack):
    """Show a tree whose files have names in other trees too: those are no links of its own."""

    _names: Counter[int] | None = None

    def count_links(self, found: Found) -> int:
        """Count a file's names inside the tree."""
        if self._names is None:
            self._names = count_names(os.fsdecode(self.layers[0]))
        return self._names[found.stat.st_ino]


def make_directory(path: str) -> None:
    """Make a directory, 0755 whatever the umask."""
    os.mkdir(path)
    os.chmod(path, 0o755)  # noqa: S103


def walk_stats(top: str) -> Iterator[os.stat_result]:
    """Yield the stat of everything in a tree, its top first."""
    yield os.lstat(top)
    pending = [top]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                found = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    pending.append(entry.path)
                yield found


def count_names(top: str) -> Counter[int]:
    """Count the names of every inode in a tree that isn't a directory."""
    return Counter(found.st_ino for found in walk_stats(top) if not stat.S_ISDIR(found.st_mode))


def link_tree(source: str, target: str) -> None:
    """Make a tree of new directories and hard links; directories keep their metadata."""
    directories: list[tuple[bytes, bytes]] = []
    pending = [(os.fsencode(source), os.fsencode(target))]
    while pending:
        old, new = pending.pop()
        os.mkdir(new, 0o700)
        directories.append((old, new))
        with os.scandir(old) as entries:
            for entry in entries:
                place = new + b"/" + entry.name
                if entry.is_dir(follow_symlinks=False):
                    pending.append((entry.path, place))
                else:
                    os.link(entry.path, place, follow_symlinks=False)
    for old, new in reversed(directories):
        copy_metadata(old, os.stat(old), new)


def lay_over(upper: str, tree: str) -> None:
    """Apply an overlay's upper to a tree of links: whiteouts delete, files are linked, directories get its metadata."""
    descriptor = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        records, heap = walk.walk(descriptor, xattrs=True)
    finally:
        os.close(descriptor)
    convert_upper(records, heap)
    table = EntryTable(records, heap)
    directories: list[tuple[bytes, bytes]] = []
    for entry in table:
        path = table.path(entry)
        old, new = os.fsencode(upper) + b"/" + path, os.fsencode(tree) + b"/" + path
        if path:
            clear_place(entry, new)
        if entry.flags & FLAG_WHITEOUT:
            continue
        if stat.S_ISDIR(entry.mode):
            if path and not os.path.lexists(new):
                os.mkdir(new, 0o700)
            directories.append((old, new))
        else:
            for name in os.listxattr(old, follow_symlinks=False):
                if os.fsencode(name).startswith(OVERLAY_PREFIXES):
                    os.removexattr(old, name, follow_symlinks=False)
            os.link(old, new, follow_symlinks=False)
    for old, new in reversed(directories):
        for name in os.listxattr(new):
            if not name.startswith("system."):
                os.removexattr(new, name)
        copy_metadata(old, os.stat(old), new)


def clear_place(entry: Entry, place: bytes) -> None:
    """Remove what a row of an upper replaces or deletes; a directory stays where one merges with it."""
    try:
        found = os.lstat(place)
    except FileNotFoundError:
        return
    merges = stat.S_ISDIR(found.st_mode) and stat.S_ISDIR(entry.mode) and not entry.flags & FLAG_WHITEOUT
    if merges and not entry.flags & FLAG_OPAQUE:
        return
    if stat.S_ISDIR(found.st_mode):
        remove_tree(os.fsdecode(place))
    else:
        os.unlink(place)


def probe(directory: Path) -> Probe:
    """Mount an overlay inside a directory, change it, and link a file; nothing is left behind."""
    return try_overlay(directory, linking=True)
