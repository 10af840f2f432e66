"""A Dockerfile's text into typed instructions and stages.

Two passes, as in BuildKit: first every line's syntax (lex.py, arguments.py), then every instruction's meaning, so the
first error shown is the same one.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from pylayers.dockerfile import instructions as ins
from pylayers.dockerfile.flags import Flags, read_flags
from pylayers.dockerfile.lex import Heredoc, Source, Statement, parse_heredoc, read
from pylayers.dockerfile.suggest import suffix_suggestion
from pylayers.dockerfile.text import SPACES, parse_duration, quote, show
from pylayers.errors import InvalidInput, SourceSpan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Builder = Callable[["Statement", Flags, dict[str, Any]], ins.Instruction]

_STAGE_NAME = r"[a-z][a-z0-9\-_.]*\Z"
_ONBUILD = r"[ \t\r\n\f]*onbuild[ \t\r\n\f]*"
_INTEGER = r"[+-]?[0-9]{1,20}\Z"
_MIN_DURATION_NS = 1_000_000


def parse(content: bytes | str, file: str = "Dockerfile") -> ins.Dockerfile:
    """Parse a whole file; raise InvalidInput with the span of the first error."""
    source = read(content, file)
    return assemble(source, [build_instruction(statement, source.escape) for statement in source.statements])


def assemble(source: Source, instructions: list[ins.Instruction]) -> ins.Dockerfile:
    """Put a file's instructions into stages; raise InvalidInput where they make none."""
    global_args: list[ins.Arg] = []
    bases: list[ins.From] = []
    bodies: list[list[ins.Instruction]] = []
    for instruction in instructions:
        if isinstance(instruction, ins.From):
            bases.append(instruction)
            bodies.append([])
        elif bodies:
            bodies[-1].append(instruction)
        elif isinstance(instruction, ins.Arg):
            global_args.append(instruction)
        else:
            hint = "begin the file with FROM; only ARG may come before it"
            raise InvalidInput("no build stage in current context", span=instruction.span, hint=hint)
    if not bases:
        raise InvalidInput("dockerfile contains no stages to build", span=source.statements[-1].span)
    stages = tuple(_make_stage(i, base, body) for i, (base, body) in enumerate(zip(bases, bodies, strict=True)))
    file = source.file
    warnings = tuple(
        ins.Warning_("NoEmptyContinuation", "Empty continuation line", SourceSpan(file, s.empty_continuation_line))
        for s in source.statements
        if s.empty_continuation_line
    )
    return ins.Dockerfile(file, source.directives, tuple(global_args), stages, warnings)


def _make_stage(index: int, base: ins.From, body: list[ins.Instruction]) -> ins.Stage:
    last = body[-1].span if body else base.span
    span = SourceSpan(base.span.file, base.span.line, last.end_line, base.span.text)
    return ins.Stage(index, base.alias, base, tuple(body), span)


def parse_instruction(text: str, file: str = "Dockerfile", line: int = 1) -> ins.Instruction:
    """Parse one instruction (an ONBUILD trigger), here-documents included, as if it stood at `line` of `file`."""
    source = read(text, file)
    first = source.statements[0]
    if len(source.statements) > 1:
        raise InvalidInput("more than one instruction", span=SourceSpan(file, line, line, first.span.text))
    end = line + (first.span.end_line or 1) - first.span.line
    span = SourceSpan(file, line, end, first.span.text)
    moved = Statement(first.text, span, first.arguments, first.heredocs, first.comments, first.empty_continuation_line)
    return build_instruction(moved, "\\")


