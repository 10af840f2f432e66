"""Docker's build checks, by docker's rule names: what the text and the FROMs tell. Those of stages are lintstage's.

Whoever uses them goes on as BuildKit does, so that of a file with an error the warnings before it are told: each
instruction as it is read (check_instruction), the stages' names and the casing (check_names), each FROM (check_from).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from pylayers.dockerfile import expand
from pylayers.dockerfile import instructions as ins
from pylayers.dockerfile.suggest import find_nearest
from pylayers.dockerfile.text import quote
from pylayers.errors import InvalidInput, SourceSpan
from pylayers.record import record

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
SUGGESTION_WORK = 200_000  # names compared; after that near misses are told without what they are near to
EXPERIMENTAL = frozenset({"CopyIgnoredFile", "InvalidDefinitionDescription"})
_SECRET = re.compile(
    r"(?:_|^)(?:apikey|auth|credential|credentials|key|password|pword|passwd|secret|token)(?:_|$)", re.IGNORECASE
)
_PUBLIC = re.compile(r"(?:_|^)public(?:_|$)", re.IGNORECASE)
_RESERVED = frozenset({"context", "scratch"})
_WORD_BREAK = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_DOMAIN = re.compile(r"(?:[A-Za-z0-9.\-]+|\[[0-9a-fA-F:]+\])(?::[0-9]+)?\Z")
_PATH_PART = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*\Z")
_TAG = re.compile(r"\w[\w.\-]{0,127}\Z", re.ASCII)
_DIGEST = re.compile(r"[A-Za-z][A-Za-z0-9+.\-_]*:[0-9a-fA-F]{32,}\Z")
_TRUE = frozenset(("1", "t", "T", "TRUE", "true", "True"))
_FALSE = frozenset(("0", "f", "F", "FALSE", "false", "False"))


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
    """Read what `# check=` or its build argument says; raise InvalidInput when it is malformed."""
    if not (text or "").strip():
        return Settings()
    found: dict[str, str] = {}
    for part in (text or "").strip().split(";"):
        name, equals, value = part.partition("=")
        name = name.strip()
        if not equals or name not in {"skip", "error", "experimental"}:
            raise InvalidInput(f"invalid check option {quote(name)}", hint="use skip=, error= or experimental=")
        found[name] = value.strip()
    error = found.get("error", "false")
    if error not in _TRUE | _FALSE:
        problem = f"failed to parse check option {quote('error=' + error)}: parsing {quote(error)}: invalid syntax"
        raise InvalidInput(problem, hint="write true or false")
    skip, wanted = found.get("skip", ""), found.get("experimental", "")
    return Settings(read_rules(skip), skip == "all", error in _TRUE, read_rules(wanted), wanted == "all")


def read_rules(text: str) -> frozenset[str]:
    """Return the rules between commas."""
    return frozenset(name.strip() for name in text.split(",") if name.strip())


def read_directive(dockerfile_value: str | None) -> str:
    """Return what counts of a check directive: BuildKit takes its first word."""
    return (dockerfile_value or "").split(" ")[0]


def check_instruction(instruction: ins.Instruction) -> Iterator[ins.Warning_]:
    """Give the warnings that an instruction's text alone tells."""
    if isinstance(instruction, ins.From):
        keyword, base = _casing(instruction.keyword), instruction
        if base.as_keyword and keyword and _casing(base.as_keyword) != keyword:
            yield warn("FromAsCasing", base.span, base.as_keyword, base.keyword)
        if base.alias is not None:
            if base.alias_text != base.alias:
                yield warn("StageNameCasing", base.span, base.alias_text)
            yield from _check_description(base, [base.alias])
    elif isinstance(instruction, ins.Arg):
        yield from _check_description(instruction, [name for name, _ in instruction.pairs])


