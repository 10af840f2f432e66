"""Instructions in the words that BuildKit writes to an image's history; and the names of signals."""

from __future__ import annotations

import re

from pylayers.build.configure import command_line, read_healthcheck, read_ports, read_range
from pylayers.build.run.step import SCRIPT_FOLDER, find_script, is_lone
from pylayers.build.state import StageState
from pylayers.dockerfile import instructions as df
from pylayers.dockerfile.text import escape_unprintable, quote_whole, show_duration
from pylayers.errors import InvalidInput
from pylayers.oci.config import Healthcheck

SUFFIX = " # buildkit"  # readers of histories know by it that a line is an instruction
_SIGNALS = frozenset((
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE", "POLL",
    "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1",
    "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX",
))  # fmt: skip
_REAL_TIME = r"RTMIN\+([1-9]|1[0-5])\Z|RTMAX-([1-9]|1[0-4])\Z"
_QUOTED_RUNES = {0: "\\x00", 7: "\\a", 8: "\\b", 9: "\\t", 10: "\\n", 11: "\\v", 12: "\\f", 13: "\\r", 39: "\\'"}


def describe(state: StageState, instruction: df.Instruction) -> str:  # noqa: PLR0911
    """Write an expanded instruction, after which a stage has this state, as the image's history shows it."""
    match instruction:
        case df.Run():
            return describe_run(state, instruction)
        case df.Cmd() | df.Entrypoint():
            words = command_line(state, instruction.command, instruction.shell)
            return f"{instruction.name} {quote_words(words)}"
        case df.Copy() | df.Add():
            return describe_transfer(instruction)
        case df.Arg():
            values = dict(state.arguments)
            given = [(name, values.get(name)) for name, _ in instruction.pairs]
            return "ARG " + " ".join(name if value is None else f"{name}={value}" for name, value in given)
        case df.Env() | df.Label():
            return f"{instruction.name} " + " ".join(f"{name}={value}" for name, value in instruction.pairs)
        case df.Expose():
            return f"EXPOSE [{' '.join(read_ports(instruction))}]"
        case df.Volume():
            return f"VOLUME [{' '.join(instruction.paths)}]"
        case df.Shell():
            return f"SHELL [{' '.join(instruction.command)}]"
        case df.User():
            return f"USER {instruction.user}"
        case df.StopSignal():
            return f"STOPSIGNAL {instruction.signal}"
        case df.Maintainer():
            return f"MAINTAINER {instruction.maintainer}"
        case df.Healthcheck():
            return describe_healthcheck(read_healthcheck(instruction))
        case _:
            return instruction.original


def describe_run(state: StageState, instruction: df.Run) -> str:
    """Write a RUN with the ARGs it saw, as `RUN |1 NAME=value /bin/sh -c command`."""
    words = list(command_line(state, instruction.command, instruction.shell))
    script = find_script(instruction)
    if script is not None:
        command = " ".join((*state.shell, f"{SCRIPT_FOLDER}/{script.name}"))
    elif is_lone(instruction):
        command = " ".join((*state.shell, instruction.heredocs[0].text))
    elif instruction.heredocs:
        words += [f"\n{heredoc.content}{heredoc.name}" for heredoc in instruction.heredocs]
        command = " ".join(words[: -len(instruction.heredocs)]) + "".join(words[-len(instruction.heredocs) :])
    else:
        command = " ".join(words)
    seen = [f"{name}={value or ''}" for name, value in state.arguments]
    arguments = f"|{len(seen)} {' '.join(seen)} " if seen else ""
    return f"RUN {arguments}{command}{SUFFIX}"


def describe_transfer(instruction: df.Copy | df.Add) -> str:
    """Write a COPY or ADD."""
    words = [instruction.name]
    if isinstance(instruction, df.Copy) and instruction.parents:
        words.append("--parents")
    if instruction.chown:
        words.append(f"--chown={instruction.chown}")
    if instruction.chmod:
        words.append(f"--chmod={instruction.chmod}")
    words += instruction.sources
    words += [f"<<{heredoc.name}" for heredoc in instruction.heredocs]
    return " ".join((*words, instruction.destination)) + SUFFIX


def describe_healthcheck(check: Healthcheck) -> str:
    """Write a HEALTHCHECK as Go prints its struct."""
    durations = (check.interval_ns, check.timeout_ns, check.start_period_ns, check.start_interval_ns)
    shown = " ".join(f'"{show_duration(duration_ns)}"' for duration_ns in durations)
    retries = check.retries
    rune = chr(retries) if retries < 0x110000 and not 0xD800 <= retries < 0xE000 else "\N{REPLACEMENT CHARACTER}"
    quoted = _QUOTED_RUNES.get(ord(rune)) or ("\\\\" if rune == "\\" else escape_unprintable(rune))
    return f"HEALTHCHECK &{{{quote_words(check.test)} {shown} '{quoted}'}}"


def quote_words(words: tuple[str, ...]) -> str:
    """Write words as Go prints a slice of strings."""
    return f"[{' '.join(quote_whole(word) for word in words)}]"


def check_signal(instruction: df.StopSignal) -> None:
    """Refuse what names no signal: a number other than 0, or a Linux name with or without SIG."""
    text = instruction.signal
    if re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        known = int(text) != 0
    else:
        name = text.upper().removeprefix("SIG")
        known = name in _SIGNALS or re.match(_REAL_TIME, name) is not None
    if known:
        return
    from pylayers.dockerfile.suggest import suffix_suggestion

    suggestion = suffix_suggestion(text, [f"SIG{name}" for name in sorted(_SIGNALS)])
    raise InvalidInput(
        f"invalid signal: {text}{suggestion}", span=instruction.span, hint="give a name such as SIGTERM, or a number"
    )


def check_published(given: str, ports: str, inside: tuple[int, int] | None, instruction: df.Instruction) -> None:
    """Refuse an EXPOSE's address and host ports where they aren't any, though they don't count."""
    import ipaddress

    address, colon, host = given.rpartition(":")
    address = address if colon else ""
    if address:
        bare = address[1:-1] if address.startswith("[") and address.endswith("]") else address
        try:
            ipaddress.ip_address(bare)
        except ValueError:
            raise InvalidInput(f"invalid IP address: {address}", span=instruction.span) from None
    if inside is None or not host:
        return
    outside = read_range(host)
    if outside is None:
        raise InvalidInput(f"invalid hostPort: {host}", span=instruction.span)
    if inside[0] != inside[1] and inside[1] - inside[0] != outside[1] - outside[0]:
        message = f"invalid ranges specified for container and host Ports: {ports} and {host}"
        raise InvalidInput(message, span=instruction.span)
