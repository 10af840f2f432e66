"""Build a Dockerfile: parse, plan, run the stages (independent ones side by side), assemble the image."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pylayers.build.base import open_contexts, read_base_triggers
from pylayers.build.cache.step import BuildCache, LocalCache
from pylayers.build.check import warn_build
from pylayers.build.event import BuildFinished, BuildResult, BuildWarning, Subscriber
from pylayers.build.plan import Plan, PlannedStage, make_plan
from pylayers.build.request import BuildOptions
from pylayers.build.run.step import UNKEYED_ARGUMENTS
from pylayers.build.session import BuildSession, Cancelled
from pylayers.build.source.ahead import LEAST_ROWS, note
from pylayers.build.source.local import LocalSource
from pylayers.build.stage import StageBuilder, timestamp
from pylayers.build.state import StageState, Trees
from pylayers.dockerfile import ignore
from pylayers.dockerfile.instructions import Arg, Dockerfile
from pylayers.dockerfile.parse import parse
from pylayers.errors import InvalidInput, NotFound, PylayersError, translate_os_error
from pylayers.image.assemble import assemble
from pylayers.oci.config import ImageConfig
from pylayers.oci.digest import hex_of
from pylayers.oci.platform import Platform
from pylayers.oci.reference import Reference
from pylayers.record import record, replace
from pylayers.store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pylayers.container.runtime import Runtime
    from pylayers.snapshot.snapshotter import Snapshotter

DOCKERFILE_LIMIT_BYTES = 16 << 20
EPOCH_ARGUMENT = "SOURCE_DATE_EPOCH"


@record
class Request:
    """Hold what a build is given besides its options."""

    store: Store
    path: Path  # of the Dockerfile
    content: bytes
    open_driver: Callable[[], Snapshotter]
    open_runtime: Callable[[], Runtime]
    subscriber: Subscriber | None
    cache: BuildCache | None


def build(
    store: Store,
    options: BuildOptions,
    open_driver: Callable[[], Snapshotter],
    open_runtime: Callable[[], Runtime],
    subscriber: Subscriber | None = None,
    cache: BuildCache | None = None,
) -> BuildResult:
    """Build an image and tag it; the driver and the runtime are opened only when a RUN has to execute.

    Every layer that was made stays in the store and the cache when a later step fails. Raises InvalidInput,
    NotFound, BuildError (a RUN that failed), NoSpace, …, each with its place in the Dockerfile.
    """
    started = time.perf_counter()
    if options.secrets or options.ssh or options.add_hosts or options.shm_size or options.ulimits or options.allow:
        from pylayers.build.run.option import check_options

        check_options(options)
    if options.outputs or options.annotations or options.attestations or len(options.platforms) > 1:
        from pylayers.build.output.deliver import read_delivery

        read_delivery(options)  # what is wrong with it is told before anything is built
    references = [Reference.parse(name).with_default_tag() for name in options.references]
    path = locate_dockerfile(options)
    content = read_content(path)
    options = read_epoch_argument(options)
    request = Request(store, path, content, open_driver, open_runtime, subscriber, cache)
    with shown_in(content):
        if len(options.platforms) > 1:
            from pylayers.build.multi import build_platforms

            return build_platforms(request, options, references, started)
        return build_content(request, options, references, started)


def build_content(
    request: Request, options: BuildOptions, references: list[Reference], started: float
) -> BuildResult:
    """Build a Dockerfile's content for one platform."""
    with build_stages(request, options) as (session, state):
        result = finish(session, state, references, started)
        context = session.context
        note(request.store.stat_cache, str(context.directory), str(request.path), context.large_keys(LEAST_ROWS))
    session.emit(BuildFinished(result.image_digest, result.references, result.seconds))
    return result


@contextmanager
def build_stages(request: Request, options: BuildOptions) -> Iterator[tuple[BuildSession, StageState]]:
    """Build the stages for one platform; what was made is held until the block ends."""
    store, content = request.store, request.content
    dockerfile = parse(content, shown_path(request.path))
    with store.lease("build", settled=False) as lease:
        context = open_context(store, options, request.path)
        session = BuildSession(
            store=store,
            options=options,
            platform=choose_platform_of(options.platforms),
            trees=Trees(store, key_by_chain=options.key_by_chain),
            cache=open_cache(store, options, request.cache),
            context=context,
            contexts=open_contexts(dict(options.contexts), context),
            open_driver=request.open_driver,
            open_runtime=request.open_runtime,
            hold=lease.hold,
            settle=lease.settle,
            subscriber=request.subscriber,
        )
        try:
            plan = plan_session(session, dockerfile)
            warn_build(session, dockerfile, plan, hex_of(content))
            warn_unused(session, dockerfile, plan)
            run_stages(session, plan)
            yield session, session.stages[plan.target]
        finally:
            session.close()


