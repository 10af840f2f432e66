"""Leases: what a running build or pull uses is kept from collection until it is done, or its process is gone.

A lease belongs to its Store's scratch directory (workspace.py), whose flock the kernel releases with the process:
unlike a process id it cannot be mistaken for another's, and it works across PID namespaces.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING

from pylayers.errors import InvalidInput
from pylayers.record import record
from pylayers.store.database import Database

if TYPE_CHECKING:
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

    def add(self, purpose: str) -> str:
        """Add a lease of this process and return its id."""
        lease_id = os.urandom(16).hex()
        self._database.execute(
            "INSERT INTO lease VALUES(?, ?, ?, ?, ?)",
            (lease_id, purpose, self._workspace.owner(), os.getpid(), time.time_ns()),
            durable=False,
        )
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
    """Keep layers, blobs and snapshots from collection until the context ends."""

    def __init__(
        self,
        leases: Leases,
        purpose: str,
        admit: Callable[[], AbstractContextManager[object]],
        ended: Callable[[Lease], None],
    ) -> None:
        self._leases = leases
        self._admit = admit
        self._ended = ended
        self.purpose = purpose
        self.id: str | None = leases.add(purpose)

    def hold(self, kind: str, name: str) -> None:
        """Hold a "layer" (diff_id), "blob" (digest) or "snapshot" (chain id, or an active key).

        Hold first and look whether the thing exists afterwards: what exists then stays. Waits for a running collect.
        """
        if kind not in KINDS:
            raise InvalidInput(f"a lease holds a layer, blob or snapshot, not a {kind!r}")
        if self.id is None:
            raise InvalidInput(f"the lease for {self.purpose!r} has ended")
        with self._admit():
            self._leases.hold(self.id, kind, name)

    def note(self, kind: str, name: str) -> None:
        """Hold a thing while the caller has the collect lock."""
        if self.id is not None:
            self._leases.hold(self.id, kind, name)

    def close(self) -> None:
        """End the lease; harmless when it has ended."""
        if self.id is not None:
            lease_id, self.id = self.id, None
            self._ended(self)
            self._leases.delete(lease_id)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
