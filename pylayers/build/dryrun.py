"""Go through a Dockerfile as a build would, and build nothing: docker's warnings, and the error that ends them."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping, Sequence

from pylayers.build.configure import check_ports
from pylayers.build.plan import (
    Plan,
    PlannedStage,
    expand_base,
    expand_global_arguments,
    make_plan,
    parse_triggers,
    platform_arguments,
)
from pylayers.build.state import StageState
from pylayers.dockerfile import instructions as df
from pylayers.dockerfile import lint
from pylayers.dockerfile.expand import Allowance, Counted, Lookup
from pylayers.dockerfile.ignore import IgnoreRules
from pylayers.dockerfile.lex import read
from pylayers.dockerfile.lintstage import Environment, StageLint
from pylayers.dockerfile.parse import assemble, build_instruction
from pylayers.errors import InvalidInput, PylayersError, SourceSpan
from pylayers.oci.config import RunConfig
from pylayers.oci.platform import Platform
from pylayers.record import field, record

DIGEST_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}
REMOTE = re.compile(r"https?://")
GIT = re.compile(r"^(?:git@|git://|ssh://)|\.git(?:[#?]|\Z)")
SETTINGS_ARGUMENT = "BUILDKIT_DOCKERFILE_CHECK"
# Returns what a stage on an image begins with, or raises what a build would; the names are the stages'.
LoadBase = Callable[[str, Platform, SourceSpan, Sequence[str]], StageState]
LoadImage = Callable[[str, Platform, SourceSpan], StageState]


@record(frozen=False)
class Findings:
    """Gather what was found: every warning in its order, and the error that ended it."""

    warnings: list[df.Warning_] = field(default_factory=list)
    error: PylayersError | None = None
    settings: lint.Settings = field(default_factory=lint.Settings)

    def kept(self) -> list[df.Warning_]:
        """Return the warnings that the settings ask for, each once, by their lines."""
        kept = [one for one in self.warnings if self.settings.runs(one.rule)]
        return sorted(kept, key=lambda one: one.span.line)


@record(kw_only=True)
class Question:
    """What a check is asked with, beside the file."""

    arguments: Mapping[str, str] = field(default_factory=dict)
    target: str | None = None
    platform: Platform
    contexts: Container[str] = ()
    ignore: IgnoreRules | None = None


def check_content(content: bytes, file: str, question: Question, load: LoadBase) -> Findings:
    """Check a file from its text on; with no target every stage of it."""
    found = Findings()
    try:
        dockerfile = check_text(content, file, question, found)
        check_bases(dockerfile, question, found)
        plan = plan_stages(dockerfile, question, None)
        names = [stage.name for stage in dockerfile.stages if stage.name]
        bases = load_bases(plan, names, question, load)
        if any(state.config.on_build for state in bases.values()):
            plan = plan_stages(dockerfile, question, bases)
        check_stages(plan, bases, question, found, lambda name, platform, span: load(name, platform, span, names))
    except PylayersError as error:
        found.error = error
    return found


def plan_stages(dockerfile: df.Dockerfile, question: Question, bases: Mapping[int, StageState] | None) -> Plan:
    """Plan what is checked; with the triggers of base images where those are known."""

    def read_triggers(index: int, base: df.From) -> Sequence[df.Instruction]:
        return parse_triggers(bases[index].config.on_build, base) if bases and index in bases else ()

    return make_plan(
        dockerfile, question.arguments, question.target, platform=question.platform, contexts=question.contexts,
        read_triggers=read_triggers, every=question.target is None,
    )  # fmt: skip


def check_text(content: bytes, file: str, question: Question, found: Findings) -> df.Dockerfile:
    """Read a file instruction by instruction."""
    source = read(content, file)
    directive = next((one.value for one in source.directives if one.name == "check"), None)
    found.settings = choose_settings(directive, question.arguments)
    for statement in source.statements:
        if statement.empty_continuation_line:
            span = SourceSpan(file, statement.empty_continuation_line)
            found.warnings.append(lint.warn("NoEmptyContinuation", span))
    instructions: list[df.Instruction] = []
    for statement in source.statements:
        if statement.arguments.keyword.lower() == "maintainer":
            found.warnings.append(lint.warn("MaintainerDeprecated", statement.span))
        instruction = build_instruction(statement, source.escape)
        found.warnings += lint.check_instruction(instruction)
        instructions.append(instruction)
    return assemble(source, instructions)


def check_instructions(dockerfile: df.Dockerfile, found: Findings) -> None:
    """Check the text of a file that is read already."""
    found.warnings += dockerfile.warnings
    for arg in dockerfile.global_args:
        found.warnings += lint.check_instruction(arg)
    for stage in dockerfile.stages:
        for instruction in (stage.base, *stage.instructions):
            if isinstance(instruction, df.Maintainer):
                found.warnings.append(lint.warn("MaintainerDeprecated", instruction.span))
            found.warnings += lint.check_instruction(instruction)


def choose_settings(directive: str | None, arguments: Mapping[str, str]) -> lint.Settings:
    """Return the settings: the build argument's, or else the directive's. Raises InvalidInput."""
    given = arguments.get(SETTINGS_ARGUMENT)
    try:
        return lint.read_settings(lint.read_directive(directive) if given is None else given)
    except InvalidInput as error:
        raise InvalidInput(f"failed to parse check options: {error.message}", hint=error.hint) from None


def check_bases(dockerfile: df.Dockerfile, question: Question, found: Findings) -> None:
    """Check the names of stages, the ARGs before the first FROM, and every FROM."""
    found.warnings += lint.check_names(dockerfile)
    allowance = Allowance()
    values = expand_global_arguments(
        dockerfile.global_args, question.arguments, question.platform, question.target, allowance
    )
    lookup = Counted(values, allowance)
    predefined = platform_arguments(question.platform, question.target)
    defaults = Counted(lint.default_values(dockerfile, predefined, allowance), allowance)
    declared = lint.declared_names(dockerfile, predefined)
    suggester = lint.Suggester()
    for stage in dockerfile.stages:
        try:
            base = expand_base(stage.base, values, lookup)
        except InvalidInput as error:
            if "failed to parse platform" not in error.message:
                found.warnings += lint.check_from(stage.base, defaults, declared, suggester)
            raise
        platform = Platform.parse(base.platform) if base.platform else None
        words = (platform.os, platform.architecture) if platform else ()
        found.warnings += lint.check_from(stage.base, defaults, declared, suggester, words)


def load_bases(plan: Plan, names: Sequence[str], question: Question, load: LoadBase) -> dict[int, StageState]:
    """Load the images that stages begin with, each once."""
    known: dict[tuple[str, str | None], StageState] = {}
    bases: dict[int, StageState] = {}
    for planned in plan.stages:
        if planned.base_stage is not None:
            continue
        name = planned.stage.name if planned.replaced and planned.stage.name else planned.base.image
        key = (name, planned.base.platform)
        if key not in known:
            platform = Platform.parse(planned.base.platform) if planned.base.platform else question.platform
            known[key] = load(name, platform, planned.base.span, names)
        bases[planned.stage.index] = known[key]
    return bases


def check_stages(
    plan: Plan, bases: Mapping[int, StageState], question: Question, found: Findings, load: LoadImage | None = None
) -> None:
    """Go through the stages of a plan. Raises the first instruction's error that a build would end with."""
    last_child = {planned.base_stage: planned.stage.index for planned in plan.stages if planned.base_stage is not None}
    held: dict[int, Environment] = {}
    suggester, allowance = lint.Suggester(), Allowance()
    for planned in plan.stages:
        index, parent = planned.stage.index, planned.base_stage
        if parent is None:
            environment = enter_image(bases.get(index))
        else:
            # The last child takes what nobody else needs: no copy.
            if last_child[parent] == index:
                kept = held.pop(parent)
            else:
                kept = copy_environment(held[parent], allowance, planned.base.span)
            environment = kept.enter_child()
        if not planned.replaced:
            validator = Validator(planned, question.platform, load)
            stage = StageLint(
                environment, question.arguments, plan.global_arguments, found.warnings, validator.validate, suggester,
                allowance, question.ignore,
            )  # fmt: skip
            for instruction in (*planned.triggers, *planned.stage.instructions):
                stage.check(instruction)
        if index in last_child:
            held[index] = environment


