"""What every driver shares: the Snapshotter methods over a Catalog, with `apply` and `changes` derived.

A driver gives `_make`, `_mounts` and `_content`; `apply` and `changes` then work by mounting and walking, and a driver
that knows a shorter way overrides them. What only these two need, the kernels above all, is imported in them: a
container's start does without.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from pylayers.errors import Conflict, InvalidInput, NotFound, PylayersError, Unsupported, translate_os_error
from pylayers.snapshot.catalog import Catalog, Record
from pylayers.snapshot.snapshotter import Changes, Mount, SnapshotKind, SnapshotStat, Usage
from pylayers.store.mountpoint import is_mounted_from

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _typeshed import StrPath

    from pylayers.store.layer import Layer


class DefaultSnapshotter:
    """Implement the Snapshotter protocol over three hooks; the base of the drivers, not one itself."""

    name = ""
    reserved_prefix = b""

    def __init__(self, root: StrPath) -> None:
        """Open the driver's directory, making it when needed, and drop what a crash left half-made."""
        self.root = os.path.abspath(root)
        self.catalog = Catalog(self.root, self._discard)

    # -- hooks -------------------------------------------------------------------------------------------------

    def _make(self, directory: str, record: Record, parent: Record | None) -> None:
        """Fill a new snapshot's directory, which is hidden and will be renamed to its id."""
        raise NotImplementedError

    def _mounts(self, record: Record) -> list[Mount]:
        """Describe the mounts of an active snapshot or view."""
        raise NotImplementedError

    def _content(self, record: Record) -> str:
        """Name the directory that holds a snapshot's own files."""
        raise NotImplementedError

    def _discard(self, directory: str) -> None:
        """End what belongs to a snapshot outside its directory, which is about to be deleted."""

    def _flush(self, directory: str) -> None:
        """Write an active snapshot's files to the disk, before a record says for good that they are there."""
        from pylayers.snapshot.mount import flush

        flush(directory)

    def _seal(self, directory: str) -> None:
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
        if record.kind == SnapshotKind.COMMITTED:
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
        is its content; `treechange.hash_undecided` tells whose content is read.
        """
        from pylayers.snapshot.treechange import compare_trees

        record = self._changeable(key)
        with translated(f"find the changes of snapshot {key!r}"):
            new_fd = self._open_tree(record)
            old_fd = -1
            try:
                old_fd = -1 if record.parent is None else self._open_parent_tree(record.parent)
                return compare_trees(old_fd, new_fd, self._untouched_before_ns(record))
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

    def _create(self, key: str, kind: str, parent: str | None, lasting: bool) -> list[Mount]:
        with translated(f"prepare snapshot {key!r}"):

            def make(directory: str, record: Record, above: Record | None) -> None:
                self._make(directory, record, above)
                if lasting:
                    self._flush(directory)

            return self._mounts(self.catalog.create(key, kind, parent, make, lasting=lasting))

    def _active(self, key: str) -> Record:
        record = self.catalog.get(key)
        if record.kind != SnapshotKind.ACTIVE:
            raise InvalidInput(f"snapshot {key!r} is {record.kind} and cannot be changed")
        return record

    def _changeable(self, key: str) -> Record:
        record = self.catalog.get(key)
        if record.kind == SnapshotKind.VIEW:
            raise InvalidInput(f"snapshot {key!r} is a view and has no changes of its own")
        return record

    def _refuse_mounted(self, _directory: str, record: Record) -> None:
        if is_mounted_from(record.id):
            self._refuse(record)

    def _refuse(self, record: Record) -> None:
        raise Conflict(f"snapshot {record.name!r} is mounted", hint="stop what uses it, or unmount it first")

    def _open_tree(self, record: Record) -> int:
        """Open the top of a snapshot's whole tree; the descriptor keeps its (detached) mount alive until closed."""
        if record.kind != SnapshotKind.COMMITTED:
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


def open_mounted(mounts: list[Mount]) -> int:
    """Mount a snapshot and return a descriptor of its top; the mount is detached and ends with the descriptor."""
    import tempfile

    from pylayers.snapshot.mount import mount, unmount

    with tempfile.TemporaryDirectory(prefix="pylayers-mount-") as directory:
        mount(mounts, directory)
        try:
            return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        finally:
            unmount(directory, detach=True)


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn an OSError inside into the named error that a user should see."""
    try:
        yield
    except OSError as error:
        raise translate_os_error(error, doing) from error
