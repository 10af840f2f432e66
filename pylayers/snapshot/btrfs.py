"""btrfs: every snapshot is a subvolume, made as btrfs's own snapshot of its parent's; nothing is copied.

`<id>/subvolume` holds the files. A view of a parent is the parent's own subvolume, mounted read-only. Committed ones
don't get btrfs's read-only flag, as `rm -r` of a data root could not pass them.
"""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from pylayers.errors import Unsupported
from pylayers.snapshot.catalog import CHILDREN, Record
from pylayers.snapshot.default import DefaultSnapshotter, translated
from pylayers.snapshot.extent import exclusive_usage
from pylayers.snapshot.snapshotter import Mount, Probe, SnapshotKind, Usage
from pylayers.snapshot.subvolume import (
    create_subvolume,
    destroy_subvolume,
    enable_quotas,
    is_subvolume,
    limit_exclusive,
    snapshot_subvolume,
)
from pylayers.store.file import remove_tree

SUBVOLUME = "subvolume"


class Driver(DefaultSnapshotter):
    """Keep snapshots as subvolumes. Needs a root on btrfs, and the right to delete subvolumes."""

    name = "btrfs"

    def _make(self, directory: str, record: Record, parent: Record | None) -> None:
        if record.kind == SnapshotKind.VIEW and parent is not None:
            return
        if parent is None:
            create_subvolume(Path(directory, SUBVOLUME))
        else:
            snapshot_subvolume(Path(self.catalog.directory(parent), SUBVOLUME), Path(directory, SUBVOLUME))

    def _discard(self, directory: str) -> None:
        if is_subvolume(Path(directory, SUBVOLUME)):
            destroy_subvolume(Path(directory, SUBVOLUME))

    def _mounts(self, record: Record) -> list[Mount]:
        return [Mount("bind", source=self._tree(record), readonly=record.kind == SnapshotKind.VIEW)]

    def _content(self, record: Record) -> str:
        """Name the tree; a view of a parent has no files of its own, only its bookkeeping directory."""
        if record.kind == SnapshotKind.VIEW and record.parent_id is not None:
            return f"{self.catalog.directory(record)}/{CHILDREN}"
        return f"{self.catalog.directory(record)}/{SUBVOLUME}"

    def _tree(self, record: Record) -> str:
        if record.kind == SnapshotKind.VIEW and record.parent_id is not None:
            return f"{self.root}/{record.parent_id}/{SUBVOLUME}"
        return f"{self.catalog.directory(record)}/{SUBVOLUME}"

    def _open_tree(self, record: Record) -> int:
        return os.open(self._tree(record), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _open_parent_tree(self, parent: str) -> int:
        return self._open_tree(self.catalog.get(parent))

    def _untouched_before_ns(self, record: Record) -> int:
        """A snapshot keeps its files' ctimes, so whatever has an older one than its making was not changed since."""
        return record.settled_ns if record.parent_id is not None else 0

    def usage(self, key: str) -> Usage:
        """Count the bytes that a snapshot shares with no other, and its inodes. Walks it. Raises NotFound."""
        record = self.catalog.get(key)
        with translated(f"count the usage of snapshot {key!r}"):
            return Usage(*exclusive_usage(Path(self._content(record))))

    def limit(self, key: str, size_bytes: int) -> None:
        """Limit what an active snapshot takes for itself; the first limit switches the file system's quotas on.

        Raises Unsupported where the kernel has no quotas.
        """
        directory = self.catalog.directory(self._active(key))
        with translated(f"limit snapshot {key!r}"):
            try:
                try:
                    limit_exclusive(Path(directory, SUBVOLUME), size_bytes)
                except OSError as error:
                    if error.errno not in (errno.ENOTCONN, errno.ENOENT, errno.EINVAL):
                        raise
                    enable_quotas(Path(directory))
                    limit_exclusive(Path(directory, SUBVOLUME), size_bytes)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY):
                    raise
                raise Unsupported(f"this kernel's btrfs has no quotas: {error.strerror}") from error


def probe(directory: Path) -> Probe:
    """Make, snapshot and delete subvolumes inside a directory; nothing is left behind."""
    scratch = Path(tempfile.mkdtemp(prefix=".probe-", dir=directory))
    try:
        create_subvolume(scratch / "one")
        (scratch / "one" / "file").write_bytes(b"content")
        snapshot_subvolume(scratch / "one", scratch / "two")
        (scratch / "two" / "file").write_bytes(b"changed")
        if (scratch / "one" / "file").read_bytes() != b"content":
            return Probe(False, "a snapshot here does not keep apart from its parent")
        return Probe(True)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP):
            return Probe(False, f"{directory} is not on btrfs: {error.strerror}")
        return Probe(False, f"{error.strerror} on a subvolume inside {directory}")
    finally:
        for name in ("two", "one"):
            if is_subvolume(scratch / name):
                destroy_subvolume(scratch / name)
        remove_tree(scratch)
