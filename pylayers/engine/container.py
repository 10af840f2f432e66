"""Containers of an engine: create, start, look at, stop, remove."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from pylayers.container import record
from pylayers.container.isolation import ContainerMount, Isolation, Process
from pylayers.container.record import ContainerSpec, State
from pylayers.engine.reap import CONTAINER_LABEL, find_ended, find_forgotten, find_unmade, is_made
from pylayers.errors import Conflict, NotFound
from pylayers.record import field
from pylayers.record import record as make_record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import IO, Any

    from pylayers.container.ahead import Ahead
    from pylayers.container.logs import LogRecord
    from pylayers.diff.compare import PathChange
    from pylayers.engine import Engine
    from pylayers.snapshot.snapshotter import Changes, Snapshotter
    from pylayers.store.entry import EntryTable


@make_record(kw_only=True)
class ContainerOptions:
    """Say how a container differs from what its image asks for."""

    name: str = ""
    environment: tuple[str, ...] = ()  # NAME=value
    volumes: tuple[str, ...] = ()  # -v
    mounts: tuple[str, ...] = ()  # --mount
    tmpfs: tuple[str, ...] = ()
    working_dir: str | None = None
    user: str | None = None
    entrypoint: tuple[str, ...] | None = None
    network: str = "host"
    hostname: str = ""
    remove: bool = False
    interactive: bool = False
    terminal: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    stop_signal: str = ""
    stop_timeout_s: int | None = None
    storage_options: tuple[str, ...] = ()  # --storage-opt: size=10G limits the writable layer where the driver can
    isolation: Isolation = field(default_factory=Isolation)


@make_record
class Container:
    """View one container. `state` is created, running, exited or dead; times are RFC 3339."""

    id: str
    name: str
    image: str
    image_digest: str
    arguments: tuple[str, ...]
    created: str
    state: str
    running: bool
    exit_code: int | None
    started: str
    finished: str
    pid: int
    labels: tuple[tuple[str, str], ...]
    mounts: tuple[ContainerMount, ...]
    volumes: tuple[str, ...]


@make_record
class ContainerSize:
    """Count a container's disk bytes: its own, and those of its whole root file system."""

    own_bytes: int
    root_bytes: int


