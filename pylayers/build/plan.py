"""The stage graph: which stages a target needs, what each waits for, and in which order they may run."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Mapping, Sequence

from pylayers.dockerfile.expand import Allowance, Counted, Lookup
from pylayers.dockerfile.instructions import Arg, Copy, Dockerfile, From, Instruction, Maintainer, Onbuild, Run, Stage
from pylayers.dockerfile.lex import MAX_INSTRUCTIONS
from pylayers.dockerfile.parse import parse_instruction
from pylayers.errors import InvalidInput, SourceSpan
from pylayers.oci.platform import Platform
from pylayers.record import record

ARCHITECTURES = frozenset(
    ("386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64", "ppc64le", "riscv64")
) | {"s390x", "wasm"}
ReadTriggers = Callable[[int, From], Sequence[Instruction]]


@record
class PlannedStage:
    """One stage that will be built: `base` with the global arguments expanded, `needs` other stages' indexes.

    `replaced` tells that a named context of the stage's name is taken in its place; `triggers` are the base image's;
    `sources` are the names in --from and from= that mean stages.
    """

    stage: Stage
    base: From
    base_stage: int | None
    needs: frozenset[int]
    triggers: tuple[Instruction, ...] = ()
    replaced: bool = False
    sources: frozenset[str] = frozenset()


@record
class Plan:
    """The stages that the target needs, each after those it needs."""

    stages: tuple[PlannedStage, ...]
    target: int
    global_arguments: dict[str, str]


def make_plan(
    dockerfile: Dockerfile,
    arguments: Mapping[str, str],
    target: str | None,
    *,
    platform: Platform | None = None,
    contexts: Container[str] = (),
    read_triggers: ReadTriggers | None = None,
    every: bool = False,
) -> Plan:
    """Resolve the target and every stage it reaches, or every stage. Raises InvalidInput for unknown stages.

    `read_triggers` gives the ONBUILD instructions of a stage's base image: they may need further stages.
    """
    allowance = Allowance()
    values = expand_global_arguments(dockerfile.global_args, arguments, platform, target, allowance)
    lookup = Counted(values, allowance)
    bases = [expand_base(stage.base, values, lookup) for stage in dockerfile.stages]
    wanted = find_target(dockerfile, target)
    check_circles(dockerfile, contexts)
    planned: dict[int, PlannedStage] = {}
    trigger_count = 0
    pending = [*reversed(range(len(bases)))] if every else [wanted]
    while pending:
        index = pending.pop()
        if index in planned:
            continue
        made = plan_stage(dockerfile, index, bases, contexts, read_triggers)
        planned[index] = made
        trigger_count += len(made.triggers)
        if trigger_count > MAX_INSTRUCTIONS:
            # A stage's triggers count once for every stage on top of it: a short file can hold very many.
            message = f"ONBUILD triggers make more than {MAX_INSTRUCTIONS} instructions"
            raise InvalidInput(message, span=made.base.span)
        pending.extend(made.needs)
    return Plan(tuple(planned[index] for index in sorted(planned)), wanted, values)


def plan_stage(
    dockerfile: Dockerfile,
    index: int,
    bases: Sequence[From],
    contexts: Container[str],
    read_triggers: ReadTriggers | None,
) -> PlannedStage:
    """Plan one stage that the target reaches."""
    stage, base = dockerfile.stages[index], bases[index]
    if stage.name is not None and stage.name in contexts:
        return PlannedStage(stage, base, None, frozenset(), replaced=True)
    # Stages have lower-case names, and FROM, unlike --from, looks for its name as it is written.
    found = dockerfile.find_stage(base.image, before=index) if base.image == base.image.lower() else None
    triggers: tuple[Instruction, ...] = ()
    needs: set[int] = set()
    if found is not None:
        needs.add(found.index)
        texts = [one.instruction for one in found.instructions if isinstance(one, Onbuild)]
        triggers = parse_triggers(texts, base)
    elif read_triggers is not None and base.image != "scratch":
        triggers = tuple(read_triggers(index, base))
    sources: set[str] = set()
    for instruction in (*triggers, *stage.instructions):
        for name, needed in stage_references(dockerfile, instruction, contexts):
            sources.add(name)
            if needed is None:
                continue
            if needed >= index:
                refuse_later(dockerfile, stage, name, needed, instruction)
            needs.add(needed)
    base_stage = None if found is None else found.index
    return PlannedStage(stage, base, base_stage, frozenset(needs), triggers, sources=frozenset(sources))


def parse_triggers(texts: Sequence[str], base: From) -> tuple[Instruction, ...]:
    """Return ONBUILD triggers as instructions, which stand where their FROM is."""
    triggers: list[Instruction] = []
    for text in texts:
        trigger = parse_instruction(text, base.span.file, base.span.line)
        if isinstance(trigger, From | Onbuild | Maintainer):
            raise InvalidInput(f"{trigger.name} isn't allowed as an ONBUILD trigger", span=base.span)
        triggers.append(trigger)
    return tuple(triggers)


def expand_base(base: From, values: Mapping[str, str], lookup: Lookup | None = None) -> From:
    """Return a FROM with its variables replaced. Raises InvalidInput for one that is left blank."""
    unset: list[str] = []
    expanded = base.expand(lookup or values, unmatched=unset)
    if not expanded.image:
        raise InvalidInput(f"base name ({base.image}) should not be blank", span=base.span)
    if base.platform is not None:
        if not expanded.platform:
            raise InvalidInput(
                f"empty platform value from expression {base.platform}{suggest_argument(unset, values)}",
                span=base.span, hint="declare the variable with ARG before the first FROM",
            )  # fmt: skip
        try:
            check_platform(expanded.platform)
        except InvalidInput as error:
            raise InvalidInput(
                f"failed to parse platform {base.platform}: {error.message}", hint=error.hint, span=base.span
            ) from None
    return expanded


def suggest_argument(unset: Sequence[str], values: Mapping[str, str]) -> str:
    """Return what the last name without a value probably means."""
    from pylayers.dockerfile.suggest import suffix_suggestion

    return suffix_suggestion(unset[-1], values) if unset else ""


def check_platform(text: str) -> None:
    """Refuse what names no platform; a single word must be a known system or architecture. Raises InvalidInput."""
    platform = Platform.parse(text)
    if "/" not in text and platform.os == "linux" and platform.architecture not in ARCHITECTURES:
        raise InvalidInput(f'"{text}": unknown operating system or architecture', hint="for example: linux/arm64/v8")


def expand_global_arguments(
    declared: tuple[Arg, ...],
    given: Mapping[str, str],
    platform: Platform | None = None,
    target: str | None = None,
    allowance: Allowance | None = None,
) -> dict[str, str]:
    """Give the values of the ARGs before the first FROM, the platform's included: --build-arg over default."""
    values = platform_arguments(platform, target)
    values.update({name: given[name] for name in values if name in given})
    lookup = Counted(values, allowance or Allowance())
    for argument in declared:
        for name, default in argument.pairs:
            if name in given:
                values[name] = given[name]
            elif default is not None:
                # Each sees those before it, in its own line too.
                values[name] = argument.expand_one(default, lookup)
    return values


