"""Canonical JSON, and reading JSON from strangers: bounded, duplicate-free, errors that name the field."""

from __future__ import annotations

from collections.abc import Mapping

from pylayers.errors import InvalidInput
from pylayers.jsontext import dump, load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

DOCUMENT_LIMIT_BYTES = 4 << 20


def encode(value: object) -> bytes:
    """Encode a value as canonical JSON: keys sorted by code point, no spaces, UTF-8, nothing escaped needlessly.

    Raises InvalidInput for what JSON or UTF-8 cannot hold (NaN, a lone surrogate).
    """
    try:
        return dump(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:  # UnicodeEncodeError is one
        raise InvalidInput(f"value cannot be written as JSON: {error}") from error


def decode(content: bytes | bytearray | memoryview, what: str) -> dict[str, Any]:
    """Decode a JSON object of at most DOCUMENT_LIMIT_BYTES; `what` names the document in errors.

    A repeated key is an error: two readers that choose differently would see two documents under one digest.
    """
    if len(content) > DOCUMENT_LIMIT_BYTES:
        raise InvalidInput(f"{what}: {len(content)} bytes, more than the limit of {DOCUMENT_LIMIT_BYTES}")

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            repeated = next(name for name in names if names.count(name) > 1)
            raise InvalidInput(f"{what}: field {repeated!r} appears twice in one object")
        return found

    def refuse(constant: str) -> NoReturn:
        raise InvalidInput(f"{what}: {constant} is not JSON")

    try:
        value = load(bytes(content), collect=collect, constant=refuse)
    except RecursionError as error:
        raise InvalidInput(f"{what}: nested too deeply") from error
    except ValueError as error:
        raise InvalidInput(f"{what}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidInput(f"{what}: expected a JSON object, found {describe(value)}")
    return value


def describe(value: object) -> str:
    """Name a JSON value's type for an error message."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    names: dict[type, str] = {str: "a string", int: "a number", float: "a number", list: "an array", dict: "an object"}
    return names.get(type(value), type(value).__name__)


class Fields:
    """Read typed fields of one JSON object; null counts as absent, as in Go's encoding."""

    __slots__ = ("_values", "_where")

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values = values
        self._where = where

    def locate(self, name: str) -> str:
        """Return the full name of a field, for errors."""
        return f"{self._where}.{name}"

    def fail(self, name: str, message: str) -> NoReturn:
        """Raise InvalidInput that names the field."""
        raise InvalidInput(f"{self.locate(name)}: {message}")

    def has(self, name: str) -> bool:
        """Tell whether a field is there and not null."""
        return self._values.get(name) is not None

    def _take(self, name: str, kind: type, expected: str) -> Any:
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            self.fail(name, f"expected {expected}, found {describe(value)}")
        return value

    def text(self, name: str, default: str = "") -> str:
        """Read a string."""
        value: str | None = self._take(name, str, "a string")
        return default if value is None else value

    def required_text(self, name: str) -> str:
        """Read a string that must be there and not be empty."""
        value = self.text(name)
        if not value:
            self.fail(name, "missing")
        return value

    def integer(self, name: str, default: int = 0, *, least: int | None = None) -> int:
        """Read a whole number of at most 63 bits."""
        value: int | None = self._take(name, int, "a whole number")
        if value is None:
            return default
        if not -(1 << 63) <= value < 1 << 63 or (least is not None and value < least):
            self.fail(name, f"{value} is out of range")
        return value

    def boolean(self, name: str) -> bool:
        """Read a boolean; absent is False."""
        return bool(self._take(name, bool, "a boolean"))

    def texts(self, name: str) -> tuple[str, ...] | None:
        """Read an array of strings; None when absent."""
        values: list[Any] | None = self._take(name, list, "an array of strings")
        if values is None:
            return None
        for index, value in enumerate(values):
            if not isinstance(value, str):
                self.fail(f"{name}[{index}]", f"expected a string, found {describe(value)}")
        return tuple(values)

    def text_map(self, name: str) -> dict[str, str]:
        """Read an object whose values are strings; absent is empty."""
        values: dict[str, Any] = self._take(name, dict, "an object of strings") or {}
        for key, value in values.items():
            if not isinstance(value, str):
                self.fail(f"{name}[{key!r}]", f"expected a string, found {describe(value)}")
        return values

    def key_set(self, name: str) -> tuple[str, ...]:
        """Read Go's set form, an object whose values are empty objects, as sorted keys."""
        values: dict[str, Any] = self._take(name, dict, "an object") or {}
        return tuple(sorted(values))

    def inner(self, name: str) -> Fields | None:
        """Read a nested object; None when absent."""
        value: dict[str, Any] | None = self._take(name, dict, "an object")
        return None if value is None else Fields(value, self.locate(name))

    def inners(self, name: str) -> tuple[Fields, ...] | None:
        """Read an array of objects; None when absent."""
        values: list[Any] | None = self._take(name, list, "an array of objects")
        if values is None:
            return None
        for index, value in enumerate(values):
            if not isinstance(value, dict):
                self.fail(f"{name}[{index}]", f"expected an object, found {describe(value)}")
        return tuple(Fields(value, f"{self.locate(name)}[{index}]") for index, value in enumerate(values))


def drop_empty(values: Mapping[str, object]) -> dict[str, object]:
    """Leave out what Go's omitempty leaves out: None, "", 0, False and empty collections."""
    return {name: value for name, value in values.items() if value}
