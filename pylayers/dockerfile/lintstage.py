"""Docker's build checks of one stage: instruction after instruction, with the values that a build would have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from pylayers.dockerfile import instructions as ins
from pylayers.dockerfile.expand import Allowance, Counted, Lookup
from pylayers.dockerfile.ignore import IgnoreRules
from pylayers.dockerfile.lint import Suggester, check_secret, warn
from pylayers.dockerfile.text import quote
from pylayers.record import field, record, replace

_ONCE = (ins.Cmd, ins.Entrypoint, ins.Healthcheck)

Validate = Callable[[ins.Instruction, Lookup, list[str]], None]


@record(frozen=False)
class Environment:
    """What a stage knows at one point: variables, ENV's among them, ARGs without a value, and its base's settings."""

    values: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    declared: dict[str, None] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)  # names of ENV that an ARG has covered
    has_shell: bool = False
    has_workdir: bool = False

    def copy(self) -> Environment:
        """Return an environment that may change on its own."""
        return replace(
            self, values=dict(self.values), env=dict(self.env), declared=dict(self.declared), hidden=set(self.hidden)
        )

    def enter_child(self) -> Environment:
        """Return the environment that a stage on top of this one begins with: there ENV counts over ARG again."""
        self.values.update((name, self.env[name]) for name in self.hidden)
        self.hidden.clear()
        return self

    def set_variable(self, name: str, value: str) -> None:
        """Set a variable; the latest stands last."""
        self.values.pop(name, None)
        self.values[name] = value


class StageLint:
    """Check the instructions of one stage in their order; the environment changes with them.

    `found` takes the warnings, those before an error too. `validate` refuses what a build would refuse of an expanded
    instruction, and adds to the names without a value those that it finds.
    """

    def __init__(
        self,
        environment: Environment,
        given: Mapping[str, str],
        global_values: Mapping[str, str],
        found: list[ins.Warning_],
        validate: Validate,
        suggester: Suggester,
        allowance: Allowance,
        ignore: IgnoreRules | None = None,
    ) -> None:
        self.environment = environment
        self.found = found
        self._given = given
        self._global = global_values
        self._validate = validate
        self._suggester = suggester
        self._lookup = Counted(environment.values, allowance)
        self._ignore = ignore
        self._last: dict[str, ins.Instruction] = {}

    def check(self, raw: ins.Instruction) -> None:
        """Check one instruction. Raises InvalidInput for one that a build would refuse."""
        if isinstance(raw, ins.Arg):
            self._declare(raw)
            return
        unmatched: list[str] = []
        try:
            expanded = raw.expand(self._lookup, unmatched=unmatched)
            if isinstance(expanded, ins.Run):
                self._validate(expanded, self._lookup, unmatched)
        finally:
            self._report_unmatched(raw, unmatched)
        self._check_use(raw)
        if isinstance(expanded, ins.Expose):
            self.found += _check_format(expanded)
        if not isinstance(expanded, ins.Run):
            self._validate(expanded, self._lookup, unmatched)
        self._apply(expanded)

    def _declare(self, instruction: ins.Arg) -> None:
        """Set an ARG's values; each pair sees those before it."""
        environment = self.environment
        for name, default in instruction.pairs:
            self.found += check_secret(instruction, name)
            value = self._given.get(name)
            if value is None and default is not None:
                unmatched: list[str] = []
                try:
                    value = instruction.expand_one(default, self._lookup, unmatched=unmatched)
                finally:
                    self._report_unmatched(instruction, unmatched)
            elif value is None:
                value = self._global.get(name)
            if value is None:
                environment.declared.setdefault(name)
            else:
                environment.set_variable(name, value)
                if name in environment.env:
                    environment.hidden.add(name)

    def _check_use(self, instruction: ins.Instruction) -> None:
        if isinstance(instruction, _ONCE):
            if instruction.name in self._last:
                last = self._last[instruction.name]
                self.found.append(warn("MultipleInstructionsDisallowed", last.span, instruction.name))
            self._last[instruction.name] = instruction
        if isinstance(instruction, ins.Cmd | ins.Entrypoint):
            if instruction.shell and not self.environment.has_shell:
                self.found.append(warn("JSONArgsRecommended", instruction.span, instruction.name))
        elif isinstance(instruction, ins.Env | ins.Label) and instruction.legacy:
            self.found.append(warn("LegacyKeyValueFormat", instruction.span, instruction.keyword))

    def _apply(self, expanded: ins.Instruction) -> None:
        environment = self.environment
        if isinstance(expanded, ins.Env):
            for name, value in expanded.pairs:
                self.found += check_secret(expanded, name)
                environment.set_variable(name, value)
                environment.env[name] = value
                environment.hidden.discard(name)
        elif isinstance(expanded, ins.Shell):
            environment.has_shell = True
        elif isinstance(expanded, ins.Workdir):
            if not environment.has_workdir and not expanded.path.startswith("/"):
                self.found.append(warn("WorkdirRelativePath", expanded.span, quote(expanded.path)))
            environment.has_workdir = True
        elif isinstance(expanded, ins.Expose):
            self.found += _check_protocol(expanded)
        elif isinstance(expanded, ins.Copy | ins.Add) and self._ignore is not None:
            self.found += _check_ignored(expanded, self._ignore)

    def _report_unmatched(self, instruction: ins.Instruction, unmatched: list[str]) -> None:
        environment = self.environment
        for name in unmatched:
            if name not in environment.declared:
                suggestion = self._suggester.suggest(name, environment.values, "$")
                self.found.append(warn("UndefinedVar", instruction.span, name, suggestion))


def _check_format(expanded: ins.Expose) -> Iterator[ins.Warning_]:
    for port in expanded.ports:
        number = port.partition("/")[0]
        if number.count(":") > number.startswith(":"):
            yield warn("ExposeInvalidFormat", expanded.span, port)


def _check_protocol(expanded: ins.Expose) -> Iterator[ins.Warning_]:
    for port in expanded.ports:
        protocol = port.partition("/")[2]
        if protocol != protocol.lower():
            yield warn("ExposeProtoCasing", expanded.span, port)


def _check_ignored(expanded: ins.Copy | ins.Add, ignore: IgnoreRules) -> Iterator[ins.Warning_]:
    if isinstance(expanded, ins.Copy) and expanded.from_stage is not None:
        return
    for source in expanded.sources:
        if "://" in source or source.startswith("git@"):
            continue
        if ignore.excluded_as_written(source):  # as it is written, in docker too: ./a is not found by a rule for a
            yield warn("CopyIgnoredFile", expanded.span, expanded.name.capitalize(), quote(source))
