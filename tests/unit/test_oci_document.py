from __future__ import annotations

import pytest

from pylayers.errors import InvalidInput
from pylayers.oci.document import DOCUMENT_LIMIT_BYTES, Fields, decode, encode


def test_canonical_bytes() -> None:
    assert encode({"b": [1, 2], "a": "é<&>/\n", "c": {"z": None, "y": True}}) == (
        '{"a":"é<&>/\\n","b":[1,2],"c":{"y":true,"z":null}}'.encode()
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800"])
def test_what_json_cannot_hold_is_refused(value: object) -> None:
    with pytest.raises(InvalidInput):
        encode({"a": value})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"[]", "expected a JSON object, found an array"),
        (b'{"a":1,"a":2}', "'a' appears twice"),
        (b'{"a":{"b":1,"b":1}}', "'b' appears twice"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":"\xff"}', "not JSON"),
        (b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
        (b'{"a":' + b"1" * 5000 + b"}", "not JSON"),
        (b" " * (DOCUMENT_LIMIT_BYTES + 1), "limit"),
        (b'{"a":1} x', "not JSON"),
    ],
)
def test_decode_refuses(content: bytes, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        decode(content, "thing")


@pytest.mark.parametrize(
    ("read", "field"),
    [
        (lambda fields: fields.text("number"), "doc.number"),
        (lambda fields: fields.integer("text"), "doc.text"),
        (lambda fields: fields.integer("truth"), "doc.truth"),
        (lambda fields: fields.integer("huge"), "doc.huge"),
        (lambda fields: fields.integer("number", least=8), "doc.number"),
        (lambda fields: fields.boolean("number"), "doc.number"),
        (lambda fields: fields.texts("mixed"), r"doc.mixed\[1\]"),
        (lambda fields: fields.inners("mixed"), r"doc.mixed\[0\]"),
        (lambda fields: fields.text_map("map"), r"doc.map\['k'\]"),
        (lambda fields: fields.inner("text"), "doc.text"),
        (lambda fields: fields.required_text("absent"), "doc.absent: missing"),
        (lambda fields: fields.inner("map").text("k"), "doc.map.k"),
    ],
)
def test_errors_name_the_field(read, field: str) -> None:  # type: ignore[no-untyped-def]
    values = {"number": 7, "text": "x", "truth": True, "huge": 1 << 63, "mixed": ["a", 1], "map": {"k": 1}}
    with pytest.raises(InvalidInput, match=field):
        read(Fields(values, "doc"))


def test_null_is_absent() -> None:
    fields = Fields({"a": None}, "doc")
    assert (fields.text("a"), fields.texts("a"), fields.text_map("a"), fields.inner("a")) == ("", None, {}, None)
    assert not fields.has("a")
