"""The patterns of ${name#pattern}, ${name%pattern} and ${name/pattern/text}: `*`, `?` and backslash.

Python's regular expressions backtrack, so `*a*a*a*b` could take for ever. Here each `*` but the last stops for good at
the first place where what follows it fits (an atomic group). That loses no match: a `*` cannot cross a newline, so an
earlier fit leaves at least as much to the rest.
"""

from __future__ import annotations

import re

from pylayers.dockerfile.text import show
from pylayers.errors import InvalidInput

STAR = -1
ANY = -2
MAX_WORK = 100_000_000
MAX_PATTERN_LENGTH = 10_000


def read_pattern(pattern: str) -> list[int]:
    """Split a pattern into STAR, ANY and code points; raise InvalidInput on a bad escape."""
    if len(pattern) > MAX_PATTERN_LENGTH:
        raise InvalidInput(f"pattern in substitution is longer than {MAX_PATTERN_LENGTH} characters")
    tokens: list[int] = []
    position = 0
    while position < len(pattern):
        char = pattern[position]
        position += 1
        if char == "*":
            if not tokens or tokens[-1] != STAR:
                tokens.append(STAR)
        elif char == "?":
            tokens.append(ANY)
        elif char == "\\":
            following = pattern[position : position + 1]
            if following in {"}", "/"} and following:
                continue
            if following not in {"*", "?", "\\"} or not following:
                raise InvalidInput(f"invalid pattern ({show(pattern)}) in substitution: invalid escape '\\{following}'")
            tokens.append(ord(following))
            position += 1
        else:
            tokens.append(ord(char))
    return tokens


def compile_tokens(tokens: list[int], *, longest: bool) -> re.Pattern[str]:
    """Compile tokens into an expression that runs in time proportional to text times the longest literal run."""
    segments: list[str] = [""]
    for token in tokens:
        if token == STAR:
            segments.append("")
        else:
            segments[-1] += "." if token == ANY else re.escape(chr(token))
    out = [segments[0]]
    last = len(segments) - 1
    for index, segment in enumerate(segments[1:], 1):
        if index == last and longest:
            out.append(f".*{segment}")
        elif segment:
            out.append(f"(?>.*?{segment})")
    return re.compile("".join(out))


def _bound_work(tokens: list[int], value: str) -> None:
    if len(tokens) * len(value) > MAX_WORK:
        raise InvalidInput("pattern and value in substitution are too long")


def trim_prefix(pattern: str, value: str, *, longest: bool) -> str:
    """Remove the shortest or longest match at the start of value."""
    tokens = read_pattern(pattern)
    _bound_work(tokens, value)
    match = compile_tokens(tokens, longest=longest).match(value)
    return value[match.end() :] if match else value


def trim_suffix(pattern: str, value: str, *, longest: bool) -> str:
    """Remove the shortest or longest match at the end of value."""
    tokens = read_pattern(pattern)
    _bound_work(tokens, value)
    match = compile_tokens(tokens[::-1], longest=longest).match(value[::-1])
    return value[: len(value) - match.end()] if match else value


def replace(pattern: str, value: str, replacement: str, *, every: bool, limit: int) -> str:
    """Replace the first or every leftmost-longest match; raise InvalidInput when the result passes `limit`."""
    tokens = read_pattern(pattern)
    _bound_work(tokens, value)
    compiled = compile_tokens(tokens, longest=True)
    starred = STAR in tokens
    out: list[str] = []
    size, copied, position, last_end = 0, 0, 0, -1
    while position <= len(value):
        match = compiled.match(value, position) if starred else compiled.search(value, position)
        if match is None:
            if not starred:
                break
            position = _skip_failed(tokens, value, position)
            continue
        if match.end() == match.start() == last_end:  # an empty match right behind another does not count
            position += 1
            continue
        out += [value[copied : match.start()], replacement]
        size += match.start() - copied + len(replacement)
        if size > limit:
            raise InvalidInput(f"expansion is longer than {limit} characters")
        copied = last_end = match.end()
        if not every:
            break
        position = match.end() + (match.end() == match.start())
    out.append(value[copied:])
    return "".join(out)


def _skip_failed(tokens: list[int], value: str, position: int) -> int:
    """Return the next start worth trying; where the part before the first `*` fits, the rest of the line fails too."""
    head = tokens[: tokens.index(STAR)]
    if ord("\n") not in head and compile_tokens(head, longest=False).match(value, position):
        newline = value.find("\n", position)
        return len(value) + 1 if newline < 0 else newline + 1
    following = compile_tokens(head, longest=False).search(value, position + 1)
    return len(value) + 1 if following is None else following.start()
