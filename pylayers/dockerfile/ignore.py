""".dockerignore: which paths of a build context stay out of it.

The last rule that matches a path or one of its parents decides; `!` rules take back. As in docker, `*` stops at
slashes, `**` does not, paths are cleaned, a leading slash means nothing, and `#` begins a comment in the first column.
"""

from __future__ import annotations

import re

from pylayers.dockerfile import match
from pylayers.dockerfile.text import SPACES, show
from pylayers.errors import InvalidInput, SourceSpan
from pylayers.record import record

MAX_RULES = 100_000
_REMEMBERED_DIRECTORIES = 65536
_EXPRESSION_STARS = 2  # with more, backtracking could be slow; then the pattern is run as a state machine

_STAR = "*"  # anything but slashes
_DIRECTORIES = "**/"  # nothing, or anything up to a slash
_REST = "**"  # anything


@record
class Rule:
    """One line: `exact`, `prefix` and `suffix` are the common cases that need no expression."""

    pattern: str
    is_exception: bool
    line: int
    kind: str
    tokens: tuple[str, ...]
    expression: re.Pattern[str] | None
    tail: str = ""  # what every match ends with

    def matches(self, path: str) -> bool:
        """Tell whether the rule matches this very path (parents are the caller's)."""
        if self.kind == "exact":
            return path == self.pattern
        if self.kind == "prefix":
            return path.startswith(self.pattern[:-2])
        if self.kind == "suffix":
            ending = self.pattern[2:]
            return path.endswith(ending) or (ending.startswith("/") and path == ending[1:])
        if self.expression is not None:
            return self.expression.match(path) is not None
        return path.endswith(self.tail) and len(self.tokens) in _run(self.tokens, path)

    def may_match_beneath(self, directory: str) -> bool:
        """Tell whether some path inside the directory could match."""
        inside = directory + "/"
        if self.kind == "exact":
            return self.pattern.startswith(inside)
        if self.kind == "prefix":
            return self.pattern[:-2].startswith(inside) or inside.startswith(self.pattern[:-2])
        return self.kind == "suffix" or bool(_run(self.tokens, inside) - {len(self.tokens)})


class IgnoreRules:
    """The rules of one file, in order."""

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self.rules = rules
        self.has_exceptions = any(rule.is_exception for rule in rules)
        self._decided: dict[str, int] = {}
        # Most paths match nothing: these tell so at once, whatever the number of rules.
        self._exact = {rule.pattern for rule in rules if rule.kind == "exact"}
        endings = [rule.pattern[2:] for rule in rules if rule.kind == "suffix"]
        self._exact |= {ending[1:] for ending in endings if ending.startswith("/")}
        self._endings = tuple(endings)
        self._beginnings = tuple(rule.pattern[:-2] for rule in rules if rule.kind == "prefix")
        expressions = [rule.expression.pattern for rule in rules if rule.expression is not None]
        self._expressions = re.compile("|".join(expressions), re.DOTALL) if expressions else None
        self._slow = tuple(rule for rule in rules if rule.kind == "expression" and rule.expression is None)

    def _matches_any(self, name: str) -> bool:
        return (
            name in self._exact
            or name.endswith(self._endings)
            or name.startswith(self._beginnings)
            or (self._expressions is not None and self._expressions.match(name) is not None)
            or any(rule.matches(name) for rule in self._slow)
        )

    def __bool__(self) -> bool:
        return bool(self.rules)

    def excluded(self, path: bytes | str, is_directory: bool = False) -> bool:
        """Tell whether the path (relative to the context, slashes) stays out of the build context."""
        index = self._decide(_clean_path(path), remember=is_directory)
        return index >= 0 and not self.rules[index].is_exception

    def excluded_as_written(self, source: str) -> bool:
        """Tell whether a COPY's source, which is not cleaned here (as in BuildKit's check), or a parent is excluded."""
        head, slash, _ = source.rpartition("/")
        parent = clean(head + slash) if slash else "."
        parts = [] if parent == "." else parent.split("/")
        names = [source, *("/".join(parts[: depth + 1]) for depth in range(len(parts)))]
        for rule in reversed(self.rules):
            if any(rule.matches(name) for name in names):
                return not rule.is_exception
        return False

    def may_contain(self, path: bytes | str) -> bool:
        """Tell whether something inside this directory may be in the context; False: skip the whole directory."""
        name = _clean_path(path)
        index = self._decide(name, remember=True)
        if index < 0 or self.rules[index].is_exception:
            return True
        return any(rule.is_exception and rule.may_match_beneath(name) for rule in self.rules[index + 1 :])

    def _decide(self, path: str, *, remember: bool) -> int:
        """Return the index of the last rule that matches the path or a parent, or -1."""
        missing: list[str] = []
        known = path
        while known and known not in self._decided:
            missing.append(known)
            known = known.rpartition("/")[0]
        index = self._decided[known] if known else -1
        if len(self._decided) > _REMEMBERED_DIRECTORIES:
            self._decided.clear()
        for name in reversed(missing):
            if self._matches_any(name):
                for later in range(len(self.rules) - 1, index, -1):
                    if self.rules[later].matches(name):
                        index = later
                        break
            if name is not path or remember:
                self._decided[name] = index
        return index


