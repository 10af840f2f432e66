"""Docker's build checks, by docker's rule names, as far as the file decides them.

InvalidBaseImagePlatform needs the base image: the builder makes that warning with `warn`. CopyIgnoredFile needs the
context's ignore rules. UndefinedVar needs to know which names the base image sets: without them only names one slip
away from a known one are reported.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from pylayers.dockerfile import expand
from pylayers.dockerfile import instructions as ins
from pylayers.dockerfile.ignore import IgnoreRules, clean
from pylayers.dockerfile.suggest import find_nearest
from pylayers.dockerfile.text import quote
from pylayers.errors import InvalidInput, SourceSpan
from pylayers.record import field, record, replace

RULES: Mapping[str, str] = {
    "StageNameCasing": "Stage name '{0}' should be lowercase",
    "FromAsCasing": "'{0}' and '{1}' keywords' casing do not match",
    "NoEmptyContinuation": "Empty continuation line",
    "ConsistentInstructionCasing": "Command '{0}' should match the case of the command majority ({1})",
    "DuplicateStageName": "Duplicate stage name {0}, stage names should be unique",
    "ReservedStageName": "Stage name should not use the same name as reserved stage {0}",
    "JSONArgsRecommended": "JSON arguments recommended for {0} to prevent unintended behavior related to OS signals",
    "MaintainerDeprecated": "Maintainer instruction is deprecated in favor of using label",
    "UndefinedArgInFrom": "FROM argument '{0}' is not declared{1}",
    "UndefinedVar": "Usage of undefined variable '${0}'{1}",
    "MultipleInstructionsDisallowed": (
        "Multiple {0} instructions should not be used in the same stage because only the last one will be used"
    ),
    "WorkdirRelativePath": "Relative workdir {0} can have unexpected results if the base image changes",
    "RedundantTargetPlatform": (
        "Setting platform to predefined {0} in FROM is redundant as this is the default behavior"
    ),
    "SecretsUsedInArgOrEnv": "Do not use ARG or ENV instructions for sensitive data ({0} {1})",
    "InvalidDefaultArgInFrom": "Default value for ARG {0} results in empty or invalid base image name",
    "FromPlatformFlagConstDisallowed": "FROM --platform flag should not use constant value {0}",
    "CopyIgnoredFile": "Attempting to {0} file {1} that is excluded by .dockerignore",
    "InvalidDefinitionDescription": "Comment for {0} should follow the format: `# {1} <description>`",
    "LegacyKeyValueFormat": '"{0} key=value" should be used instead of legacy "{0} key value" format',
    "InvalidBaseImagePlatform": "Base image {0} was pulled with platform {1}, expected {2} for current build",
    "ExposeProtoCasing": "Defined protocol '{0}' in EXPOSE instruction should be lowercase",
    "ExposeInvalidFormat": ("EXPOSE instruction should not define an IP address or host-port mapping, found '{0}'"),
}
# Of one line's warnings docker shows first what the syntax tells, then what FROM means, then the rest.
_RANKS = {
    rule: rank
    for rank, rule in enumerate((
        "NoEmptyContinuation", "StageNameCasing", "FromAsCasing", "InvalidDefinitionDescription",
        "MaintainerDeprecated", "LegacyKeyValueFormat", "ReservedStageName", "DuplicateStageName",
        "ConsistentInstructionCasing", "InvalidDefaultArgInFrom", "UndefinedArgInFrom", "RedundantTargetPlatform",
        "FromPlatformFlagConstDisallowed",
    ))
}  # fmt: skip
EXPERIMENTAL = frozenset({"CopyIgnoredFile", "InvalidDefinitionDescription"})
PLATFORM_ARGS = (
    "BUILDPLATFORM", "BUILDOS", "BUILDOSVERSION", "BUILDARCH", "BUILDVARIANT",
    "TARGETPLATFORM", "TARGETOS", "TARGETOSVERSION", "TARGETARCH", "TARGETVARIANT", "TARGETSTAGE",
)  # fmt: skip

_SECRET = re.compile(
    r"(?:_|^)(?:apikey|auth|credential|credentials|key|password|pword|passwd|secret|token)(?:_|$)", re.IGNORECASE
)
_PUBLIC = re.compile(r"(?:_|^)public(?:_|$)", re.IGNORECASE)
_RESERVED = frozenset({"context", "scratch"})
_ONCE = (ins.Cmd, ins.Entrypoint, ins.Healthcheck)
_WORD_BREAK = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_DOMAIN = re.compile(r"(?:[A-Za-z0-9.\-]+|\[[0-9a-fA-F:]+\])(?::[0-9]+)?\Z")
_PATH_PART = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*\Z")
_TAG = re.compile(r"\w[\w.\-]{0,127}\Z", re.ASCII)
_DIGEST = re.compile(r"[A-Za-z][A-Za-z0-9+.\-_]*:[0-9a-fA-F]{32,}\Z")
_PLATFORM = re.compile(r"[A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+){0,2}\Z")


def url(rule: str) -> str:
    """Return the page that explains a rule."""
    return f"https://docs.docker.com/go/dockerfile/rule/{_WORD_BREAK.sub('-', rule).lower()}/"


def warn(rule: str, span: SourceSpan, *values: str) -> ins.Warning_:
    """Make a warning with docker's words for the rule."""
    return ins.Warning_(rule, RULES[rule].format(*values), span)


