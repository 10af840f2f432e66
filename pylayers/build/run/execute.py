"""Execute a RUN: the command over the parent's snapshot, and what it changed kept as a layer."""

from __future__ import annotations

import os
import uuid
from collections import deque
from contextlib import ExitStack
from pathlib import Path

from pylayers.build.cache.step import CachedStep
from pylayers.build.event import Step, StepOutput
from pylayers.build.run.lend import OpenedMount, lend
from pylayers.build.run.option import isolate
from pylayers.build.run.secret import SOCKET_VARIABLE
from pylayers.build.run.step import SCRIPT_FOLDER, find_script
from pylayers.build.session import BuildSession
from pylayers.build.state import StageState
from pylayers.container import sandbox
from pylayers.container.filter import FILTERS
from pylayers.container.isolation import ContainerMount, Isolation, Process
from pylayers.diff.write import write_layer
from pylayers.dockerfile import instructions as df
from pylayers.errors import AlreadyExists, BuildError, ContainerError, InvalidInput
from pylayers.image.unpack import unpack_layers
from pylayers.oci.chain import extend_chain
from pylayers.record import field, record
from pylayers.snapshot.snapshotter import Snapshotter
from pylayers.store.entry import FLAG_IMPLICIT, SOURCE_STRUCT, EntryTable
from pylayers.volume.parse import parse_volume, prepare_bind

LOG_TAIL_LINES = 20
NOT_STARTED = (126, 127)  # the command cannot be executed, or isn't there


@record(frozen=False)
class Tail:
    """Keep the last lines of a command's output, for its error."""

    lines: deque[str] = field(default_factory=lambda: deque(maxlen=LOG_TAIL_LINES))
    rest: bytes = b""

    def add(self, content: bytes) -> None:
        """Take output as it comes."""
        *lines, self.rest = (self.rest + content).split(b"\n")
        self.lines.extend(line.decode(errors="replace") for line in lines)
        self.rest = self.rest[-65536:]

    def take(self) -> tuple[str, ...]:
        """Return the last lines."""
        if self.rest:
            self.lines.append(self.rest.decode(errors="replace"))
            self.rest = b""
        return tuple(self.lines)


def execute(
    session: BuildSession,
    state: StageState,
    instruction: df.Run,
    command: tuple[str, ...],
    environment: dict[str, str],
    network: str,
    opened: tuple[OpenedMount, ...],
    step: Step,
) -> CachedStep:
    """Run the command over a snapshot and store what it changed; nothing of a failed run stays."""
    isolation = isolate(session, instruction, network, lambda text: instruction.expand_one(text, environment))
    driver = session.open_driver()
    with ExitStack() as stack:
        lent = lend(session, opened, driver, stack)
        if SOCKET_VARIABLE in environment:  # the Dockerfile's own word counts
            lent.environment.pop(SOCKET_VARIABLE, None)
        process = Process(
            arguments=command,
            environment=tuple(f"{name}={value}" for name, value in {**environment, **lent.environment}.items()),
            working_directory=state.config.working_dir or "/",
            user=state.config.user,
        )
        mounts = [*build_mounts(session), *lend_script(session, instruction, stack), *lent.mounts]
        return execute_process(session, state, instruction, process, isolation, mounts, driver, step)


def execute_process(
    session: BuildSession,
    state: StageState,
    instruction: df.Run,
    process: Process,
    isolation: Isolation,
    lent: list[ContainerMount],
    driver: Snapshotter,
    step: Step,
) -> CachedStep:
    """Run a process over a snapshot of the stage with what it is lent, and store what it changed."""
    runtime = session.open_runtime()
    parent = unpack_layers(driver, state.diff_ids, session.trees.layer)
    key = f"build-{uuid.uuid4().hex}"
    session.hold("snapshot", key)
    mounts = driver.prepare(key, parent, lasting=False)
    tail = Tail()

    def take_output(stream: int, content: bytes) -> None:
        tail.add(content)
        session.emit(StepOutput(step, "stderr" if stream == 2 else "stdout", content))

    committed = False
    try:
        try:
            code = sandbox.run_once(
                mounts,
                process,
                runtime=runtime,
                work_directory=session.store.scratch("run").parent,  # swept, mounts and all, when we are killed
                isolation=isolation,
                mounts=lent,
                output=take_output,
                cancel_fd=session.cancel_fd,
                filters=Path(session.store.directory(FILTERS)),
            ).code
        except sandbox.Cancelled:
            session.check_cancelled()
            raise
        except ContainerError as error:
            if error.exit_code not in NOT_STARTED:
                raise
            tail.add(str(error).encode(errors="replace"))
            code = error.exit_code
        if code:
            raise BuildError(
                f"process {' '.join(process.arguments)!r} did not complete successfully: exit code: {code}",
                span=instruction.span,
                step=instruction.original,
                exit_status=code,
                log_tail=tail.take(),
            )
        made, committed = keep_changes(session, state, driver, key)
        return made
    finally:
        if not committed:
            driver.remove(key)


def keep_changes(
    session: BuildSession, state: StageState, driver: Snapshotter, key: str
) -> tuple[CachedStep, bool]:
    """Store a snapshot's changes as a layer and commit it under its chain id; False when the key is still there."""
    changes = driver.changes(key)
    try:
        only_root = len(changes.sources) <= SOURCE_STRUCT.size
        if only_root and EntryTable(changes.records, changes.heap).entry(0).flags & FLAG_IMPLICIT:
            return CachedStep(None, 0), False
        layer = write_layer(session.store, changes.records, changes.heap, changes.sources)
    finally:
        changes.close()
    made = session.made(state, layer.diff_id, layer.size_bytes)
    try:
        # The upper directory is the layer unpacked: nobody has to unpack it again.
        driver.adopt(extend_chain(state.chain_id, layer.diff_id), key, layer)
    except AlreadyExists:
        return made, False
    return made, True


def lend_script(session: BuildSession, instruction: df.Run, stack: ExitStack) -> list[ContainerMount]:
    """Return the mount of a here-document that is executed as a file."""
    script = find_script(instruction)
    if script is None:
        return []
    path = session.store.scratch("script")
    path.write_bytes(script.text.encode(errors="surrogateescape"))
    stack.callback(path.unlink)
    path.chmod(0o755)
    return [ContainerMount(type="bind", source=str(path), target=f"{SCRIPT_FOLDER}/{script.name}", readonly=True)]


def build_mounts(session: BuildSession) -> list[ContainerMount]:
    """Return the build's own -v bind mounts."""
    mounts: list[ContainerMount] = []
    for given in session.options.volumes:
        request = parse_volume(given, base=Path.cwd())
        if request.type != "bind":
            raise InvalidInput(f"build -v {given}: only host directories and files can be mounted into a build")
        if not os.path.exists(request.source):
            prepare_bind(request)
        mounts.append(
            ContainerMount(type="bind", source=request.source, target=request.target, readonly=request.readonly)
        )
    return mounts
