"""What every driver shares: the Snapshotter methods over a Catalog, with `apply` and `changes` derived.

A driver gives `_make`, `_mounts` and `_content`; `apply` and `changes` then work by mounting and walking, and a driver
that knows a shorter way overrides them. What only these two need, the kernels above all, is imported in them: a
container's start does without.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pylayers.errors import Conflict, InvalidInput, NotFound, PylayersError, Unsupported, translate_os_error
from pylayers.snapshot.catalog import Catalog, Record
from pylayers.snapshot.mount import flush, is_mounted_from, mount, unmount
from pylayers.snapshot.snapshotter import Changes, Mount, SnapshotKind, SnapshotStat, Usage
from pylayers.store.entry import FLAG_HARDLINK, FLAG_HASHED, EntryTable, TableBuilder
from pylayers.store.layer import Layer
from pylayers.store.row import Entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CHANGE_STRUCT = struct.Struct("<III")
CHANGE_DELETE = 2
SECOND_NS = 1_000_000_000


class DefaultSnapshotter:
    """Implement the Snapshotter protocol over three hooks; the base of the drivers, not one itself."""

    name = ""
    reserved_prefix = b""

    def __init__(self, root: Path) -> None:
        """Open the driver's directory, making it when needed, and drop what a crash left half-made."""
        self.root = Path(os.path.abspath(root))
        self.catalog = Catalog(self.root, self._discard)

    # -- hooks -------------------------------------------------------------------------------------------------

    def _make(self, directory: Path, record: Record, parent: Record | None) -> None:
        """Fill a new snapshot's directory, which is hidden and will be renamed to its id."""
        raise NotImplementedError

    def _mounts(self, record: Record) -> list[Mount]:
        """Describe the mounts of an active snapshot or view."""
        raise NotImplementedError

    def _content(self, record: Record) -> Path:
        """Name the directory that holds a snapshot's own files."""
        raise NotImplementedError

    def _discard(self, directory: Path) -> None:
        """End what belongs to a snapshot outside its directory, which is about to be deleted."""

    def _flush(self, directory: Path) -> None:
        """Write an active snapshot's files to the disk, before a record says for good that they are there."""
        flush(directory)

    def _seal(self, directory: Path) -> None:
        """Drop what only an active snapshot needs, after its commit."""

    def _untouched_before_ns(self, record: Record) -> int:
        """Give the time before which a file's ctime proves it equal to the parent's; 0: ctime proves nothing."""
        return 0

    # -- the protocol ------------------------------------------------------------------------------------------

    def stat(self, key: str) -> SnapshotStat:
        """Describe a snapshot. Raises NotFound."""
        return self.catalog.get(key).stat()

    def usage(self, key: str) -> Usage:
        """Count the disk bytes and inodes of a snapshot's own files, hard links once. Walks them. Raises NotFound."""
        record = self.catalog.get(key)
        with translated(f"count the usage of snapshot {key!r}"):
            from pylayers.snapshot.changeset import disk_usage

            return Usage(*disk_usage(self._content(record)))

    def mounts(self, key: str) -> list[Mount]:
        """Return the mounts of an active snapshot or view. Raises NotFound; InvalidInput for a committed one."""
        record = self.catalog.get(key)
        if record.kind is SnapshotKind.COMMITTED:
            raise InvalidInput(f"snapshot {key!r} is committed; make a view of it to mount it")
        return self._mounts(record)

    def prepare(self, key: str, parent: str | None, *, lasting: bool = True) -> list[Mount]:
        """Make an active snapshot over a committed parent (None: empty)."""
        return self._create(key, SnapshotKind.ACTIVE, parent, lasting)

    def view(self, key: str, parent: str | None) -> list[Mount]:
        """Make a read-only snapshot that can be mounted but not committed; a power cut may take it."""
        return self._create(key, SnapshotKind.VIEW, parent, False)

    def commit(self, name: str, key: str) -> None:
        """Turn active snapshot key into committed snapshot name. Raises Conflict while it is mounted."""
        with translated(f"commit snapshot {key!r}"):
            self._flush(self.catalog.directory(self._active(key)))
            self.catalog.commit(name, key, self._refuse_mounted, self._seal)

    def adopt(self, name: str, key: str, layer: Layer) -> None:
        """Commit active snapshot key, whose changes are stored as a layer, under a name."""
        self.commit(name, key)

    def remove(self, key: str) -> None:
        """Remove a snapshot. Raises NotFound; Conflict while another has it as its parent, or while it is mounted."""
        with translated(f"remove snapshot {key!r}"):
            self.catalog.remove(key, self._refuse_mounted)

    def walk(self) -> Iterator[SnapshotStat]:
        """Yield every snapshot as of one moment, parents before children."""
        for record in self.catalog.walk():
            yield record.stat()

    def apply(self, key: str, layer: Layer) -> None:
        """Unpack a layer into an active snapshot by mounting it; whiteouts delete."""
        from pylayers.diff.apply import apply_layer

        record = self._active(key)
        with translated(f"apply layer {layer.diff_id} to snapshot {key!r}"):
            descriptor = self._open_tree(record)
            try:
                apply_layer(descriptor, layer)
            finally:
                os.close(descriptor)

    def changes(self, key: str) -> Changes:
        """Return the changes of an active or committed snapshot, by walking it and its parent.

        A file is unchanged when type, mode, owner, device, xattrs, links, size and mtime (ns) are the parent's and so
        is its content; `hash_undecided` tells whose content is read.
        """
        record = self._changeable(key)
        with translated(f"find the changes of snapshot {key!r}"):
            new_fd = self._open_tree(record)
            old_fd = -1
            try:
                old_fd = -1 if record.parent is None else self._open_parent_tree(record.parent)
                return self._compare(old_fd, new_fd, self._untouched_before_ns(record))
            except BaseException:
                os.close(new_fd)
                raise
            finally:
                if old_fd >= 0:
                    os.close(old_fd)

    def limit(self, key: str, size_bytes: int) -> None:
        """Limit a snapshot's size: only where a driver knows how. Raises Unsupported."""
        self._active(key)
        raise Unsupported(
            f"storage driver {self.name} cannot limit a container's size to {size_bytes} bytes",
            hint="use btrfs, zfs, devicemapper, or overlay2 on an xfs mounted with pquota",
        )

    def sweep(self) -> None:
        """Remove what killed processes were unpacking. What is still mounted is left to a later one."""
        for name in self.catalog.stale():
            try:
                self.remove(name)
            except NotFound:
                continue  # another process was faster
            except PylayersError as error:
                import logging

                logging.getLogger("pylayers.snapshot").warning("could not remove leftover %s: %s", name, error)

    def close(self) -> None:
        """Release descriptors. Mounts made by callers are theirs."""
        self.catalog.close()

    # -- inside ------------------------------------------------------------------------------------------------

    def _create(self, key: str, kind: SnapshotKind, parent: str | None, lasting: bool) -> list[Mount]:
        with translated(f"prepare snapshot {key!r}"):

            def make(directory: Path, record: Record, above: Record | None) -> None:
                self._make(directory, record, above)
                if lasting:
                    self._flush(directory)

            return self._mounts(self.catalog.create(key, kind, parent, make, lasting=lasting))

    def _active(self, key: str) -> Record:
        record = self.catalog.get(key)
        if record.kind is not SnapshotKind.ACTIVE:
            raise InvalidInput(f"snapshot {key!r} is {record.kind.value} and cannot be changed")
        return record

    def _changeable(self, key: str) -> Record:
        record = self.catalog.get(key)
        if record.kind is SnapshotKind.VIEW:
            raise InvalidInput(f"snapshot {key!r} is a view and has no changes of its own")
        return record

    def _refuse_mounted(self, _directory: Path, record: Record) -> None:
        if is_mounted_from(record.id):
            self._refuse(record)

    def _refuse(self, record: Record) -> None:
        raise Conflict(f"snapshot {record.name!r} is mounted", hint="stop what uses it, or unmount it first")

    def _open_tree(self, record: Record) -> int:
        """Open the top of a snapshot's whole tree; the descriptor keeps its (detached) mount alive until closed."""
        if record.kind is not SnapshotKind.COMMITTED:
            return open_mounted(self._mounts(record))
        return self._open_view(record.name)

    def _open_parent_tree(self, parent: str) -> int:
        """Open the top of a committed parent's whole tree."""
        return self._open_view(parent)

    def _open_view(self, parent: str) -> int:
        key = f"{parent}.walk.{os.urandom(8).hex()}"
        mounts = self.view(key, parent)
        try:
            return open_mounted(mounts)
        finally:
            self.remove(key)

    def _compare(self, old_fd: int, new_fd: int, untouched_before_ns: int) -> Changes:
        from pylayers._native import tardiff, walk
        from pylayers.snapshot.changeset import pack_changes

        old = EntryTable(*walk.walk(old_fd, xattrs=True)) if old_fd >= 0 else empty_tree()
        new_records, new_heap = walk.walk(new_fd, xattrs=True)
        new = EntryTable(new_records, new_heap)
        hash_undecided(old_fd, old, new_fd, new, untouched_before_ns)
        keep = bytearray(len(new))
        deleted: list[bytes] = []
        for kind, old_row, new_row in CHANGE_STRUCT.iter_unpack(
            tardiff.diff(old.records, old.heap, new_records, new_heap, True)
        ):
            if kind == CHANGE_DELETE:
                deleted.append(old.path(old.entry(old_row)))
            else:
                keep[new_row] = 1
        _drop_hashes(new_records)
        return pack_changes(
            new_records, new_heap, keep, deleted, root_changed=_root_differs(old, new), descriptor=new_fd
        )


