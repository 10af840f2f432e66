"""Move what one storage driver holds to another in the same root.

Image snapshots are made first. Then each container's snapshot is made anew over them, filled with its changes and
flushed. Replacing the container's config.json moves it; only then is the old snapshot removed. So at any moment a
container's record names the driver that has its files, whole: what a killed migration leaves in the other one is a
copy, which the next run drops. The store is held alone, since other processes have the old driver open.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from pylayers.container import record
from pylayers.container.record import ContainerSpec
from pylayers.container.remove import clean_leftovers
from pylayers.errors import (
    Conflict,
    DriverError,
    InvalidInput,
    NotFound,
    PylayersError,
    Unsupported,
    translate_os_error,
)
from pylayers.image.unpack import has_snapshot, unpack_layers
from pylayers.record import record as make_record
from pylayers.record import replace
from pylayers.snapshot.carry import carry_changes, find_name
from pylayers.snapshot.catalog import UNPACKING
from pylayers.snapshot.mount import flush, mounted
from pylayers.snapshot.select import check_name, has_data, mark_migration, migration_target, open_driver, require_driver
from pylayers.snapshot.snapshotter import SnapshotKind, Snapshotter

if TYPE_CHECKING:
    from pylayers.engine import Engine


@make_record
class Migrated:
    """Say what a migration moved: ids of containers, names of image snapshots. A run that had less to do says less."""

    containers: tuple[str, ...]
    snapshots: tuple[str, ...]


def migrate(engine: Engine, source: str, target: str) -> Migrated:
    """Move all snapshots from one driver to another; take up what an earlier run left.

    Raises InvalidInput, DriverError where a driver doesn't work, Conflict while containers run or another process has
    the root open, Unsupported for a size limit that the target can't keep.
    """
    root = engine.root
    if check_name(source) == check_name(target):
        raise InvalidInput(f"the snapshots are to move from {source} to {source}", hint="name two drivers")
    require_driver(root, target, "was asked for")
    if not has_data(root, source):
        mark_migration(root, source, "")  # of a run that was killed after it had moved all
        return Migrated((), ())
    require_driver(root, source, f"has snapshots in {root}")
    _refuse_running(engine)
    engine.close_driver()
    with engine.store.alone("migrated"), ExitStack() as opened:
        _refuse_running(engine)
        old = open_driver(root, source)
        opened.callback(old.close)
        new = open_driver(root, target)
        opened.callback(new.close)
        may_undo = not has_data(root, target) or migration_target(root, source) == target
        mark_migration(root, source, target)
        moving = _Migration(engine, old, new)
        try:
            done = moving.run()
        except PylayersError:
            if may_undo and moving.undo():
                mark_migration(root, source, "")
            raise
        mark_migration(root, source, "")
    return done


def _refuse_running(engine: Engine) -> None:
    running = [container.name for container in engine.containers.list()]
    if running:
        raise Conflict(
            f"cannot migrate while containers run: {', '.join(running)}", hint=f"pylayers stop {' '.join(running)}"
        )


class _Migration:
    """Hold both drivers open while snapshots move from one to the other."""

    def __init__(self, engine: Engine, old: Snapshotter, new: Snapshotter) -> None:
        self._store = engine.store
        self._parent = engine.store.directory("containers")
        self._old = old
        self._new = new

    def run(self) -> Migrated:
        """Drop what a killed run left, copy, then remove what was copied."""
        _drop_unfinished(self._old)
        _drop_unfinished(self._new)
        known = set(self._images())
        specs = sorted((spec for spec, _ in record.list_containers(self._parent)), key=lambda spec: spec.created)
        for spec in specs:
            if spec.size_limit_bytes and spec.driver == self._old.name:
                self._check_limit(spec)
            if spec.driver == self._old.name and has_snapshot(self._old, spec.snapshot_key or spec.id):
                self._check_names(spec.snapshot_key or spec.id, f"container {spec.name}")
        self._make_images()
        moved = [spec.id for spec in specs if self._move(spec)]
        for name in reversed([found.name for found in self._old.walk()]):
            self._old.remove(name)
        return Migrated(tuple(moved), tuple(name for name in self._images() if name not in known))

    def _images(self) -> list[str]:
        """Name the committed snapshots that the new driver has, parents first."""
        return [found.name for found in self._new.walk() if found.kind == SnapshotKind.COMMITTED]

    def undo(self) -> bool:
        """Empty the new driver again as long as no container is there: then nothing has happened, and say so."""
        if any(spec.driver == self._new.name for spec, _ in record.list_containers(self._parent)):
            return False
        for name in reversed([found.name for found in self._new.walk()]):
            self._new.remove(name)
        return True

    def _move(self, spec: ContainerSpec) -> bool:
        """Move one container; False when it is not the old driver's (any more)."""
        key = spec.snapshot_key or spec.id
        directory = f"{self._parent}/{spec.id}"
        if spec.driver not in (self._old.name, self._new.name):
            return False
        there = has_snapshot(self._old, key)
        if spec.driver == self._new.name and (has_snapshot(self._new, key) or not there):
            return False  # an earlier run moved it: its old snapshot, if still there, goes with the rest
        if not there:
            raise DriverError(
                f"container {spec.name} has lost its snapshot in storage driver {self._old.name}",
                hint=f"remove it with: pylayers --driver {self._old.name} rm {spec.name}",
            )
        with record.locked(directory):
            clean_leftovers(directory, spec)
            if has_snapshot(self._new, key):
                self._new.remove(key)
            try:
                self._carry(key, key, self._old.stat(key).parent, spec.size_limit_bytes)
            except BaseException:
                if has_snapshot(self._new, key):
                    self._new.remove(key)
                raise
            record.rewrite(directory, replace(spec, rootfs=tuple(self._new.mounts(key)), driver=self._new.name))
            self._old.remove(key)
        return True

    def _make_images(self) -> None:
        """Make what the old driver has of images, and all that containers stand on, and write it to disk."""
        snapshots = list(self._old.walk())
        stood_on = {found.parent for found in snapshots if found.kind == SnapshotKind.ACTIVE}
        for found in snapshots:
            if found.kind == SnapshotKind.COMMITTED and (found.name in stood_on or self._is_known(found.name)):
                self._make_committed(found.name)
        os.sync()  # on whatever file systems the new driver keeps them

    def _check_limit(self, spec: ContainerSpec) -> None:
        """Try a container's size limit on an empty snapshot, before anything moves."""
        key = f"{UNPACKING}limit"
        self._new.prepare(key, None)
        try:
            self._new.limit(key, spec.size_limit_bytes)
        except Unsupported as error:
            raise Unsupported(f"container {spec.name} has a size limit: {error.message}", hint=error.hint) from error
        finally:
            self._new.remove(key)

    def _check_names(self, key: str, what: str) -> None:
        """Refuse file names that the new driver would take for its own marks, before anything moves."""
        prefix = self._new.reserved_prefix
        if not prefix:
            return
        changes = self._old.changes(key)
        try:
            found = find_name(changes, prefix)
        finally:
            changes.close()
        if found is not None:
            raise Unsupported(
                f"{what} has the file {os.fsdecode(found)!r}, and storage driver {self._new.name} cannot keep names "
                f"that begin with {os.fsdecode(prefix)!r}: they are its marks",
                hint="rename or remove the file, or choose another driver",
            )

    def _carry(self, old_key: str, new_key: str, parent: str | None, limit_bytes: int = 0) -> None:
        """Make new_key over parent in the new driver, with the changes that old_key has in the old one, on disk."""
        self._new.prepare(new_key, parent)
        if limit_bytes:
            self._new.limit(new_key, limit_bytes)
        changes = self._old.changes(old_key)
        try:
            with mounted(self._new.mounts(new_key), self._scratch()) as top:
                carry_changes(changes, top)
                flush(top)
            flush(self._parent)  # the root's file system, which may be another than the snapshot's
        except OSError as error:
            raise translate_os_error(error, f"copy snapshot {old_key} to {self._new.name}") from error
        finally:
            changes.close()

    def _make_committed(self, name: str) -> None:
        """Make an image's snapshot in the new driver: from its layers, or where the store lacks them from the old."""
        if has_snapshot(self._new, name):
            return
        diff_ids = self._layers(name)
        if diff_ids:
            unpack_layers(self._new, diff_ids, self._store.layers.open)
        else:
            parent = self._old.stat(name).parent
            if parent is not None:
                self._make_committed(parent)
            self._check_names(name, f"image snapshot {name}")
            key = f"{UNPACKING}{name.rpartition(':')[2]}"
            self._carry(name, key, parent)
            self._new.commit(name, key)

    def _layers(self, name: str) -> Sequence[str]:
        """Return a chain's layers, lowest first; () unless the store has all of them."""
        try:
            diff_ids = self._store.metadata.chains.diff_ids(name)
        except NotFound:
            return ()
        return diff_ids if all(map(self._store.layers.exists, diff_ids)) else ()

    def _is_known(self, name: str) -> bool:
        """Tell whether an image or a cached step has a committed snapshot; nobody would find any other again."""
        return self._store.metadata.chains.get(name) is not None

    def _scratch(self) -> Path:
        """Return this process's directory in the root's tmp/; whoever opens the store next clears it."""
        return self._store.scratch("migrate").parent


def _drop_unfinished(driver: Snapshotter) -> None:
    """Remove what killed processes left half-made; nobody else is in the root."""
    leftovers = [
        found.name
        for found in driver.walk()
        if found.kind == SnapshotKind.VIEW or (found.kind == SnapshotKind.ACTIVE and found.name.startswith(UNPACKING))
    ]
    for name in reversed(leftovers):
        driver.remove(name)
