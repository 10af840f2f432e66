"""Leases: what a running build or pull uses is kept from collection until it is done, or its process is gone.

A lease belongs to its Store's scratch directory (workspace.py), whose flock the kernel releases with the process:
unlike a process id it cannot be mistaken for another's, and it works across PID namespaces.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator
from types import TracebackType

from pylayers.errors import InvalidInput
from pylayers.record import record
from pylayers.store.database import Database
from pylayers.thread import allocate_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pylayers.store.lock import Lock
    from pylayers.store.workspace import Workspace

KINDS = frozenset(("layer", "blob", "snapshot"))


@record
class LeaseRecord:
    """Describe a lease; `alive` tells whether its process is there."""

    id: str
    purpose: str
    pid: int
    created_ns: int
    alive: bool


class Leases:
    """Keep leases and what they hold. Nothing is synced: a power loss ends every lease anyway."""

    def __init__(self, database: Database, workspace: Workspace) -> None:
        self._database = database
        self._workspace = workspace

    def add(self, purpose: str, items: Collection[tuple[str, str]] = ()) -> str:
        """Add a lease of this process that holds these (kind, name), and return its id."""
        lease_id = os.urandom(16).hex()
        row = (lease_id, purpose, self._workspace.owner(), os.getpid(), time.time_ns())
        with self._database.write(durable=False) as connection:
            connection.execute("INSERT INTO lease VALUES(?, ?, ?, ?, ?)", row)
            connection.executemany("INSERT INTO lease_item VALUES(?, ?, ?)", [(lease_id, *item) for item in items])
        return lease_id

    def hold(self, lease_id: str, kind: str, name: str) -> None:
        """Let a lease hold a thing."""
        values = (lease_id, kind, name)
        self._database.execute("INSERT OR IGNORE INTO lease_item VALUES(?, ?, ?)", values, durable=False)

    def delete(self, lease_id: str) -> None:
        """End a lease."""
        self._database.execute("DELETE FROM lease WHERE id=?", (lease_id,), durable=False)

    def walk(self) -> Iterator[LeaseRecord]:
        """Yield every lease, oldest first."""
        alive: dict[str, bool] = {}
        rows = self._database.read("SELECT id, purpose, owner, pid, created_ns FROM lease ORDER BY created_ns, id")
        for lease_id, purpose, owner, pid, created_ns in rows:
            if owner not in alive:
                alive[owner] = self._workspace.lives(owner)
            yield LeaseRecord(lease_id, purpose, pid, created_ns, alive[owner])

    def items(self) -> set[tuple[str, str]]:
        """Return (kind, name) of everything that a live lease holds."""
        found: set[tuple[str, str]] = set()
        for lease in self.walk():
            if lease.alive:
                found.update(self._database.read("SELECT kind, name FROM lease_item WHERE lease=?", (lease.id,)))
        return found

    def drop_dead(self) -> int:
        """Remove the leases of processes that are gone; return how many."""
        dead = [lease.id for lease in self.walk() if not lease.alive]
        for lease_id in dead:
            self.delete(lease_id)
        return len(dead)


class Lease:
    """Keep layers, blobs and snapshots from collection until the context ends; its threads may share it.

    One that isn't settled yet writes nothing: it keeps collect out by the lock that collect takes. That is for work
    that mostly finds everything there; whoever has something to make, or to wait for, settles it first.
    """

    def __init__(
        self,
        leases: Leases,
        purpose: str,
        admit: Callable[[], Lock],
        ended: Callable[[Lease], None],
        *,
        settled: bool = True,
    ) -> None:
        self._leases = leases
        self._admit = admit
        self._ended = ended
        self._mutex = allocate_lock()
        self._lock = None if settled else admit()  # while this is held nothing can be collected
        self._noted: set[tuple[str, str]] = set()  # while the lock is held
        self.purpose = purpose
        self.open = True
        self.id = leases.add(purpose) if settled else ""

    def settle(self) -> None:
        """Let collect go on: write down what is held, and give its lock back. Harmless when that was done."""
        with self._mutex:
            if self._lock is not None:
                self.id = self._leases.add(self.purpose, self._noted)
                self._lock.close()
                self._lock = None

    def hold(self, kind: str, name: str) -> None:
        """Hold a "layer" (diff_id), "blob" (digest) or "snapshot" (chain id, or an active key).

        Hold first and look whether the thing exists afterwards: what exists then stays. Waits for a running collect.
        """
        if kind not in KINDS:
            raise InvalidInput(f"a lease holds a layer, blob or snapshot, not a {kind!r}")
        if not self.open:
            raise InvalidInput(f"the lease for {self.purpose!r} has ended")
        if self._note_unsettled(kind, name):
            if kind == "snapshot":  # drivers prune theirs without the collect lock
                self.settle()
            return
        with self._admit():
            self._leases.hold(self.id, kind, name)

    def note(self, kind: str, name: str) -> None:
        """Hold a thing while the caller has the collect lock."""
        if self.open and not self._note_unsettled(kind, name):
            self._leases.hold(self.id, kind, name)

    def _note_unsettled(self, kind: str, name: str) -> bool:
        with self._mutex:
            if self._lock is None:
                return False
            self._noted.add((kind, name))
            return True

    def close(self) -> None:
        """End the lease; harmless when it has ended."""
        if not self.open:
            return
        self.open = False
        self._ended(self)
        with self._mutex:
            if self._lock is not None:
                self._lock.close()
                self._lock = None
                return
        self._leases.delete(self.id)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
