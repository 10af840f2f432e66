"""The build cache: what a step key led to."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from pylayers.record import record
from pylayers.store import Store
from pylayers.store.metadata import StepRecord


@record
class CachedStep:
    """What a step made: a layer, or nothing (`diff_id` None) where it left the tree as it was."""

    diff_id: str | None
    size_bytes: int
    chain_id: str | None = None  # where the layer was made: a prune keeps that chain's snapshot for the next RUN


class BuildCache(Protocol):
    """Keep step results; every back end speaks this."""

    def lookup(self, key: str) -> CachedStep | None:
        """Return what a key led to."""

    def expects(self, partial_key: str) -> bool:
        """Tell whether any step with this partial key was ever recorded."""

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
        return None if found is None else CachedStep(found.diff_id, found.size_bytes, found.chain_id)

    def expects(self, partial_key: str) -> bool:
        """Tell whether any step with this partial key was ever recorded."""
        return bool(self._store.metadata.steps.candidates(partial_key))

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
            )
        )

    def touch(self, keys: Sequence[str]) -> None:
        """Note that steps were used; writes only what was last noted over an hour ago."""
        self._store.metadata.steps.touch(keys, time.time_ns())
