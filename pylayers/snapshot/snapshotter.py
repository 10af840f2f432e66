"""The Snapshotter protocol: what every storage driver implements.

A snapshot is a file-system state. Active snapshots are writable and known by `key`; committing one gives it a
`name`, after which it never changes and may be the parent of others. Keys and names share one space. The driver
makes directories, datasets or devices; it never mounts for the caller: `mounts` returns data and the caller mounts
(`snapshot.mount`). Model: containerd core/snapshots/snapshotter.go.

Crash rule: `prepare` and `commit` are visible only when whole; a driver drops on open what a crash left half-made.
"""

from __future__ import annotations

from collections.abc import Iterator

from pylayers.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from pylayers.store.layer import Layer
else:
    Protocol = object


class SnapshotKind:
    """Name what may be done with a snapshot. Plain words: an Enum would load `enum`, a millisecond of each start."""

    ACTIVE = "active"
    VIEW = "view"
    COMMITTED = "committed"


@record
class SnapshotStat:
    """Describe a snapshot."""

    name: str
    kind: str
    parent: str | None
    created_ns: int


@record
class Usage:
    """Count what a snapshot holds itself, without its parents."""

    size_bytes: int
    inodes: int


@record
class Mount:
    """Describe one mount as data; snapshot.mount knows how each type is mounted.

    `type`: "bind" with one source; "overlay" with lowers topmost first; "erofs" with an index image as its source;
    any other is a file system of the kernel, given to mount(2) with source and options. `devices` has an item for each
    lower (for "erofs" just one): the data files of an EROFS index image, lowest device first, () for a directory.
    """

    type: str
    source: str = ""
    options: tuple[str, ...] = ()
    lowers: tuple[str, ...] = ()
    upper: str = ""
    work: str = ""
    readonly: bool = False
    devices: tuple[tuple[str, ...], ...] = ()


@record
class Probe:
    """Tell whether a driver works on this machine and root, and if not, why."""

    usable: bool
    reason: str = ""


class Snapshotter(Protocol):
    """Keep snapshots; every method raises NotFound, AlreadyExists, Conflict or DriverError as named below."""

    name: str
    reserved_prefix: bytes  # names that begin so are the driver's marks, and no file can have one; b"": none

    def stat(self, key: str) -> SnapshotStat:
        """Describe a snapshot. Raises NotFound."""

    def usage(self, key: str) -> Usage:
        """Count disk bytes and inodes of one snapshot alone. Raises NotFound."""

    def mounts(self, key: str) -> list[Mount]:
        """Return the mounts of an active snapshot or view; equal on every call. Raises NotFound."""

    def prepare(self, key: str, parent: str | None, *, lasting: bool = True) -> list[Mount]:
        """Make an active snapshot over a committed parent (None: empty).

        lasting=False is for what is committed or removed soon, and flushes nothing: a power cut may take it, whole.
        Raises NotFound for the parent, AlreadyExists for the key, InvalidInput when the parent isn't committed.
        """

    def view(self, key: str, parent: str | None) -> list[Mount]:
        """Make a read-only active snapshot that can be mounted but not committed; a power cut may take it."""

    def commit(self, name: str, key: str) -> None:
        """Turn active snapshot key into committed snapshot name; key is gone. Raises AlreadyExists, NotFound."""

    def adopt(self, name: str, key: str, layer: Layer) -> None:
        """Turn active snapshot key into committed snapshot name, given the layer that its changes were stored as.

        As commit, but a driver that mounts layers from their tars keeps no second copy of the files.
        """

    def remove(self, key: str) -> None:
        """Remove a snapshot. Raises NotFound; Conflict while another has it as its parent."""

    def walk(self) -> Iterator[SnapshotStat]:
        """Yield every snapshot, parents before children."""

    def apply(self, key: str, layer: Layer) -> None:
        """Unpack a layer into active snapshot key (derived default: mount, then unpack with WHITEOUT_APPLY)."""

    def changes(self, key: str) -> Changes:
        """Return the changes of an active or committed snapshot against its parent, as a layer table."""

    def limit(self, key: str, size_bytes: int) -> None:
        """Limit what an active snapshot's own files may take on disk; a later call replaces the limit.

        Called before the snapshot is mounted. Writing beyond it is ENOSPC or EDQUOT to the writer. Raises Unsupported
        where the driver or its file system can't, InvalidInput for a limit that the driver can't keep.
        """

    def sweep(self) -> None:
        """Remove the keys beginning with catalog.UNPACKING whose makers were killed before this driver was opened."""

    def close(self) -> None:
        """Release descriptors and locks. Mounts made by callers are theirs."""


@record
class Changes:
    """Hold a layer table and where each row's data lies, ready for tarwrite; close() ends the descriptors."""

    records: bytearray
    heap: bytearray
    sources: bytes
    descriptors: tuple[int, ...]

    def close(self) -> None:
        """Close the descriptors that the sources read from."""
        import os

        for descriptor in self.descriptors:
            os.close(descriptor)