def platform_arguments(platform: Platform | None = None, target: str | None = None) -> dict[str, str]:
    """Give the predefined platform ARGs: this machine's, and those of the platform that is built for."""
    host = Platform.from_machine(os.uname().machine)
    values: dict[str, str] = {}
    for prefix, one in (("BUILD", host), ("TARGET", platform or host)):
        values |= {
            f"{prefix}PLATFORM": str(one),
            f"{prefix}OS": one.os,
            f"{prefix}OSVERSION": one.os_version,
            f"{prefix}ARCH": one.architecture,
            f"{prefix}VARIANT": one.variant,
        }
    return {**values, "TARGETSTAGE": target or "default"}


def find_target(dockerfile: Dockerfile, target: str | None) -> int:
    """Return the index of the stage to build: the named one (in any case), or the last."""
    if target is None:
        return len(dockerfile.stages) - 1
    found = dockerfile.find_stage(target)
    if found is not None:
        return found.index
    from pylayers.dockerfile.suggest import suffix_suggestion

    names = [stage.name for stage in dockerfile.stages if stage.name]
    raise InvalidInput(
        f'target stage "{target}" could not be found{suffix_suggestion(target, names)}',
        hint="its named stages are: " + ", ".join(names[:50]) if names else "give the stage a name: FROM … AS NAME",
    )


