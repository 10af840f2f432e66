"""Variables in Dockerfile words: quotes, escapes, $name, ${name} and its modifiers, as BuildKit's shell lexer has them.

One pass over the text; nesting and the size of the result are bounded, so that no input can hang the build.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from pylayers.dockerfile import pattern
from pylayers.dockerfile.text import SPACE_RUN, quote
from pylayers.errors import InvalidInput
from pylayers.record import field, record

Lookup = Callable[[str], str | None] | Mapping[str, str]

MAX_EXPANDED_LENGTH = 16 * 1024 * 1024
MAX_TOTAL_LENGTH = 64 * 1024 * 1024
REPLACEMENT_COST = 16  # a place looked at for ${name//old/new} takes as long as copying so many characters
MAX_NESTING = 100

_SPECIAL_NAMES = frozenset("@*#?-$!0")
_NAME = re.compile(r"\w+")


@record(frozen=False)
class Expansion:
    """What a word became: its text, the text split at unquoted spaces, and which names were found or not."""

    text: str = ""
    words: list[str] = field(default_factory=list)
    matched: set[str] = field(default_factory=set)
    unmatched: set[str] = field(default_factory=set)


@record
class Mode:
    """How to read a word; the defaults are those of instructions."""

    escape: str = "\\"
    raw_quotes: bool = False  # keep the quotes
    raw_escapes: bool = False  # keep the escape characters
    plain_quotes: bool = False  # quotes mean nothing (here-documents)
    keep_unset: bool = False  # leave $name of unset names as written


def expand_word(
    word: str, lookup: Lookup, escape: str = "\\", *, unmatched: list[str] | None = None, quotes: bool = True
) -> str:
    """Return the word with variables replaced and quotes removed.

    Names without a value become empty and are added to `unmatched`. Raises InvalidInput for a malformed word.
    """
    if quotes and escape not in word and "$" not in word and "'" not in word and '"' not in word:
        return word
    return process(word, lookup, Mode(escape=escape, plain_quotes=not quotes), split=False, unmatched=unmatched).text


def expand_words(word: str, lookup: Lookup, escape: str = "\\", *, unmatched: list[str] | None = None) -> list[str]:
    """Return the word with variables replaced, split at spaces outside quotes (those in values split too)."""
    return process(word, lookup, Mode(escape=escape), unmatched=unmatched).words


def process(
    word: str, lookup: Lookup, mode: Mode, *, split: bool = True, unmatched: list[str] | None = None
) -> Expansion:
    """Expand a word in the given mode; raise InvalidInput for a malformed or too large one.

    Names without a value are added to `unmatched`, those before an error too.
    """
    lexer = _Lexer(word, lookup if callable(lookup) else lookup.get, mode)
    words = _Words() if split else None
    try:
        text = lexer.read_until("", mode.raw_escapes, words)
    except InvalidInput as error:
        raise InvalidInput(f"failed to process {quote(word)}: {error.message}") from None
    finally:
        if unmatched is not None:
            unmatched += sorted(lexer.unmatched)
    return Expansion(text, words.finish() if words else [], lexer.matched, lexer.unmatched)


class Allowance:
    """Bound what all of a file's expansions take together: characters looked up, copied, and compared with patterns."""

    __slots__ = ("left",)

    def __init__(self, limit: int = MAX_TOTAL_LENGTH) -> None:
        self.left = limit

    def spend(self, count: int) -> None:
        """Take some of it. Raises InvalidInput when nothing is left."""
        self.left -= count
        if self.left < 0:
            raise InvalidInput(
                f"the variables of the file expand to more than {MAX_TOTAL_LENGTH} characters in all",
                hint="let variables hold less, or use them less often",
            )


class Counted:
    """A lookup whose use is taken from an allowance."""

    __slots__ = ("_values", "spend")

    def __init__(self, values: Mapping[str, str], allowance: Allowance) -> None:
        self._values = values
        self.spend = allowance.spend

    def __call__(self, name: str) -> str | None:
        """Return a name's value, or None."""
        value = self._values.get(name)
        if value:
            self.spend(len(value))
        return value