def check_names(dockerfile: ins.Dockerfile) -> Iterator[ins.Warning_]:
    """Give the warnings of stage names that clash, and of keywords in another case than most."""
    seen: set[str] = set()
    for stage in dockerfile.stages:
        if stage.base.alias is None:
            continue
        if stage.base.alias in _RESERVED:
            yield warn("ReservedStageName", stage.base.span, quote(stage.base.alias))
        if stage.base.alias in seen:
            yield warn("DuplicateStageName", stage.base.span, quote(stage.base.alias))
        seen.add(stage.base.alias)
    yield from _check_casing(dockerfile)


def default_values(
    dockerfile: ins.Dockerfile, platform: Mapping[str, str], allowance: expand.Allowance
) -> dict[str, str]:
    """Return the global ARGs as they are when nothing is given, with the predefined ones."""
    values = dict(platform)
    lookup = expand.Counted(values, allowance)
    for arg in dockerfile.global_args:
        for name, default in arg.pairs:
            if default is not None and (value := _try_expand(default, lookup, arg.escape)) is not None:
                values[name] = value
    return values


def declared_names(dockerfile: ins.Dockerfile, platform: Mapping[str, str]) -> dict[str, None]:
    """Return the names that a FROM may use, in the order in which near misses are looked for."""
    return dict.fromkeys([*platform, *(name for arg in dockerfile.global_args for name, _ in arg.pairs)])


def check_from(
    base: ins.From,
    defaults: expand.Counted,
    declared: Collection[str],
    suggester: Suggester,
    platform_words: tuple[str, ...] = (),
) -> Iterator[ins.Warning_]:
    """Give the warnings of one FROM; `platform_words` are its system and its architecture in their usual spelling."""
    unmatched: list[str] = []
    image = _try_expand(base.image, defaults, base.escape, unmatched)
    if image is not None and not _is_reference(image):
        yield warn("InvalidDefaultArgInFrom", base.span, base.image)
    if base.platform is not None:
        yield from _check_platform(base, base.platform, defaults, unmatched, platform_words)
    for name in dict.fromkeys(unmatched):
        if name not in declared:
            yield warn("UndefinedArgInFrom", base.span, name, suggester.suggest(name, declared, ""))


def _check_platform(
    base: ins.From, platform: str, defaults: expand.Counted, unmatched: list[str], words: tuple[str, ...]
) -> Iterator[ins.Warning_]:
    try:
        result = expand.process(platform, defaults, expand.Mode(escape=base.escape))
    except InvalidInput:
        return
    unmatched += sorted(result.unmatched)
    if result.matched == {"TARGETPLATFORM"} and result.text == defaults("TARGETPLATFORM"):
        yield warn("RedundantTargetPlatform", base.span, platform)
    # A stage named after the platform is meant to be that platform.
    if words and not result.matched and not result.unmatched and not any(word in (base.alias or "") for word in words):
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


def check_secret(instruction: ins.Arg | ins.Env, name: str) -> Iterator[ins.Warning_]:
    """Warn of a variable's name that says its value is secret."""
    if _SECRET.search(name) and not _PUBLIC.search(name):
        yield warn("SecretsUsedInArgOrEnv", instruction.span, instruction.name, quote(name))


def _check_description(instruction: ins.Instruction, names: list[str]) -> Iterator[ins.Warning_]:
    if instruction.comments and names and instruction.comments[-1].split(" ")[0] not in names:
        example = names[0] if len(names) == 1 else "<arg_key>"
        yield warn("InvalidDefinitionDescription", instruction.span, instruction.name, example)


class Suggester:
    """Find what misspelt names mean, as long as the work of it is small."""

    def __init__(self) -> None:
        self._left = SUGGESTION_WORK

    def suggest(self, name: str, known: Collection[str], prefix: str) -> str:
        """Return ` (did you mean X?)`, or nothing."""
        nearest = find_nearest(name, known, fold_case=False) if self._left > 0 else None
        self._left -= len(known)
        return "" if nearest is None else f" (did you mean {prefix}{nearest}?)"


def _try_expand(word: str, values: expand.Lookup, escape: str, unmatched: list[str] | None = None) -> str | None:
    try:
        return expand.expand_word(word, values, escape, unmatched=unmatched)
    except InvalidInput:
        return None
