"""vfs: every snapshot is a full copy. Slow and large, but it works wherever files can be copied.

`<id>/tree` holds the files. Copies are reflinks where the file system has them, so there they share their blocks.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pylayers._native import copyup
from pylayers.snapshot.catalog import Record
from pylayers.snapshot.snapshotter import Probe, SnapshotKind
from pylayers.snapshot.wholetree import WholeTreeSnapshotter
from pylayers.store.file import remove_tree

TREE = "tree"


class Driver(WholeTreeSnapshotter):
    """Keep snapshots as full copies of their parents; a view is the parent's own tree, mounted read-only."""

    name = "vfs"
    folder = TREE

    def _make(self, directory: str, record: Record, parent: Record | None) -> None:
        if record.kind == SnapshotKind.VIEW and parent is not None:
            return
        tree = f"{directory}/{TREE}"
        os.mkdir(tree)
        os.chmod(tree, 0o755)  # noqa: S103 - whatever the umask
        if parent is not None:
            copy_directory(self._content(parent), tree)


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