def open_cache(store: Store, options: BuildOptions, given: BuildCache | None) -> BuildCache:
    """Return the build cache, watched where steps are to be explained."""
    cache = given or LocalCache(store)
    if not options.explain:
        return cache
    from pylayers.build.cache.explain import WatchedCache

    return WatchedCache(cache, store)


def plan_session(session: BuildSession, dockerfile: Dockerfile) -> Plan:
    """Plan a build; base images are loaded for the triggers they may have, which may need further stages."""
    session.stage_names.update({stage.index: stage.name for stage in dockerfile.stages})
    plan = make_plan(
        dockerfile,
        session.options.arguments,
        session.options.target,
        platform=session.platform,
        contexts=session.options.contexts,
        read_triggers=lambda index, base: read_base_triggers(session, index, base),
    )
    session.global_arguments = plan.global_arguments
    if session.options.platforms or any(planned.base.platform for planned in plan.stages):
        from pylayers.build.emulation import check_runnable

        check_runnable(plan, session.platform)
    session.stage_names.clear()
    session.stage_names.update({planned.stage.index: planned.stage.name for planned in plan.stages})
    return plan


def read_epoch_argument(options: BuildOptions) -> BuildOptions:
    """Let SOURCE_DATE_EPOCH be one thing, as an argument of the build and as its time. Raises InvalidInput."""
    given = options.arguments.get(EPOCH_ARGUMENT)
    if given:
        if not given.isascii() or not given.removeprefix("-").isdigit() or len(given) > 18:
            raise InvalidInput(
                f"invalid {EPOCH_ARGUMENT}: {given}", hint="give it in whole seconds since 1970, such as 1700000000"
            )
        return replace(options, source_date_epoch_s=int(given))
    if options.source_date_epoch_s is None:
        return options
    return replace(options, arguments={**options.arguments, EPOCH_ARGUMENT: str(options.source_date_epoch_s)})


@contextmanager
def shown_in(content: bytes) -> Iterator[None]:
    """Give errors of the Dockerfile the source lines around their place."""
    try:
        yield
    except PylayersError as error:
        from pylayers.build.check import with_excerpt

        with_excerpt(error, content)
        raise


def locate_dockerfile(options: BuildOptions) -> Path:
    """Return where the Dockerfile is to be; `dockerfile` serves where there is no `Dockerfile`, as in docker.

    Raises NotFound where the context is not there.
    """
    if not options.context.exists():
        raise NotFound(f"unable to prepare context: path {str(options.context)!r} not found")
    if options.dockerfile is not None:
        return options.dockerfile
    path, lower = options.context / "Dockerfile", options.context / "dockerfile"
    return lower if not path.exists() and lower.exists() else path


