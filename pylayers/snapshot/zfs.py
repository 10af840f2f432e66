"""zfs: every snapshot is a dataset, a clone of its parent's; nothing is copied.

The datasets are children of the one that holds the driver's folder, named by their snapshots' ids, so that the
directory of a snapshot that was never finished, or is being removed, names the dataset to destroy. A committed
dataset never changes; `@layer`, taken when the first child is made, is what children are cloned from. A view of a
parent is the parent's own dataset, mounted read-only. With zfs-fuse (see zfscommand) they are mounted at `mnt/<id>`.

A dataset is made in a snapshot's hidden directory and destroyed before that goes, so a kill at any step leaves a
directory that names it. After a power cut there may be datasets without a directory: each says by `pylayers:root`
whose it is, and the next open destroys them.
"""

from __future__ import annotations

import errno
import os
import secrets
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pylayers.errors import Conflict, DriverError, InvalidInput, NoSpace, PermissionDenied, PylayersError
from pylayers.snapshot.backing import is_rootless
from pylayers.snapshot.catalog import CHILDREN, MAKING, REMOVING, Record
from pylayers.snapshot.changeset import disk_usage
from pylayers.snapshot.default import DefaultSnapshotter, translated
from pylayers.snapshot.mount import mounted
from pylayers.snapshot.snapshotter import Mount, Probe, SnapshotKind, Usage
from pylayers.snapshot.zfscommand import (
    MISSING,
    dataset_exists,
    find_dataset,
    find_program,
    read_property,
    run_zfs,
    uses_fuse,
)
from pylayers.store.file import remove_tree
from pylayers.store.mountpoint import detach_below, read_mount_table, unescape

SECOND_NS = 1_000_000_000
LAYER = "@layer"
POINTS = "mnt"
OWNER = "dataset"
FROZEN = "frozen"  # a hint that `@layer` was made
ROOT_PROPERTY = "pylayers:root"
PROBE = ".probe-"
DEPENDENT_TRIES = 50
# What a dataset may have been told otherwise, and its children inherit, that images cannot live with.
OPTIONS = ("atime=off", "devices=on", "setuid=on", "exec=on", "readonly=off")
KERNEL_OPTIONS = ("acltype=posixacl", "xattr=sa")
NAME_OPTIONS = ("utf8only=off", "normalization=none", "casesensitivity=sensitive")  # a clone has its origin's


