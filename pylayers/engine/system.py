"""The whole root: what is in it, what it takes, and taking away what nothing needs."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pylayers.errors import Conflict, NotFound, PylayersError
from pylayers.image.unpack import has_snapshot
from pylayers.oci.chain import chain_ids
from pylayers.record import record as make_record
from pylayers.snapshot.catalog import UNPACKING
from pylayers.volume.volumes import disk_bytes

if TYPE_CHECKING:
    from pylayers.engine import Engine
    from pylayers.engine.migrate import Migrated
    from pylayers.snapshot.select import DriverStatus
    from pylayers.store.check import Problem


@make_record
class UsageRow:
    """Count one kind of thing, as system df shows it."""

    kind: str
    total: int
    active: int
    size_bytes: int
    reclaimable_bytes: int


@make_record
class PruneResult:
    """Say what a prune removed."""

    containers: tuple[str, ...]
    images: tuple[str, ...]
    volumes: tuple[str, ...]
    freed_bytes: int
    untagged: tuple[str, ...] = ()


@make_record
class DriverRow:
    """One row of driver ls."""

    status: DriverStatus
    chosen: bool


@make_record
class DriverTable:
    """Hold driver ls: a row for each driver, and why none could be chosen."""

    rows: tuple[DriverRow, ...]
    error: PylayersError | None


class SystemActions:
    """What can be asked of and done with the root; reached as `engine.system`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def info(self) -> dict[str, Any]:
        """Describe the root, the machine and what was chosen on it."""
        from pylayers.container.runtime import cgroup_mode, probe_runtimes
        from pylayers.snapshot.select import choose_driver

        engine = self._engine
        containers = engine.containers.list(everything=True)
        try:
            driver = choose_driver(engine.root, engine.driver_name)
        except PylayersError as error:
            driver = f"none ({error.message})"
        try:
            runtime = engine.runtime().name
        except PylayersError as error:
            runtime = f"none ({error.message})"
        return {
            "Root": str(engine.root),
            "Driver": driver,
            "Containers": len(containers),
            "ContainersRunning": sum(container.running for container in containers),
            "Images": len(list(engine.store.metadata.images.walk())),
            "Runtime": runtime,
            "Runtimes": {probe.name: probe.path or probe.reason for probe in probe_runtimes()},
            "CgroupMode": cgroup_mode(),
            "KernelVersion": platform.release(),
            "Architecture": platform.machine(),
            "NCPU": os.cpu_count() or 1,
        }

    def usage(self) -> list[UsageRow]:
        """Count images, containers, volumes and build cache: disk bytes, and how many of them a prune would free."""
        snapshots = self._snapshot_sizes()
        seen: set[int] = set()  # what layers have in common counts where it is kept for longest
        images = self._image_usage(snapshots, seen)
        return [images, self.container_usage(), self._volume_usage(), self._cache_usage(snapshots, seen)]

    def _snapshot_sizes(self) -> dict[str, int]:
        """Count what the driver holds unpacked, by chain id."""
        from pylayers.snapshot.snapshotter import SnapshotKind

        if not self._has_snapshots():
            return {}
        driver = self._engine.driver()
        committed = [found.name for found in driver.walk() if found.kind == SnapshotKind.COMMITTED]
        sizes: dict[str, int] = {}
        for name in committed:
            with suppress(NotFound):  # removed meanwhile
                sizes[name] = driver.usage(name).size_bytes
        return sizes

    def _has_snapshots(self) -> bool:
        """Tell whether any driver has something in this root: else none needs to be opened."""
        from pylayers.snapshot.select import has_data

        return any(has_data(self._engine.root, name) for name in os.listdir(self._engine.root))

    def _image_usage(self, snapshots: dict[str, int], seen: set[int]) -> UsageRow:
        """Count images; their share of `snapshots` is taken out of it."""
        store = self._engine.store
        records = list(store.metadata.images.walk())
        used = {container.image_digest for container in self._engine.containers.list(everything=True)}
        layers = {diff_id for record in records for diff_id in record.diff_ids}
        kept = {diff_id for record in records if record.digest in used for diff_id in record.diff_ids}
        ordered = sorted(layers, key=lambda diff_id: diff_id not in kept)
        sizes = {diff_id: store.layers.stored_bytes(diff_id, seen) for diff_id in ordered}
        active = sum(record.digest in used for record in records)
        free = sum(sizes[diff_id] for diff_id in layers - kept)
        total = sum(sizes.values())
        # Chains of images in use first: what is left of the others' would be freed with them.
        for record in sorted(records, key=lambda record: record.digest not in used):
            for chain in chain_ids(record.diff_ids):
                size_bytes = snapshots.pop(chain, 0)
                total += size_bytes
                free += size_bytes if record.digest not in used else 0
        return UsageRow("Images", len(records), active, total, free)

    def container_usage(self) -> UsageRow:
        """Count what containers wrote."""
        containers = self._engine.containers.list(everything=True)
        sizes: dict[str, int] = {}
        if containers:
            driver = self._engine.driver()
            for container in containers:
                try:
                    sizes[container.id] = driver.usage(container.id).size_bytes
                except NotFound:
                    sizes[container.id] = 0
        running = [container for container in containers if container.running]
        free = sum(sizes[container.id] for container in containers if not container.running)
        return UsageRow("Containers", len(containers), len(running), sum(sizes.values()), free)

    def _volume_usage(self) -> UsageRow:
        volumes = self._engine.volumes.list()
        sizes = {volume.name: disk_bytes(volume.path) for volume in volumes}
        active = {volume.name for volume in volumes if self._engine.containers.using_volume(volume.name)}
        free = sum(size for name, size in sizes.items() if name not in active)
        return UsageRow("Local Volumes", len(volumes), len(active), sum(sizes.values()), free)

    def _cache_usage(self, snapshots: dict[str, int], seen: set[int]) -> UsageRow:
        """Count steps, their layers and snapshots that no image has, and cache mounts."""
        from pylayers.build.run.cache import walk_caches

        store = self._engine.store
        steps = list(store.metadata.steps.walk())
        in_images = {diff_id for record in store.metadata.images.walk() for diff_id in record.diff_ids}
        layers = {step.diff_id for step in steps if step.diff_id is not None and step.diff_id not in in_images}
        size = sum(store.layers.stored_bytes(diff_id, seen) for diff_id in layers if store.layers.exists(diff_id))
        size += sum(snapshots.values())
        caches = list(walk_caches(store.root))
        free = size + sum(cache.size_bytes for cache in caches if not cache.in_use)
        size += sum(cache.size_bytes for cache in caches)
        active = sum(step.diff_id in in_images for step in steps) + sum(cache.in_use for cache in caches)
        return UsageRow("Build Cache", len(steps) + len(caches), active, size, free)

    def prune(self, *, everything: bool = False, volumes: bool = False) -> PruneResult:
        """Remove stopped containers, unused images and the build cache; volumes=True: anonymous volumes as well."""
        from pylayers.build.run.cache import prune_caches

        engine = self._engine
        container_bytes = self.container_usage().reclaimable_bytes
        containers = engine.containers.prune()
        images = engine.images.prune(everything=everything)
        names, volume_bytes = engine.volumes.prune() if volumes else ([], 0)
        freed = self.collect(keep_cache=False) + prune_caches(engine.root)
        return PruneResult(
            tuple(containers),
            images.deleted,
            tuple(names),
            images.freed_bytes + volume_bytes + container_bytes + freed,
            images.untagged,
        )

    def collect(self, *, keep_cache: bool = True) -> int:
        """Delete what nothing needs, and the snapshots of its chains; return the bytes freed in the store."""
        collected = self._engine.store.collect(keep_cache=keep_cache)
        return collected.freed_bytes + (self._remove_snapshots() if self._has_snapshots() else 0)

    def _remove_snapshots(self) -> int:
        """Remove the snapshots that no chain, container or live lease knows, children first; return the bytes freed.

        Comparing with everything that is there also takes what a crash between two steps of an earlier prune left.
        A half-made unpacking is the driver's to drop: it knows whether its maker lives.
        """
        metadata = self._engine.store.metadata
        driver = self._engine.driver()
        # Listed first: what a build commits after this is not looked at.
        snapshots = [found.name for found in driver.walk() if not found.name.startswith(UNPACKING)]
        wanted = {chain.chain_id for chain in metadata.chains.walk()}
        wanted |= {container.id for container in metadata.containers.walk()}
        wanted |= {name for kind, name in metadata.leases.items() if kind == "snapshot"}
        freed_bytes = 0
        for name in reversed(snapshots):
            if name not in wanted and has_snapshot(driver, name):
                try:
                    size_bytes = driver.usage(name).size_bytes
                    driver.remove(name)
                    freed_bytes += size_bytes
                except Conflict:
                    continue  # a container made meanwhile stands on it; the next prune takes it
        return freed_bytes

    def drivers(self) -> DriverTable:
        """Probe every storage driver, and tell which one is chosen, or why none."""
        from pylayers.snapshot.select import choose_driver, list_drivers

        chosen, error = "", None
        try:
            chosen = choose_driver(self._engine.root, self._engine.driver_name)
        except PylayersError as found:
            error = found
        rows = tuple(DriverRow(status, status.name == chosen) for status in list_drivers(self._engine.root))
        return DriverTable(rows, error)

    def probe_driver(self, name: str) -> DriverRow:
        """Probe one storage driver. Raises InvalidInput for an unknown name."""
        from pylayers.snapshot.select import choose_driver, probe_driver

        status = probe_driver(self._engine.root, name)
        try:
            chosen = choose_driver(self._engine.root, self._engine.driver_name)
        except PylayersError:
            chosen = ""
        return DriverRow(status, name == chosen)

    def migrate(self, source: str, target: str) -> Migrated:
        """Move all that a storage driver holds to another one in this root; an interrupted move is taken up again.

        Raises Conflict while a container runs or another process has the root open, Unsupported for a container's
        size limit that the target can't keep; nothing is lost then.
        """
        from pylayers.engine.migrate import migrate

        return migrate(self._engine, source, target)

    def check(self, *, repair: bool = False) -> list[Problem]:
        """Read the whole store and compare it with its digests."""
        return self._engine.store.check(repair=repair)

    def rebuild(self) -> None:
        """Make the database again from the files."""
        self._engine.store.rebuild()
