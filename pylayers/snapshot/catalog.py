"""The relations between one driver's snapshots, kept in the driver's own files.

Every snapshot is a directory `<id>/` whose `snapshot.json` is the truth: name, kind, parent. `by-name/<escaped name>`
is a symlink to the id, so that a look-up reads two small files instead of the directory; it is only a hint, and one
that names another snapshot than the file does counts as absent. `<id>/children/<child id>` marks a child, a hint too.

A snapshot appears by renaming `.making-<id>` to `<id>`, is committed by replacing `snapshot.json`, and disappears by
renaming to `.removing-<id>`: each is one atomic step, taken under one flock that all processes share. The maker (and
the remover) of a hidden directory holds a flock on it, so whoever opens the catalog next can tell a leftover from work
in progress. docs/internals/snapshot-lifecycle.md has the whole story.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from pylayers.errors import (
    AlreadyExists,
    Conflict,
    DriverError,
    InvalidInput,
    NotFound,
    Unsupported,
    translate_os_error,
)
from pylayers.jsontext import dump, load
from pylayers.oci.digest import hex_of
from pylayers.record import record, replace, to_mapping
from pylayers.snapshot.snapshotter import SnapshotKind, SnapshotStat
from pylayers.store.file import read_file, remove_file, remove_tree, sync_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _typeshed import StrPath

MAKING = ".making-"
REMOVING = ".removing-"
PLAIN_BYTES = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-:@+=,")
LONGEST_NAME_BYTES = 4096
LONGEST_PLAIN_BYTES = 200  # of a file name that stands for a key
KINDS = (SnapshotKind.ACTIVE, SnapshotKind.VIEW, SnapshotKind.COMMITTED)
RECORD_FILE, CHILDREN = "snapshot.json", "children"
UNPACKING = "unpack-"  # how the keys of snapshots begin that are of no use to anybody but their maker
VERSION_FILE = "version"
FORMAT_VERSION = 1  # of the driver's folder; raised when an older pylayers would misread it
# What projectquota keeps in a driver's folder, and in a snapshot's; it is loaded only where they are.
PROJECTS, PROJECT = "projects", "project"
CLOCK_REALTIME_COARSE = 5  # the clock of file timestamps: never ahead of the next ctime (linux/time.h)


@record
class Record:
    """One snapshot.json."""

    name: str
    kind: str
    parent: str | None
    id: str
    parent_id: str | None
    created_ns: int
    settled_ns: int = 0  # when the driver had finished making it; a later ctime inside means a change

    def stat(self) -> SnapshotStat:
        """Give the public description."""
        return SnapshotStat(self.name, self.kind, self.parent, self.created_ns)

    def encode(self) -> bytes:
        """Give the file's content."""
        fields = to_mapping(self)
        lines = ",\n".join(f" {dump(name)}: {dump(fields[name])}" for name in sorted(fields))  # all are scalars
        return f"{{\n{lines}\n}}\n".encode()

    @classmethod
    def decode(cls, content: bytes, path: StrPath) -> Record:
        """Read the file's content. Raises DriverError when it is not a record."""
        try:
            found = cls(**load(content))
            if found.kind not in KINDS:
                raise ValueError(f"{found.kind!r} is no kind of snapshot")
            return found
        except (ValueError, TypeError, KeyError) as error:
            raise DriverError(f"snapshot record {path} is damaged: {error}") from error