class Driver(DefaultSnapshotter):
    """Keep snapshots as datasets. Needs a root on zfs (or a dataset given by PYLAYERS_ZFS_FSNAME)."""

    name = "zfs"

    def __init__(self, root: Path) -> None:
        """Open the driver's directory, making it when needed, and drop what a crash left half-made."""
        place = Path(os.path.abspath(root))
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._owner = os.path.realpath(place)
        self._above = own_dataset(place)
        self._fuse = uses_fuse()
        self._points = place / POINTS
        super().__init__(place)
        self._collect()

    # -- hooks -------------------------------------------------------------------------------------------------

    def _make(self, directory: str, record: Record, parent: Record | None) -> None:
        if record.kind == SnapshotKind.VIEW and parent is not None:
            return
        dataset = self._dataset(record.id)
        point = "legacy"
        if self._fuse:
            (self._points / record.id).mkdir(mode=0o700, parents=True)
            point = str(self._points / record.id)
        options = (*OPTIONS, *(() if self._fuse else KERNEL_OPTIONS), f"{ROOT_PROPERTY}={self._owner}")
        options = (f"mountpoint={point}", *options)
        if parent is None:  # its top is root's and 0755
            run_zfs("create", *_spell((*options, *NAME_OPTIONS)), dataset)
            return
        origin = self._dataset(parent.id) + LAYER
        frozen = Path(self.catalog.directory(parent), FROZEN)
        if not frozen.exists():
            _take_snapshot(origin)
            frozen.touch()
        try:
            run_zfs("clone", *_spell(options), origin, dataset)
        except DriverError as error:
            if MISSING not in str(error):
                raise
            _take_snapshot(origin)  # somebody destroyed it; the parent's files are what they were
            run_zfs("clone", *_spell(options), origin, dataset)

    def _discard(self, directory: str) -> None:
        identity = directory[-32:]
        try:
            if self._has_dataset(identity):
                destroy_dataset(self._dataset(identity))
        except PylayersError as error:  # as an OSError: the directory stays, and the next open tries again
            raise OSError(_errno_of(error), f"{error}; it goes as soon as nothing uses it") from error
        if self._fuse:
            with suppress(FileNotFoundError):
                (self._points / identity).rmdir()

    def _mounts(self, record: Record) -> list[Mount]:
        readonly = record.kind == SnapshotKind.VIEW
        identity = self._tree_of(record)
        if self._fuse:
            return [Mount("bind", source=str(self._mounted_point(identity)), readonly=readonly)]
        return [Mount("zfs", source=self._dataset(identity), readonly=readonly)]

    def _content(self, record: Record) -> str:
        """Name the directory that zfs-fuse shows; a view of a parent has no files of its own."""
        if record.kind == SnapshotKind.VIEW and record.parent_id is not None:
            return f"{self.catalog.directory(record)}/{CHILDREN}"
        return str(self._mounted_point(record.id))

    def _untouched_before_ns(self, record: Record) -> int:
        """A clone keeps its files' ctimes, so whatever has an older one than its making was not changed since."""
        if record.parent_id is None:
            return 0
        return record.settled_ns // SECOND_NS * SECOND_NS if self._fuse else record.settled_ns

    # -- the protocol ------------------------------------------------------------------------------------------

    def usage(self, key: str) -> Usage:
        """Count the bytes that only this dataset holds, and its inodes. Walks it. Raises NotFound."""
        record = self.catalog.get(key)
        if record.kind == SnapshotKind.VIEW and record.parent_id is not None:
            return Usage(0, 1)
        with translated(f"count the usage of snapshot {key!r}"):
            descriptor = self._open_own(record)
            try:
                inodes = disk_usage(descriptor)[1]
            finally:
                os.close(descriptor)
            return Usage(self._settled_use(record.id), inodes)

    def limit(self, key: str, size_bytes: int) -> None:
        """Limit what an active snapshot's dataset takes for itself by its quota."""
        record = self._active(key)
        if size_bytes <= 0:
            raise InvalidInput(f"a size limit is at least 1 byte, not {size_bytes}")
        run_zfs("set", f"quota={size_bytes}", self._dataset(record.id))

    # -- inside ------------------------------------------------------------------------------------------------

    def _dataset(self, identity: str) -> str:
        return f"{self._above}/{identity}"

    def _has_dataset(self, identity: str) -> bool:
        return dataset_exists(self._dataset(identity))

    @staticmethod
    def _tree_of(record: Record) -> str:
        """Name the snapshot whose dataset shows a snapshot's files."""
        if record.kind == SnapshotKind.VIEW and record.parent_id is not None:
            return record.parent_id
        return record.id

    def _mounted_point(self, identity: str) -> Path:
        """Return where zfs-fuse has a dataset mounted; after its restart it has to be told."""
        point = self._points / identity
        if not os.path.ismount(point):
            dataset = self._dataset(identity)
            run_zfs("set", f"mountpoint={point}", dataset)  # the root may have been moved
            if not os.path.ismount(point):
                run_zfs("mount", dataset)
        return point

    def _open_own(self, record: Record) -> int:
        if self._fuse:
            place = self._mounted_point(self._tree_of(record))
            return os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return DefaultSnapshotter._open_tree(self, record)

    def _open_tree(self, record: Record) -> int:
        return self._open_own(record)

    def _open_parent_tree(self, parent: str) -> int:
        return self._open_tree(self.catalog.get(parent))

    def _settled_use(self, identity: str) -> int:
        """Read what a dataset takes, after what was written to it has reached the pool."""
        dataset = self._dataset(identity)
        mark = f"{dataset}@settle-{secrets.token_hex(8)}"
        run_zfs("snapshot", mark)
        run_zfs("destroy", mark)
        return int(read_property(dataset, "used"))

    def _refuse_mounted(self, _directory: str, record: Record) -> None:
        dataset = self._dataset(record.id)
        own = os.path.realpath(self._points / record.id)
        for line in read_mount_table().splitlines():
            fields = line.split(" ")
            if unescape(fields[fields.index("-") + 2]) == dataset and unescape(fields[4]) != own:
                self._refuse(record)

    def _collect(self) -> None:
        """Destroy datasets of this root whose snapshot's directory is gone; a busy one stays for the next time."""
        for dataset, owner in list_owned(self._above):
            identity = dataset.rpartition("/")[2]
            if owner != self._owner or len(identity) != 32:
                continue
            # Asked in the order in which a snapshot gets these names, so that none slips by.
            names = (MAKING + identity, identity, REMOVING + identity)
            if any(os.path.exists(f"{self.root}/{name}") for name in names):
                continue
            try:
                destroy_dataset(dataset)
            except PylayersError as error:
                import logging  # as rarely needed as this

                logging.getLogger("pylayers.snapshot").warning("could not destroy leftover %s: %s", dataset, error)