def read_content(path: Path) -> bytes:
    """Read the Dockerfile. Raises NotFound, InvalidInput."""
    try:
        if path.stat().st_size > DOCKERFILE_LIMIT_BYTES:
            raise InvalidInput(f"{path} is larger than {DOCKERFILE_LIMIT_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        failure = translate_os_error(error, "read Dockerfile")
        failure.hint = "name the Dockerfile with -f"
        raise failure from error


def shown_path(path: Path) -> str:
    """Return a path as a person would write it here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def open_context(store: Store, options: BuildOptions, dockerfile: Path) -> LocalSource:
    """Open the build context with its ignore rules: <Dockerfile>.dockerignore first, else .dockerignore."""
    directory = Path(os.path.realpath(options.context))
    if not directory.is_dir():
        raise NotFound(f"build context {options.context} is not a directory")
    rules, name = find_ignore_rules(directory, dockerfile)
    if rules is None:
        return LocalSource(directory, cache=store.stat_cache)
    return LocalSource(directory, rules, store.stat_cache, name)


def find_ignore_rules(directory: Path, dockerfile: Path) -> tuple[ignore.IgnoreRules | None, str]:
    """Return a context's ignore rules and the digest of their file: <Dockerfile>.dockerignore first."""
    for candidate in (dockerfile.with_name(dockerfile.name + ".dockerignore"), directory / ".dockerignore"):
        try:
            content = candidate.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise translate_os_error(error, "read ignore file") from error
        return ignore.parse(content), hex_of(content)
    return None, ""


def choose_platform_of(wanted: tuple[str, ...]) -> Platform:
    """Return the platform to build for: the wanted one, or this machine's."""
    if wanted:
        return Platform.parse(wanted[0])
    return Platform.from_machine(os.uname().machine)


def warn_unused(session: BuildSession, dockerfile: Dockerfile, plan: Plan) -> None:
    """Tell which --build-arg no ARG of the stages that are built takes."""
    given = session.options.arguments
    if not given:
        return
    known = {name for arg in dockerfile.global_args for name, _ in arg.pairs} | plan.global_arguments.keys()
    for planned in plan.stages:
        for instruction in (*planned.triggers, *planned.stage.instructions):
            if isinstance(instruction, Arg):
                known.update(name for name, _ in instruction.pairs)
    unused = [
        name for name in sorted(given)
        if name not in known and name not in UNKEYED_ARGUMENTS and name != EPOCH_ARGUMENT
        and not name.startswith("BUILDKIT_")
    ]  # fmt: skip
    if unused:
        session.emit(BuildWarning(f"[Warning] One or more build-args [{' '.join(unused)}] were not consumed"))


def run_stages(session: BuildSession, plan: Plan) -> None:
    """Run the stages, each as soon as those it needs are built. Raises the first failure."""
    if len(plan.stages) == 1:
        only = plan.stages[0]
        session.stages[only.stage.index] = StageBuilder(session, only, 1).run()
        return
    from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

    from pylayers.container.termination import terminable

    waiting = {planned.stage.index: planned for planned in plan.stages}
    running: dict[Future[StageState], PlannedStage] = {}
    failure: BaseException | None = None
    with (
        terminable(),
        ThreadPoolExecutor(max_workers=max(session.options.jobs, 1), thread_name_prefix="stage") as pool,
    ):
        while running or (waiting and failure is None):
            ready = [planned for planned in waiting.values() if planned.needs <= session.stages.keys()]
            for planned in ready if failure is None else []:
                del waiting[planned.stage.index]
                running[pool.submit(StageBuilder(session, planned, len(plan.stages)).run)] = planned
            try:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
            except BaseException:
                # Ctrl-C reaches only this thread: the stages are told, and leaving the pool waits for their end.
                session.cancel()
                raise
            for future in done:
                planned = running.pop(future)
                error = future.exception()
                if error is None:
                    session.stages[planned.stage.index] = future.result()
                elif failure is None or isinstance(failure, Cancelled):
                    failure = error
                    session.cancel()
    if failure is not None:
        raise failure


def make_config(session: BuildSession, state: StageState) -> ImageConfig:
    """Return the configuration of the image that a build ended with."""
    return ImageConfig(
        architecture=state.platform.architecture,
        os=state.platform.os,
        variant=state.platform.variant,
        author=state.author,
        created=timestamp(session),
        config=replace(state.config, labels={**state.config.labels, **session.options.labels}),
        diff_ids=state.diff_ids,
        history=state.history,
    )


def finish(session: BuildSession, state: StageState, references: list[Reference], started: float) -> BuildResult:
    """Store the image and tag it; writes nothing where all of it is as it was."""
    store, options = session.store, session.options
    config = make_config(session, state)
    session.cache.touch(session.hits)
    session.trees.record(state.diff_ids)
    if options.outputs or options.annotations or options.rewrite_timestamp or options.attestations:
        from pylayers.build.output.deliver import BuiltImage, deliver
        from pylayers.build.output.witness import make_predicates

        predicates = make_predicates(session, state) if options.attestations else ()
        built = BuiltImage(config, state.base_count, predicates)
        made = deliver(session, [built], [str(one) for one in references])
        return BuildResult(
            image_digest=made.digest,
            config_digest=made.config_digest,
            references=tuple(Reference.parse(name).familiar for name in made.names),
            steps=tuple(session.finished),
            warnings=tuple(session.warnings),
            seconds=time.perf_counter() - started,
            diff_ids=made.diff_ids,
        )
    image = assemble(store, config, [store.layers.size_bytes(diff_id) for diff_id in state.diff_ids])
    for reference in references:
        if store.metadata.references.get(str(reference)) != image.digest:
            store.metadata.references.set(str(reference), image.digest)
    return BuildResult(
        image_digest=image.digest,
        config_digest=image.config_digest,
        references=tuple(reference.familiar for reference in references),
        steps=tuple(session.finished),
        warnings=tuple(session.warnings),
        seconds=time.perf_counter() - started,
        diff_ids=state.diff_ids,
    )
