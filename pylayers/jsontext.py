"""JSON, read and written by the standard library's C half alone.

Importing `json` loads `re`, and with it `enum`: 5 ms of a command that takes 50 (docs/decisions/0019). What the C half
doesn't take is left to `json`, which then says what is wrong with it.
"""

from __future__ import annotations

from _json import encode_basestring, encode_basestring_ascii, make_encoder, make_scanner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

BLANKS = " \t\n\r"
_CONSTANTS = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


class _Reading:
    """What the scanner asks of a json.JSONDecoder."""

    strict = True
    object_hook = None
    array_hook = None
    parse_float = float
    parse_int = int

    def __init__(
        self, collect: Callable[[list[tuple[str, Any]]], Any] | None, constant: Callable[[str], Any]
    ) -> None:
        self.object_pairs_hook = collect
        self.parse_constant = constant


def load(
    content: str | bytes,
    *,
    collect: Callable[[list[tuple[str, Any]]], Any] | None = None,
    constant: Callable[[str], Any] = _CONSTANTS.__getitem__,
) -> Any:
    """Read a value from JSON text, in UTF-8 where it is bytes.

    `collect` makes an object of its pairs (a dict when None), `constant` a value of NaN, Infinity or -Infinity. Raises
    ValueError as json.loads does, RecursionError, and what the two raise.
    """
    text = content if isinstance(content, str) else content.decode()
    stripped = text.strip(BLANKS)
    try:
        scan = make_scanner(_Reading(collect, constant))  # type: ignore[arg-type]  # it asks for these attributes
        value, end = scan(stripped, 0)
        if end == len(stripped):
            return value
    except (StopIteration, ValueError, SystemError):  # the last where it wanted json's exception and found no json
        pass
    import json

    return json.loads(text, object_pairs_hook=collect, parse_constant=constant)


def dump(
    value: object,
    *,
    separators: tuple[str, str] = (", ", ": "),
    sort_keys: bool = False,
    ensure_ascii: bool = True,
    allow_nan: bool = True,
) -> str:
    """Write a value as JSON text, with json.dumps' options. Raises ValueError and TypeError as it does."""
    text = encode_basestring_ascii if ensure_ascii else encode_basestring
    encode = make_encoder({}, _refuse, text, None, separators[1], separators[0], sort_keys, False, allow_nan)
    return "".join(encode(value, 0))


def _refuse(value: object) -> NoReturn:
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
