"""Go's filepath.Match, and the wildcards of COPY and ADD component by component.

`*` and `?` stop at slashes, `[...]` takes ranges and `^`, a backslash escapes. Like Go's, a `*` is settled at the
first place where what follows it fits, so time is linear in the name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

from pylayers.dockerfile.text import show
from pylayers.errors import InvalidInput

MAX_PATTERN_LENGTH = 4096


def match(pattern: str, name: str) -> bool:
    """Tell whether the whole name matches; raise InvalidInput for a malformed pattern."""
    return compile_pattern(pattern).match(name) is not None


def has_wildcards(path: str) -> bool:
    """Tell whether a source path holds `*`, `?` or `[` that no backslash escapes."""
    escaped = False
    for char in path:
        if escaped:
            escaped = False
        elif char == "\\":
            escaped = True
        elif char in "*?[":
            return True
    return False


def split_components(pattern: str) -> tuple[list[str], list[str]]:
    """Split a source path at slashes into leading literal components and those from the first wildcard on.

    The literal ones come unescaped; empty components and `.` are left out.
    """
    parts = [part for part in pattern.split("/") if part not in {"", "."}]
    first = next((i for i, part in enumerate(parts) if has_wildcards(part)), len(parts))
    return [re.sub(r"\\(.)", r"\1", part) for part in parts[:first]], parts[first:]


def filter_names(component: str, names: Iterable[str]) -> Iterator[str]:
    """Yield the directory entries that one component matches; names that begin with a dot need no special care."""
    compiled = compile_pattern(component)
    return (name for name in names if compiled.match(name) is not None)


@lru_cache(maxsize=1024)
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a pattern to an expression for the whole name; raise InvalidInput when it is malformed."""
    if len(pattern) > MAX_PATTERN_LENGTH:
        raise InvalidInput(f"pattern is longer than {MAX_PATTERN_LENGTH} characters")
    segments: list[list[str]] = [[]]
    position = 0
    while position < len(pattern):
        char = pattern[position]
        position += 1
        if char == "*":
            if len(segments) == 1 or segments[-1]:
                segments.append([])
        elif char == "?":
            segments[-1].append("[^/]")
        elif char == "[":
            expression, position = read_class(pattern, position)
            segments[-1].append(expression)
        elif char == "\\":
            if position == len(pattern):
                raise bad_pattern(pattern)
            segments[-1].append(re.escape(pattern[position]))
            position += 1
        else:
            segments[-1].append(re.escape(char))
    out = ["".join(segments[0])]
    for segment in segments[1:-1]:
        out.append(f"(?>[^/]*?{''.join(segment)})")
    if len(segments) > 1:
        out.append(f"[^/]*{''.join(segments[-1])}")
    return re.compile("".join(out) + r"\Z", re.DOTALL)


def bad_pattern(pattern: str) -> InvalidInput:
    """Return the error for a malformed pattern, in Go's words."""
    return InvalidInput(f"syntax error in pattern: {show(pattern)}")


def read_class(pattern: str, position: int) -> tuple[str, int]:
    """Read a character class whose `[` was taken; return its expression and the position behind its `]`."""
    start = position
    negated = pattern[position : position + 1] == "^"
    position += negated
    ranges: list[str] = []
    possible = False
    while True:
        if pattern[position : position + 1] == "]" and position > start + negated:
            break
        low, position = _read_class_char(pattern, position)
        high = low
        if pattern[position : position + 1] == "-":
            high, position = _read_class_char(pattern, position + 1)
        if low <= high:  # a reversed range matches nothing
            possible = True
            ranges.append(f"\\U{ord(low):08x}-\\U{ord(high):08x}")
    inner = "".join(ranges)
    if not possible:
        return (r"[\s\S]" if negated else r"(?!)"), position + 1
    return f"[{'^' if negated else ''}{inner}]", position + 1


def _read_class_char(pattern: str, position: int) -> tuple[str, int]:
    char = pattern[position : position + 1]
    if char in {"", "-", "]"}:
        raise bad_pattern(pattern)
    if char == "\\":
        position += 1
        char = pattern[position : position + 1]
        if not char:
            raise bad_pattern(pattern)
    if position + 1 >= len(pattern):
        raise bad_pattern(pattern)
    return char, position + 1
