"""Near misses: which of a few known names a misspelt one probably means, by BuildKit's measure.

difflib costs more to import than the whole parser, so this is a small edit distance with an early way out.
"""

from __future__ import annotations

from collections.abc import Iterable

MAX_NAME_LENGTH = 64
MAX_DISTANCE = 2


def measure_distance(left: str, right: str, limit: int) -> int:
    """Count the edits between two names; more than `limit` gives limit + 1."""
    if abs(len(left) - len(right)) > limit:
        return limit + 1
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        before, row = row, [i]
        for j, b in enumerate(right, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b)))
        if min(row) > limit:
            return limit + 1
    return row[-1]


def find_nearest(name: str, known: Iterable[str], *, fold_case: bool = True) -> str | None:
    """Return the first of the known names nearest to `name`, or None where more than two edits part them.

    Of equally near ones that with the same letters is rather meant.
    """
    if not name or len(name) > MAX_NAME_LENGTH:
        return None
    wanted = name.lower() if fold_case else name
    letters = sorted(wanted)
    best: str | None = None
    least = (MAX_DISTANCE, True)
    for candidate in known:
        if not candidate or candidate == name or len(candidate) > MAX_NAME_LENGTH:
            continue
        compared = candidate.lower() if fold_case else candidate
        distance = measure_distance(wanted, compared, least[0])
        if distance > least[0]:
            continue
        rank = (distance, sorted(compared) != letters)
        if best is None or rank < least:
            best, least = candidate, rank
    return best


def suffix_suggestion(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return ` (did you mean X?)`, or nothing."""
    nearest = find_nearest(name, known)
    return "" if nearest is None else f" (did you mean {prefix}{nearest}?)"
