"""aufs: each snapshot holds only its own changes, and the kernel's aufs shows them over its parents'.

docker's layout: `diff/<id>` has the files, marks by name among them; `layers/<id>` lists the ids below, topmost first;
`mnt/<id>` is an empty directory to mount at. snapshot.json is the truth about all of it, so what a crash leaves is
found by the directory `<id>` that was being made or removed.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pylayers._native import walk
from pylayers.errors import DriverError, PylayersError, Unsupported
from pylayers.snapshot.aufsmount import SEPARATORS, TYPE, is_branch, read_branch_limit
from pylayers.snapshot.catalog import Record
from pylayers.snapshot.default import DefaultSnapshotter, translated
from pylayers.snapshot.lower import LowerStack, copy_metadata
from pylayers.snapshot.mount import mounted
from pylayers.snapshot.namedmark import OPAQUE, PREFIX, NamedStack, convert_names, spell_names, spell_overlay
from pylayers.snapshot.snapshotter import Changes, Mount, Probe, SnapshotKind
from pylayers.snapshot.stack import StackSnapshotter
from pylayers.snapshot.upper import find_upper_changes
from pylayers.store.file import read_text, remove_file, remove_tree, write_text
from pylayers.store.layer import Layer

FOLDERS = ("diff", "layers", "mnt")
APPLYING = "applying"
# dirperm1: a lower directory's mode doesn't count once the upper has its own; dio: direct I/O is passed on.
OPTIONS = ("dio", "dirperm1")


class Driver(StackSnapshotter):
    """Keep snapshots as aufs branches. Needs a kernel with aufs."""

    name = "aufs"
    reserved_prefix = PREFIX
    limit = DefaultSnapshotter.limit  # a branch is a single directory without one of its own around it

    def __init__(self, root: Path) -> None:
        """Open the driver's directory, making it when needed, and drop what a crash left half-made."""
        place = Path(os.path.abspath(root))
        for character in SEPARATORS:
            if character in str(place):
                raise Unsupported(
                    f"aufs cannot use {place}: {character!r} would end a branch's name in its mount options",
                    hint="choose another data root with --root, or another driver with --driver",
                )
        with translated(f"open the snapshots in {place}"):
            for folder in FOLDERS:
                (place / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        DefaultSnapshotter.__init__(self, place)
        for record in self.catalog.walk():
            if record.kind == SnapshotKind.ACTIVE:
                self._end_applying(record)

    # -- hooks -------------------------------------------------------------------------------------------------

    def _make(self, directory: str, record: Record, parent: Record | None) -> None:
        below = [] if parent is None else [parent.id, *self._read_layers(parent)]
        limit = self._branch_limit()
        if len(below) + 1 > limit:
            raise Unsupported(
                f"aufs here takes {limit} branches, and snapshot {record.name!r} would need {len(below) + 1}",
                hint="use another storage driver: pylayers driver migrate aufs overlay2",
            )
        diff = f"{self.root}/diff/{record.id}"
        os.mkdir(diff)
        os.chmod(diff, 0o755)  # noqa: S103 - whatever the umask
        os.mkdir(f"{self.root}/mnt/{record.id}", 0o700)
        write_text(f"{self.root}/layers/{record.id}", "".join(f"{identity}\n" for identity in below))
        if parent is not None:
            top = os.fsencode(f"{self.root}/diff/{parent.id}")
            copy_metadata(top, os.stat(top), os.fsencode(diff))

    def _discard(self, directory: str) -> None:
        identity = directory[-32:]
        for folder in ("mnt", "diff"):
            if os.path.exists(f"{self.root}/{folder}/{identity}"):
                remove_tree(f"{self.root}/{folder}/{identity}")
        remove_file(f"{self.root}/layers/{identity}", durable=False)

    _flush = DefaultSnapshotter._flush  # stack's looks into `diff`

    def _seal(self, directory: str) -> None:
        with suppress(FileNotFoundError):
            os.rmdir(f"{self.root}/mnt/{os.path.basename(directory)}")

    def _content(self, record: Record) -> str:
        return f"{self.root}/diff/{record.id}"

    def _mounts(self, record: Record) -> list[Mount]:
        if record.kind == SnapshotKind.ACTIVE:
            self._end_applying(record)
        lowers = tuple(self._lowers(record))
        view = record.kind == SnapshotKind.VIEW
        own = self._content(record)
        if view:
            return [Mount(TYPE, lowers=lowers or (own,), options=OPTIONS, readonly=True)]
        return [Mount(TYPE, lowers=lowers, upper=own, options=OPTIONS)]

    def _refuse_mounted(self, directory: str, record: Record) -> None:
        if is_branch(Path(self._content(record))):
            self._refuse(record)
        super()._refuse_mounted(directory, record)

    # -- shorter ways than the derived ones --------------------------------------------------------------------

    def apply(self, key: str, layer: Layer) -> None:
        """Unpack a layer straight into the branch of an active snapshot; nothing is mounted."""
        record = self._active(key)
        diff = os.fsencode(self._content(record))
        with translated(f"apply layer {layer.diff_id} to snapshot {key!r}"), self._applying(record):
            spell_overlay(diff)
            try:
                super().apply(key, layer)
            finally:
                spell_names(diff)

    def changes(self, key: str) -> Changes:
        """Return the changes of an active or committed snapshot, by walking only its branch."""
        record = self._changeable(key)
        with translated(f"find the changes of snapshot {key!r}"):
            self._end_applying(record)
            descriptor = os.open(self._content(record), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                records, heap = walk.walk(descriptor, xattrs=True)
                records = self._convert(records, heap)
                with self._below(record) as below:
                    return find_upper_changes(records, heap, descriptor, below)
            except BaseException:
                os.close(descriptor)
                raise

    def commit(self, name: str, key: str) -> None:
        """Turn active snapshot key into committed snapshot name. Raises Conflict while it is mounted."""
        with translated(f"commit snapshot {key!r}"):
            self._end_applying(self.catalog.get(key))
        super().commit(name, key)

    # -- inside ------------------------------------------------------------------------------------------------

    @contextmanager
    def _applying(self, record: Record) -> Iterator[None]:
        """Note, under a lock that dies with the process, that a branch's marks are overlayfs's for a while."""
        note = f"{self.catalog.directory(record)}/{APPLYING}"
        descriptor = os.open(note, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
            os.unlink(note)
        finally:
            os.close(descriptor)

    def _end_applying(self, record: Record) -> None:
        """Spell the marks that a killed `apply` left in overlayfs's way; one that is at work is left alone."""
        note = f"{self.catalog.directory(record)}/{APPLYING}"
        try:
            descriptor = os.open(note, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            spell_names(os.fsencode(self._content(record)))
            remove_file(note, durable=False)
        except BlockingIOError:
            return
        finally:
            os.close(descriptor)

    def _branch_limit(self) -> int:
        return read_branch_limit()

    @staticmethod
    def _convert(records: bytearray, heap: bytearray) -> bytearray:
        return convert_names(records, heap)

    @contextmanager
    def _below(self, record: Record) -> Iterator[LowerStack]:
        """Show the layers below a snapshot without mounting them."""
        yield NamedStack(self._lowers(record))

    def _lowers(self, record: Record) -> list[str]:
        return [f"{self.root}/diff/{identity}" for identity in self._read_layers(record)]

    def _read_layers(self, record: Record) -> list[str]:
        """Read the ids below a snapshot, topmost first."""
        path = f"{self.root}/layers/{record.id}"
        try:
            return read_text(path).split()
        except FileNotFoundError as error:
            raise DriverError(f"snapshot {record.name!r} has lost its list of parents ({path})") from error


def probe(directory: Path) -> Probe:
    """Mount two lowers inside a directory and change them; nothing is left behind."""
    if TYPE not in Path("/proc/filesystems").read_text().split():
        return Probe(False, "the running kernel has no aufs, or its module is not loaded")
    scratch = Path(tempfile.mkdtemp(prefix=".probe-", dir=directory))
    try:
        for name in ("l1", "l2", "upper"):
            (scratch / name).mkdir()
        (scratch / "l1" / "one").write_bytes(b"1")
        (scratch / "l2" / "two").write_bytes(b"2")
        (scratch / "l2" / "hidden").write_bytes(b"")
        (scratch / "l1" / ".wh.hidden").write_bytes(b"")
        (scratch / "l2" / "tree").mkdir()
        lowers = (str(scratch / "l1"), str(scratch / "l2"))
        with mounted([Mount(TYPE, lowers=lowers, upper=str(scratch / "upper"), options=OPTIONS)], scratch) as merged:
            if sorted(os.listdir(merged)) != ["one", "tree", "two"]:
                return Probe(False, "aufs here does not honour whiteouts")
            (merged / "two").unlink()
            (merged / "tree").rmdir()
            (merged / "tree").mkdir()
        upper = os.fsencode(scratch / "upper")
        if not os.path.lexists(upper + b"/.wh.two") or not os.path.lexists(upper + b"/tree/" + OPAQUE):
            return Probe(False, "aufs here marks deleted files in a way this driver does not know")
        return Probe(True)
    except (PylayersError, OSError) as error:
        return Probe(False, f"aufs inside {directory}: {error}")
    finally:
        remove_tree(scratch)