class _Words:
    """Gather words while text is produced; a word that stays empty is none."""

    __slots__ = ("_pieces", "_words")

    def __init__(self) -> None:
        self._words: list[str] = []
        self._pieces: list[str] = []

    def add_text(self, text: str) -> None:
        first, *others = re.split(SPACE_RUN, text)
        self._pieces.append(first)
        for piece in others:
            self._end_word()
            self._pieces.append(piece)

    def add_quoted(self, text: str) -> None:
        self._pieces.append(text)

    def _end_word(self) -> None:
        if word := "".join(self._pieces):
            self._words.append(word)
        self._pieces.clear()

    def forget(self) -> None:
        """Drop what the current word holds: BuildKit's lexer does so at ${name:-word} and the like outside quotes."""
        self._pieces.clear()

    def finish(self) -> list[str]:
        self._end_word()
        return self._words


class _Lexer:
    """One pass over a word; `position` is the next character."""

    def __init__(self, text: str, lookup: Callable[[str], str | None], mode: Mode) -> None:
        self.text = text
        self.position = 0
        self.lookup = lookup
        self.mode = mode
        self.raw_escapes = mode.raw_escapes
        self.matched: set[str] = set()
        self.unmatched: set[str] = set()
        self._depth = 0
        self._size = 0
        self._read_operator = False
        self._spend: Callable[[int], None] = getattr(lookup, "spend", _ignore)
        self._plain: dict[str, re.Pattern[str]] = {}

    def _peek(self) -> str:
        return self.text[self.position : self.position + 1]

    def _next(self) -> str:
        char = self.text[self.position : self.position + 1]
        self.position += 1
        return char

    def _count(self, piece: str) -> str:
        self._size += len(piece)
        if self._size > MAX_EXPANDED_LENGTH:
            raise InvalidInput(f"expansion is longer than {MAX_EXPANDED_LENGTH} characters")
        return piece

    def _take_plain(self, stops: str) -> str:
        """Take characters up to one of `stops`."""
        compiled = self._plain.get(stops)
        if compiled is None:
            compiled = self._plain[stops] = re.compile(f"[^{re.escape(stops)}]*")
        match = compiled.match(self.text, self.position)
        if match is None:
            return ""
        self.position = match.end()
        return match.group()

    def read_until(self, stop: str, raw_escapes: bool, words: _Words | None = None) -> str:
        """Read up to the character `stop` (or the end, for ''), expanding on the way."""
        kept, self.raw_escapes = self.raw_escapes, raw_escapes
        self._depth += 1
        if self._depth > MAX_NESTING:
            raise InvalidInput(f"substitutions are nested deeper than {MAX_NESTING}")
        quotes = "" if self.mode.plain_quotes else "'\""
        stops = "$" + self.mode.escape + quotes + stop
        out: list[str] = []
        while self.position < len(self.text):
            char = self._peek()
            if stop and char == stop:
                self.position += 1
                self.raw_escapes = kept
                self._depth -= 1
                return "".join(out)
            if char == "$":
                piece, quoted = self._read_dollar(), False
            elif char in quotes:
                piece, quoted = (self._read_single() if char == "'" else self._read_double()), True
            elif char == self.mode.escape:
                piece, quoted = self._read_escape(), True
            else:
                piece, quoted = self._take_plain(stops), False
            out.append(self._count(piece))
            if words is not None:
                if self._read_operator and not quoted:
                    words.forget()
                self._read_operator = False
                (words.add_quoted if quoted else words.add_text)(piece)
        if stop:
            raise InvalidInput(f"unexpected end of statement while looking for matching {stop}")
        self.raw_escapes = kept
        self._depth -= 1
        return "".join(out)

    def _read_escape(self) -> str:
        self.position += 1
        return (self.mode.escape if self.raw_escapes else "") + self._next()

    def _read_single(self) -> str:
        end = self.text.find("'", self.position + 1)
        if end < 0:
            self.position = len(self.text)
            raise InvalidInput("unexpected end of statement while looking for matching single-quote")
        inner = self.text[self.position + 1 : end]
        self.position = end + 1
        return f"'{inner}'" if self.mode.raw_quotes else inner

    def _read_double(self) -> str:
        mark = '"' if self.mode.raw_quotes else ""
        escape = self.mode.escape
        self.position += 1
        out = [mark]
        while self.position < len(self.text):
            char = self._peek()
            if char == '"':
                self.position += 1
                out.append(mark)
                return "".join(out)
            if char == "$":
                out.append(self._read_dollar())
            elif char == escape:
                self.position += 1
                if self.raw_escapes:
                    out.append(escape)
                following = self._peek()
                if not following:
                    continue
                out.append(self._next() if following in {'"', "$", escape} else escape)
            else:
                out.append(self._take_plain('"$' + escape))
        raise InvalidInput("unexpected end of statement while looking for matching double-quote")

    def _read_name(self) -> str:
        char = self._peek()
        if char.isdecimal():
            start = self.position
            while self._peek().isdecimal():
                self.position += 1
            return self.text[start : self.position]
        if char and char in _SPECIAL_NAMES:
            self.position += 1
            return char
        match = _NAME.match(self.text, self.position)
        if match is None:
            return ""
        name = match.group()
        if not name.isascii():  # \w also takes marks and numbers that Go's letters and digits do not
            length = next((i for i, c in enumerate(name) if not (c.isalpha() or c.isdecimal() or c == "_")), len(name))
            name = name[:length]
        self.position += len(name)
        return name

    def _get(self, name: str) -> str | None:
        value = self.lookup(name)
        (self.unmatched if value is None else self.matched).add(name)
        return value

    def _read_dollar(self) -> str:
        self.position += 1
        if self._peek() == "{":
            self.position += 1
            return self._read_braced()
        name = self._read_name()
        if not name:
            return "$"
        value = self._get(name)
        if value is None:
            return f"${name}" if self.mode.keep_unset else ""
        return value

    def _read_braced(self) -> str:
        char = self._peek()
        if not char:
            raise InvalidInput("syntax error: missing '}'")
        if char in "{}:":
            raise InvalidInput("syntax error: bad substitution")
        name = self._read_name()
        modifier = self._next()
        if not modifier:
            raise InvalidInput("syntax error: missing '}'")
        if modifier == "}":
            value = self._get(name)
            if value is None:
                return f"${{{name}}}" if self.mode.keep_unset else ""
            return value
        if modifier == "/":
            return self._replace(name)
        operator = self._next() if modifier == ":" else modifier
        if modifier == ":":
            modifier += operator
        elif modifier not in set("+-?#%"):
            raise InvalidInput(f"unsupported modifier ({modifier}) in substitution")
        word = self._read_operand("}", operator in {"#", "%"}, "}")
        value = self._get(name)
        if value is None and self.mode.keep_unset:
            return f"${{{name}{modifier}{word}}}"
        return self._apply(name, value, modifier, operator, word)

    def _read_operand(self, stop: str, raw_escapes: bool, missing: str) -> str:
        try:
            operand = self.read_until(stop, raw_escapes)
            self._read_operator = True
            return operand
        except InvalidInput:
            if self.position >= len(self.text) and self._size <= MAX_EXPANDED_LENGTH:
                place = " in ${}" if missing == "/" else ""
                raise InvalidInput(f"syntax error: missing '{missing}'{place}") from None
            raise

    def _apply(self, name: str, value: str | None, modifier: str, operator: str, word: str) -> str:
        absent = value is None or (modifier[0] == ":" and value == "")
        if operator == "-":
            return word if absent else value or ""
        if operator == "+":
            return "" if absent else word
        if operator == "?":
            if absent:
                kind = "unset" if value is None else "empty"
                raise InvalidInput(f"{name}: {word or f'is not allowed to be {kind}'}")
            return value or ""
        if operator and operator in "#%":
            longest = word.startswith(operator)
            self._spend(len(word) * len(value or ""))
            trim = pattern.trim_prefix if operator == "#" else pattern.trim_suffix
            return trim(word[longest:], value or "", longest=longest)
        raise InvalidInput(f"unsupported modifier ({modifier}) in substitution")

    def _replace(self, name: str) -> str:
        every = self._peek() == "/"
        self.position += every
        old = self._read_operand("/", True, "/")
        new = self._read_operand("}", True, "}")
        value = self._get(name)
        if value is None and self.mode.keep_unset:
            return f"${{{name}/{old}/{new}}}"
        self._spend((REPLACEMENT_COST + len(old)) * len(value or ""))
        replaced = pattern.replace(old, value or "", new, every=every, limit=MAX_EXPANDED_LENGTH)
        self._spend(len(replaced))
        return replaced


def _ignore(_: int) -> None:
    return None