def build_instruction(statement: Statement, escape: str) -> ins.Instruction:
    """Give a statement its type; raise InvalidInput with its span."""
    keyword = statement.arguments.keyword
    name = keyword.upper()
    common = {
        "span": statement.span,
        "original": statement.text.strip(SPACES),
        "keyword": keyword,
        "escape": escape,
        "comments": statement.comments,
    }
    try:
        builder = _BUILDERS.get(name)
        if builder is None:
            raise InvalidInput(f"unknown instruction: {show(keyword)}{suffix_suggestion(keyword, _BUILDERS)}")
        if name == "HEALTHCHECK":
            return _build_healthcheck(statement, common)  # its flags are read only where they mean something
        _check_count(name, statement)
        # BuildKit doesn't look at STOPSIGNAL's flags.
        flags = () if name == "STOPSIGNAL" else statement.arguments.flags
        return builder(statement, read_flags(name, flags), common)
    except InvalidInput as error:
        raise InvalidInput(error.message, hint=error.hint, span=statement.span) from None


_EXACTLY_ONE = frozenset({"MAINTAINER", "WORKDIR", "USER", "STOPSIGNAL"})
_AT_LEAST_ONE = frozenset({"EXPOSE", "VOLUME", "ARG"})


def _check_count(name: str, statement: Statement) -> None:
    """Check how many arguments there are, where that comes before the flags."""
    values = statement.arguments.values
    if name in _EXACTLY_ONE and len(values) != 1:
        raise InvalidInput(f"{name} requires exactly one argument")
    if name in _AT_LEAST_ONE and not values:
        raise InvalidInput(f"{name} requires at least one argument")
    if name in {"ADD", "COPY"} and len(values) < 2:
        raise InvalidInput(
            f"{name} requires at least two arguments, but only one was provided. Destination could not be determined"
        )


def _build_from(statement: Statement, flags: Flags, common: dict[str, Any]) -> ins.From:
    values = statement.arguments.values
    alias = as_keyword = ""
    if len(values) == 3 and values[1].lower() == "as":
        as_keyword, alias = values[1], values[2]
        if not re.match(_STAGE_NAME, alias.lower()):
            raise InvalidInput(
                f"invalid name for build stage: {quote(alias)}, name can't start with a number or contain symbols"
            )
    elif len(values) != 1:
        raise InvalidInput("FROM requires either one or three arguments")
    return ins.From(
        image=values[0],
        platform=flags.text("platform"),
        alias=alias.lower() or None,
        alias_text=alias,
        as_keyword=as_keyword,
        **common,
    )


def _build_arg(statement: Statement, flags: Flags, common: dict[str, Any]) -> ins.Arg:
    pairs: list[tuple[str, str | None]] = []
    for value in statement.arguments.values:
        name, equals, default = value.partition("=")
        if not name:
            raise InvalidInput("ARG names can not be blank")
        pairs.append((name, default if equals else None))
    return ins.Arg(pairs=tuple(pairs), **common)


def _read_pairs(name: str, statement: Statement) -> tuple[tuple[str, str], ...]:
    values = statement.arguments.values
    if not values:
        raise InvalidInput(f"{name} requires at least one argument")
    pairs = tuple(zip(values[::2], values[1::2], strict=True))
    if not all(key for key, _ in pairs):
        raise InvalidInput(f"{name} names can not be blank")
    return pairs


def _build_env(statement: Statement, flags: Flags, common: dict[str, Any]) -> ins.Env:
    return ins.Env(pairs=_read_pairs("ENV", statement), legacy=statement.arguments.legacy, **common)


def _build_label(statement: Statement, flags: Flags, common: dict[str, Any]) -> ins.Label:
    return ins.Label(pairs=_read_pairs("LABEL", statement), legacy=statement.arguments.legacy, **common)


def _build_run(statement: Statement, flags: Flags, common: dict[str, Any]) -> ins.Run:
    network, security = flags.text("network"), flags.text("security")
    if network not in {None, "default", "none", "host"}:
        raise InvalidInput(f"invalid network mode {quote(network or '')}")
    if security not in {None, "sandbox", "insecure"}:
        raise InvalidInput(f"security {quote(security or '')} is not valid")
    return ins.Run(
        command=statement.arguments.values,
        shell=not statement.arguments.is_json,
        heredocs=statement.heredocs,
        mounts=flags.lists.get("mount", ()),
        network=network,
        security=security,
        devices=flags.lists.get("device", ()),
        **common,
    )


