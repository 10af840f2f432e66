"""Make a container from an image: its record, its writable layer, its volumes and its directory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from pylayers.container import record
from pylayers.container.isolation import mount_from_request
from pylayers.container.record import ContainerSpec
from pylayers.engine.mount import MountPlan, fill_volumes, plan_mounts
from pylayers.engine.name import check_name, invent_name, new_id
from pylayers.engine.process import choose_timeout, make_process
from pylayers.engine.reap import CONTAINER_LABEL
from pylayers.engine.storage import limit_snapshot, read_storage_options
from pylayers.image.view import Image, find_image
from pylayers.record import replace
from pylayers.store.holder import ContainerRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pylayers.container.ahead import Ahead
    from pylayers.container.runtime import Runtime
    from pylayers.engine import Engine
    from pylayers.engine.container import ContainerOptions
    from pylayers.store.layer import Layer


def make_container(
    engine: Engine,
    image: str,
    command: Sequence[str],
    options: ContainerOptions,
    *,
    discard: Callable[[str], None],
    runtime: Runtime | None = None,
    container_id: str = "",
    ahead: Ahead | None = None,
) -> ContainerSpec:
    """Make a container; discard takes away what is there of it when that fails. Its errors are those of `create`.

    ahead is its monitor where that was begun, under container_id; it is told the spec before the container is recorded.
    """
    storage_options, size_limit_bytes = read_storage_options(options.storage_options)
    found = find_image(engine.store, image)
    container_id = container_id or new_id()
    name = check_name(options.name) if options.name else invent_name(
        lambda wanted: engine.store.metadata.containers.find(wanted) is not None
    )
    plan = plan_mounts(options.volumes, options.mounts, options.tmpfs, found.config.config.volumes)
    process = make_process(found, command, options)
    runtime = runtime or engine.runtime()
    spec = ContainerSpec(
        id=container_id,
        name=name,
        process=process,
        rootfs=(),
        runtime=runtime.command,
        runtime_name=runtime.name,
        runtime_limits=runtime.limits,
        runtime_hides=runtime.hides,
        image=image,
        image_digest=found.digest,
        snapshot_key=container_id,
        isolation=replace(options.isolation, network=options.network, hostname=options.hostname),
        interactive=options.interactive,
        stop_signal=options.stop_signal or found.config.config.stop_signal or "SIGTERM",
        stop_timeout_seconds=choose_timeout(options, found),
        remove_on_exit=options.remove,
        storage_options=storage_options,
        size_limit_bytes=size_limit_bytes,
        labels=tuple({**found.config.config.labels, **options.labels}.items()),
    )
    if ahead is not None:
        ahead.expect()
    try:
        with engine.store.lease("create", settled=False) as lease:
            lease.hold("blob", found.digest)
            lease.hold("snapshot", container_id)
            row = ContainerRecord(container_id, name, found.digest, None, time.time_ns())
            if options.name:  # a taken one is refused before anything is made
                engine.store.metadata.containers.add(row, durable=not options.remove)
            spec = _fill(engine, spec, found, plan)
            if ahead is not None:
                ahead.tell(spec)
            if not options.name:
                engine.store.metadata.containers.add(row, durable=not options.remove)
            return record.create(f"{engine.store.directory('containers')}/{container_id}", spec)
    except BaseException:
        if ahead is not None:
            ahead.withdraw()
        discard(container_id)
        raise


def _fill(engine: Engine, spec: ContainerSpec, image: Image, plan: MountPlan) -> ContainerSpec:
    """Prepare a container's snapshot and volumes; return its spec with them."""
    from pylayers.image.unpack import unpack_layers  # after the monitor was told to expect all this

    driver = engine.driver()

    def open_layer(diff_id: str) -> Layer:  # most starts open none, and load nothing that could
        return engine.store.layers.open(diff_id)

    chain = unpack_layers(driver, image.config.diff_ids, open_layer)
    rootfs = driver.prepare(spec.id, chain, lasting=not spec.remove_on_exit)
    if spec.size_limit_bytes:
        limit_snapshot(driver, spec.id, spec.size_limit_bytes)
        rootfs = driver.mounts(spec.id)
    made = engine.volumes.make(plan, {CONTAINER_LABEL: spec.id}) if plan.requests else {}
    fill_volumes(lambda: [open_layer(diff_id) for diff_id in image.config.diff_ids], made)
    mounts = tuple(
        mount_from_request(request, str(made[request.target].path) if request.type == "volume" else "")
        for request in plan.requests
    )
    names = tuple(volume.name for volume in made.values())
    anonymous = tuple(volume.name for volume in made.values() if volume.anonymous)
    spec = replace(
        spec, rootfs=tuple(rootfs), driver=driver.name, mounts=mounts, volumes=names, anonymous_volumes=anonymous
    )
    return record.check_spec(spec)
