"""btrfs: every snapshot is a subvolume, made as btrfs's own snapshot of its parent's; nothing is copied.

`<id>/subvolume` holds the files. A view of a parent is the parent's own subvolume, mounted read-only. Committed ones
don't get btrfs's read-only flag, as `rm -r` of a data root could not pass them.
"""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

from pylayers.errors import Unsupported
from pylayers.snapshot.catalog import Record
from pylayers.snapshot.default import translated
from pylayers.snapshot.extent import exclusive_usage
from pylayers.snapshot.snapshotter import Probe, SnapshotKind, Usage
from pylayers.snapshot.subvolume import (
    create_subvolume,
    destroy_subvolume,
    enable_quotas,
    is_subvolume,
    limit_exclusive,
    snapshot_subvolume,
)
from pylayers.snapshot.wholetree import WholeTreeSnapshotter
from pylayers.store.file import remove_tree

SUBVOLUME = "subvolume"


class Driver(WholeTreeSnapshotter):
    """Keep snapshots as subvolumes. Needs a root on btrfs, and the right to delete subvolumes."""

    name = "btrfs"
    folder = SUBVOLUME

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
