"""What all stages of one build share."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from pylayers.build.cache.step import BuildCache, CachedStep
from pylayers.build.event import BuildWarning, Event, StepFinished, Subscriber
from pylayers.build.request import BuildOptions
from pylayers.build.source.local import LocalSource
from pylayers.build.state import StageState, Trees
from pylayers.errors import Conflict
from pylayers.oci.chain import chain_id
from pylayers.oci.platform import Platform
from pylayers.record import field, record
from pylayers.store import Store
from pylayers.thread import allocate_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType

    from pylayers.container.runtime import Runtime
    from pylayers.snapshot.snapshotter import Snapshotter


@record(frozen=False)
class BuildSession:
    """Hold what the stages of one build share; safe to use from their threads."""

    store: Store
    options: BuildOptions
    platform: Platform
    trees: Trees
    cache: BuildCache
    context: LocalSource
    contexts: Mapping[str, LocalSource]
    open_driver: Callable[[], Snapshotter]
    open_runtime: Callable[[], Runtime]
    hold: Callable[[str, str], None]  # keep (kind, name) from the garbage collector until the build ends
    settle: Callable[[], None]  # called before anything is made: the collector need not wait for it
    subscriber: Subscriber | None
    global_arguments: Mapping[str, str] = field(default_factory=dict)
    bases: dict[int, StageState] = field(default_factory=dict)  # by stage: base images that were loaded for the plan
    stages: dict[int, StageState] = field(default_factory=dict)
    stage_names: dict[int, str | None] = field(default_factory=dict)  # of the stages that are built
    finished: list[StepFinished] = field(default_factory=list)
    warnings: list[BuildWarning] = field(default_factory=list)
    cancelled: bool = False
    materials: list[tuple[str, str, str]] = field(default_factory=list)  # base images: name, platform, digest
    sources: list[tuple[str, str, str]] = field(default_factory=list)  # what ADD fetched: URI, algorithm, digest
    hits: list[str] = field(default_factory=list)  # keys of the steps that were reused
    cancel_fd: int = field(default_factory=lambda: os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
    _lock: LockType = field(default_factory=allocate_lock)

    @property
    def epoch_s(self) -> int:
        """Return the time that directories and configs made by the build carry: the same on every day."""
        return self.options.source_date_epoch_s or 0

    def reuse(self, key: str) -> CachedStep | None:
        """Look a step up and keep its layer from the garbage collector; None when it has to be made."""
        found = None if self.options.no_cache else self.cache.lookup(key)
        for diff_id in found.diff_ids if found is not None else ():
            # Held first and looked for afterwards: what exists then stays.
            self.hold("layer", diff_id)
            if not self.store.layers.exists(diff_id):
                found = None
                break
        if found is None:
            self.settle()
        else:
            self.hits.append(key)
        return found

    def made(self, state: StageState, diff_id: str, size_bytes: int) -> CachedStep:
        """Describe a layer that was just made over a stage's layers, and record the chain they form."""
        self.hold("layer", diff_id)
        diff_ids = (*state.diff_ids, diff_id)
        self.trees.record(diff_ids)
        return CachedStep(diff_id, size_bytes, chain_id(diff_ids))

    def emit(self, event: Event) -> None:
        """Tell subscribers, one event at a time, and keep what the result needs."""
        with self._lock:
            if isinstance(event, StepFinished):
                self.finished.append(event)
            elif isinstance(event, BuildWarning):
                if event in self.warnings:
                    return
                self.warnings.append(event)
            if self.subscriber is not None:
                self.subscriber(event)

    def cancel(self) -> None:
        """Stop all stages: running commands are killed, since they watch cancel_fd, and no step begins any more."""
        self.cancelled = True
        os.eventfd_write(self.cancel_fd, 1)  # never read, so every watcher sees it

    def close(self) -> None:
        """Close the contexts and the cancel descriptor; no stage may be running."""
        for source in (self.context, *self.contexts.values()):
            source.close()
        if self.cancel_fd >= 0:
            os.close(self.cancel_fd)
            self.cancel_fd = -1

    def check_cancelled(self) -> None:
        """Stop a stage whose build has failed elsewhere."""
        if self.cancelled:
            raise Cancelled("the build was stopped because another stage failed")


class Cancelled(Conflict):
    """Another stage's failure ended this one; never the error a user sees."""