def stage_references(
    dockerfile: Dockerfile, instruction: Instruction, contexts: Container[str] = ()
) -> list[tuple[str, int | None]]:
    """Return the names in one instruction that mean stages, with their numbers (None for a named context).

    A name means the last stage of that name in the file; only COPY takes numbers.
    """
    found: list[tuple[str, int | None]] = []
    for name in source_names(instruction):
        if name in contexts:
            found.append((name, None))
            continue
        stage = dockerfile.find_stage(name)
        if stage is not None:
            found.append((name, stage.index))
            continue
        number = read_number(name.removeprefix("-")) if isinstance(instruction, Copy) else None
        if number is not None:
            if number >= len(dockerfile.stages) or name.startswith("-"):
                raise InvalidInput(
                    f"invalid stage index {name}", span=instruction.span,
                    hint=f"the stages have the numbers 0 to {len(dockerfile.stages) - 1}",
                )  # fmt: skip
            found.append((name, number))
    return found


def refuse_later(dockerfile: Dockerfile, stage: Stage, written: str, needed: int, instruction: Instruction) -> None:
    """Refuse to read from a stage that comes later, or from the one that the instruction is in."""
    own = stage.name or f"stage-{stage.index}"
    if needed == stage.index:
        raise InvalidInput(f"circular dependency detected on stage: {own}", span=instruction.span)
    action = "copy" if isinstance(instruction, Copy) else "mount"
    raise InvalidInput(
        f'cannot {action} from stage "{written}", it needs to be defined before current stage "{own}"',
        span=instruction.span,
        hint=f"move the stage above line {stage.span.line}",
    )


def check_circles(dockerfile: Dockerfile, contexts: Container[str] = ()) -> None:
    """Refuse stages that read from each other, whether the target reaches them or not, and bad stage numbers."""
    edges: list[list[tuple[int, SourceSpan]]] = []
    forward = False
    for stage in dockerfile.stages:
        out: list[tuple[int, SourceSpan]] = []
        for instruction in stage.instructions:
            for _, needed in stage_references(dockerfile, instruction, contexts):
                if needed is not None:
                    out.append((needed, instruction.span))
                    forward = forward or needed >= stage.index
        edges.append(out)
    if not forward:
        return  # every edge leads up: there is no circle
    done = [False] * len(edges)
    for start in range(len(edges)):
        stack = [] if done[start] else [(start, iter(edges[start]))]
        path = {start}
        done[start] = True
        while stack:
            at, following = stack[-1]
            step = next(following, None)
            if step is None:
                stack.pop()
                path.discard(at)
                continue
            needed, span = step
            if needed in path:
                name = dockerfile.stages[start].name or f"stage-{start}"
                raise InvalidInput(f"circular dependency detected on stage: {name}", span=span)
            if not done[needed]:
                done[needed] = True
                path.add(needed)
                stack.append((needed, iter(edges[needed])))


def source_names(instruction: Instruction) -> list[str]:
    """Return the --from names of one instruction (a stage, an image or a named context)."""
    if isinstance(instruction, Copy) and instruction.from_stage:
        if "$" in instruction.from_stage:
            raise InvalidInput(
                "variable expansion is not supported for --from, define a new stage with FROM using ARG from global "
                "scope as a workaround", span=instruction.span, hint=f"FROM {instruction.from_stage} AS NAME",
            )  # fmt: skip
        return [instruction.from_stage]
    if isinstance(instruction, Run) and any("from=" in mount.lower() for mount in instruction.mounts):
        from pylayers.build.run import mount as runmount

        return runmount.source_names(instruction.mounts, instruction.span)
    return []


def find_stage_name(names: dict[int, str | None], name: str, *, before: int) -> int | None:
    """Return the index of the latest built stage of that name, or with that number, defined before a stage."""
    for index in sorted(names, reverse=True):
        if index < before and names[index] == name.lower():
            return index
    number = read_number(name)
    return number if number is not None and number < before and number in names else None


def read_number(name: str) -> int | None:
    """Return a stage's number as written, None for a name."""
    return int(name) if name.isascii() and name.isdigit() and len(name) < 10 else None