def _read_sources(name: str, statement: Statement) -> tuple[tuple[str, ...], tuple[Heredoc, ...]]:
    """Split the sources into paths and here-documents; in JSON form a `<<` is just text."""
    values = statement.arguments.values
    if statement.arguments.is_json:
        return values[:-1], ()
    if _find_heredoc(values[-1]) is not None:
        raise InvalidInput(f"{name} cannot accept a heredoc as a destination")
    held = {heredoc.name: heredoc for heredoc in statement.heredocs}
    paths: list[str] = []
    heredocs: list[Heredoc] = []
    for value in values[:-1]:
        announced = _find_heredoc(value)
        if announced is not None and announced.name in held:
            heredocs.append(held[announced.name])
        else:
            paths.append(value)
    return tuple(paths), tuple(heredocs)


def _find_heredoc(value: str) -> Heredoc | None:
    try:
        return parse_heredoc(value)
    except InvalidInput:
        return None


def _transfer_fields(name: str, statement: Statement, flags: Flags) -> dict[str, Any]:
    sources, heredocs = _read_sources(name, statement)
    return {
        "sources": sources,
        "destination": statement.arguments.values[-1],
        "heredocs": heredocs,
        "chown": flags.text("chown"),
        "chmod": flags.text("chmod"),
        "link": flags.switches.get("link", False),
        "exclude": flags.lists.get("exclude", ()),
    }


def _build_copy(statement: Statement, flags: Flags, common: dict[str, Any]) -> ins.Copy:
    return ins.Copy(
        from_stage=flags.text("from"),
        parents=flags.switches.get("parents", False),
        **_transfer_fields("COPY", statement, flags),
        **common,
    )


def _build_add(statement: Statement, flags: Flags, common: dict[str, Any]) -> ins.Add:
    return ins.Add(
        checksum=flags.text("checksum"),
        keep_git_dir=flags.switches.get("keep-git-dir", False),
        unpack=flags.switches.get("unpack"),
        **_transfer_fields("ADD", statement, flags),
        **common,
    )


def _build_workdir(statement: Statement, flags: Flags, common: dict[str, Any]) -> ins.Workdir:
    return ins.Workdir(path=statement.arguments.values[0], **common)


def _build_user(statement: Statement, flags: Flags, common: dict[str, Any]) -> ins.User:
    return ins.User(user=statement.arguments.values[0], **common)


def _build_cmd(statement: Statement, flags: Flags, common: dict[str, Any]) -> ins.Cmd:
    return ins.Cmd(command=statement.arguments.values, shell=not statement.arguments.is_json, **common)


def _build_entrypoint(statement: Statement, flags: Flags, common: dict[str, Any]) -> ins.Entrypoint:
    return ins.Entrypoint(command=statement.arguments.values, shell=not statement.arguments.is_json, **common)


def _build_expose(statement: Statement, flags: Flags, common: dict[str, Any]) -> ins.Expose:
    return ins.Expose(ports=tuple(sorted(statement.arguments.values)), **common)


def _build_volume(statement: Statement, flags: Flags, common: dict[str, Any]) -> ins.Volume:
    paths = tuple(value.strip(SPACES) for value in statement.arguments.values)
    if not all(paths):
        raise InvalidInput("VOLUME specified can not be an empty string")
    return ins.Volume(paths=paths, **common)


def _build_shell(statement: Statement, flags: Flags, common: dict[str, Any]) -> ins.Shell:
    if not statement.arguments.values:
        raise InvalidInput("SHELL requires at least one argument")
    if not statement.arguments.is_json:
        raise InvalidInput("SHELL requires the arguments to be in JSON form", hint='write SHELL ["/bin/bash", "-c"]')
    return ins.Shell(command=statement.arguments.values, **common)


def _build_stopsignal(statement: Statement, flags: Flags, common: dict[str, Any]) -> ins.StopSignal:
    return ins.StopSignal(signal=statement.arguments.values[0], **common)


