"""The build cache: what a step key led to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pylayers.store import Store
from pylayers.store.metadata import StepRecord


@dataclass(frozen=True, slots=True)
class CachedStep:
    """What a step made: a layer, or nothing (`diff_id` None) where it left the tree as it was."""

    diff_id: str | None
    size_bytes: int


class BuildCache(Protocol):
    """Keep step results; every back end speaks this."""

    def lookup(self, key: str) -> CachedStep | None:
        """Return what a key led to, if its layer is still there."""

    def expects(self, partial_key: str) -> bool:
        """Tell whether any step with this partial key was ever recorded."""

    def record(self, key: str, partial_key: str, kind: str, instruction: str, step: CachedStep) -> None:
        """Keep a step's result."""


class LocalCache:
    """Keep step results in the store's database."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def lookup(self, key: str) -> CachedStep | None:
        """Return what a key led to, if its layer is still there."""
        found = self._store.metadata.steps.get(key)
        if found is None or (found.diff_id is not None and not self._store.layers.exists(found.diff_id)):
            return None
        return CachedStep(found.diff_id, found.size_bytes)

    def expects(self, partial_key: str) -> bool:
        """Tell whether any step with this partial key was ever recorded."""
        return bool(self._store.metadata.steps.candidates(partial_key))

    def record(self, key: str, partial_key: str, kind: str, instruction: str, step: CachedStep) -> None:
        """Keep a step's result."""
        self._store.metadata.steps.put(
            StepRecord(
                key=key,
                partial_key=partial_key,
                kind=kind,
                diff_id=step.diff_id,
                size_bytes=step.size_bytes,
                instruction=instruction,
            )
        )
