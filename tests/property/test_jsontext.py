"""The C half of json against json itself: every value written, every text read, every refusal."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylayers.jsontext import dump, load

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)
CANONICAL: dict[str, Any] = {
    "sort_keys": True, "separators": (",", ":"), "ensure_ascii": False, "allow_nan": False,
}  # fmt: skip


def same(left: object, right: object) -> bool:
    if isinstance(left, float) and isinstance(right, float) and math.isnan(left):
        return math.isnan(right)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    return type(left) is type(right) and left == right


@given(VALUES)
def test_values_are_written_as_json_writes_them(value: object) -> None:
    text = dump(value)
    assert text == json.dumps(value)
    assert same(load(text), json.loads(text))
    assert same(load(text.encode()), json.loads(text))


@given(VALUES)
def test_canonical_text_is_what_json_makes_of_the_same_options(value: object) -> None:
    def by_json() -> str:
        return json.dumps(value, **CANONICAL)

    try:
        expected = by_json()
    except ValueError:
        with pytest.raises(ValueError, match=r".+"):
            dump(value, **CANONICAL)
    else:
        assert dump(value, **CANONICAL) == expected


@given(st.text(alphabet=' \t\n\r{}[]",:0123456789.eE+-truefalsnNaIity\\u\x00é\ufeff') | st.text())
def test_any_text_is_read_or_refused_as_json_does(text: str) -> None:
    def outcome(read: Callable[[str], object]) -> object:
        try:
            return read(text)
        except ValueError as error:
            return type(error), str(error)

    ours, theirs = outcome(load), outcome(json.loads)
    assert same(ours, theirs) or ours == theirs


@pytest.mark.parametrize("text", ["", " ", "nul", '{"a":}', '"\\x"', "[1] 2", "1" * 5000, '"\x01"', "\ufeff1"])
def test_refusals_are_those_of_json_although_nothing_has_loaded_it(text: str) -> None:
    import subprocess
    import sys

    program = (
        "import sys; from pylayers.jsontext import load\n"
        "assert 'json' not in sys.modules\n"
        "try: load(sys.argv[1])\n"
        "except ValueError as error: print(type(error).__name__, error)"
    )
    with pytest.raises(ValueError, match=r".+") as expected:
        json.loads(text)
    said = subprocess.run([sys.executable, "-c", program, text], capture_output=True, text=True, check=True).stdout
    assert said == f"{type(expected.value).__name__} {expected.value}\n"


def test_what_json_does_not_know_and_circles_are_refused() -> None:
    circle: list[object] = []
    circle.append(circle)
    with pytest.raises(ValueError, match="Circular"):
        dump(circle)
    with pytest.raises(TypeError, match="set is not JSON serializable"):
        dump({"a": {1}})


def test_hooks_are_given_what_json_gives_them() -> None:
    text = '{"a": {"b": 1, "b": NaN}}'
    pairs = load(text, collect=list, constant=str.lower)
    assert pairs == json.loads(text, object_pairs_hook=list, parse_constant=str.lower)
