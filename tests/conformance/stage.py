"""What the conformance suites act with: a driver on a real file system; ways to fill, diff and compare snapshots."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from blake3 import blake3

from pylayers._native import filehash, tardiff, tarscan, tarwrite, walk
from pylayers.diff.compare import list_changes
from pylayers.snapshot.mount import mounted
from pylayers.snapshot.snapshotter import Changes, Snapshotter
from pylayers.store.entry import FLAG_HARDLINK, EntryTable
from pylayers.store.layer import Layer

Fill = Callable[[Path], object]
OldTime = 1_000_000_000 * 10**9


class Stage:
    """Drive one snapshotter: every method does the real thing through the protocol only."""

    def __init__(self, driver: Snapshotter, scratch: Path) -> None:
        self.driver = driver
        self.scratch = scratch
        self._count = 0

    def fresh(self, prefix: str) -> str:
        """Give a key that nobody has used."""
        self._count += 1
        return f"{prefix}-{self._count}"

    @contextmanager
    def mounted(self, key: str) -> Iterator[Path]:
        """Mount an active snapshot or view."""
        with mounted(self.driver.mounts(key), self.scratch) as top:
            yield top

    @contextmanager
    def viewed(self, name: str) -> Iterator[Path]:
        """Mount a view of a committed snapshot."""
        key = self.fresh("view")
        self.driver.view(key, name)
        try:
            with self.mounted(key) as top:
                yield top
        finally:
            self.driver.remove(key)

    def change(self, key: str, fill: Fill) -> None:
        """Do something inside an active snapshot."""
        with self.mounted(key) as top:
            fill(top)

    def make(self, name: str, parent: str | None, fill: Fill = lambda top: None) -> str:
        """Make a committed snapshot."""
        key = self.fresh("make")
        self.driver.prepare(key, parent)
        self.change(key, fill)
        self.driver.commit(name, key)
        return name

    def active(self, parent: str | None, fill: Fill = lambda top: None) -> str:
        """Make an active snapshot with changes in it."""
        key = self.fresh("active")
        self.driver.prepare(key, parent)
        self.change(key, fill)
        return key

    def table(self, top: Path) -> EntryTable:
        """Walk and hash a mounted tree."""
        descriptor = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
        try:
            records, heap = walk.walk(descriptor, xattrs=True)
            table = EntryTable(records, heap)
            rows = [row for row, entry in enumerate(table) if stat.S_ISREG(entry.mode)]
            filehash.hash_files(descriptor, records, heap, struct.pack(f"={len(rows)}I", *rows), blake3)
        finally:
            os.close(descriptor)
        return table

    def table_of(self, name: str) -> EntryTable:
        """Walk and hash what a committed snapshot shows."""
        with self.viewed(name) as top:
            return self.table(top)

    def digest(self, key: str) -> bytes:
        """Give the tree digest of what an active snapshot shows."""
        with self.mounted(key) as top:
            return digest_of(self.table(top))

    def times(self, key: str) -> dict[bytes, int]:
        """Give the whole-second mtimes of what is no directory."""
        with self.mounted(key) as top:
            table = self.table(top)
        return {table.path(entry): entry.mtime_ns // 10**9 for entry in table if not stat.S_ISDIR(entry.mode)}

    @contextmanager
    def changes(self, key: str) -> Iterator[Changes]:
        """Take the changes of a snapshot and end their descriptors."""
        found = self.driver.changes(key)
        try:
            yield found
        finally:
            found.close()

    def listed(self, key: str, parent: str | None) -> list[tuple[str, bytes]]:
        """List a snapshot's changes as `docker diff` would."""
        before = self.table_of(parent) if parent is not None else EntryTable(b"", b"")
        with self.changes(key) as found:
            return [tuple(line) for line in list_changes(EntryTable(found.records, found.heap), before)]

    def layer_of(self, key: str) -> Layer:
        """Write a snapshot's changes as a layer tar, read it back, and return the layer that was read."""
        path = self.scratch / f"{self.fresh('layer')}.tar"
        with self.changes(key) as found, open(path, "w+b") as out:
            size, digest = tarwrite.write(
                out.fileno(), found.records, found.heap, found.sources, hashlib.sha256, blake3
            )
        return scanned(path, size, digest)

    def apply_to_sibling(self, layer: Layer, parent: str | None) -> str:
        """Apply a layer to a new active snapshot."""
        key = self.fresh("sibling")
        self.driver.prepare(key, parent)
        self.driver.apply(key, layer)
        return key


def scanned(path: Path, size: int | None = None, digest: bytes | None = None) -> Layer:
    """Make a Layer of any tar on disk; a given size and sha256 are checked."""
    content = path.read_bytes()
    assert size in (None, len(content))
    assert digest in (None, hashlib.sha256(content).digest())
    diff_id = "sha256:" + hashlib.sha256(content).hexdigest()
    return Layer(diff_id, len(content), path, EntryTable(*tarscan.scan(content)))


def digest_of(table: EntryTable) -> bytes:
    """Give the tree digest of a hashed table."""
    return tardiff.tree_digest(table.records, table.heap, blake3)


def describe(table: EntryTable, *, links: bool = True) -> dict[bytes, tuple[object, ...]]:
    """Give what a tree digest covers, in a form whose difference a person can read; links=False: no hard links."""
    return {
        table.path(entry): (
            oct(entry.mode), entry.uid, entry.gid, entry.size_bytes, entry.rdev_major, entry.rdev_minor,
            table.link(entry) if links or not entry.flags & FLAG_HARDLINK else b"",
            links and entry.flags & FLAG_HARDLINK, table.xattrs(entry), entry.blake3.hex()[:8],
        )
        for entry in table
    }  # fmt: skip


def write(top: Path, path: str | bytes, content: bytes = b"x", mode: int = 0o644) -> Path:
    """Write a file with a mtime of long ago, parents made."""
    file = Path(os.fsdecode(os.path.join(os.fsencode(top), os.fsencode(path))))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    file.chmod(mode)
    os.utime(file, ns=(OldTime, OldTime))
    return file


def remove_tree(path: Path) -> None:
    """Remove a file or a tree through the mount, bottom up as rm does."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    for entry in list(path.iterdir()):
        remove_tree(entry)
    path.rmdir()
