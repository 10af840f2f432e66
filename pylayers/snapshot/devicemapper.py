"""devicemapper: every snapshot is a thin device with a file system, made as the pool's own snapshot of its parent's.

`<id>/device` names the device's number in the pool (it is written before the device is made, so that a crash leaks
none) and its size. A device is activated when it is mounted (thinmount), and goes with a commit, a removal or the last
process that uses the pool.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import tempfile
from pathlib import Path

from pylayers.errors import Conflict, DriverError, InvalidInput, PylayersError, Unsupported
from pylayers.snapshot import mapper
from pylayers.snapshot.catalog import Record
from pylayers.snapshot.changeset import disk_usage
from pylayers.snapshot.default import DefaultSnapshotter, open_mounted, translated
from pylayers.snapshot.mount import mounted
from pylayers.snapshot.snapshotter import Mount, Probe, SnapshotKind, Usage
from pylayers.snapshot.thinformat import choose_file_system
from pylayers.snapshot.thinmount import DEVICE, TYPE, read_device, write_device
from pylayers.snapshot.thinpool import SIZES, Pool
from pylayers.store.entry import FLAG_HARDLINK, FLAG_IMPLICIT, FLAG_WHITEOUT, EntryTable
from pylayers.store.file import remove_tree
from pylayers.store.mountpoint import read_mount_table

BLOCK_BYTES = 4096
XFS_GROW, EXT4_RESIZE = 0x4010586E, 0x40086610  # XFS_IOC_FSGROWFSDATA, EXT4_IOC_RESIZE_FS
XFS_INODE_PERCENT = 25
TRIAL_SIZES = {"PYLAYERS_DM_LOOPDATASIZE": 1 << 30, "PYLAYERS_DM_LOOPMETADATASIZE": 4 << 20,
               "PYLAYERS_DM_BASESIZE": 512 << 20}  # fmt: skip


class Driver(DefaultSnapshotter):
    """Keep snapshots as thin devices. Needs device mapper with thin pools, and mkfs.xfs or mkfs.ext4."""

    name = "devicemapper"

    def __init__(self, root: Path) -> None:
        """Open the driver's directory, making it when needed, and drop what a crash left half-made."""
        self._pool = Pool(Path(os.path.abspath(root)))
        try:
            super().__init__(root)
        except BaseException:
            self._pool.stop()
            raise

    # -- hooks -------------------------------------------------------------------------------------------------

    def _make(self, directory: str, record: Record, parent: Record | None) -> None:
        made = self._pool.start()
        self._pool.require_space()
        if parent is None:
            origin, size_bytes = made.base, made.size_bytes
        else:
            origin, size_bytes = read_device(Path(self.catalog.directory(parent)))
        self._pool.snapshot(origin, lambda number: write_device(Path(directory), number, size_bytes))

    def _discard(self, directory: str) -> None:
        try:
            number, _ = read_device(Path(directory))
        except DriverError:
            return  # nothing was made yet
        name = self._pool.device_name(directory[-32:])
        if mapper.CONTROL.exists():
            mapper.remove_device(name)
            mapper.forget_node(name)
            self._pool.delete(number)
        os.unlink(f"{directory}/{DEVICE}")

    def _mounts(self, record: Record) -> list[Mount]:
        return [self._mount(record, readonly=record.kind == SnapshotKind.VIEW)]

    def _seal(self, directory: str) -> None:
        name = self._pool.device_name(os.path.basename(directory))
        if mapper.find_device(name) is None:
            return
        mapper.flush_device(name)
        if mapper.remove_device(name, deferred=True):
            mapper.forget_node(name)

    # -- the protocol ------------------------------------------------------------------------------------------

    def commit(self, name: str, key: str) -> None:
        """Turn active snapshot key into committed snapshot name. Raises Conflict while it is mounted."""
        with translated(f"commit snapshot {key!r}"):
            self._pool.start()
            super().commit(name, key)

    def remove(self, key: str) -> None:
        """Remove a snapshot. Raises NotFound; Conflict while another has it as its parent, or while it is mounted."""
        with translated(f"remove snapshot {key!r}"):
            self.catalog.remove(key, self._refuse_opened)

    def usage(self, key: str) -> Usage:
        """Count what a snapshot has that its parent hasn't, in blocks of 4 KiB. Walks both. Raises NotFound."""
        record = self.catalog.get(key)
        if record.kind == SnapshotKind.VIEW:
            return Usage(0, 1)
        with translated(f"count the usage of snapshot {key!r}"):
            if record.parent is None:
                descriptor = self._open_tree(record)
                try:
                    return Usage(*disk_usage(descriptor))
                finally:
                    os.close(descriptor)
            found = self.changes(key)
            try:
                return count_changes(EntryTable(found.records, found.heap))
            finally:
                found.close()

    def limit(self, key: str, size_bytes: int) -> None:
        """Give an active snapshot's device and file system a size. Only growing: a device starts with the base's.

        Raises Unsupported for less than it has.
        """
        record = self._active(key)
        directory = Path(self.catalog.directory(record))
        number, had_bytes = read_device(directory)
        wanted = size_bytes // BLOCK_BYTES * BLOCK_BYTES
        if size_bytes <= 0:
            raise InvalidInput(f"a size limit is at least 1 byte, not {size_bytes}")
        if wanted < had_bytes:
            raise Unsupported(
                f"storage driver devicemapper cannot give a container {size_bytes} bytes, as every device has "
                f"{had_bytes} from the base device",
                hint="choose a smaller base for a new root with PYLAYERS_DM_BASESIZE",
            )
        with translated(f"limit snapshot {key!r}"):
            made = self._pool.start()
            name = self._pool.device_name(record.id)
            self._pool.activate(name, number, had_bytes)
            pool = mapper.read_table(name)[1]
            write_device(directory, number, wanted)
            mapper.load_table(name, wanted // mapper.SECTOR_BYTES, "thin", pool)
            mapper.resume_device(name)
            with mounted([self._mount(record)], self._pool.directory) as top:
                grow_file_system(top, made.file_system, wanted)

    def close(self) -> None:
        """Release descriptors, and the pool when nobody else uses it. Mounts made by callers are theirs."""
        super().close()
        with translated(f"take down the thin pool of {self.root}"):
            self._pool.stop()

    # -- inside ------------------------------------------------------------------------------------------------

    def _mount(self, record: Record, *, readonly: bool = False) -> Mount:
        return Mount(TYPE, source=self.catalog.directory(record), readonly=readonly)

    def _open_view(self, parent: str) -> int:
        """Open a committed snapshot's own device, read-only; it goes with the descriptor."""
        record = self.catalog.get(parent)
        try:
            return open_mounted([self._mount(record, readonly=True)])
        finally:
            mapper.remove_device(self._pool.device_name(record.id), deferred=True)

    def _refuse_mounted(self, _directory: str, record: Record) -> None:
        device = mapper.find_device(self._pool.device_name(record.id)) if mapper.CONTROL.exists() else None
        if device is not None and device.opened:
            place = f"{os.major(device.number)}:{os.minor(device.number)}"
            if any(line.split(" ")[2] == place for line in read_mount_table().splitlines()):
                self._refuse(record)

    def _refuse_opened(self, _directory: str, record: Record) -> None:
        name = self._pool.device_name(record.id)
        if not mapper.CONTROL.exists() or mapper.find_device(name) is None:
            return
        try:
            mapper.remove_device(name)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise Conflict(
                f"snapshot {record.name!r} is mounted or in use", hint="stop what uses it, or unmount it first"
            ) from error


def count_changes(table: EntryTable) -> Usage:
    """Count what a change set's files take, the top included, hard links once."""
    size_bytes, inodes = 0, 1
    for row, entry in enumerate(table):
        if not row or entry.flags & (FLAG_HARDLINK | FLAG_IMPLICIT | FLAG_WHITEOUT):
            continue
        inodes += 1
        if stat.S_ISREG(entry.mode):
            size_bytes += -(-entry.size_bytes // BLOCK_BYTES) * BLOCK_BYTES
    return Usage(size_bytes, inodes)


def grow_file_system(top: Path, kind: str, size_bytes: int) -> None:
    """Let a mounted file system fill its device. Raises OSError."""
    descriptor = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        blocks = size_bytes // BLOCK_BYTES
        if kind == "xfs":
            fcntl.ioctl(descriptor, XFS_GROW, struct.pack("=QI4x", blocks, XFS_INODE_PERCENT))
        else:
            fcntl.ioctl(descriptor, EXT4_RESIZE, struct.pack("=Q", blocks))
    finally:
        os.close(descriptor)


def probe(directory: Path) -> Probe:
    """Make a small pool on loop files inside a directory and snapshot a file system in it; nothing is left behind."""
    if not mapper.CONTROL.exists():
        return Probe(False, "the running kernel has no device mapper, or its module dm-mod is not loaded")
    try:
        choose_file_system()
        mapper.list_targets()
    except (PylayersError, OSError) as error:
        return Probe(False, str(error))
    scratch = Path(tempfile.mkdtemp(prefix=".probe-", dir=directory))
    kept = {name: os.environ.get(name) for name in SIZES}
    os.environ.update({name: str(size_bytes) for name, size_bytes in TRIAL_SIZES.items()})
    try:
        return _try_in(scratch)
    except (PylayersError, OSError) as error:
        missing = "" if "thin-pool" in mapper.list_targets() else " (its module dm-thin-pool is not loaded)"
        return Probe(False, f"a thin pool inside {directory}: {error}{missing}")
    finally:
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        remove_tree(scratch)


def _try_in(scratch: Path) -> Probe:
    driver = Driver(scratch / "root")
    try:
        with mounted(driver.prepare("one", None), scratch) as top:
            (top / "file").write_bytes(b"content")
        driver.commit("base", "one")
        with mounted(driver.prepare("two", "base"), scratch) as top:
            if (top / "file").read_bytes() != b"content":
                return Probe(False, "a thin snapshot here does not show its parent's files")
        return Probe(True)
    finally:
        driver.close()