@record
class Settings:
    """What `# check=` says: rules to skip, whether warnings are errors, experimental rules to run."""

    skip: frozenset[str] = frozenset()
    skip_all: bool = False
    error: bool = False
    experimental: frozenset[str] = frozenset()
    experimental_all: bool = False

    def runs(self, rule: str) -> bool:
        """Tell whether the rule is to be reported."""
        if rule in EXPERIMENTAL:
            return self.experimental_all or rule in self.experimental
        return not self.skip_all and rule not in self.skip


def read_settings(text: str | None) -> Settings:
    """Read the value of the check directive; raise InvalidInput when it is malformed."""
    found: dict[str, str] = {}
    for part in (text or "").split(";"):
        if not part.strip():
            continue
        name, equals, value = part.partition("=")
        name = name.strip().lower()
        if not equals or name not in {"skip", "error", "experimental"}:
            raise InvalidInput(f"invalid check option {quote(part.strip())}", hint="use skip=, error= or experimental=")
        found[name] = value.strip()
    error = found.get("error", "false").lower()
    if error not in {"true", "false", "1", "0"}:
        raise InvalidInput(f"failed to parse check option error: invalid value {quote(error)}")
    skip = frozenset(r.strip() for r in found.get("skip", "").split(",") if r.strip())
    wanted = frozenset(r.strip() for r in found.get("experimental", "").split(",") if r.strip())
    return Settings(skip, "all" in skip, error in {"true", "1"}, wanted, "all" in wanted)


def check(
    dockerfile: ins.Dockerfile,
    *,
    settings: Settings | None = None,
    ignore: IgnoreRules | None = None,
    base_names: Mapping[int, Collection[str]] | None = None,
    stages: Collection[int] | None = None,
) -> tuple[ins.Warning_, ...]:
    """Return every warning in the order of the file.

    `base_names`: for each stage index that is built on an image, the environment names which that image sets.
    `stages`: those whose instructions are looked at, where not all are: docker's builds look at what they build.
    """
    chosen = settings if settings is not None else read_settings(dockerfile.directive("check"))
    found = [*dockerfile.warnings, *_check_global(dockerfile), *_check_casing(dockerfile)]
    parents = [dockerfile.find_stage(stage.base.image, before=stage.index) for stage in dockerfile.stages]
    last_child = {parent.index: stage.index for stage, parent in zip(dockerfile.stages, parents, strict=True) if parent}
    held: dict[int, _Environment] = {}
    for stage, parent in zip(dockerfile.stages, parents, strict=True):
        if parent is None:
            environment = _enter_image(stage, base_names or {})
        elif last_child[parent.index] == stage.index:
            environment = held.pop(parent.index)  # nobody else needs it: no copy
        else:
            environment = held[parent.index].copy()
        if stages is None or stage.index in stages:
            found += _check_stage(stage, environment, ignore)
        if stage.index in last_child:
            held[stage.index] = environment
    kept = {warning: None for warning in found if chosen.runs(warning.rule)}
    return tuple(sorted(kept, key=lambda warning: (warning.span.line, _RANKS.get(warning.rule, len(_RANKS)))))


def _check_global(dockerfile: ins.Dockerfile) -> Iterator[ins.Warning_]:
    defaults: dict[str, str] = dict.fromkeys(PLATFORM_ARGS, "linux/amd64")
    declared: set[str] = set(PLATFORM_ARGS)
    for arg in dockerfile.global_args:
        for name, default in arg.pairs:
            declared.add(name)
            yield from _check_secret(arg, name)
            if default is not None and (value := _try_expand(default, defaults, arg.escape)) is not None:
                defaults[name] = value
        yield from _check_description(arg, [name for name, _ in arg.pairs])
    seen: set[str] = set()
    for stage in dockerfile.stages:
        base = stage.base
        yield from _check_from(base, defaults, declared)
        if base.alias is None:
            continue
        yield from _check_description(base, [base.alias])
        if base.alias_text != base.alias:
            yield warn("StageNameCasing", base.span, base.alias_text)
        if base.alias in _RESERVED:
            yield warn("ReservedStageName", base.span, quote(base.alias))
        if base.alias in seen:
            yield warn("DuplicateStageName", base.span, quote(base.alias))
        seen.add(base.alias)