def _build_maintainer(statement: Statement, flags: Flags, common: dict[str, Any]) -> ins.Maintainer:
    return ins.Maintainer(maintainer=statement.arguments.values[0], **common)


def _build_onbuild(statement: Statement, flags: Flags, common: dict[str, Any]) -> ins.Onbuild:
    nested = statement.arguments.nested
    if nested is None:
        raise InvalidInput("ONBUILD requires at least one argument")
    trigger = nested.keyword.upper()
    if trigger == "ONBUILD":
        raise InvalidInput("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if trigger in {"MAINTAINER", "FROM"}:
        raise InvalidInput(f"{trigger} isn't allowed as an ONBUILD trigger")
    text = re.sub(_ONBUILD, "", statement.text, count=1, flags=re.IGNORECASE)
    text += "".join(f"\n{heredoc.content}{heredoc.name}" for heredoc in statement.heredocs)
    return ins.Onbuild(instruction=text, **common)


def _read_interval(name: str, flags: Flags) -> int:
    text = flags.text(name)
    duration_ns = parse_duration(text) if text else 0
    if duration_ns and duration_ns < _MIN_DURATION_NS:
        raise InvalidInput(f"Interval {quote(name)} cannot be less than 1ms")
    return duration_ns


def _read_retries(flags: Flags) -> int:
    text = flags.text("retries")
    if text is None:
        return 0
    if not re.match(_INTEGER, text):
        raise InvalidInput(f"strconv.ParseInt: parsing {quote(text)}: invalid syntax")
    retries = int(text)
    if not -(2**31) <= retries < 2**31:
        raise InvalidInput(f"strconv.ParseInt: parsing {quote(text)}: value out of range")
    if retries < 0:
        raise InvalidInput(f"--retries cannot be negative ({retries})")
    return retries


def _build_healthcheck(statement: Statement, common: dict[str, Any]) -> ins.Healthcheck:
    values = statement.arguments.values
    if not values:
        raise InvalidInput("HEALTHCHECK requires at least one argument")
    kind, command = values[0].upper(), values[1:]
    if kind == "NONE":
        if command:
            raise InvalidInput("HEALTHCHECK NONE takes no arguments")
        return ins.Healthcheck(test=("NONE",), **common)
    flags = read_flags("HEALTHCHECK", statement.arguments.flags)
    if kind != "CMD":
        raise InvalidInput(f"Unknown type {quote(kind)} in HEALTHCHECK (try CMD)")
    if not command:
        raise InvalidInput("Missing command after HEALTHCHECK CMD")
    return ins.Healthcheck(
        test=("CMD" if statement.arguments.is_json else "CMD-SHELL", *command),
        interval_ns=_read_interval("interval", flags),
        timeout_ns=_read_interval("timeout", flags),
        start_period_ns=_read_interval("start-period", flags),
        start_interval_ns=_read_interval("start-interval", flags),
        retries=_read_retries(flags),
        **common,
    )


def _refuse_healthcheck(statement: Statement, flags: Flags, common: dict[str, Any]) -> ins.Healthcheck:
    return _build_healthcheck(statement, common)


_BUILDERS: dict[str, Builder] = {
    "ADD": _build_add,
    "ARG": _build_arg,
    "CMD": _build_cmd,
    "COPY": _build_copy,
    "ENTRYPOINT": _build_entrypoint,
    "ENV": _build_env,
    "EXPOSE": _build_expose,
    "FROM": _build_from,
    "HEALTHCHECK": _refuse_healthcheck,
    "LABEL": _build_label,
    "MAINTAINER": _build_maintainer,
    "ONBUILD": _build_onbuild,
    "RUN": _build_run,
    "SHELL": _build_shell,
    "STOPSIGNAL": _build_stopsignal,
    "USER": _build_user,
    "VOLUME": _build_volume,
    "WORKDIR": _build_workdir,
}
