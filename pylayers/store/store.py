"""The store: opens the data root, hands out its parts, and keeps what is in use from being collected."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from types import TracebackType

from pylayers.errors import Conflict, InvalidInput, Unsupported
from pylayers.store.file import translates, translating, write_file
from pylayers.store.location import STAT_CACHE_FOLDER
from pylayers.store.lock import Lock
from pylayers.store.workspace import Workspace
from pylayers.thread import allocate_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from _typeshed import StrPath

    from pylayers.store.blob import BlobStore
    from pylayers.store.check import Problem
    from pylayers.store.collect import Collected
    from pylayers.store.layerstore import LayerStore
    from pylayers.store.lease import Lease
    from pylayers.store.metadata import Metadata
    from pylayers.store.statcache import StatCache

ROOT_VERSION = 2  # 2: layers may be spliced, which who knows 1 would read as zeros
ROOT_MODE = 0o711
# docker's folders and modes; storage drivers make their own beside them.
FOLDERS = {
    "buildkit": 0o711,
    "containers": 0o710,
    "image": 0o700,
    "network": 0o750,
    "plugins": 0o700,
    "runtimes": 0o700,
    "swarm": 0o700,
    "tmp": 0o700,
    "trust": 0o700,
    "volumes": 0o701,
}
_VERSION_FILE = "version"
_IMAGE_FOLDERS = ("blobs/sha256", "layers/sha256")


class Store:
    """Hold a data root open. Many processes may have one root open; see docs/internals/locking.md.

    Threads may share a Store; a forked child must open its own. Its parts are loaded with their first use: what is done
    beside that (a build's look at its context, a container's monitor) begins as much sooner.
    """

    def __init__(self, root: str, lock: Lock) -> None:
        self.location = root  # what `root` is, as a str
        self.ends_with_process = False  # set by whoever closes it just before its process ends: see Database.leave
        self._lock = lock
        self._workspace = Workspace(os.path.join(root, "tmp"))
        self._leases: list[Lease] = []
        self._mutex = allocate_lock()
        self._metadata: Metadata | None = None

    @classmethod
    @translates("open the data root")
    def open(cls, root: StrPath) -> Store:
        """Open a data root, making it when missing, and drop what crashed processes left half-made.

        Raises InvalidInput for a directory that holds something else, Unsupported for a root of a newer pylayers
        (neither is touched), Conflict while the root is being rebuilt, PermissionDenied.
        """
        root = os.path.abspath(root)
        version = check_version(root)
        if not version:
            make_root(root)
        try:
            lock = Lock(f"{root}/image/store.lock", exclusive=False, wait=False)
        except BlockingIOError:
            raise Conflict(f"{root}: the store is being rebuilt or migrated by another process") from None
        try:
            if version and version < ROOT_VERSION:  # whatever the earlier one could hold, this one can
                write_version(root)
            store = cls(root, lock)
            store._workspace.sweep()
        except BaseException:
            lock.close()
            raise
        return store

    @property
    def root(self) -> Path:
        """Return the data root."""
        from pathlib import Path

        return Path(self.location)

    @translates("make a folder of the data root")
    def directory(self, name: str) -> str:
        """Return a top folder of the root, made on first use. Drivers name their own."""
        if not name or "/" in name or name.startswith("."):
            raise InvalidInput(f"{name!r} is not the name of a folder of the data root")
        path = f"{self.location}/{name}"
        if not os.path.isdir(path):
            try:
                os.mkdir(path, FOLDERS.get(name, 0o710))
            except FileExistsError:
                if not os.path.isdir(path):  # otherwise another process was faster
                    raise
        return path

    @property
    def metadata(self) -> Metadata:
        """Return the relations."""
        if self._metadata is None:
            from pylayers.store.metadata import Metadata

            with self._mutex:
                if self._metadata is None:  # no other thread was faster
                    self._metadata = Metadata(f"{self.location}/image", self._workspace)
        return self._metadata

    @cached_property  # two threads may make two, which are equal
    def blobs(self) -> BlobStore:
        """Return the blobs."""
        from pylayers.store.blob import BlobStore

        return BlobStore(f"{self.location}/image/blobs/sha256", self._workspace, self._admit)

    @cached_property
    def layers(self) -> LayerStore:
        """Return the layers."""
        from pylayers.store.layerstore import LayerStore

        return LayerStore(f"{self.location}/image/layers/sha256", self._workspace, self._admit)

    @property
    def stat_cache(self) -> StatCache:
        """Return the cache of walked build contexts."""
        from pylayers.store.statcache import StatCache

        return StatCache(f"{self.location}/{STAT_CACHE_FOLDER}")

    @translates("make a scratch path")
    def scratch(self, prefix: str) -> Path:
        """Return a path in tmp/ that doesn't exist yet; what is there when the process ends is removed."""
        from pathlib import Path

        return Path(self._workspace.path(prefix))

    @translates("take a lease")
    def lease(self, purpose: str, *, settled: bool = True) -> Lease:
        """Begin a lease. What this Store commits while it is open is held by it (or by the one named at ingest).

        settled=False writes nothing and keeps collect waiting until the lease is settled or ends.
        """
        from pylayers.store.lease import Lease

        lease = Lease(self.metadata.leases, purpose, self._collect_lock, self._forget, settled=settled)
        with self._mutex:
            self._leases.append(lease)
        return lease

    def _forget(self, lease: Lease) -> None:
        with self._mutex:
            self._leases.remove(lease)

    def _collect_lock(self, *, exclusive: bool = False) -> Lock:
        return Lock(f"{self.location}/image/collect.lock", exclusive=exclusive)

    @contextmanager
    def _admit(self, kind: str, name: str, lease: Lease | None) -> Iterator[None]:
        """Keep collect out while the block makes a thing visible and leases hold it."""
        with self._collect_lock():
            yield
            with self._mutex:
                leases = list(self._leases) if lease is None else [lease]
            for each in leases:
                each.note(kind, name)

    @translates("collect")
    def collect(self, *, dry_run: bool = False, keep_cache: bool = True) -> Collected:
        """Delete what no image, container, cached step or live lease needs; keep_cache=False forgets the steps first.

        Running builds and pulls go on; their commits wait for the moment that this takes. The caller removes the
        snapshots of the chains that are returned.
        """
        from pylayers.store.collect import collect

        with self._collect_lock(exclusive=True):
            return collect(self, dry_run=dry_run, keep_cache=keep_cache)

    @translates("check the store")
    def check(self, *, repair: bool = False) -> list[Problem]:
        """Read everything and compare; repair=True mends or removes what is damaged, and waits for commits to do so."""
        from pylayers.store.check import check

        with self._collect_lock(exclusive=repair):
            return check(self, repair=repair)

    @translates("rebuild the database")
    def rebuild(self) -> None:
        """Make the database again from the files. The build cache's steps are lost; their layers go at a collect.

        Raises Conflict while another process, or another Store of this one, has the root open.
        """
        from pylayers.store.check import rebuild

        with self.alone("rebuilt"):
            rebuild(self)

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Keep every other process out of the root for the block; `what` is about to be done to the store.

        Raises Conflict while another process, or another Store of this one, has the root open.
        """
        with self._mutex:
            if self._leases:
                raise Conflict(f"the store cannot be {what} while this process holds a lease")
        if not self._lock.try_upgrade():
            raise Conflict(f"{self.location}: another process uses the store", hint="end it, then try again")
        try:
            yield
        finally:
            self._lock.downgrade()

    def close(self) -> None:
        """End the Store's leases, drop its half-made ingests and release its locks."""
        with translating("close the store"):
            with self._mutex:
                leases = list(self._leases)
            for lease in leases:
                lease.close()
            if self._metadata is not None:
                if self.ends_with_process:
                    self._metadata.leave()
                else:
                    self._metadata.close()
            self._workspace.close()
            self._lock.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_version(root: str) -> int:
    """Return a data root's version, 0 where there is none yet.

    Raises Unsupported for a newer one, InvalidInput for another's directory.
    """
    path = f"{root}/image/{_VERSION_FILE}"
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read().strip()
    except FileNotFoundError:
        text = ""
    if text:
        if not text.isdecimal():
            raise InvalidInput(f"{path}: {text[:40]!r} is not a version")
        if int(text) > ROOT_VERSION:
            raise Unsupported(
                f"{root}: made by a newer pylayers (data root version {text}, this one knows {ROOT_VERSION})",
                hint="upgrade pylayers, or choose another root with --root",
            )
        return int(text)
    try:
        strangers = sorted(set(os.listdir(root)) - set(FOLDERS) - {"lost+found"})
        if os.path.isdir(f"{root}/image"):
            known = {name.split("/")[0] for name in _IMAGE_FOLDERS} | {_VERSION_FILE}
            left = [name for name in os.listdir(f"{root}/image") if not name.startswith(".")]
            strangers += [f"image/{name}" for name in sorted(set(left) - known)]
    except FileNotFoundError:
        return 0
    if strangers:
        raise InvalidInput(
            f"{root}: not a pylayers data root, and it holds {strangers[0]!r}",
            hint="choose an empty or new directory with --root",
        )
    return 0


def make_root(root: str) -> None:
    """Make an empty data root; the version file comes last, so that an interrupted start is simply repeated."""
    os.makedirs(root, ROOT_MODE, exist_ok=True)
    os.chmod(root, ROOT_MODE)
    for name, mode in FOLDERS.items():
        folder = f"{root}/{name}"
        os.makedirs(folder, exist_ok=True)
        os.chmod(folder, mode)
    for name in _IMAGE_FOLDERS:
        os.makedirs(f"{root}/image/{name}", 0o700, exist_ok=True)
    write_version(root)


def write_version(root: str) -> None:
    """Say which version a root has from now on."""
    write_file(f"{root}/image/{_VERSION_FILE}", f"{ROOT_VERSION}\n".encode())
