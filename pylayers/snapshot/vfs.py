"""vfs: every snapshot is a full copy. Slow and large, but it works wherever files can be copied.

`<id>/tree` holds the files. Copies are reflinks where the file system has them, so there they share their blocks.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pylayers._native import copyup
from pylayers.snapshot.catalog import CHILDREN, Record
from pylayers.snapshot.default import DefaultSnapshotter
from pylayers.snapshot.snapshotter import Mount, Probe, SnapshotKind
from pylayers.store.file import remove_tree


class Driver(DefaultSnapshotter):
    """Keep snapshots as full copies of their parents; a view is the parent's own tree, mounted read-only."""

    name = "vfs"

    def _make(self, directory: str, record: Record, parent: Record | None) -> None:
        if record.kind == SnapshotKind.VIEW and parent is not None:
            return
        tree = f"{directory}/tree"
        os.mkdir(tree)
        os.chmod(tree, 0o755)  # noqa: S103 - whatever the umask
        if parent is not None:
            copy_directory(self._content(parent), tree)

    def _mounts(self, record: Record) -> list[Mount]:
        return [Mount("bind", source=self._tree(record), readonly=record.kind == SnapshotKind.VIEW)]

    def _content(self, record: Record) -> str:
        """Name the tree; a view of a parent has no files of its own, only its bookkeeping directory."""
        if record.kind == SnapshotKind.VIEW and record.parent_id is not None:
            return f"{self.catalog.directory(record)}/{CHILDREN}"
        return f"{self.catalog.directory(record)}/tree"

    def _tree(self, record: Record) -> str:
        if record.kind == SnapshotKind.VIEW and record.parent_id is not None:
            return f"{self.root}/{record.parent_id}/tree"
        return f"{self.catalog.directory(record)}/tree"

    def _open_tree(self, record: Record) -> int:
        return os.open(self._tree(record), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _open_parent_tree(self, parent: str) -> int:
        return self._open_tree(self.catalog.get(parent))

    def _untouched_before_ns(self, record: Record) -> int:
        """Every file was made by the copy, so whatever has an older ctime than its end was not changed since."""
        return record.settled_ns if record.parent_id is not None else 0


def copy_directory(source: Path | str, target: Path | str) -> None:
    """Copy a tree, the top's own metadata included."""
    source_fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        target_fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            copyup.copy_tree(source_fd, target_fd)
        finally:
            os.close(target_fd)
    finally:
        os.close(source_fd)


def probe(directory: Path) -> Probe:
    """Try to copy a small tree inside a directory; nothing is left behind."""
    scratch = Path(tempfile.mkdtemp(prefix=".probe-", dir=directory))
    try:
        (scratch / "a").mkdir()
        (scratch / "b").mkdir()
        (scratch / "a" / "file").write_bytes(b"content")
        os.link(scratch / "a" / "file", scratch / "a" / "link")
        copy_directory(scratch / "a", scratch / "b")
        if (scratch / "b" / "link").read_bytes() != b"content":
            return Probe(False, f"a file copied inside {directory} came out different")
        return Probe(True)
    except OSError as error:
        return Probe(False, f"copying a tree inside {directory} failed: {error}")
    finally:
        remove_tree(scratch)
