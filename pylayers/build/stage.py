"""Build one stage: instruction after instruction, each from the cache or for real."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pylayers.build.base import resolve_base
from pylayers.build.cache.key import configure_key, workdir_key
from pylayers.build.cache.step import CachedStep
from pylayers.build.configure import configure
from pylayers.build.copy.step import copy_trees, make_directory
from pylayers.build.event import BuildWarning, Step, StepFinished, StepStarted, StepStatus
from pylayers.build.plan import PlannedStage
from pylayers.build.run.step import run_command
from pylayers.build.session import BuildSession
from pylayers.build.state import StageState, write_history
from pylayers.build.words import describe
from pylayers.dockerfile import instructions as df
from pylayers.errors import InvalidInput
from pylayers.record import record, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pylayers.build.cache.explain import Explainer


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
        if session.options.no_cache_filter and matches_filter(session.options.no_cache_filter, planned):
            # A view of the same session, for this stage: what it gathers is the session's own.
            session = replace(session, options=replace(session.options, no_cache=True))
        self.session = session
        self.planned = planned
        self.name = planned.stage.name or (f"stage-{planned.stage.index}" if stage_count > 1 else "stage")
        self.unbroken = True  # every step so far came from the cache
        self.explainer = open_explainer(session) if session.options.explain else None

    def run(self) -> StageState:
        """Build the stage and return what it became. Raises the first step's error, located in the Dockerfile."""
        planned = self.planned
        instructions: list[df.Instruction] = [planned.base]
        if not planned.replaced:
            instructions += (*self.read_triggers(), *planned.stage.instructions)
        state: StageState | None = None
        for index, written in enumerate(instructions):
            instruction = written
            self.session.check_cancelled()
            if state is not None and not isinstance(instruction, df.From | df.Arg):
                instruction = instruction.expand(state.environment())
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
                outcome = replace(
                    outcome, state=replace(outcome.state, config=replace(outcome.state.config, on_build=()))
                )
            if self.explainer is not None:
                has_layer = outcome.diff_id is not None
                self.session.emit(self.explainer.explain(state, instruction, step, outcome.status, has_layer))
            state = outcome.state
            self.unbroken = self.unbroken and outcome.status is StepStatus.CACHED
            seconds = time.perf_counter() - started
            self.session.emit(StepFinished(step, outcome.status, seconds, outcome.size_bytes, outcome.diff_id))
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
            found, status = run_command(self.session, state, instruction, step, self.planned.stage.index)
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
        key = workdir_key(
            self.session.trees.identity(state.diff_ids), path, state.config.user, self.session.epoch_s
        )
        found = self.session.reuse(key)
        status = StepStatus.CACHED
        if found is None:
            status = StepStatus.BUILT
            from pylayers.build.cache.fact import workdir_facts

            found = make_directory(self.session, state, path, instruction.span)
            facts = workdir_facts(self.session, state, instruction, path, state.config.user)
            found = replace(found, inputs=facts)
            self.session.cache.record(key, "", "workdir", instruction.original, found)
        changed = replace(state, config=replace(state.config, working_dir=path))
        return self.layered(changed, found, status, f"WORKDIR {path}")

    def change_config(self, state: StageState, instruction: df.Instruction) -> Outcome:
        """Apply an instruction that only changes the configuration."""
        changed = configure(state, instruction, self.session.options.arguments, self.session.global_arguments)
        if not isinstance(instruction, df.Onbuild):  # of which BuildKit's history says nothing
            words = describe(changed, instruction)
            changed = write_history(changed, words, timestamp(self.session), empty_layer=True)
        identity = (changed.chain_id or "scratch").encode()
        scope = repr((changed.arguments, changed.shell, changed.author)).encode(errors="surrogateescape")
        key = configure_key(identity, changed.config.to_json() + scope)
        status = StepStatus.CACHED
        if self.session.reuse(key) is None:
            status = StepStatus.BUILT
            from pylayers.build.cache.fact import configure_facts

            facts = configure_facts(self.session, state, instruction, changed.config.to_json() + scope)
            made = CachedStep(None, 0, inputs=facts)
            self.session.cache.record(key, "", "configure", instruction.original, made)
        elif not self.unbroken:
            status = StepStatus.BUILT
        return Outcome(changed, status)

    def read_triggers(self) -> Sequence[df.Instruction]:
        """Return the base's ONBUILD triggers as instructions of this stage: an image's, or those of a stage above."""
        triggers, base = self.planned.triggers, self.planned.base
        if triggers:
            message = f"{base.image} brings {len(triggers)} ONBUILD trigger{'s' if len(triggers) > 1 else ''}"
            self.session.emit(BuildWarning(message, file=base.span.file, line=base.span.line))
        return triggers


def open_explainer(session: BuildSession) -> Explainer:
    """Return what explains a stage's steps."""
    from pylayers.build.cache.explain import Explainer

    return Explainer(session)


def matches_filter(names: Sequence[str], planned: PlannedStage) -> bool:
    """Tell whether --no-cache-filter names a stage, in any case or by its number."""
    own = (planned.stage.name or "", str(planned.stage.index))
    return any(name.lower() in own for name in names)


def locate(error: BaseException, instruction: df.Instruction) -> None:
    """Give an error the place in the Dockerfile where it has none."""
    from pylayers.errors import PylayersError

    if isinstance(error, PylayersError) and error.span is None:
        error.span = instruction.span
        error.args = (f"{instruction.span}: {error.args[0] if error.args else ''}",)


def timestamp(session: BuildSession) -> str:
    """Return the creation time that configs carry, RFC 3339."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(session.epoch_s))


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
