"""Near misses: which of a few known names a misspelt one probably means.

difflib costs more to import than the whole parser, so this is a small edit distance with an early way out.
"""

from __future__ import annotations

from collections.abc import Iterable

MAX_NAME_LENGTH = 64


def measure_distance(left: str, right: str, limit: int) -> int:
    """Count the edits between two names, neighbours swapped counting as one; more than `limit` gives limit + 1."""
    if abs(len(left) - len(right)) > limit:
        return limit + 1
    before: list[int] = []
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        before, previous, row = row, before, [i]
        for j, b in enumerate(right, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == right[j - 2] and left[i - 2] == b:
                cost = min(cost, previous[j - 2] + 1)
            row.append(cost)
        if min(row) > limit and min(before) > limit:
            return limit + 1
    return row[-1]


def find_nearest(name: str, known: Iterable[str], *, fold_case: bool = True) -> str | None:
    """Return the known name nearest to `name`, or None when none is near enough to be meant."""
    if not name or len(name) > MAX_NAME_LENGTH:
        return None
    wanted = name.lower() if fold_case else name
    limit = 1 if len(name) < 6 else 2 if len(name) < 9 else 3
    best: str | None = None
    for candidate in known:
        compared = candidate.lower() if fold_case else candidate
        if candidate == name or len(candidate) > MAX_NAME_LENGTH:
            continue
        distance = measure_distance(wanted, compared, limit)
        if distance <= limit and distance < len(compared):
            best, limit = candidate, distance - 1
            if limit < 0:
                break
    return best


def suffix_suggestion(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return ` (did you mean X?)`, or nothing."""
    nearest = find_nearest(name, known)
    return "" if nearest is None else f" (did you mean {prefix}{nearest}?)"