def parse(content: bytes | str, file: str = ".dockerignore") -> IgnoreRules:
    """Parse the file; raise InvalidInput with a span for a malformed pattern."""
    text = content.decode("utf-8", "surrogateescape") if isinstance(content, bytes) else content
    rules: list[Rule] = []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        pattern = line.rstrip("\r")
        if pattern.startswith("#"):
            continue
        pattern = pattern.strip(SPACES)
        if not pattern:
            continue
        try:
            rule = parse_rule(pattern, number)
        except InvalidInput as error:
            span = SourceSpan(file, number, number, show(pattern))
            raise InvalidInput(error.message, hint=error.hint, span=span) from None
        rules.append(rule)
        if len(rules) > MAX_RULES:
            raise InvalidInput(f"more than {MAX_RULES} patterns", span=SourceSpan(file, number, number))
    return IgnoreRules(tuple(rules))


def parse_rule(pattern: str, line: int = 1) -> Rule:
    """Read one pattern, `!` included; raise InvalidInput (without a span) when it is malformed."""
    is_exception = pattern.startswith("!")
    cleaned = pattern[1:].strip(SPACES) if is_exception else pattern
    if is_exception and not cleaned:
        raise InvalidInput('illegal exclusion pattern: "!"')
    cleaned = clean(cleaned)
    if len(cleaned) > 1 and cleaned.startswith("/"):
        cleaned = cleaned[1:]
    match.compile_pattern(cleaned)
    kind, tokens = _read_tokens(cleaned)
    stars = sum(token in {_STAR, _DIRECTORIES, _REST} for token in tokens)
    expression = None
    if kind == "expression" and stars <= _EXPRESSION_STARS:
        forms = {_STAR: "[^/]*", _DIRECTORIES: "(?:.*/)?", _REST: ".*"}
        expression = re.compile("".join(forms.get(t, t) for t in tokens) + r"\Z", re.DOTALL)
    return Rule(cleaned, is_exception, line, kind, tokens, expression, _find_tail(cleaned))


def _find_tail(pattern: str) -> str:
    """Return the literal text behind the last wildcard; the slash of `**/` may match nothing and is not part of it."""
    end = max(pattern.rfind(char) for char in "*?[]\\") + 1
    return pattern[end + (pattern[:end].endswith("**") and pattern.startswith("/", end)) :]


def clean(path: str) -> str:
    """Clean a path as Go's filepath.Clean does."""
    out: list[str] = []
    rooted = path.startswith("/")
    for part in path.split("/"):
        if part in {"", "."}:
            continue
        if part == ".." and out and out[-1] != "..":
            out.pop()
        elif part != ".." or not rooted:
            out.append(part)
    return ("/" if rooted else "") + "/".join(out) or "."


def _clean_path(path: bytes | str) -> str:
    name = path.decode("utf-8", "surrogateescape") if isinstance(path, bytes) else path
    return name.removeprefix("./").strip("/") if name not in {".", ""} else ""


def _read_tokens(pattern: str) -> tuple[str, tuple[str, ...]]:
    """Split a pattern into one-character expressions and stars, and name the cheapest way to match it."""
    tokens: list[str] = []
    kind = "exact"
    position = 0
    while position < len(pattern):
        start = position
        char = pattern[position]
        position += 1
        if pattern.startswith("**", start):
            position += 1 + pattern.startswith("/", start + 2)
            at_end = position >= len(pattern)
            tokens.append(_REST if at_end else _DIRECTORIES)
            kind = "prefix" if at_end and kind == "exact" else "expression"
            if start == 0:
                kind = "suffix"
        elif char in "*?[\\":
            kind = "expression"
            if char == "[":
                expression, position = match.read_class(pattern, position)
                tokens.append(expression)
            elif char == "\\":
                tokens.append(re.escape(pattern[position : position + 1]))
                position += 1
            else:
                tokens.append(_STAR if char == "*" else "[^/]")
        else:
            tokens.append(re.escape(char))
    return kind, tuple(tokens)


def _run(tokens: tuple[str, ...], text: str) -> set[int]:
    """Run the tokens over the text as a state machine; return the states (token indexes) that are alive after it.

    Time is the text's length times the number of tokens, whatever they are. Inside `**/`, the state of token i is
    written ~i: it has eaten something and must see a slash before going on.
    """
    states = _skip_empty(tokens, {0})
    for char in text:
        following: set[int] = set()
        for state in states:
            index = ~state if state < 0 else state
            if index == len(tokens):
                continue
            token = tokens[index]
            if token == _REST or (token == _STAR and char != "/"):
                following.add(index)
            elif token == _DIRECTORIES:
                following.add(~index)
                if char == "/":
                    following.add(index + 1)
            elif token != _STAR and re.match(token, char, re.DOTALL):
                following.add(index + 1)
        states = _skip_empty(tokens, following)
        if not states:
            break
    return states


def _skip_empty(tokens: tuple[str, ...], states: set[int]) -> set[int]:
    """Add the states that follow without eating a character."""
    pending = list(states)
    while pending:
        state = pending.pop()
        if 0 <= state < len(tokens) and tokens[state] in {_STAR, _DIRECTORIES, _REST} and state + 1 not in states:
            states.add(state + 1)
            pending.append(state + 1)
    return states
