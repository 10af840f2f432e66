"""The build cache's relation: what each step made, under its key."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from pylayers.jsontext import load
from pylayers.record import field, record
from pylayers.store.database import Database

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# A step's last use is written at most this often, so that a rebuild with nothing changed writes nothing.
TOUCH_AFTER_NS = 3600 * 10**9

_COLUMNS = (
    "key, partial_key, kind, diff_id, chain_id, tree_digest, config_delta, size_bytes, created_ns, last_used_ns,"
    " instruction, inputs, below"
)


@record
class StepRecord:
    """Describe a cached step. `diff_id` is None for a step that made no layer."""

    key: str  # hex
    partial_key: str  # hex; of the step without the content of its inputs
    kind: str
    diff_id: str | None = None
    chain_id: str | None = None  # after the step; None while there is no layer at all
    tree_digest: bytes | None = None
    config_delta: Mapping[str, Any] = field(default_factory=dict)
    size_bytes: int = 0
    created_ns: int = 0
    last_used_ns: int = 0
    instruction: str = ""
    inputs: Any = field(default_factory=dict)  # any JSON value
    below: tuple[str, ...] = ()  # diff_ids under diff_id, lowest first, of a step that made several layers

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """Return every layer the step made, lowest first."""
        return self.below if self.diff_id is None else (*self.below, self.diff_id)


class Steps:
    """Keep cached steps. Losing the latest after a power loss only costs a step again, so writes aren't synced."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, record: StepRecord) -> None:
        """Add or replace a step; times left at zero are now."""
        from pylayers.oci.document import encode

        now_ns = time.time_ns()

        self._database.execute(
            f"INSERT OR REPLACE INTO step({_COLUMNS}) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                record.key,
                record.partial_key,
                record.kind,
                record.diff_id,
                record.chain_id,
                record.tree_digest,
                encode(dict(record.config_delta)).decode(),
                record.size_bytes,
                record.created_ns or now_ns,
                record.last_used_ns or now_ns,
                record.instruction,
                encode(record.inputs).decode(),
                " ".join(record.below),
            ),
            durable=False,
        )

    def _load(self, where: str, values: tuple[object, ...] = ()) -> list[StepRecord]:
        rows = self._database.read(f"SELECT {_COLUMNS} FROM step {where}", values)  # noqa: S608
        return [
            StepRecord(
                *(*row[:6], load(row[6]), *row[7:11], load(row[11]), tuple(row[12].split()))
            )
            for row in rows
        ]

    def get(self, key: str) -> StepRecord | None:
        """Return a step; its last use is not noted, see touch."""
        found = self._load("WHERE key=?", (key,))
        return found[0] if found else None

    def candidates(self, partial_key: str, limit: int = -1) -> list[StepRecord]:
        """Return the steps that differ from a key in their inputs' content only, latest use first."""
        return self._load("WHERE partial_key=? ORDER BY last_used_ns DESC, key LIMIT ?", (partial_key, limit))

    def of_kind(self, kind: str) -> list[StepRecord]:
        """Return the steps of one kind, latest made or used first; looks at every row."""
        return self._load("WHERE kind=? ORDER BY last_used_ns DESC, created_ns DESC, key", (kind,))

    def touch(self, keys: Sequence[str], now_ns: int) -> int:
        """Note that steps were used, if their noted use is over an hour old; return how many were written."""
        stale = [
            (now_ns, key)
            for key in keys
            if self._database.read(
                "SELECT 1 FROM step WHERE key=? AND last_used_ns<?", (key, now_ns - TOUCH_AFTER_NS)
            )
        ]
        if stale:
            with self._database.write(durable=False) as connection:
                connection.executemany("UPDATE step SET last_used_ns=? WHERE key=?", stale)
        return len(stale)

    def delete(self, key: str) -> bool:
        """Forget a step; its layer goes at the next collect. False when there was none."""
        return self._database.execute("DELETE FROM step WHERE key=?", (key,), durable=False) > 0

    def clear(self) -> int:
        """Forget every step; return how many."""
        return self._database.execute("DELETE FROM step", durable=False)

    def walk(self) -> Iterator[StepRecord]:
        """Yield every step, latest use first."""
        yield from self._load("ORDER BY last_used_ns DESC, key")
