"""The instructions that only change an image's configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from pylayers.build.state import StageState
from pylayers.dockerfile import instructions as df
from pylayers.errors import InvalidInput
from pylayers.oci.config import Healthcheck, History
from pylayers.record import replace

COMMENT = "pylayers"
PORT_RANGE_LIMIT = 65_535


def configure(
    state: StageState,
    instruction: df.Instruction,
    build_arguments: Mapping[str, str],
    global_arguments: Mapping[str, str],
) -> StageState:
    """Return the state after a configuration instruction (already expanded)."""
    config = state.config
    match instruction:
        case df.Arg():
            return replace(state, arguments=declare(state, instruction, build_arguments, global_arguments))
        case df.Env():
            config = replace(config, env=merge_environment(config.env, instruction.pairs))
        case df.Label():
            config = replace(config, labels={**config.labels, **dict(instruction.pairs)})
        case df.User():
            config = replace(config, user=instruction.user)
        case df.Cmd():
            config = replace(config, cmd=command_line(state, instruction.command, instruction.shell))
            return replace(state, config=config, cmd_set=True)
        case df.Entrypoint():
            entrypoint = command_line(state, instruction.command, instruction.shell)
            config = replace(config, entrypoint=entrypoint, cmd=config.cmd if state.cmd_set else None)
        case df.Expose():
            ports = {port for word in instruction.ports for port in expand_ports(word, instruction)}
            config = replace(config, exposed_ports=tuple(sorted({*config.exposed_ports, *ports})))
        case df.Volume():
            config = replace(config, volumes=tuple(sorted({*config.volumes, *instruction.paths})))
        case df.StopSignal():
            config = replace(config, stop_signal=instruction.signal)
        case df.Shell():
            return replace(state, shell=instruction.command, config=replace(config, shell=instruction.command))
        case df.Healthcheck():
            config = replace(config, healthcheck=read_healthcheck(instruction))
        case df.Onbuild():
            config = replace(config, on_build=(*config.on_build, instruction.instruction))
        case df.Maintainer():
            return replace(state, author=instruction.maintainer)
        case _:
            raise InvalidInput(f"{instruction.name} cannot be used here", span=instruction.span)
    return replace(state, config=config)


def declare(
    state: StageState, instruction: df.Arg, build_arguments: Mapping[str, str], global_arguments: Mapping[str, str]
) -> tuple[tuple[str, str], ...]:
    """Return the ARGs in scope after an ARG: --build-arg, else the default, else the global ARG's value."""
    values = dict(state.arguments)
    for name, default in instruction.pairs:
        if name in build_arguments:
            values[name] = build_arguments[name]
        elif default is not None:
            values[name] = default
        elif name in global_arguments:
            values[name] = global_arguments[name]
    return tuple(values.items())


def merge_environment(env: Sequence[str], pairs: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """Set variables in place where they are known, at the end where not."""
    merged = list(env)
    for name, value in pairs:
        for index, entry in enumerate(merged):
            if entry.split("=", 1)[0] == name:
                merged[index] = f"{name}={value}"
                break
        else:
            merged.append(f"{name}={value}")
    return tuple(merged)


def command_line(state: StageState, command: Sequence[str], shell: bool) -> tuple[str, ...]:
    """Return the words to execute: the shell form goes through the stage's SHELL."""
    return (*state.shell, *command) if shell else tuple(command)


def expand_ports(word: str, instruction: df.Instruction) -> list[str]:
    """Return "80/tcp" forms of one EXPOSE word, which may be a range."""
    ports, _, protocol = word.partition("/")
    protocol = (protocol or "tcp").lower()
    first, dash, last = ports.partition("-")
    if protocol not in ("tcp", "udp", "sctp") or not first.isdigit() or (dash and not last.isdigit()):
        raise InvalidInput(f"invalid containerPort: {word}", span=instruction.span, hint="for example: EXPOSE 8080/tcp")
    low, high = int(first), int(last) if dash else int(first)
    if not 0 < low <= high <= PORT_RANGE_LIMIT:
        raise InvalidInput(f"invalid port range: {word}", span=instruction.span)
    return [f"{port}/{protocol}" for port in range(low, high + 1)]


def read_healthcheck(instruction: df.Healthcheck) -> Healthcheck:
    """Return the configuration's form of a HEALTHCHECK."""
    if not instruction.test:
        return Healthcheck(test=("NONE",))
    return Healthcheck(
        test=tuple(instruction.test),
        interval_ns=instruction.interval_ns or 0,
        timeout_ns=instruction.timeout_ns or 0,
        start_period_ns=instruction.start_period_ns or 0,
        start_interval_ns=instruction.start_interval_ns or 0,
        retries=instruction.retries or 0,
    )


def write_history(state: StageState, created_by: str, created: str, *, empty_layer: bool) -> StageState:
    """Return the state with one more line of history."""
    step = History(created=created, created_by=created_by, comment=COMMENT, empty_layer=empty_layer)
    return replace(state, history=(*state.history, step))


def describe_command(name: str, words: Sequence[str]) -> str:
    """Write an exec form as docker's history does."""
    return f"{name} {json.dumps(list(words), ensure_ascii=False)}"