class ContainerActions:
    """What can be done with containers; reached as `engine.containers`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._parent = engine.store.directory("containers")

    def create(self, image: str, command: Sequence[str] = (), options: ContainerOptions | None = None) -> Container:
        """Make a container from an image, with its volumes made and filled; it isn't started.

        Raises NotFound for the image or a --mount source, AlreadyExists for the name, InvalidInput for mounts,
        Unsupported for a size limit that the driver can't keep.
        """
        from pylayers.engine.create import make_container

        self.reap()
        spec = make_container(self._engine, image, command, options or ContainerOptions(), discard=self._discard)
        return view(spec, State())

    def start(self, name: str) -> None:
        """Start a container in the background. Raises ContainerError (125, 126, 127)."""
        self._start(self._directory(name))

    def _start(self, directory: str, **given: Any) -> int | None:
        from pylayers.container.spawn import reap_monitors
        from pylayers.container.start import start

        self._engine.when_closed.add(reap_monitors)
        return start(directory, **given)

    def attach(self, name: str) -> int:
        """Start a container in the foreground, with this process's streams, and return its exit code."""
        directory = self._directory(name)
        return self._attach(directory, record.load_spec(directory), None)

    def _attach(self, directory: str, spec: ContainerSpec, ahead: Ahead | None) -> int:
        def forget() -> None:
            self._forget(spec.id, keep_volumes=not spec.anonymous_volumes, durable=False)

        over = forget if spec.remove_on_exit else None
        try:
            return self._start(directory, attach=True, when_over=over, ahead=ahead) or 0
        except BaseException:
            if spec.remove_on_exit and not os.path.exists(directory):
                self._discard(spec.id, durable=False)
            raise

    def run(
        self,
        image: str,
        command: Sequence[str] = (),
        options: ContainerOptions | None = None,
        *,
        detach: bool = False,
        when_made: Callable[[Container], None] | None = None,
    ) -> tuple[Container, int | None]:
        """Create and start a container; without detach, wait for it and return its exit code as well.

        when_made is called before it starts. One with `remove` that fails to start is removed.
        """
        from pylayers.container.ahead import Ahead
        from pylayers.engine.name import new_id
        from pylayers.engine.process import early_spec

        options, container_id = options or ContainerOptions(), new_id()
        directory, runtime = f"{self._parent}/{container_id}", self._engine.runtime()
        with Ahead(attach=not detach) as ahead:
            ahead.begin(directory, early_spec(container_id, runtime, options))
            from pylayers.engine.create import make_container  # beside the monitor, which does not need it

            self.reap()
            spec = make_container(
                self._engine, image, command, options,
                discard=self._discard, runtime=runtime, container_id=container_id, ahead=ahead,
            )  # fmt: skip
            container = view(spec, State())
            try:
                if when_made is not None:
                    when_made(container)
                if detach:
                    self._start(directory, ahead=ahead)
                    return container, None
                return container, self._attach(directory, spec, ahead)
            except BaseException:
                ahead.withdraw()
                if options.remove and self._stopped(container.id):
                    self._discard(container.id)
                raise

    def _stopped(self, container_id: str) -> bool:
        try:
            return not self.get(container_id).running
        except NotFound:
            return True

    def stop(self, name: str, timeout_s: float | None = None) -> None:
        """Ask a container to end, and kill it when it doesn't in time."""
        from pylayers.container.stop import stop

        stop(self._directory(name), timeout_seconds=timeout_s)
        self.reap()

    def kill(self, name: str, signal: str = "KILL") -> None:
        """Send a signal. Raises Conflict for a container that isn't running."""
        from pylayers.container.stop import kill

        kill(self._directory(name), signal)

    def wait(self, name: str) -> int:
        """Wait for a container to end and return its exit code."""
        from pylayers.container.stop import wait

        return wait(self._directory(name))

    def remove(self, name: str, *, force: bool = False, volumes: bool = False) -> str:
        """Remove a container with its writable layer; volumes=True takes its anonymous volumes along. Return its id."""
        from pylayers.container.remove import remove

        directory = self._directory(name)
        self._driver_of(record.load_spec(directory))
        spec = remove(directory, force=force)
        self._discard(spec.id, keep_volumes=not volumes and not spec.remove_on_exit)
        return spec.id

    def _discard(self, container_id: str, *, keep_volumes: bool = False, durable: bool = True) -> None:
        """Remove what is left of a container: directory, snapshot, anonymous volumes, record."""
        from pylayers.container.remove import delete_unmade

        directory = f"{self._parent}/{container_id}"
        if os.path.exists(directory) and not is_made(directory):
            delete_unmade(directory)
        elif os.path.exists(directory):
            self._remove_made(directory)
        self._forget(container_id, keep_volumes=keep_volumes, durable=durable)

    def _forget(self, container_id: str, *, keep_volumes: bool = False, durable: bool = True) -> None:
        """Remove a container's snapshot, anonymous volumes and record.

        Without durable a power cut may bring the record back, for reap to find.
        """
        from pylayers.image.unpack import has_snapshot

        driver = self._engine.driver()
        if has_snapshot(driver, container_id):
            driver.remove(container_id)
        if not keep_volumes:
            self._engine.volumes.remove_anonymous(CONTAINER_LABEL, container_id)
        if self._engine.store.metadata.containers.get(container_id) is not None:
            self._engine.store.metadata.containers.delete(container_id, durable=durable)

    def _remove_made(self, directory: str) -> None:
        from pylayers.container.remove import remove

        remove(directory, force=True)

    def reap(self) -> None:
        """Remove what containers that removed themselves (--rm), or were to before the machine stopped, have left."""
        known = self._engine.store.metadata.containers.walk()
        for container_id in (*find_forgotten(self._parent, known), *find_ended(self._parent)):
            self._discard(container_id)

    def list(self, *, everything: bool = False) -> Sequence[Container]:
        """Return the running containers (everything=True: all), newest first."""
        found = [view(spec, state) for spec, state in record.list_containers(self._parent)]
        return [container for container in found if everything or container.running]

    def get(self, name: str) -> Container:
        """Return a container by name or id prefix. Raises NotFound, Conflict for an ambiguous prefix."""
        directory = self._directory(name)
        return view(record.load_spec(directory), record.load_state(directory))

    def _directory(self, name: str) -> str:
        found = self._engine.store.metadata.containers.find(name)
        if found is not None and is_made(f"{self._parent}/{found.id}"):
            return f"{self._parent}/{found.id}"
        raise NotFound(f"no such container: {name}", hint="pylayers ps --all")

    def _driver_of(self, spec: ContainerSpec) -> Snapshotter:
        """Return the driver that has a container's files. Raises Conflict where it is another than the one in use."""
        from pylayers.snapshot.select import has_data

        driver = self._engine.driver()
        if spec.driver != driver.name and has_data(self._engine.root, spec.driver):
            raise Conflict(
                f"storage driver {spec.driver} has the files of container {spec.name}, and {driver.name} is in use",
                hint=f"use --driver {spec.driver}, or: pylayers driver migrate {spec.driver} {driver.name}",
            )
        return driver

    def using_image(self, digest: str) -> Sequence[Container]:
        """Return the containers made from an image."""
        return [container for container in self.list(everything=True) if container.image_digest == digest]

    def using_volume(self, name: str) -> Sequence[str]:
        """Return the ids of the containers that use a volume."""
        return [container.id[:12] for container in self.list(everything=True) if name in container.volumes]

    def logs(
        self, name: str, *, follow: bool = False, tail: int | None = None, since: str | None = None
    ) -> Iterator[LogRecord]:
        """Yield what a container wrote; `since` is RFC 3339 or a duration such as 10m."""
        from pylayers.container.logs import parse_time, read_logs

        since_ns = None if since is None else parse_time(since)
        return read_logs(self._directory(name), follow=follow, tail=tail, since_ns=since_ns)

    def exec(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Sequence[str] = (),
        working_dir: str = "",
        user: str = "",
        terminal: bool = False,
        interactive: bool = False,
        detach: bool = False,
        privileged: bool = False,
    ) -> int:
        """Run another process in a running container and return its exit code."""
        from pylayers.container.exec import execute

        process = Process(
            arguments=tuple(command),
            environment=tuple(environment),
            working_directory=working_dir,
            user=user,
            terminal=terminal,
        )
        return execute(
            self._directory(name), process, interactive=interactive, detach=detach, privileged=privileged
        )

    def copy_from(
        self, name: str, path: str, target: Path | str | IO[bytes], *, archive: bool = False, follow: bool = False
    ) -> None:
        """Copy a container's file or directory to the host by docker cp's rules, or as a tar to a stream.

        archive=True keeps owners (else all is the caller's), follow=True follows a symlink at the path's end. A stopped
        container is locked meanwhile. Raises NotFound, InvalidInput, NoSpace.
        """
        from pylayers.engine.copy import copy_from

        directory = self._directory(name)
        driver = self._driver_of(record.load_spec(directory))
        copy_from(self._engine, directory, driver, path, target, archive, follow)

    def copy_to(
        self, name: str, source: Path | str | IO[bytes], path: str, *, archive: bool = False, follow: bool = False
    ) -> None:
        """Copy a file or directory of the host into a container, or unpack a tar from a stream in a directory there.

        archive=True keeps owners (else all is root's). Raises PermissionDenied for what is mounted read-only, as well.
        """
        from pylayers.engine.copy import copy_to

        directory = self._directory(name)
        driver = self._driver_of(record.load_spec(directory))
        copy_to(self._engine, directory, driver, source, path, archive, follow)

    @contextmanager
    def changes(self, container: Container) -> Iterator[Changes]:
        """Give what a container changed as a layer table with its sources."""
        from pylayers.engine.change import drop_mount_points

        changed = self._driver_of(record.load_spec(f"{self._parent}/{container.id}")).changes(container.id)
        try:
            targets = [mount.target for mount in container.mounts]
            yield drop_mount_points(changed, self._layer_tables(container), targets)
        finally:
            changed.close()

    def _layer_tables(self, container: Container) -> Sequence[EntryTable]:
        from pylayers.image.view import load_image

        store = self._engine.store
        return [
            store.layers.open(diff_id).table for diff_id in load_image(store, container.image_digest).config.diff_ids
        ]

    def diff(self, name: str) -> Sequence[PathChange]:
        """List what a container changed, as docker diff does."""
        from pylayers.diff.compare import list_changes
        from pylayers.diff.merge import merge_tables
        from pylayers.store.entry import EntryTable

        container = self.get(name)
        parent = merge_tables(self._layer_tables(container))
        with self.changes(container) as changed:
            return list_changes(EntryTable(changed.records, changed.heap), parent)

    def size(self, name: str) -> ContainerSize:
        """Count what a container takes; walks its writable layer. Raises NotFound."""
        from pylayers.image.view import load_image

        spec = record.load_spec(self._directory(name))
        own_bytes = self._driver_of(spec).usage(spec.id).size_bytes
        try:
            image_bytes = load_image(self._engine.store, spec.image_digest).size_bytes
        except NotFound:
            image_bytes = 0  # removed by force
        return ContainerSize(own_bytes, image_bytes + own_bytes)

    def inspect(self, name: str) -> dict[str, Any]:
        """Return everything that is known of a container, in docker's shape."""
        from pylayers.engine.inspect import describe_container

        directory = self._directory(name)
        return describe_container(record.load_spec(directory), record.load_state(directory), directory)

    def prune(self) -> Sequence[str]:
        """Remove every container that isn't running, and what is left of one that was never whole; return their ids."""
        self.reap()
        for container_id in find_unmade(self._parent):
            self._discard(container_id)
        return [
            self.remove(container.id) for container in self.list(everything=True) if not container.running
        ]


def view(spec: ContainerSpec, state: State) -> Container:
    """Return the view of a container."""
    running = state.status == record.RUNNING
    return Container(
        id=spec.id,
        name=spec.name,
        image=spec.image,
        image_digest=spec.image_digest,
        arguments=spec.process.arguments,
        created=spec.created,
        state=state.status,
        running=running,
        exit_code=None if running or state.status == record.CREATED else state.exit_code,
        started=state.started,
        finished=state.finished,
        pid=state.pid if running else 0,
        labels=spec.labels,
        mounts=spec.mounts,
        volumes=spec.volumes,
    )
