"""The stage graph: which stages a target needs, what each waits for, and in which order they may run."""

from __future__ import annotations

import os

from pylayers.dockerfile.instructions import Arg, Copy, Dockerfile, From, Instruction, Run, Stage
from pylayers.errors import InvalidInput
from pylayers.record import record


@record
class PlannedStage:
    """One stage that will be built: `base` with the global arguments expanded, `needs` other stages' indexes."""

    stage: Stage
    base: From
    base_stage: int | None
    needs: frozenset[int]


@record
class Plan:
    """The stages that the target needs, each after those it needs."""

    stages: tuple[PlannedStage, ...]
    target: int
    global_arguments: dict[str, str]


def make_plan(dockerfile: Dockerfile, arguments: dict[str, str], target: str | None) -> Plan:
    """Resolve the target and every stage it reaches. Raises InvalidInput for unknown stages."""
    values = expand_global_arguments(dockerfile.global_args, arguments)
    bases = [stage.base.expand(values) for stage in dockerfile.stages]
    wanted = find_target(dockerfile, target)
    planned: dict[int, PlannedStage] = {}
    pending = [wanted]
    while pending:
        index = pending.pop()
        if index in planned:
            continue
        stage = dockerfile.stages[index]
        base = bases[index]
        if not base.image:
            raise InvalidInput(f"base name ({stage.base.image}) should not be blank", span=base.span)
        base_stage = find_stage(dockerfile, base.image, before=index, by_index=False)
        needs = {needed for needed in stage_references(dockerfile, stage) if needed != index}
        if base_stage is not None:
            needs.add(base_stage)
        planned[index] = PlannedStage(stage, base, base_stage, frozenset(needs))
        pending.extend(needs)
    return Plan(tuple(planned[index] for index in sorted(planned)), wanted, values)


def expand_global_arguments(declared: tuple[Arg, ...], given: dict[str, str]) -> dict[str, str]:
    """Give the values of the ARGs before the first FROM: --build-arg over default."""
    values: dict[str, str] = dict(platform_arguments())
    for argument in declared:
        expanded = argument.expand(values)
        for name, default in expanded.pairs:
            if name in given:
                values[name] = given[name]
            elif default is not None:
                values[name] = default
    return values


def platform_arguments() -> dict[str, str]:
    """Give the predefined platform ARGs of this machine."""
    from pylayers.oci.platform import Platform

    host = Platform.from_machine(os.uname().machine)
    text = str(host)
    return {
        "BUILDPLATFORM": text,
        "BUILDOS": host.os,
        "BUILDARCH": host.architecture,
        "BUILDVARIANT": host.variant,
        "TARGETPLATFORM": text,
        "TARGETOS": host.os,
        "TARGETARCH": host.architecture,
        "TARGETVARIANT": host.variant,
    }


def find_target(dockerfile: Dockerfile, target: str | None) -> int:
    """Return the index of the stage to build: the named one, or the last."""
    if target is None:
        return len(dockerfile.stages) - 1
    found = find_stage(dockerfile, target, before=len(dockerfile.stages), by_index=True)
    if found is None:
        names = [stage.name for stage in dockerfile.stages if stage.name]
        raise InvalidInput(
            f"target stage {target!r} could not be found in {dockerfile.file}",
            hint="its named stages are: " + ", ".join(names) if names else "no stage has a name; give its number",
        )
    return found


def find_stage(dockerfile: Dockerfile, name: str, *, before: int, by_index: bool) -> int | None:
    """Return the latest stage of that name (or number) defined before a stage, or None."""
    for index in range(before - 1, -1, -1):
        if dockerfile.stages[index].name == name.lower():
            return index
    number = read_number(name) if by_index else None
    return number if number is not None and number < before else None


def stage_references(dockerfile: Dockerfile, stage: Stage) -> set[int]:
    """Return the stages that a stage's instructions read from."""
    found: set[int] = set()
    for instruction in stage.instructions:
        for name in source_names(instruction):
            index = find_stage(dockerfile, name, before=stage.index, by_index=True)
            if index is not None:
                found.add(index)
            elif read_number(name) is not None or names_later_stage(dockerfile, stage, name):
                raise InvalidInput(
                    f"invalid from flag value {name}: refers to a stage that is not defined before this one",
                    span=instruction.span,
                )
    return found


def names_later_stage(dockerfile: Dockerfile, stage: Stage, name: str) -> bool:
    """Tell whether a name is that of this stage or one after it."""
    return any(other.name == name.lower() for other in dockerfile.stages[stage.index :])


def source_names(instruction: Instruction) -> list[str]:
    """Return the --from names of one instruction (a stage, an image or a named context)."""
    if isinstance(instruction, Copy) and instruction.from_stage:
        return [instruction.from_stage]
    if isinstance(instruction, Run):
        options = [dict(part.partition("=")[::2] for part in mount.split(",")) for mount in instruction.mounts]
        return [option["from"] for option in options if option.get("from")]
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
    return int(name) if name.isascii() and name.isdigit() else None
