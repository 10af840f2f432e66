"""One logical line taken apart: keyword, flags, arguments, by the rule of its instruction.

Nothing here knows what an instruction means; that is parse.py's. Quotes and variables stay as written.
"""

from __future__ import annotations

import re
from functools import cache

from pylayers.dockerfile.text import SPACE_SET, SPACES, quote, replace_surrogates
from pylayers.errors import InvalidInput
from pylayers.record import record

_BLANK_RUN = re.compile(r"[\t\v\f\r ]+")
_ONE_TEXT = frozenset({"maintainer", "stopsignal", "user", "workdir"})
_TEXT_OR_JSON = frozenset({"cmd", "entrypoint", "run", "shell"})
_LIST_OR_JSON = frozenset({"add", "copy", "volume"})
_LISTS = frozenset({"expose", "from"})
_NOT_STRINGS = "when using JSON array syntax, arrays must be comprised of strings only"


@record
class Arguments:
    """A logical line in parts; `nested` is the trigger of an ONBUILD, `legacy` marks `ENV name value`."""

    keyword: str
    flags: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    is_json: bool = False
    legacy: bool = False
    nested: Arguments | None = None


def split_line(line: str, escape: str) -> Arguments:
    """Take a logical line apart; raise InvalidInput (without a span) when its syntax is wrong."""
    keyword, flags, rest = split_keyword(line)
    name = keyword.lower()
    if name == "onbuild":
        return Arguments(keyword, flags, nested=split_line_once(rest, escape) if rest else None)
    values: list[str] = []
    is_json = legacy = False
    if name in _TEXT_OR_JSON:
        values, is_json = split_text_or_json(rest)
        if not rest and name != "shell":
            values = [""]  # a command of no words is one for the shell: it does nothing
    elif name in _LIST_OR_JSON:
        strings = parse_strings(rest)
        values, is_json = (split_blanks(rest), False) if strings is None else (strings, True)
    elif name in _LISTS:
        values = split_blanks(rest)
    elif name in _ONE_TEXT:
        values = [rest] if rest else []
    elif name in {"env", "label"}:
        values, legacy = split_pairs(rest, name.upper(), escape)
    elif name == "arg":
        values = split_words(rest, escape)
    elif name == "healthcheck":
        values, is_json = _split_healthcheck(rest)
    return Arguments(keyword, flags, tuple(values), is_json, legacy)


def split_line_once(line: str, escape: str) -> Arguments:
    """Take an ONBUILD trigger apart; a further ONBUILD inside is not looked into (it is an error anyway)."""
    keyword, flags, _ = split_keyword(line)
    return Arguments(keyword, flags) if keyword.lower() == "onbuild" else split_line(line, escape)


def split_keyword(line: str) -> tuple[str, tuple[str, ...], str]:
    """Split a logical line into keyword, flags (`--name=value`, unquoted) and the rest."""
    parts = _BLANK_RUN.split(line.strip(SPACES), maxsplit=1)
    if len(parts) < 2:
        return parts[0], (), ""
    flags, rest = _split_flags(parts[1])
    return parts[0], tuple(flags), rest.strip(SPACES)


def _split_flags(text: str) -> tuple[list[str], str]:
    flags: list[str] = []
    position = 0
    while True:
        while position < len(text) and text[position] in SPACE_SET:
            position += 1
        if not text.startswith("--", position):
            return flags, text[position:]
        word, position = _read_flag(text, position)
        if word == "--":
            return flags, text[position:]
        flags.append(word)


_FLAG_PLAIN = f"[^{SPACES}'\"\\\\]+"


def _read_flag(text: str, position: int) -> tuple[str, int]:
    """Read one flag: quotes group and go away, a backslash takes the next character as it is."""
    pattern = re.compile(_FLAG_PLAIN)
    out: list[str] = []
    mark = ""
    while position < len(text):
        char = text[position]
        if not mark and (plain := pattern.match(text, position)):
            out.append(plain.group())
            position = plain.end()
            continue
        if not mark and char in SPACE_SET:
            break
        position += 1
        if char == mark:
            mark = ""
        elif not mark and char in "'\"":
            mark = char
        elif char == "\\":
            out.append(text[position : position + 1])
            position += 1
        else:
            out.append(char)
    return "".join(out), position


def split_blanks(rest: str) -> list[str]:
    """Split at runs of blanks."""
    return _BLANK_RUN.split(rest) if rest else []


def parse_strings(rest: str) -> list[str] | None:
    """Return a JSON array of strings as a list, None when the text is no JSON array; other elements are an error."""
    text = rest.lstrip(SPACES)
    if not text.startswith("["):
        return None
    import json

    try:
        # Numbers become None: only their not being strings counts.
        found = json.loads(text, parse_int=_ignore, parse_float=_ignore, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    if not all(isinstance(item, str) for item in found):
        raise InvalidInput(_NOT_STRINGS)
    return [replace_surrogates(item) for item in found]


def _ignore(_: str) -> None:
    return None


def _refuse(name: str) -> None:
    raise ValueError(name)


def split_text_or_json(rest: str) -> tuple[list[str], bool]:
    """Return the strings of a JSON array and True, or the whole text as one value and False."""
    if not rest:
        return [], False
    strings = parse_strings(rest)
    return ([rest], False) if strings is None else (strings, True)


def _split_healthcheck(rest: str) -> tuple[list[str], bool]:
    if not rest:
        return [], False
    end = next((i for i, c in enumerate(rest) if c in SPACE_SET), len(rest))
    values, is_json = split_text_or_json(rest[end:].lstrip(SPACES))
    return [rest[:end], *values], is_json


def split_pairs(rest: str, name: str, escape: str) -> tuple[list[str], bool]:
    """Return key, value, key, value...; whether the old `NAME key value` form was used comes with it."""
    words = split_words(rest, escape)
    if not words:
        return [], False
    if "=" not in words[0]:
        parts = _BLANK_RUN.split(rest, maxsplit=1)
        if len(parts) < 2:
            raise InvalidInput(f"{name} must have two arguments")
        return parts, True
    values: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise InvalidInput(f"Syntax error - can't find = in {quote(word)}. Must be of the form: name=value")
        values += [key, value]
    return values, False


@cache
def _compile_word(escape: str) -> re.Pattern[str]:
    """Compile the form of a word; every repeat is possessive, so that matching is linear."""
    esc = re.escape(escape)
    parts = (
        rf"[^{SPACES}'\"{esc}]++",
        rf"{esc}[\s\S]",
        rf"\"(?:[^\"{esc}]++|{esc}[\s\S])*+(?:\"|(?={esc}?\Z))",
        r"'[^']*+(?:'|\Z)",
    )
    return re.compile(f"(?:{'|'.join(parts)})++")


def split_words(rest: str, escape: str) -> list[str]:
    """Split at spaces outside quotes; quotes and escapes stay in the words, an escape at the very end is dropped."""
    return [match.group() for match in _compile_word(escape).finditer(rest)]