def hash_undecided(old_fd: int, old: EntryTable, new_fd: int, new: EntryTable, untouched_before_ns: int) -> None:
    """Hash both sides of the regular files whose metadata is equal without proving equal content.

    That is a file with the old size, mtime, mode and owner, whose ctime is not before untouched_before_ns; when that
    is 0, one with a mtime of whole seconds (as tars give), since any write that sets no time leaves a finer one.
    """
    from pylayers._native import tardiff

    array = new.array
    undecided = ((array["mode"] & 0o170000) == stat.S_IFREG) & (array["size_bytes"] > 0)
    undecided &= (array["flags"] & FLAG_HARDLINK) == 0
    if untouched_before_ns:
        undecided &= array["ctime_ns"] >= untouched_before_ns
    else:
        undecided &= array["mtime_ns"] % SECOND_NS == 0
    pairs: list[tuple[int, int]] = []
    for row in undecided.nonzero()[0].tolist():
        entry = new.entry(row)
        old_row = tardiff.find(old.records, old.heap, new.path(entry))
        if old_row < 0:
            continue
        before = old.entry(old_row)
        one_file = entry.inode and (before.device, before.inode) == (entry.device, entry.inode)
        if not one_file and _same_stat(before, entry):
            pairs.append((old_row, row))
    del array, undecided
    if pairs:
        _hash_rows(old_fd, old, [pair[0] for pair in pairs])
        _hash_rows(new_fd, new, [pair[1] for pair in pairs])