def copy_environment(environment: Environment, allowance: Allowance, span: SourceSpan) -> Environment:
    """Return a copy for one of several stages on top of a stage. Raises InvalidInput where they are too many."""
    try:
        allowance.spend(len(environment.values))
    except InvalidInput as error:
        raise InvalidInput(error.message, hint=error.hint, span=span) from None
    return environment.copy()


def enter_image(state: StageState | None) -> Environment:
    """Return what a stage on an image, or on scratch, knows."""
    from pylayers.build.base import DEFAULT_PATH

    name, _, path = DEFAULT_PATH.partition("=")
    config = RunConfig() if state is None else state.config
    env = {name: path, **config.environment()}
    return Environment(dict(env), env, has_shell=bool(config.shell))


class Validator:
    """Refuse what the step of an instruction would refuse, as far as the instruction tells it."""

    def __init__(self, planned: PlannedStage, platform: Platform, load: LoadImage | None) -> None:
        self._planned = planned
        self._platform = platform
        self._load = load

    def validate(self, instruction: df.Instruction, lookup: Lookup, unmatched: list[str]) -> None:
        """Check one expanded instruction. Raises InvalidInput, NotFound."""
        try:
            match instruction:
                case df.Run():
                    self._validate_run(instruction, lookup, unmatched)
                case df.Copy() | df.Add():
                    self._validate_transfer(instruction)
                case df.Expose():
                    check_ports(instruction)
                case df.StopSignal():
                    from pylayers.build.words import check_signal

                    check_signal(instruction)
                case df.Volume() if not all(instruction.paths):
                    raise InvalidInput("VOLUME specified can not be an empty string", span=instruction.span)
        except PylayersError as error:
            locate(error, instruction.span)
            raise

    def _validate_run(self, instruction: df.Run, lookup: Lookup, unmatched: list[str]) -> None:
        if not instruction.mounts:
            return
        from pylayers.build.run.mount import parse_mount

        def expand(value: str) -> str:
            return instruction.expand_one(value, lookup, unmatched=unmatched)

        for text in instruction.mounts:
            mount = parse_mount(text, expand)
            self._find_image(mount.from_name, instruction.span)

    def _validate_transfer(self, instruction: df.Copy | df.Add) -> None:
        if instruction.chmod:
            from pylayers.build.copy.filemode import read_mode

            read_mode(instruction.chmod)
        if isinstance(instruction, df.Add) and instruction.checksum:
            check_checksum(instruction, instruction.checksum)
        if isinstance(instruction, df.Copy) and instruction.from_stage:
            self._find_image(instruction.from_stage, instruction.span)

    def _find_image(self, name: str, span: SourceSpan) -> None:
        """Look for an image that an instruction reads from."""
        if self._load is not None and name and name not in self._planned.sources and name != "scratch":
            self._load(name, self._platform, span)


def check_checksum(instruction: df.Add, checksum: str) -> None:
    """Refuse an ADD --checksum that is none, or of sources that have none."""
    if ":" not in checksum and all(GIT.search(source) for source in instruction.sources):
        return  # a commit, compared with what is fetched
    algorithm, _, digits = checksum.partition(":")
    if algorithm not in DIGEST_LENGTHS:
        raise InvalidInput("unsupported digest algorithm", hint="give it as sha256:HEX", span=instruction.span)
    if len(digits) != DIGEST_LENGTHS[algorithm] and any(REMOTE.match(source) for source in instruction.sources):
        git = any(GIT.search(source) for source in instruction.sources)
        if not git:
            raise InvalidInput("invalid checksum digest length", span=instruction.span)
    if not all(REMOTE.match(source) or GIT.search(source) for source in instruction.sources):
        raise InvalidInput("checksum requires HTTP(S) or Git sources", span=instruction.span)


def locate(error: PylayersError, span: SourceSpan) -> None:
    """Give an error the place in the Dockerfile where it has none."""
    if error.span is None:
        error.span = span
        error.args = (f"{span}: {error.args[0] if error.args else ''}",)
