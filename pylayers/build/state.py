"""What a stage is at one point: its layers and its configuration; and the trees that layers make."""

from __future__ import annotations

from collections.abc import Sequence

from pylayers.oci.chain import chain_id
from pylayers.oci.config import History, RunConfig
from pylayers.oci.platform import Platform
from pylayers.record import field, record, replace
from pylayers.store import Store
from pylayers.store.entry import EntryTable
from pylayers.store.layer import Layer
from pylayers.thread import RLock

COMMENT = "pylayers"  # of the steps in a history
MERGED_KEPT = 4  # merged tables held at once; each is some 250 bytes an entry


@record
class StageState:
    """Hold a stage between two instructions. Immutable: a later stage may start from it."""

    platform: Platform
    diff_ids: tuple[str, ...] = ()
    config: RunConfig = field(default_factory=RunConfig)
    history: tuple[History, ...] = ()
    author: str = ""
    arguments: tuple[tuple[str, str | None], ...] = ()  # ARGs in scope, with the value that a RUN sees
    shell: tuple[str, ...] = ("/bin/sh", "-c")
    base_count: int = 0  # how many of the layers came with the base image
    cmd_set: bool = False  # by this stage itself: ENTRYPOINT clears only an inherited CMD

    @property
    def chain_id(self) -> str | None:
        """Return the chain id of the layers, None for none."""
        return chain_id(self.diff_ids) if self.diff_ids else None

    def environment(self) -> dict[str, str]:
        """Return what a RUN sees: of an ARG and an ENV of one name the later."""
        given = {name: value for name, value in self.arguments if value is not None}
        return {**self.config.environment(), **given}


def write_history(state: StageState, created_by: str, created: str, *, empty_layer: bool) -> StageState:
    """Return the state with one more line of history."""
    step = History(created=created, created_by=created_by, comment=COMMENT, empty_layer=empty_layer)
    return replace(state, history=(*state.history, step))


class Trees:
    """Open layers, merge their tables and digest them, each at most once; safe to share between threads."""

    def __init__(self, store: Store, *, key_by_chain: bool = False) -> None:
        self.store = store
        self.key_by_chain = key_by_chain
        self._layers: dict[str, Layer] = {}
        self._merged: dict[tuple[str, ...], EntryTable] = {}
        self._lock = RLock()

    def layer(self, diff_id: str) -> Layer:
        """Open one layer."""
        with self._lock:
            found = self._layers.get(diff_id)
            if found is None:
                found = self._layers[diff_id] = self.store.layers.open(diff_id)
            return found

    def layers(self, diff_ids: Sequence[str]) -> list[Layer]:
        """Open layers, lowest first."""
        return [self.layer(diff_id) for diff_id in diff_ids]

    def merged(self, diff_ids: tuple[str, ...]) -> EntryTable:
        """Return the table of the tree that layers make."""
        from pylayers.diff.merge import merge_layers

        with self._lock:
            table = self._merged.get(diff_ids)
            if table is None:
                table = merge_layers(self.layers(diff_ids))
                while len(self._merged) >= MERGED_KEPT:
                    del self._merged[next(iter(self._merged))]
                self._merged[diff_ids] = table
            return table

    def identity(self, diff_ids: tuple[str, ...]) -> bytes:
        """Return what step keys know a tree by: its tree digest, or its chain id where that was asked for."""
        if self.key_by_chain:
            return chain_id(diff_ids).encode() if diff_ids else b"scratch"
        return self.digest(diff_ids)

    def digest(self, diff_ids: tuple[str, ...]) -> bytes:
        """Return the tree digest of layers: from the database, or computed and kept there."""
        if not diff_ids:
            return bytes(32)
        chain = chain_id(diff_ids)
        with self._lock:
            known = self.store.metadata.chains.get(chain)
            if known is not None and known.tree_digest is not None:
                return bytes(known.tree_digest)
            from pylayers.diff.merge import tree_digest

            digest = tree_digest(self.merged(diff_ids))
            self.record(diff_ids)
            self.store.metadata.chains.set_tree_digest(chain, digest)
            return digest

    def record(self, diff_ids: tuple[str, ...], *, durable: bool = True) -> None:
        """Write a chain and those below it to the database where they are missing."""
        if diff_ids and self.store.metadata.chains.get(chain_id(diff_ids)) is None:
            self.store.metadata.chains.add_stack(diff_ids, durable=durable)