def _check_from(base: ins.From, defaults: Mapping[str, str], declared: set[str]) -> Iterator[ins.Warning_]:
    unmatched: set[str] = set()
    if base.as_keyword and _casing(base.keyword) and _casing(base.as_keyword) != _casing(base.keyword):
        yield warn("FromAsCasing", base.span, base.as_keyword, base.keyword)
    image = _try_expand(base.image, defaults, base.escape, unmatched)
    if image is not None and not _is_reference(image) and "$" in base.image:
        yield warn("InvalidDefaultArgInFrom", base.span, base.image)
    if base.platform is not None:
        yield from _check_platform(base, base.platform, defaults, unmatched)
    for name in sorted(unmatched - declared):
        yield warn("UndefinedArgInFrom", base.span, name, _suggest(name, declared, ""))


def _check_platform(
    base: ins.From, platform: str, defaults: Mapping[str, str], unmatched: set[str]
) -> Iterator[ins.Warning_]:
    try:
        result = expand.process(platform, defaults, expand.Mode(escape=base.escape))
    except InvalidInput:
        return
    unmatched |= result.unmatched
    if result.matched == {"TARGETPLATFORM"} and result.text == defaults["TARGETPLATFORM"]:
        yield warn("RedundantTargetPlatform", base.span, platform)
    if result.matched or result.unmatched or not _PLATFORM.match(result.text):
        return
    # A stage named after the platform is meant to be that platform.
    if not any(part in (base.alias or "") for part in result.text.lower().split("/")[:2]):
        yield warn("FromPlatformFlagConstDisallowed", base.span, quote(result.text))


def _is_reference(text: str) -> bool:
    """Tell whether the text can name an image: [domain/]path[:tag][@digest]."""
    name, at, digest = text.partition("@")
    if at and not _DIGEST.match(digest):
        return False
    parts = name.split("/")
    if len(parts) > 1 and (any(c in ".:[" or c.isupper() for c in parts[0]) or parts[0] == "localhost"):
        if not _DOMAIN.match(parts[0]):
            return False
        del parts[0]
    parts[-1], colon, tag = parts[-1].partition(":")
    if colon and not _TAG.match(tag):
        return False
    return all(_PATH_PART.match(part) for part in parts)


def _check_casing(dockerfile: ins.Dockerfile) -> Iterator[ins.Warning_]:
    all_of = [i for stage in dockerfile.stages for i in (stage.base, *stage.instructions)]
    counts = [_casing(instruction.keyword) for instruction in all_of]
    majority = "lowercase" if counts.count("lowercase") > counts.count("uppercase") else "uppercase"
    for instruction, casing in zip(all_of, counts, strict=True):
        if casing != majority:
            yield warn("ConsistentInstructionCasing", instruction.span, instruction.keyword, majority)


def _casing(keyword: str) -> str:
    return "lowercase" if keyword == keyword.lower() else "uppercase" if keyword == keyword.upper() else ""


def _check_secret(instruction: ins.Arg | ins.Env, name: str) -> Iterator[ins.Warning_]:
    if _SECRET.search(name) and not _PUBLIC.search(name):
        yield warn("SecretsUsedInArgOrEnv", instruction.span, instruction.name, quote(name))


def _check_description(instruction: ins.Instruction, names: list[str]) -> Iterator[ins.Warning_]:
    if instruction.comments and names and instruction.comments[-1].split(" ")[0] not in names:
        example = names[0] if len(names) == 1 else "<arg_key>"
        yield warn("InvalidDefinitionDescription", instruction.span, instruction.name, example)


@record(frozen=False)
class _Environment:
    """What a stage knows: values by name (empty where only a build could tell), and what its base left open."""

    values: dict[str, str] = field(default_factory=dict)
    declared: set[str] = field(default_factory=set)  # ARG without a default
    base_known: bool = True
    has_shell: bool = False
    has_workdir: bool = False

    def copy(self) -> _Environment:
        """Return an environment that may change on its own."""
        return replace(self, values=dict(self.values), declared=set(self.declared))