def empty_tree() -> EntryTable:
    """Give the table of a snapshot without a parent that nobody wrote to."""
    builder = TableBuilder()
    builder.add(b"", Entry(mode=stat.S_IFDIR | 0o755))
    return builder.build()[0]


def open_mounted(mounts: list[Mount]) -> int:
    """Mount a snapshot and return a descriptor of its top; the mount is detached and ends with the descriptor."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="pylayers-mount-") as directory:
        target = Path(directory)
        mount(mounts, target)
        try:
            return os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        finally:
            unmount(target, detach=True)


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn an OSError inside into the named error that a user should see."""
    try:
        yield
    except OSError as error:
        raise translate_os_error(error, doing) from error


def _hash_rows(root_fd: int, table: EntryTable, rows: list[int]) -> None:
    from blake3 import blake3

    from pylayers._native import filehash

    records = table.records
    if not isinstance(records, bytearray):
        raise TypeError("only a walked table can be hashed")
    filehash.hash_files(root_fd, records, table.heap, struct.pack(f"={len(rows)}I", *rows), blake3)


def _same_stat(old: Entry, new: Entry) -> bool:
    fields = ("mode", "uid", "gid", "size_bytes", "mtime_ns")
    return all(getattr(old, field) == getattr(new, field) for field in fields)


def _root_differs(old: EntryTable, new: EntryTable) -> bool:
    """Compare the roots; their times don't count, as every entry made at the top changes them."""
    before, after = old.entry(0), new.entry(0)
    same = (before.mode, before.uid, before.gid) == (after.mode, after.uid, after.gid)
    return not same or old.xattrs(before) != new.xattrs(after)


def _drop_hashes(records: bytearray) -> None:
    """Clear the hashes taken for comparing, so that tarwrite takes them from the bytes it really writes."""
    array: npt.NDArray[np.void] = EntryTable(records, b"").array
    array["flags"] &= 0xFFFFFFFF ^ FLAG_HASHED
