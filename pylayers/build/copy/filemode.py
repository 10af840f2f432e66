"""Symbolic modes of --chmod: BSD chmod's, as BuildKit reads them (`u=rw,go=r`, `+x`, `a+X`, `g=u-w`).

No umask counts in a build, so `+` without a who changes all classes. `s` and `t` have no effect on `o` alone, `=`
clears the set-id bits of its classes but never the sticky bit, and `X` looks at the mode before all changes.
"""

from __future__ import annotations

import stat
from typing import NamedTuple

from pylayers.errors import InvalidInput
from pylayers.store.entry import ENTRY_SIZE_BYTES

WHO = {"u": 0o4700, "g": 0o2070, "o": 0o0007, "a": 0o6777}
RIGHTS = {"r": 0o444, "w": 0o222, "x": 0o111, "s": 0o6000, "t": 0o1000}
SHIFTS = {"u": 6, "g": 3, "o": 0}
EVERYONE = 0o6777
STICKY = 0o1000
EXECUTE = 0o111
WORDS_PER_ENTRY = ENTRY_SIZE_BYTES // 4
WORD_MODE = 23


class Change(NamedTuple):
    """One step: `+`, `-`, or `=` (clear `mask`, then set `bits`); for a copied class its name and no bits."""

    operator: str
    mask: int  # what the classes own
    bits: int = 0
    copied: str = ""  # u, g or o
    conditional: bool = False  # X


def read_mode(text: str) -> tuple[int, tuple[Change, ...]]:
    """Read --chmod: an octal mode (and no changes), or -1 and changes. Raises InvalidInput in BuildKit's words."""
    if not text[:1].isdigit():
        return -1, tuple(read_changes(text))
    if not text.isascii() or set(text) - set("01234567") or int(text, 8) > 0o7777:
        raise refuse(text)
    return int(text, 8), ()


def refuse(text: str) -> InvalidInput:
    """Return the error for what is no mode."""
    return InvalidInput(
        f"invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777",
        hint="or a symbolic one, such as u=rwX,go=rX",
    )


def read_changes(text: str) -> list[Change]:
    """Read clauses between commas, each with one who and one operation or more."""
    changes: list[Change] = []
    for clause in text.split(","):
        at, who = 0, 0
        while clause[at : at + 1] in WHO:
            who |= WHO[clause[at]]
            at += 1
        if at == len(clause):
            raise refuse(text)
        while at < len(clause):
            operator = clause[at]
            end = at + 1
            while end < len(clause) and clause[end] not in "+-=":
                end += 1
            if operator not in "+-=" or set(clause[at + 1 : end]) - set("rwxXstugo"):
                raise refuse(text)
            if not who and "t" in clause[at + 1 : end]:
                who = STICKY  # as in BSD's: a `t` without a who takes nobody else's bits along
            changes += read_operation(operator, who, clause[at + 1 : end])
            at = end
    return changes


def read_operation(operator: str, who: int, letters: str) -> list[Change]:
    """Read what follows one operator."""
    mask = who or EVERYONE
    changes: list[Change] = []
    bits = 0
    for letter in letters:
        if letter in SHIFTS:
            changes.append(Change(operator, mask, copied=letter))
        elif letter == "t":
            bits |= STICKY if mask & ~WHO["o"] else 0
        elif letter != "X":
            bits |= RIGHTS[letter] & mask
    if bits or not changes:
        changes.append(Change(operator, mask | bits & STICKY, bits))
    if "X" in letters:
        changes.append(Change("-" if operator == "-" else "+", mask, EXECUTE & mask, conditional=True))
    return changes


def change_mode(mode: int, changes: tuple[Change, ...]) -> int:
    """Return a st_mode after the changes."""
    kind, before = mode & ~0o7777, mode & 0o7777
    has_execute = stat.S_ISDIR(kind) or bool(before & EXECUTE)
    bits = before
    for change in changes:
        if change.conditional and not has_execute:
            continue
        mask, given = change.mask, change.bits
        if change.copied:
            mask &= 0o777
            given = (bits >> SHIFTS[change.copied] & 7) * 0o111 & mask
        if change.operator == "=":
            bits = bits & ~mask | given
        elif change.operator == "+":
            bits |= given
        else:
            bits &= ~given
    return kind | bits


def change_rows(records: bytearray, changes: tuple[Change, ...]) -> None:
    """Change the modes of all rows that are no symlinks."""
    words = memoryview(records).cast("I")
    for at in range(WORD_MODE, len(words), WORDS_PER_ENTRY):
        if not stat.S_ISLNK(words[at]):
            words[at] = change_mode(words[at], changes)
