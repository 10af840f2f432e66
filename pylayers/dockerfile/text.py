"""Go's ideas of space, quoting and durations, which Dockerfiles inherit."""

from __future__ import annotations

import re

from pylayers.errors import InvalidInput

# unicode.IsSpace; str.isspace would add the separators 0x1c to 0x1f.
SPACES = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
SPACE_SET = frozenset(SPACES)
SPACE_RUN = f"[{SPACES}]+"  # compiled by whom it serves: that takes 0.2 ms

_QUOTED = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"}
_QUOTED |= {'"': '\\"', "\\": "\\\\"}
_SHOWN_LENGTH = 200
_SURROGATES = "[\ud800-\udfff]"

_UNIT_NS = {
    "ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9,
}  # fmt: skip
_NUMBER = r"([0-9]{0,400})(?:\.([0-9]{0,400}))?"
_UNIT = r"[^.0-9]{0,32}"
_MAX_DURATION_NS = 2**63 - 1


def show(text: str) -> str:
    """Return text fit for a message: bytes that were not UTF-8 replaced, long text cut."""
    return replace_surrogates(text if len(text) <= _SHOWN_LENGTH else text[:_SHOWN_LENGTH] + "...")


def replace_surrogates(text: str) -> str:
    """Replace lone surrogates, which stand for bytes that were not UTF-8."""
    return text if text.isascii() else re.sub(_SURROGATES, "\ufffd", text)


def quote(text: str) -> str:
    """Quote text as Go's %q does, fit for a message: long text is cut."""
    return quote_whole(show(text))


def quote_whole(text: str) -> str:
    """Quote text of any length as Go's %q does."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    return '"' + "".join(_QUOTED.get(c) or escape_unprintable(c) for c in text) + '"'


def escape_unprintable(char: str) -> str:
    """Write one character as Go's %q does inside quotes."""
    code = ord(char)
    if char.isprintable():
        return char
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def show_duration(duration_ns: int) -> str:
    """Write nanoseconds as Go's Duration.String does: 1h0m0s, 1.5s, 100ms."""
    sign, left = ("-", -duration_ns) if duration_ns < 0 else ("", duration_ns)
    if left < 10**9:
        for unit, size in (("ms", 10**6), ("µs", 10**3), ("ns", 1)):
            if left >= size:
                return f"{sign}{show_fraction(left, size)}{unit}"
        return "0s"
    minutes, seconds_ns = divmod(left, 60 * 10**9)
    hours, minutes = divmod(minutes, 60)
    shown = f"{show_fraction(seconds_ns, 10**9)}s"
    return f"{sign}{hours}h{minutes}m{shown}" if hours else f"{sign}{minutes}m{shown}" if minutes else sign + shown


def show_fraction(value: int, unit: int) -> str:
    """Write value/unit with as many decimals as it takes."""
    whole, rest = divmod(value, unit)
    decimals = f"{rest:0{len(str(unit)) - 1}d}".rstrip("0") if rest else ""
    return f"{whole}.{decimals}" if decimals else str(whole)


def parse_duration(text: str) -> int:
    """Parse Go's duration grammar (`1h30m`, `1.5s`, `100ms`) into nanoseconds."""
    sign, rest = 1, text
    if rest[:1] in {"+", "-"}:
        sign, rest = (-1 if rest[0] == "-" else 1), rest[1:]
    if rest == "0":
        return 0
    if not rest:
        raise InvalidInput(f"time: invalid duration {quote(text)}")
    number_at, unit_at = re.compile(_NUMBER).match, re.compile(_UNIT).match
    total, position = 0, 0
    while position < len(rest):
        number = number_at(rest, position)
        whole, fraction = (number.group(1), number.group(2) or "") if number else ("", "")
        if number is None or not (whole or fraction):
            raise InvalidInput(f"time: invalid duration {quote(text)}")
        unit = unit_at(rest, number.end())
        name = unit.group() if unit else ""
        if not name:
            raise InvalidInput(f"time: missing unit in duration {quote(text)}")
        if name not in _UNIT_NS:
            raise InvalidInput(f"time: unknown unit {quote(name)} in duration {quote(text)}")
        total += int(whole or "0") * _UNIT_NS[name] + int(fraction or "0") * _UNIT_NS[name] // 10 ** len(fraction)
        if total > _MAX_DURATION_NS:
            raise InvalidInput(f"time: invalid duration {quote(text)}")
        position = number.end() + len(name)
    return sign * total
