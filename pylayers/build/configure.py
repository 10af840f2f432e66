"""The instructions that only change an image's configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pylayers.build.state import StageState
from pylayers.dockerfile import instructions as df
from pylayers.errors import InvalidInput
from pylayers.oci.config import Healthcheck
from pylayers.record import replace

PORT_LIMIT = 65_535
PORTS_LIMIT = 1_000_000  # of one EXPOSE
DEFAULT_SHELL = ("/bin/sh", "-c")


def configure(  # noqa: PLR0912
    state: StageState,
    instruction: df.Instruction,
    build_arguments: Mapping[str, str],
    global_arguments: Mapping[str, str],
) -> StageState:
    """Return the state after a configuration instruction (already expanded, except ARG). Raises InvalidInput."""
    config = state.config
    match instruction:
        case df.Arg():
            return replace(state, arguments=declare(state, instruction, build_arguments, global_arguments))
        case df.Env():
            config = replace(config, env=merge_environment(config.env, instruction.pairs))
            return replace(state, config=config, arguments=cover_arguments(state.arguments, instruction.pairs))
        case df.Label():
            config = replace(config, labels={**config.labels, **dict(instruction.pairs)})
        case df.User():
            config = replace(config, user=instruction.user)
        case df.Cmd():
            words = command_line(state, instruction.command, instruction.shell)
            config = replace(config, cmd=words or None, args_escaped=True)
            return replace(state, config=config, cmd_set=True)
        case df.Entrypoint():
            entrypoint = command_line(state, instruction.command, instruction.shell)
            config = replace(config, entrypoint=entrypoint or None, cmd=config.cmd if state.cmd_set else None)
        case df.Expose():
            ports = read_ports(instruction)
            config = replace(config, exposed_ports=tuple(sorted({*config.exposed_ports, *ports})))
        case df.Volume():
            if not all(instruction.paths):
                raise InvalidInput("VOLUME specified can not be an empty string", span=instruction.span)
            config = replace(config, volumes=tuple(sorted({*config.volumes, *instruction.paths})))
        case df.StopSignal():
            from pylayers.build.words import check_signal

            check_signal(instruction)
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
) -> tuple[tuple[str, str | None], ...]:
    """Return the ARGs after an ARG: --build-arg, else the default, else the global ARG's value, else nothing new.

    Each pair of one ARG sees those before it.
    """
    values: dict[str, str | None] = dict(state.arguments)
    environment = state.environment()
    for name, default in instruction.pairs:
        value = build_arguments.get(name)
        if value is None:
            value = instruction.expand_one(default, environment) if default is not None else global_arguments.get(name)
        if value is not None:
            environment[name] = value
        values[name] = environment.get(name)
    return tuple(values.items())


def cover_arguments(
    arguments: tuple[tuple[str, str | None], ...], pairs: Sequence[tuple[str, str]]
) -> tuple[tuple[str, str | None], ...]:
    """Return ARGs with the values that ENV gives to those of the same name."""
    if not arguments:
        return arguments
    given = dict(pairs)
    return tuple((name, given.get(name, value)) for name, value in arguments)


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


def read_ports(instruction: df.Expose) -> list[str]:
    """Return the "80/tcp" forms of an EXPOSE, each once, as its words stand. Raises InvalidInput."""
    ranges = check_ports(instruction)
    ports = (f"{port}/{protocol}" for first, last, protocol in ranges for port in range(first, last + 1))
    return list(dict.fromkeys(ports))


def check_ports(instruction: df.Expose) -> list[tuple[int, int, str]]:
    """Return the ranges of ports of an EXPOSE and their protocols. Raises InvalidInput."""
    ranges = list(dict.fromkeys(parse_port(word, instruction) for word in instruction.ports))
    if sum(last - first + 1 for first, last, _ in ranges) > PORTS_LIMIT:
        raise InvalidInput(f"EXPOSE names more than {PORTS_LIMIT} ports", span=instruction.span)
    return ranges


def parse_port(word: str, instruction: df.Instruction) -> tuple[int, int, str]:
    """Read one EXPOSE word: a port or a range, after an address or host port that don't count."""
    hint = "for example: EXPOSE 8080/tcp, or a range: EXPOSE 8000-8010/udp"
    whole, _, written = word.partition("/")
    address, ports = whole.rpartition(":")[::2]
    if not ports:
        raise InvalidInput(f'invalid port: "{word}": no port specified', span=instruction.span, hint=hint)
    protocol = (written or "tcp").lower()
    if protocol not in ("tcp", "udp", "sctp"):
        raise InvalidInput(
            f'invalid port: "{word}": invalid proto: {written}', span=instruction.span, hint="use tcp, udp or sctp"
        )
    found = read_range(ports)
    if address.strip(":"):
        from pylayers.build.words import check_published

        check_published(address, ports, found, instruction)
    if found is None:
        raise InvalidInput(f"invalid containerPort: {ports}", span=instruction.span, hint=hint)
    return (*found, protocol)


def read_range(text: str) -> tuple[int, int] | None:
    """Return the first and the last port of `80` or `80-90`, None for anything else."""
    first, dash, last = text.partition("-")
    if not is_port(first) or (dash and not is_port(last)):
        return None
    low, high = int(first), int(last) if dash else int(first)
    return (low, high) if low <= high else None


def is_port(text: str) -> bool:
    """Tell whether text is a port's number."""
    return text.isascii() and text.isdigit() and len(text) < 10 and int(text) <= PORT_LIMIT


def read_healthcheck(instruction: df.Healthcheck) -> Healthcheck:
    """Return the configuration's form of a HEALTHCHECK."""
    return Healthcheck(
        test=tuple(instruction.test),
        interval_ns=instruction.interval_ns or 0,
        timeout_ns=instruction.timeout_ns or 0,
        start_period_ns=instruction.start_period_ns or 0,
        start_interval_ns=instruction.start_interval_ns or 0,
        retries=instruction.retries or 0,
    )
