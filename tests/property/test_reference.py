"""The grammar of references and names against the regular expressions that say the same."""

from __future__ import annotations

import re

from hypothesis import example, given
from hypothesis import strategies as st

from pylayers.engine.name import check_name
from pylayers.errors import InvalidInput
from pylayers.oci.reference import is_registry, is_repository, is_tag

LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
REGISTRY = rf"(?:{LABEL}(?:\.{LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
REPOSITORY = rf"{COMPONENT}(?:/{COMPONENT})*"
TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
NAME = r"[a-zA-Z0-9][a-zA-Z0-9_.-]*"

TEXTS = st.text(alphabet="aZf09._-:/[]é²\n", max_size=12) | st.text(max_size=8) | st.from_regex(TAG, fullmatch=True)


@given(TEXTS | st.from_regex(REGISTRY, fullmatch=True))
@example("[::1]:5000")
@example("[::1]")
@example("[]:1")
@example("a:1:2")
@example("[a]b]")
@example("host\n")
def test_registry(text: str) -> None:
    assert is_registry(text) == bool(re.fullmatch(REGISTRY, text))


@given(TEXTS | st.from_regex(REPOSITORY, fullmatch=True))
@example("a___b")
@example("a--b")
@example("a-_b")
@example("a..b")
@example("a//b")
def test_repository(text: str) -> None:
    assert is_repository(text) == bool(re.fullmatch(REPOSITORY, text))


@given(TEXTS)
@example("a" * 128)
@example("a" * 129)
@example("a\n")
def test_tag(text: str) -> None:
    assert is_tag(text) == bool(re.fullmatch(TAG, text))


@given(TEXTS)
@example("")
@example("a\n")
def test_container_name(text: str) -> None:
    try:
        check_name(text)
        fits = True
    except InvalidInput:
        fits = False
    assert fits == bool(re.fullmatch(NAME, text))
