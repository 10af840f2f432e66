"""What drivers share whose snapshots are whole trees; a view of a parent is the parent's own, mounted read-only."""

from __future__ import annotations

import os

from pylayers.snapshot.catalog import CHILDREN, Record
from pylayers.snapshot.default import DefaultSnapshotter
from pylayers.snapshot.snapshotter import Mount, SnapshotKind


class WholeTreeSnapshotter(DefaultSnapshotter):
    """Keep the files of each snapshot in `<id>/<folder>`."""

    folder: str

    def _mounts(self, record: Record) -> list[Mount]:
        return [Mount("bind", source=self._tree(record), readonly=record.kind == SnapshotKind.VIEW)]

    def _content(self, record: Record) -> str:
        """Name the tree; a view of a parent has no files of its own, only its bookkeeping directory."""
        name = CHILDREN if _shows_parent(record) else self.folder
        return f"{self.catalog.directory(record)}/{name}"

    def _tree(self, record: Record) -> str:
        directory = f"{self.root}/{record.parent_id}" if _shows_parent(record) else self.catalog.directory(record)
        return f"{directory}/{self.folder}"

    def _open_tree(self, record: Record) -> int:
        return os.open(self._tree(record), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _open_parent_tree(self, parent: str) -> int:
        return self._open_tree(self.catalog.get(parent))

    def _untouched_before_ns(self, record: Record) -> int:
        """Give the time of its making: the copy of a parent's file has an older ctime unless it was changed since."""
        return record.settled_ns if record.parent_id is not None else 0


def _shows_parent(record: Record) -> bool:
    return record.kind == SnapshotKind.VIEW and record.parent_id is not None
