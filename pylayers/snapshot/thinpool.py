"""One thin pool and the devices in it: what the devicemapper driver's snapshots lie on.

The pool's own transaction id counts the devices it was ever asked for and is raised, durably, before a device is made;
the number goes to the snapshot's file before the device exists. So a number is never given twice, and whatever device
a crash leaves behind is named by a directory that the catalog drops.

`devicemapper/data` and `devicemapper/metadata` are sparse files on loop devices, unless PYLAYERS_DM_THINPOOL names a
pool; `devicemapper/pool.json` has the base device, which every snapshot without a parent is a snapshot of.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pylayers.errors import DriverError, InvalidInput, NoSpace
from pylayers.record import record, to_mapping
from pylayers.snapshot import mapper
from pylayers.snapshot.loop import attach_loop
from pylayers.snapshot.mount import mounted
from pylayers.snapshot.snapshotter import Mount
from pylayers.snapshot.thinformat import MOUNT_OPTIONS, choose_file_system, make_file_system

FOLDER, RECORD, PENDING, TRANSACTION = "devicemapper", "pool.json", "base.making", "transaction"
POOL_VARIABLE = "PYLAYERS_DM_THINPOOL"
SIZES = {  # variable -> default; docker's dm.loopdatasize, dm.loopmetadatasize and dm.basesize
    "PYLAYERS_DM_LOOPDATASIZE": 100 << 30,
    "PYLAYERS_DM_LOOPMETADATASIZE": 2 << 30,
    "PYLAYERS_DM_BASESIZE": 10 << 30,
}
BLOCK_SECTORS, LOW_WATER_BLOCKS = 128, 1024
KEPT_FREE_PERCENT = 10  # docker's dm.min_free_space
KEPT_FREE_BYTES, BASE_FREE_BYTES = 32 << 20, 128 << 20  # of the disk below our own sparse files
LAST_NUMBER = (1 << 24) - 1


@record
class PoolStatus:
    """How far a pool is used, in its own blocks."""

    transaction: int
    metadata_used: int
    metadata_total: int
    data_used: int
    data_total: int
    mode: str


@record
class PoolRecord:
    """pool.json: what the pool was made with."""

    given: str
    base: int
    size_bytes: int
    file_system: str


class Pool:
    """The pool of one driver folder; every method may be called by several processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.directory = root / FOLDER
        self._users = -1
        self._record: PoolRecord | None = None

    # -- the pool ----------------------------------------------------------------------------------------------

    def start(self) -> PoolRecord:
        """Bring the pool up, making it on first use, and hold it up until `stop`.

        Raises DriverError for a pool that is damaged, gone or somebody else's; Unsupported; OSError.
        """
        if self._record is not None:
            return self._record
        self.directory.mkdir(mode=0o700, exist_ok=True)
        if self._users < 0:
            users = os.open(self.directory / "users", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(users, fcntl.LOCK_SH)
            self._users = users
        with self.locked():
            made = self._read_record()
            given = made.given if made else os.environ.get(POOL_VARIABLE, "")
            if mapper.find_device(self.name(given)) is None:
                self._activate(given, made)
            self._given = given
            status = self.status()
            self._drop_pending()
            if made is None:
                made = self._make_base(given, status)
            elif status.transaction < self._read_transaction():
                raise DriverError(
                    f"the thin pool of {self.root} is not the one its snapshots were made in, or an older state of it",
                    hint=f"restore {self.directory}/metadata and data together, or choose another root with --root",
                )
        self._record = made
        return made

    def stop(self) -> None:
        """Let go of the pool; its last user takes it down, with every device that nobody has mounted."""
        if self._users >= 0:
            os.close(self._users)
            self._users, self._record = -1, None
        elif not (self._has_pool() and mapper.CONTROL.exists() and mapper.find_device(self.name(self._own_given()))):
            return
        users = os.open(self.directory / "users", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._take_down()
        except BlockingIOError:
            return
        finally:
            os.close(users)

    def name(self, given: str = "") -> str:
        """Name the pool for the kernel."""
        return given.removeprefix("/dev/mapper/") if given else f"{self._prefix()}pool"

    def status(self) -> PoolStatus:
        """Read how far the pool is used. Raises DriverError when it has failed."""
        words = mapper.read_status(self.name(self._given)).split()
        if len(words) < 5 or words[0] in ("Fail", "Error"):
            raise DriverError(
                f"the thin pool {self.name(self._given)} has failed: {' '.join(words)}",
                hint="look at the kernel's log; repair the metadata with: thin_check, thin_repair",
            )
        metadata, data = (word.partition("/") for word in words[1:3])
        return PoolStatus(int(words[0]), int(metadata[0]), int(metadata[2]), int(data[0]), int(data[2]), words[4])

    def require_space(self) -> None:
        """Raise NoSpace while a tenth of the pool is not free, as a full pool fails every file system in it at once."""
        self._require_disk(KEPT_FREE_BYTES)
        status = self.status()
        for what, used, total in (
            ("data", status.data_used, status.data_total),
            ("metadata", status.metadata_used, status.metadata_total),
        ):
            if (total - used) * 100 < total * KEPT_FREE_PERCENT or status.mode == "out_of_data_space":
                raise NoSpace(
                    f"the thin pool {self.name(self._given)} has {total - used} of {total} {what} blocks left, "
                    f"and {KEPT_FREE_PERCENT} % have to stay free",
                    hint="remove what is not needed with: pylayers system prune; or extend the pool's data device",
                )
        if status.mode == "ro":
            raise DriverError(
                f"the thin pool {self.name(self._given)} is read-only, as its metadata needs a check",
                hint="unmount what uses it and run: thin_check --clear-needs-check-flag on its metadata device",
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the pool's lock: its transactions are one after another."""
        descriptor = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    # -- its devices -------------------------------------------------------------------------------------------

    def snapshot(self, origin: int, note: Callable[[int], None]) -> int:
        """Make a device as a snapshot of another, which nobody writes to; `note(number)` records it beforehand."""
        with self.locked():
            return self._make(f"create_snap {{}} {origin}", note)

    def delete(self, number: int) -> None:
        """Delete a device that is not active, giving its blocks back; a missing one is fine. Raises OSError."""
        if self._users < 0 and mapper.find_device(self.name(self._own_given())) is None and not self._has_files():
            return
        self.start()
        name = f"{self._prefix()}delete-{number}"
        with suppress(OSError):
            # Only a discard reaches the files below; deleting alone would never give anything back to the disk.
            self.activate(name, number, 0)
            self._discard_blocks(name)
        mapper.remove_device(name)
        mapper.forget_node(name)
        try:
            mapper.send_message(self.name(self._given), f"delete {number}")
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise

    def activate(self, name: str, number: int, size_bytes: int) -> str:
        """Make a device visible under a name and return its node; one that is visible stays so."""
        made = self.start()
        with self.locked():
            device = mapper.find_device(name)
            if device is not None and device.deferred:
                try:
                    mapper.keep_device(name)
                except OSError as error:
                    if error.errno != errno.ENXIO:
                        raise
                    device = None
            if device is None:
                pool = mapper.find_device(self.name(self._given))
                if pool is None:
                    raise OSError(errno.ENXIO, "the thin pool went away", self.name(self._given))
                place = f"{os.major(pool.number)}:{os.minor(pool.number)}"
                sectors = (size_bytes or made.size_bytes) // mapper.SECTOR_BYTES
                device = mapper.create_device(name, sectors, "thin", f"{place} {number}")
            return mapper.find_node(device)

    def device_name(self, identity: str) -> str:
        """Name a snapshot's device for the kernel."""
        return self._prefix() + identity

    # -- inside ------------------------------------------------------------------------------------------------

    def _prefix(self) -> str:
        found = os.stat(self.root)
        return f"pylayers-{os.major(found.st_dev)}:{os.minor(found.st_dev)}-{found.st_ino}-"

    def _has_files(self) -> bool:
        return (self.directory / "data").exists()

    def _has_pool(self) -> bool:
        """Tell whether this folder was ever given a pool; what was mounted of one may have left devices behind."""
        return self._has_files() or (self.directory / RECORD).exists()

    def _own_given(self) -> str:
        made = self._read_record()
        return made.given if made else os.environ.get(POOL_VARIABLE, "")

    def _read_record(self) -> PoolRecord | None:
        path = self.directory / RECORD
        try:
            return PoolRecord(**json.loads(path.read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise DriverError(f"the pool's record {path} is damaged: {error}") from error

    def _read_transaction(self) -> int:
        """Return the last transaction that this folder knows of: an older pool would give numbers anew."""
        try:
            return int((self.directory / TRANSACTION).read_text() or "0")
        except FileNotFoundError:
            return 0

    def _activate(self, given: str, made: PoolRecord | None) -> None:
        if given:
            raise DriverError(
                f"there is no thin pool {given}",
                hint=f"make it with lvcreate or dmsetup, or unset {POOL_VARIABLE} for a pool on loop devices",
            )
        data, metadata = self.directory / "data", self.directory / "metadata"
        if made is not None and not (data.exists() and metadata.exists()):
            raise DriverError(
                f"the files of the thin pool in {self.directory} are gone, and the snapshots with them",
                hint="restore data and metadata from a backup, or remove this driver's folder",
            )
        for path, variable in ((metadata, "PYLAYERS_DM_LOOPMETADATASIZE"), (data, "PYLAYERS_DM_LOOPDATASIZE")):
            if not path.exists():
                size_bytes = read_size(variable)
                with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb") as file:
                    file.truncate(size_bytes)
        descriptors: list[int] = []
        try:
            places = []
            for path in (metadata, data):
                descriptor, _ = attach_loop(str(path), writable=True)
                descriptors.append(descriptor)
                number = os.fstat(descriptor).st_rdev
                places.append(f"{os.major(number)}:{os.minor(number)}")
            features = "2 skip_block_zeroing error_if_no_space"
            mapper.create_device(
                self.name(), os.stat(data).st_size // mapper.SECTOR_BYTES, "thin-pool",
                f"{' '.join(places)} {BLOCK_SECTORS} {LOW_WATER_BLOCKS} {features}",
            )  # fmt: skip
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _take_down(self) -> None:
        """Remove what nobody has open: this folder's thin devices, and the pool when none is left."""
        with self.locked():
            left = False
            prefix = self._prefix()
            for name in mapper.list_devices():
                device = mapper.find_device(name) if name.startswith(prefix) and name != self.name() else None
                if device is None:
                    continue
                if device.opened or not _removed(name):
                    left = True
                else:
                    mapper.forget_node(name)
            if not left and not self._own_given():
                _removed(self.name())

    def _make(self, message: str, note: Callable[[int], None]) -> int:
        pool = self.name(self._given)
        while True:
            transaction = self.status().transaction
            number = (transaction + 1) & LAST_NUMBER
            mapper.send_message(pool, f"set_transaction_id {transaction} {transaction + 1}")
            note(number)
            _write_synced(self.directory / TRANSACTION, b"%d" % (transaction + 1))
            try:
                mapper.send_message(pool, message.format(number))
                return number
            except OSError as error:
                if error.errno != errno.EEXIST:  # of a time before the numbers began anew
                    raise

    def _require_disk(self, size_bytes: int) -> None:
        """Raise NoSpace where the disk below our own files would fail what is written to the pool."""
        if self._given:
            return
        found = os.statvfs(self.directory)
        if found.f_bavail * found.f_frsize < size_bytes:
            raise NoSpace(
                f"the file system of {self.directory}, which the thin pool's files grow in, has "
                f"{found.f_bavail * found.f_frsize >> 20} MiB left, and {size_bytes >> 20} MiB have to be",
                hint="make room there, or choose another root with --root",
            )

    def _make_base(self, given: str, status: PoolStatus) -> PoolRecord:
        if given and (status.transaction or status.data_used):
            raise DriverError(
                f"the thin pool {given} is somebody else's: it has {status.data_used} blocks in use",
                hint="give pylayers a pool of its own",
            )
        self._require_disk(BASE_FREE_BYTES)
        kind = choose_file_system()
        size_bytes = read_size("PYLAYERS_DM_BASESIZE")
        pending = self.directory / PENDING
        number = self._make("create_thin {}", lambda number: _write_synced(pending, b"%d" % number))
        pool = mapper.find_device(self.name(given))
        if pool is None:
            raise OSError(errno.ENXIO, "the thin pool went away", self.name(given))
        name = f"{self._prefix()}base"
        place = f"{os.major(pool.number)}:{os.minor(pool.number)} {number}"
        device = mapper.create_device(name, size_bytes // mapper.SECTOR_BYTES, "thin", place)
        try:
            node = mapper.find_node(device)
            make_file_system(kind, node)
            with mounted([Mount(kind, source=node, options=MOUNT_OPTIONS[kind])], self.directory) as top:
                if (top / "lost+found").exists():  # it would be in every layer
                    (top / "lost+found").rmdir()
                os.chmod(top, 0o755)  # noqa: S103 - as every driver's
        finally:
            mapper.remove_device(name)
            mapper.forget_node(name)
        made = PoolRecord(given, number, size_bytes, kind)
        fresh = self.directory / f"{RECORD}.new"
        _write_synced(fresh, json.dumps(to_mapping(made), indent=1, sort_keys=True).encode() + b"\n")
        os.replace(fresh, self.directory / RECORD)
        pending.unlink()
        return made

    def _drop_pending(self) -> None:
        """Delete a base device that was never finished."""
        pending = self.directory / PENDING
        try:
            number = int(pending.read_text() or "0")
        except FileNotFoundError:
            return
        made = self._read_record()
        if number and (made is None or made.base != number):
            name = f"{self._prefix()}base"
            mapper.remove_device(name)
            with suppress(OSError):
                mapper.send_message(self.name(self._given), f"delete {number}")
        pending.unlink()

    @staticmethod
    def _discard_blocks(name: str) -> None:
        device = mapper.find_device(name)
        if device is None:
            return
        sectors, _ = mapper.read_table(name)
        descriptor = os.open(mapper.find_node(device), os.O_RDWR | os.O_CLOEXEC)
        try:
            size = (sectors * mapper.SECTOR_BYTES).to_bytes(8, "little")
            fcntl.ioctl(descriptor, 0x1277, bytes(8) + size)  # BLKDISCARD (linux/fs.h)
        finally:
            os.close(descriptor)

    _given = ""


def read_size(variable: str) -> int:
    """Read a size from the environment: bytes, or units of 1024 with K, M, G or T behind. Raises InvalidInput."""
    text = os.environ.get(variable, "").strip().upper().removesuffix("B")
    if not text:
        return SIZES[variable]
    power = "KMGT".find(text[-1]) + 1
    number = text[:-1] if power else text
    if not number.isdecimal() or not int(number):
        raise InvalidInput(f"{variable} is no size: {text!r}", hint="give bytes, or a number with K, M, G or T")
    return (int(number) << (10 * power)) // (BLOCK_SECTORS * 512) * (BLOCK_SECTORS * 512)


def _removed(name: str) -> bool:
    try:
        return mapper.remove_device(name)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False


def _write_synced(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
