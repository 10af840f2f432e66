"""Build one stage: instruction after instruction, each from the cache or for real."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pylayers.build.base import resolve_base
from pylayers.build.cache import CachedStep
from pylayers.build.cachekey import configure_key, workdir_key
from pylayers.build.configure import configure, describe_command, write_history
from pylayers.build.copystep import copy_trees, make_directory
from pylayers.build.event import BuildWarning, Step, StepFinished, StepStarted, StepStatus
from pylayers.build.plan import PlannedStage
from pylayers.build.runstep import run_command
from pylayers.build.session import BuildSession
from pylayers.build.state import StageState
from pylayers.dockerfile import instructions as df
from pylayers.dockerfile.parse import parse_instruction
from pylayers.errors import InvalidInput
from pylayers.record import record, replace


@record
class Outcome:
    """What performing one instruction gave."""

    state: StageState
    status: StepStatus
    size_bytes: int = 0
    diff_id: str | None = None


class StageBuilder:
    """Build one planned stage."""

    def __init__(self, session: BuildSession, planned: PlannedStage, stage_count: int) -> None:
        self.session = session
        self.planned = planned
        self.name = planned.stage.name or (f"stage-{planned.stage.index}" if stage_count > 1 else "stage")
        self.unbroken = True  # every step so far came from the cache

    def run(self) -> StageState:
        """Build the stage and return what it became. Raises the first step's error, located in the Dockerfile."""
        instructions: list[df.Instruction] = [self.planned.base, *self.planned.stage.instructions]
        state: StageState | None = None
        index = 0
        while index < len(instructions):
            self.session.check_cancelled()
            instruction = instructions[index]
            if state is not None and isinstance(instruction, df.Instruction):
                environment = state.environment()
                if not isinstance(instruction, df.From):
                    instruction = instruction.expand(environment)
            step = Step(self.name, index + 1, len(instructions), instruction.original, instruction.span.line)
            self.session.emit(StepStarted(step))
            started = time.perf_counter()
            try:
                outcome = self.perform(state, instruction, step)
            except BaseException as error:
                self.session.emit(
                    StepFinished(step, StepStatus.FAILED, time.perf_counter() - started, 0, None)
                )
                locate(error, instruction)
                raise
            if isinstance(instruction, df.From):
                instructions[1:1] = self.read_triggers(outcome.state, instruction)
                outcome = replace(
                    outcome, state=replace(outcome.state, config=replace(outcome.state.config, on_build=()))
                )
            state = outcome.state
            self.unbroken = self.unbroken and outcome.status is StepStatus.CACHED
            seconds = time.perf_counter() - started
            step = replace(step, total=len(instructions))
            self.session.emit(StepFinished(step, outcome.status, seconds, outcome.size_bytes, outcome.diff_id))
            index += 1
        if state is None:
            raise InvalidInput("a stage needs a FROM", span=self.planned.base.span)
        return state

    def perform(self, state: StageState | None, instruction: df.Instruction, step: Step) -> Outcome:
        """Perform one expanded instruction."""
        if isinstance(instruction, df.From):
            return Outcome(resolve_base(self.session, self.planned), StepStatus.CACHED)
        if state is None:
            raise InvalidInput("a stage must begin with FROM", span=instruction.span)
        if isinstance(instruction, df.Copy | df.Add):
            found, status = copy_trees(self.session, state, instruction, self.planned.stage.index)
            return self.layered(state, found, status, describe(state, instruction))
        if isinstance(instruction, df.Run):
            found, status = run_command(self.session, state, instruction, step)
            return self.layered(state, found, status, describe(state, instruction))
        if isinstance(instruction, df.Workdir):
            return self.change_directory(state, instruction)
        return self.change_config(state, instruction)

    def layered(self, state: StageState, found: CachedStep, status: StepStatus, created_by: str) -> Outcome:
        """Return the state with a step's layer on top."""
        state = replace(state, diff_ids=(*state.diff_ids, *found.diff_ids))
        # The image format wants one line for each layer, and one for a step that made none.
        for _ in found.diff_ids or (None,):
            state = write_history(state, created_by, timestamp(self.session), empty_layer=found.diff_id is None)
        return Outcome(state, status, found.size_bytes, found.diff_id)

    def change_directory(self, state: StageState, instruction: df.Workdir) -> Outcome:
        """Set the working directory, making it where the image has none."""
        path = join_path(state.config.working_dir or "/", instruction.path)
        key = workdir_key(self.session.trees.identity(state.diff_ids), path, state.config.user)
        found = self.session.reuse(key)
        status = StepStatus.CACHED
        if found is None:
            status = StepStatus.BUILT
            found = make_directory(self.session, state, path, instruction.span)
            self.session.cache.record(key, "", "workdir", instruction.original, found)
        changed = replace(state, config=replace(state.config, working_dir=path))
        return self.layered(changed, found, status, f"WORKDIR {path}")

    def change_config(self, state: StageState, instruction: df.Instruction) -> Outcome:
        """Apply an instruction that only changes the configuration."""
        changed = configure(state, instruction, self.session.options.arguments, self.session.global_arguments)
        changed = write_history(changed, describe(state, instruction), timestamp(self.session), empty_layer=True)
        identity = (changed.chain_id or "scratch").encode()
        scope = repr((changed.arguments, changed.shell, changed.author)).encode(errors="surrogateescape")
        key = configure_key(identity, changed.config.to_json() + scope)
        status = StepStatus.CACHED
        if self.session.reuse(key) is None:
            status = StepStatus.BUILT
            self.session.cache.record(key, "", "configure", instruction.original, CachedStep(None, 0))
        elif not self.unbroken:
            status = StepStatus.BUILT
        return Outcome(changed, status)

    def read_triggers(self, state: StageState, base: df.From) -> Sequence[df.Instruction]:
        """Return the base image's ONBUILD triggers as instructions of this stage."""
        triggers: list[df.Instruction] = []
        for text in state.config.on_build:
            trigger = parse_instruction(text, base.span.file, base.span.line)
            if isinstance(trigger, df.From | df.Onbuild | df.Maintainer):
                raise InvalidInput(f"{trigger.name} isn't allowed as an ONBUILD trigger", span=base.span)
            triggers.append(trigger)
        if triggers:
            message = f"{base.image} brings {len(triggers)} ONBUILD trigger{'s' if len(triggers) > 1 else ''}"
            self.session.emit(BuildWarning(message, file=base.span.file, line=base.span.line))
        return triggers


def locate(error: BaseException, instruction: df.Instruction) -> None:
    """Give an error the place in the Dockerfile where it has none."""
    from pylayers.errors import PylayersError

    if isinstance(error, PylayersError) and error.span is None:
        error.span = instruction.span
        error.args = (f"{instruction.span}: {error.args[0] if error.args else ''}",)


def timestamp(session: BuildSession) -> str:
    """Return the creation time that configs carry, RFC 3339."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(session.epoch_s))


def describe(state: StageState, instruction: df.Instruction) -> str:
    """Write an instruction as the image's history shows it."""
    if isinstance(instruction, df.Run):
        words = (*state.shell, *instruction.command) if instruction.shell else instruction.command
        return "RUN " + " ".join(words)
    if isinstance(instruction, df.Cmd | df.Entrypoint):
        words = (*state.shell, *instruction.command) if instruction.shell else instruction.command
        return describe_command(instruction.name, words)
    return instruction.original


def join_path(base: str, path: str) -> str:
    """Join and normalise an absolute path."""
    joined = path if path.startswith("/") else f"{base}/{path}"
    parts: list[str] = []
    for part in joined.split("/"):
        if part == "..":
            if parts:
                parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)