class Catalog:
    """Keep the snapshots below one driver's root; safe for several threads and processes at once."""

    def __init__(self, root: StrPath, discard: Callable[[str], None] | None = None) -> None:
        """Open or make the catalog and drop what a crash left half-made.

        `discard` ends what a driver keeps outside a snapshot's directory, before the directory itself is deleted.
        """
        self.root = root = os.fspath(root)
        self._discard = discard
        self._closed = False
        self._held: dict[str, int] = {}  # id -> the claim of what is being unpacked here
        self._stale: list[str] = []
        stranger = explain_version(root)
        if stranger:
            raise Unsupported(stranger, hint="use the pylayers that wrote it, or choose another root with --root")
        try:
            if not os.path.isdir(f"{root}/by-name"):
                os.makedirs(f"{root}/by-name", 0o700, exist_ok=True)
            _touch(f"{root}/lock", 0o600)
            if not os.path.exists(f"{root}/{VERSION_FILE}"):
                with self._locked():
                    fresh = f"{root}/{VERSION_FILE}.new"
                    _write(fresh, f"{FORMAT_VERSION}\n".encode())
                    os.replace(fresh, f"{root}/{VERSION_FILE}")
        except OSError as error:
            raise translate_os_error(error, f"open the snapshots in {root}") from error
        self._recover()

    def close(self) -> None:
        """Refuse any further use."""
        self._closed = True
        while self._held:
            os.close(self._held.popitem()[1])

    # -- reading -----------------------------------------------------------------------------------------------

    def directory(self, record: Record) -> str:
        """Name a snapshot's directory."""
        return f"{self.root}/{record.id}"

    def get(self, name: str) -> Record:
        """Look a snapshot up by key or name. Raises NotFound."""
        found = self.find(name)
        if found is None:
            raise NotFound(f"no snapshot {name!r} in {self.root}")
        return found

    def find(self, name: str) -> Record | None:
        """Look a snapshot up by key or name; None when there is none."""
        if self._closed:
            raise DriverError(f"the snapshots in {self.root} are closed")
        try:
            identity = os.readlink(self._pointer(name))[3:]
        except FileNotFoundError:
            return None
        record = self._read(identity)
        return record if record is not None and record.name == name else None

    def committed(self, name: str) -> Record:
        """Look up a snapshot that may be a parent. Raises NotFound; InvalidInput when it isn't committed."""
        record = self.get(name)
        if record.kind != SnapshotKind.COMMITTED:
            raise InvalidInput(f"snapshot {name!r} is {record.kind}, and only a committed one can be a parent")
        return record

    def walk(self) -> list[Record]:
        """Return every snapshot, parents before children, as of one moment."""
        with self._locked(fcntl.LOCK_SH):
            records = {record.id: record for record in map(self._read, self._identities()) if record is not None}
        ordered: dict[str, Record] = {}
        for start in sorted(records.values(), key=lambda record: (record.created_ns, record.id)):
            pending: list[Record] = []
            at: Record | None = start
            while at is not None and at.id not in ordered:
                pending.append(at)
                at = records.get(at.parent_id) if at.parent_id else None
            ordered.update((record.id, record) for record in reversed(pending))
        return list(ordered.values())

    def stale(self) -> list[str]:
        """Name what killed processes were unpacking when this catalog was opened."""
        return list(self._stale)

    # -- changing ----------------------------------------------------------------------------------------------

    def create(
        self,
        name: str,
        kind: str,
        parent: str | None,
        make: Callable[[str, Record, Record | None], None],
        *,
        lasting: bool = True,
    ) -> Record:
        """Make a snapshot: `make(directory, record, parent)` fills a hidden directory, then it appears at once.

        The shared lock is not held while `make` runs, so a long copy blocks nobody. lasting=False flushes nothing: a
        power cut before it is committed may take it. Raises AlreadyExists, NotFound and InvalidInput as
        Snapshotter.prepare does; nothing is left behind on failure.
        """
        escape(name)
        identity = os.urandom(16).hex()
        hidden = f"{self.root}/{MAKING}{identity}"
        with self._locked():
            above = self._check_new(name, parent)
            os.mkdir(hidden, 0o700)
            claim = _claim(hidden)
        try:
            os.mkdir(f"{hidden}/{CHILDREN}", 0o700)
            record = Record(name, kind, parent, identity, above.id if above else None, time.time_ns())
            make(hidden, record, above)
            record = replace(record, settled_ns=time.clock_gettime_ns(CLOCK_REALTIME_COARSE))
            _write(f"{hidden}/{RECORD_FILE}", record.encode(), durable=lasting)
            with self._locked():
                now = self._check_new(name, parent)
                if now is not None and above is not None and now.id != above.id:
                    raise NotFound(f"snapshot {parent!r} was removed while {name!r} was made over it")
                if above is not None:
                    _touch(f"{self.directory(above)}/{CHILDREN}/{identity}", 0o666)
                self._point(name, identity)
                os.rename(hidden, f"{self.root}/{identity}")
                if lasting:
                    sync_path(self.root)
            if name.startswith(UNPACKING):
                self._held[identity] = os.dup(claim)  # until it is committed or removed, or this process ends
        except BaseException:
            with suppress(OSError):
                self._delete(hidden)
            raise
        finally:
            os.close(claim)
        return record

    def commit(self, name: str, key: str, ready: Callable[[str, Record], None], done: Callable[[str], None]) -> None:
        """Rename active snapshot key to committed name, in one step.

        `ready(directory, record)` runs first and may refuse, `done(directory)` afterwards; both under the lock.
        """
        escape(name)
        with self._locked():
            record = self.get(key)
            if record.kind != SnapshotKind.ACTIVE:
                raise InvalidInput(f"snapshot {key!r} is {record.kind}, and only an active one can be committed")
            if name != key and self.find(name) is not None:
                raise AlreadyExists(f"snapshot {name!r} exists already")
            directory = self.directory(record)
            ready(directory, record)
            self._point(name, record.id)
            fresh = f"{directory}/snapshot.json.new"
            _write(fresh, replace(record, name=name, kind=SnapshotKind.COMMITTED).encode())
            os.replace(fresh, f"{directory}/{RECORD_FILE}")
            sync_path(directory)
            sync_path(self.root)  # it may have been made without lasting
            if name != key:
                remove_file(self._pointer(key), durable=False)
            done(directory)
        if record.id in self._held:
            os.close(self._held.pop(record.id))

    def remove(self, key: str, ready: Callable[[str, Record], None]) -> None:
        """Remove a snapshot. `ready(directory, record)` may refuse. Raises NotFound; Conflict when it has children."""
        with self._locked():
            record = self.get(key)
            directory = self.directory(record)
            child = self._child(directory)
            if child is not None:
                raise Conflict(f"snapshot {key!r} is the parent of {child.name!r}")
            ready(directory, record)
            hidden = f"{self.root}/{REMOVING}{record.id}"
            claim = self._held.pop(record.id, -1)
            try:
                claim = claim if claim >= 0 else _claim(directory, wait=False)
            except BlockingIOError:
                raise Conflict(f"snapshot {key!r} is being unpacked by another process") from None
            try:
                os.rename(directory, hidden)
                remove_file(self._pointer(key), durable=False)
                if record.parent_id is not None:
                    remove_file(f"{self.root}/{record.parent_id}/{CHILDREN}/{record.id}", durable=False)
            except BaseException:
                os.close(claim)
                raise
        try:
            self._delete(hidden)
        finally:
            os.close(claim)

    # -- inside ------------------------------------------------------------------------------------------------

    @contextmanager
    def _locked(self, how: int = fcntl.LOCK_EX) -> Iterator[None]:
        """Hold the catalog's lock; a descriptor of its own each time, so that threads exclude each other too."""
        if self._closed:
            raise DriverError(f"the snapshots in {self.root} are closed")
        descriptor = os.open(f"{self.root}/lock", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, how)
            yield
        finally:
            os.close(descriptor)

    def _check_new(self, name: str, parent: str | None) -> Record | None:
        """Check under the lock that name is free and the parent usable; return the parent."""
        above = None if parent is None else self.committed(parent)
        if self.find(name) is not None:
            raise AlreadyExists(f"snapshot {name!r} exists already")
        return above

    def _identities(self) -> list[str]:
        return [entry.name for entry in os.scandir(self.root) if len(entry.name) == 32 and entry.is_dir()]

    def _read(self, identity: str) -> Record | None:
        path = f"{self.root}/{identity}/{RECORD_FILE}"
        try:
            content = read_file(path)
        except FileNotFoundError:
            return None
        return Record.decode(content, path) if content else None  # empty: never flushed, and a power cut took it

    def _child(self, directory: str) -> Record | None:
        """Find one living child; markers that a crash left without a child are dropped."""
        for marker in sorted(os.listdir(f"{directory}/{CHILDREN}")):
            child = self._read(marker)
            if child is not None:
                return child
            os.unlink(f"{directory}/{CHILDREN}/{marker}")
        return None

    def _pointer(self, name: str) -> str:
        return f"{self.root}/by-name/{escape(name)}"

    def _point(self, name: str, identity: str) -> None:
        """Point by-name/<name> at an id, over whatever stale pointer is there."""
        fresh = f"{self.root}/by-name/.{identity}"
        remove_file(fresh, durable=False)
        os.symlink(f"../{identity}", fresh)
        os.replace(fresh, self._pointer(name))

    def _is_abandoned(self, record: Record) -> bool:
        try:
            os.close(_claim(self.directory(record), wait=False))
        except (BlockingIOError, FileNotFoundError):
            return False
        return record.kind == SnapshotKind.ACTIVE

    def _delete(self, directory: str) -> None:
        """Delete a hidden directory; safe to repeat and to be interrupted."""
        if self._discard is not None:
            self._discard(directory)
        remove_tree(directory)

    def _recover(self) -> None:
        """Drop leftovers and stale pointers; a directory whose maker or remover still lives is left alone."""
        leftovers: list[tuple[str, int]] = []
        with self._locked():
            for entry in sorted(os.scandir(self.root), key=lambda entry: entry.name):
                if entry.name.startswith((MAKING, REMOVING)):
                    try:
                        leftovers.append((entry.path, _claim(entry.path, wait=False)))
                    except (BlockingIOError, FileNotFoundError):
                        continue  # its maker or remover is alive, or has just finished
            records: dict[str, Record | None] = {}  # nobody changes one while the lock is held
            pointers: set[str] = set()
            for pointer in os.scandir(f"{self.root}/by-name"):
                identity = os.readlink(pointer.path)[3:]
                record = records[identity] = self._read(identity)
                if record is None or escape(record.name) != pointer.name:
                    os.unlink(pointer.path)
                    continue
                pointers.add(pointer.name)
                if record.name.startswith(UNPACKING) and self._is_abandoned(record):
                    self._stale.append(record.name)
            for identity in self._identities():
                record = records[identity] if identity in records else self._read(identity)
                if record is None:
                    hidden = f"{self.root}/{REMOVING}{identity}"
                    os.rename(f"{self.root}/{identity}", hidden)
                    leftovers.append((hidden, _claim(hidden)))
                elif escape(record.name) not in pointers:
                    self._point(record.name, identity)
                    pointers.add(escape(record.name))
        for path, claim in leftovers:
            try:
                self._delete(path)
            except OSError as error:
                import logging  # as rarely needed as this

                logging.getLogger("pylayers.snapshot").warning("could not delete leftover %s: %s", path, error)
            finally:
                os.close(claim)


