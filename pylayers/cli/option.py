"""The options of a verb as a table, and a reader for its plain command lines.

A verb like `build` or `run` takes less time than importing click does. So a command line of known options is read
here; whatever else it holds (--help, an unknown or abbreviated option, a missing value) is left to click, whose command
is made from the same table, and which therefore gives every error and every help text.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ONE, MANY, FLAG = "one", "many", "flag"
GLOBALS = {"--root": "root", "--driver": "driver", "--runtime": "runtime"}


class Option:
    """One option: its flags, the keyword that gets its value, and its help."""

    __slots__ = ("choices", "default", "flags", "help", "kind", "metavar", "minimum", "name", "number", "variable")

    def __init__(
        self,
        flags: tuple[str, ...],
        name: str,
        kind: str,
        help: str,
        *,
        metavar: str | None = None,
        choices: tuple[str, ...] = (),
        default: str | None = None,
        variable: str | None = None,
        number: type | None = None,
        minimum: int | None = None,
    ) -> None:
        self.flags = flags
        self.name = name
        self.kind = kind
        self.help = help
        self.metavar = metavar
        self.choices = choices
        self.default = default
        self.variable = variable  # of the environment, where the option isn't given
        self.number = number  # int or float: such a value is click's to read
        self.minimum = minimum


def read_globals(arguments: Sequence[str], verbs: Sequence[str]) -> tuple[dict[str, str], str, list[str]] | None:
    """Return the global options, the verb and the words after it of a plain line; None for any other line."""
    given: dict[str, str] = {}
    words = iter(arguments)
    for word in words:
        if word in verbs:
            return given, word, list(words)
        name, equals, value = word.partition("=")
        if name not in GLOBALS:
            return None
        found = value if equals else next(words, None)
        if found is None:
            return None
        given[GLOBALS[name]] = found
    return None


def read_words(
    options: Sequence[Option], words: Sequence[str], *, interspersed: bool
) -> tuple[dict[str, Any], list[str]] | None:
    """Return the keywords that words give, and the arguments among them; None when click has to judge them.

    Unless interspersed, the first argument ends the options.
    """
    known = {flag: option for option in options for flag in option.flags}
    values: dict[str, Any] = {
        option.name: () if option.kind == MANY else False if option.kind == FLAG else option.default
        for option in options
    }
    plain: list[str] = []
    seen: set[str] = set()
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if word == "-" or not word.startswith("-"):
            plain.append(word)
            if interspersed:
                continue
            plain += words[at:]
            break
        name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        option = known.get(name)
        if option is None or option.number is not None or (option.kind == FLAG and equals):
            return None
        seen.add(option.name)
        if option.kind == FLAG:
            values[option.name] = True
            continue
        if not equals:
            if at == len(words):
                return None
            value = words[at]
            at += 1
        if option.choices and value not in option.choices:
            return None
        values[option.name] = (*values[option.name], value) if option.kind == MANY else value
    for option in options:
        if option.variable is not None and option.name not in seen and os.environ.get(option.variable):
            value = os.environ[option.variable]
            if value not in option.choices:
                return None
            values[option.name] = value
    return values, plain


def read_pairs(given: Sequence[str]) -> dict[str, str]:
    """Read KEY=VALUE options such as --label; KEY alone has an empty value. Raises InvalidInput."""
    pairs: dict[str, str] = {}
    for entry in given:
        key, _, value = entry.partition("=")
        if not key:
            from pylayers.errors import InvalidInput

            raise InvalidInput(f"invalid label {entry!r}: the name is empty", hint="give NAME=VALUE")
        pairs[key] = value
    return pairs