def _enter_image(stage: ins.Stage, base_names: Mapping[int, Collection[str]]) -> _Environment:
    names = base_names.get(stage.index)
    values = dict.fromkeys(["PATH", *(names or ())], "")
    return _Environment(values, base_known=names is not None or stage.base.image == "scratch")


def _check_stage(stage: ins.Stage, environment: _Environment, ignore: IgnoreRules | None) -> Iterator[ins.Warning_]:
    last: dict[str, ins.Instruction] = {}
    for instruction in stage.instructions:
        unmatched: set[str] = set()
        try:
            expanded = instruction.expand(environment.values, unmatched=unmatched)
        except InvalidInput:
            expanded = None  # the build says so with the real values
        yield from _report_unmatched(instruction, unmatched, environment)
        if isinstance(instruction, _ONCE):
            if instruction.name in last:
                yield warn("MultipleInstructionsDisallowed", last[instruction.name].span, instruction.name)
            last[instruction.name] = instruction
        if isinstance(instruction, ins.Cmd | ins.Entrypoint) and instruction.shell and not environment.has_shell:
            yield warn("JSONArgsRecommended", instruction.span, instruction.name)
        elif isinstance(instruction, ins.Maintainer):
            yield warn("MaintainerDeprecated", instruction.span)
        elif isinstance(instruction, ins.Shell):
            environment.has_shell = True
        elif isinstance(instruction, ins.Env | ins.Label) and instruction.legacy:
            yield warn("LegacyKeyValueFormat", instruction.span, instruction.name)
        if expanded is not None:
            yield from _check_expanded(instruction, expanded, environment, ignore, sure=not unmatched)


def _check_expanded(
    raw: ins.Instruction,
    expanded: ins.Instruction,
    environment: _Environment,
    ignore: IgnoreRules | None,
    *,
    sure: bool,
) -> Iterator[ins.Warning_]:
    if isinstance(expanded, ins.Env):
        for name, value in expanded.pairs:
            yield from _check_secret(expanded, name)
            environment.values[name] = value
    elif isinstance(expanded, ins.Arg):
        for name, default in expanded.pairs:
            yield from _check_secret(expanded, name)
            if default is None:
                environment.declared.add(name)
            else:
                environment.values.setdefault(name, default)
    elif isinstance(expanded, ins.Workdir):
        open_ended = isinstance(raw, ins.Workdir) and raw.path.startswith("$") and not expanded.path
        if not environment.has_workdir and not expanded.path.startswith("/") and sure and not open_ended:
            yield warn("WorkdirRelativePath", expanded.span, quote(expanded.path))
        environment.has_workdir = True
    elif isinstance(expanded, ins.Expose):
        yield from _check_ports(expanded)
    elif isinstance(expanded, ins.Copy | ins.Add) and ignore is not None and sure:
        yield from _check_ignored(expanded, ignore)


def _check_ports(expanded: ins.Expose) -> Iterator[ins.Warning_]:
    for port in expanded.ports:
        number, _, protocol = port.partition("/")
        if protocol != protocol.lower():
            yield warn("ExposeProtoCasing", expanded.span, port)
        if number.count(":") > number.startswith(":"):
            yield warn("ExposeInvalidFormat", expanded.span, port)


def _check_ignored(expanded: ins.Copy | ins.Add, ignore: IgnoreRules) -> Iterator[ins.Warning_]:
    if isinstance(expanded, ins.Copy) and expanded.from_stage is not None:
        return
    for source in expanded.sources:
        if "://" in source or source.startswith("git@"):
            continue
        path = clean("/" + source)[1:]
        if path and ignore.excluded(path):
            yield warn("CopyIgnoredFile", expanded.span, expanded.name.capitalize(), quote(path))


def _report_unmatched(
    instruction: ins.Instruction, unmatched: set[str], environment: _Environment
) -> Iterator[ins.Warning_]:
    known = environment.values.keys() | environment.declared
    for name in sorted(unmatched - environment.declared):
        suggestion = _suggest(name, known, "$")
        if environment.base_known or (suggestion and len(name) >= 4):
            yield warn("UndefinedVar", instruction.span, name, suggestion)


def _suggest(name: str, known: Collection[str], prefix: str) -> str:
    nearest = find_nearest(name, sorted(known))
    return "" if nearest is None else f" (did you mean {prefix}{nearest}?)"


def _try_expand(word: str, values: Mapping[str, str], escape: str, unmatched: set[str] | None = None) -> str | None:
    try:
        return expand.expand_word(word, values, escape, unmatched=unmatched)
    except InvalidInput:
        return None