def escape(name: str) -> str:
    """Give the file name that stands for a key: itself where it is plain, else percent-escaped, hashed when long."""
    raw = name.encode("utf-8", "surrogateescape")
    if not raw or len(raw) > LONGEST_NAME_BYTES or b"\0" in raw:
        raise InvalidInput(f"a snapshot key has 1 to {LONGEST_NAME_BYTES} bytes and no NUL: {name[:80]!r}")
    if PLAIN_BYTES.issuperset(raw) and len(raw) <= LONGEST_PLAIN_BYTES:
        return name
    plain = "".join(chr(byte) if byte in PLAIN_BYTES or (byte == 46 and at) else f"%{byte:02x}"
                    for at, byte in enumerate(raw))  # fmt: skip
    return plain if len(plain) <= LONGEST_PLAIN_BYTES else "%%" + hex_of(raw)


def explain_version(root: StrPath) -> str:
    """Say why a driver's folder is not this version's to touch; "" where it is (or is still to be made)."""
    path = f"{os.fspath(root)}/{VERSION_FILE}"
    try:
        text = read_file(path).decode(errors="replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    if text == str(FORMAT_VERSION):
        return ""
    return (
        f"the snapshots in {root} were written by another version of pylayers: "
        f"format {text[:40]!r}, this one knows {FORMAT_VERSION}"
    )


def _claim(directory: str, wait: bool = True) -> int:
    """Take the flock that says somebody is at work in a directory; the kernel drops it with the process."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _touch(path: str, mode: int) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, mode))


def _write(path: str, content: bytes, *, durable: bool = True) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, content)
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
