"""The build cache: what a step key led to."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pylayers.record import field, record
from pylayers.store import Store
from pylayers.store.step import StepRecord

LATEST = 4  # so many earlier steps of an instruction are looked at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol
else:
    Protocol = object


@record
class CachedStep:
    """What a step made: a layer (or several), or nothing (`diff_id` None) where it left the tree as it was."""

    diff_id: str | None
    size_bytes: int
    chain_id: str | None = None  # where the layer was made: a prune keeps that chain's snapshot for the next RUN
    below: tuple[str, ...] = ()  # further layers of the step, under diff_id, lowest first
    inputs: Any = field(default_factory=dict, compare=False)  # JSON: what the step was made from (build/cache/fact.py)

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """Return every layer the step made, lowest first."""
        return () if self.diff_id is None else (*self.below, self.diff_id)


class BuildCache(Protocol):
    """Keep step results; every back end speaks this."""

    def lookup(self, key: str) -> CachedStep | None:
        """Return what a key led to."""

    def earlier(self, partial_key: str) -> Sequence[CachedStep]:
        """Return the latest used of the steps that were recorded with this partial key."""

    def record(self, key: str, partial_key: str, kind: str, instruction: str, step: CachedStep) -> None:
        """Keep a step's result."""

    def touch(self, keys: Sequence[str]) -> None:
        """Note that steps were used."""


class LocalCache:
    """Keep step results in the store's database."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def lookup(self, key: str) -> CachedStep | None:
        """Return what a key led to; its layer may be collected until it is held, see BuildSession.reuse."""
        found = self._store.metadata.steps.get(key)
        return None if found is None else to_step(found)

    def earlier(self, partial_key: str) -> Sequence[CachedStep]:
        """Return the latest used of the steps that were recorded with this partial key."""
        return [to_step(found) for found in self._store.metadata.steps.candidates(partial_key, LATEST)]

    def record(self, key: str, partial_key: str, kind: str, instruction: str, step: CachedStep) -> None:
        """Keep a step's result."""
        now_ns = time.time_ns()
        self._store.metadata.steps.put(
            StepRecord(
                key=key,
                partial_key=partial_key,
                kind=kind,
                diff_id=step.diff_id,
                chain_id=step.chain_id,
                size_bytes=step.size_bytes,
                created_ns=now_ns,
                last_used_ns=now_ns,
                instruction=instruction,
                inputs=step.inputs,
                below=step.below,
            )
        )

    def touch(self, keys: Sequence[str]) -> None:
        """Note that steps were used; writes only what was last noted over an hour ago."""
        self._store.metadata.steps.touch(keys, time.time_ns())


def to_step(found: StepRecord) -> CachedStep:
    """Return a step as the build sees it."""
    return CachedStep(found.diff_id, found.size_bytes, found.chain_id, found.below, found.inputs)