def own_dataset(root: Path) -> str:
    """Name the dataset above a folder's own ones, as it was when the folder was new.

    Raises DriverError when it has another name by now, or is gone, and when the folder is not where it was.
    """
    above = find_dataset(root)
    path, place = root / OWNER, os.path.realpath(root)
    try:
        noted, _, owner = path.read_text(errors="surrogateescape").strip("\n").partition("\n")
    except FileNotFoundError:
        fresh = root / f"{OWNER}.{secrets.token_hex(8)}"
        fresh.write_text(f"{above}\n{place}\n", errors="surrogateescape")
        os.replace(fresh, path)
        return above
    if owner != place:
        raise DriverError(
            f"the snapshots in {place} are datasets that belong to {owner}",
            hint=f"move it back; or, if it was moved and not copied, make {place} the second line of {path}",
        )
    if noted != above:
        raise DriverError(
            f"the snapshots in {root} are datasets under {noted}, but the folder is on {above} now",
            hint=f"rename the dataset back, or move its children and write {above} into {path}",
        )
    return above


def list_owned(above: str) -> list[tuple[str, str]]:
    """List the datasets right below one, each with the data root's folder that it says it belongs to."""
    said = run_zfs("list", "-H", "-d", "1", "-t", "filesystem", "-o", f"name,{ROOT_PROPERTY}", above)
    rows = [line.split("\t", 1) for line in said.splitlines()]
    return [(name, owner) for name, owner in rows if name != above]


def destroy_dataset(dataset: str) -> None:
    """Unmount and destroy a dataset with its snapshots; children that are just going are waited for.

    Where they stay, `@layer` is marked to go with the last of them, and Conflict raised.
    """
    with suppress(DriverError, Conflict):
        run_zfs("umount", dataset)
    for left in range(DEPENDENT_TRIES, -1, -1):
        try:
            run_zfs("destroy", "-r", dataset)
            return
        except (DriverError, Conflict) as error:
            if MISSING in str(error):
                return
            if not left or not isinstance(error, Conflict):
                if "dependent" in str(error):
                    with suppress(DriverError, Conflict):
                        run_zfs("destroy", "-d", dataset + LAYER)
                raise
        time.sleep(0.05)


def probe(directory: Path) -> Probe:
    """Make, snapshot, clone, mount and destroy datasets; nothing is left behind."""
    try:
        find_program()
        above = find_dataset(directory)
        run_zfs("list", "-H", "-o", "name", above)
        if is_rootless():
            return Probe(False, "only root of the machine may make and mount zfs datasets")
        for dataset, owner in list_owned(above):
            if f"/{PROBE}" in owner and not os.path.exists(owner):  # of a probe that was killed
                with suppress(Conflict):
                    run_zfs("destroy", "-R", dataset)
    except PylayersError as error:
        return Probe(False, f"{error}; {error.hint}" if error.hint else str(error))
    scratch = Path(tempfile.mkdtemp(prefix=PROBE, dir=directory))
    try:
        return _try_in(scratch)
    except (PylayersError, OSError) as error:
        return Probe(False, f"zfs datasets for {directory}: {error}")
    finally:
        detach_below(scratch)
        remove_tree(scratch)


def _try_in(scratch: Path) -> Probe:
    driver = Driver(scratch / "root")
    try:
        with mounted(driver.prepare("one", None), scratch) as top:
            (top / "file").write_bytes(b"content")
        driver.commit("base", "one")
        with mounted(driver.prepare("two", "base"), scratch) as top:
            (top / "file").write_bytes(b"changed")
        with mounted(driver.view("look", "base"), scratch) as top:
            if (top / "file").read_bytes() != b"content":
                return Probe(False, "a clone here does not keep apart from its origin")
        return Probe(True)
    finally:
        for one in reversed(list(driver.walk())):
            driver.remove(one.name)
        driver.close()


def _take_snapshot(name: str) -> None:
    """Take a ZFS snapshot; one that exists is as good."""
    try:
        run_zfs("snapshot", name)
    except DriverError as error:
        if "already exists" not in str(error):
            raise


def _spell(options: Sequence[str]) -> list[str]:
    return [word for option in options for word in ("-o", option)]


def _errno_of(error: PylayersError) -> int:
    for kind, code in ((Conflict, errno.EBUSY), (NoSpace, errno.ENOSPC), (PermissionDenied, errno.EPERM)):
        if isinstance(error, kind):
            return code
    return errno.EIO
