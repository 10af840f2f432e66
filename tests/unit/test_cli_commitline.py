"""The short reader of commit's command line gives what click gives, and leaves to click what it isn't sure of."""

from __future__ import annotations

from typing import Any

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylayers.cli.commit import OPTIONS, read_line, read_options
from pylayers.cli.container import commit

FLAGS = [flag for option in OPTIONS for flag in option.flags]
VALUES = ["box", "name:tag", "", "-", "a=b", "ENV A=1"]
WORDS = st.one_of(
    st.sampled_from(FLAGS),
    st.sampled_from(VALUES),
    st.tuples(st.sampled_from(FLAGS), st.sampled_from(VALUES)).map("=".join),
    st.sampled_from(["--help", "--", "--nope", "-cA", "--auth", "-p"]),
)


def read_by_click(words: list[str]) -> dict[str, Any] | None:
    try:
        with commit.make_context("commit", list(words), obj=None) as context:
            return dict(context.params)
    except (click.ClickException, click.exceptions.Exit):
        return None


@settings(deadline=None, max_examples=300)
@given(st.lists(WORDS, max_size=6))
def test_what_it_reads_is_what_click_reads(words: list[str]) -> None:
    found = read_options(words)
    if found is not None:
        assert found == read_by_click(words)


def test_plain_lines_are_read() -> None:
    assert read_line(["--root", "/r", "commit", "-m", "why", "box", "a:1", "-c", "ENV A=1", "--change=CMD x"]) == (
        {"root": "/r"},
        {"container": "box", "name": "a:1", "author": "", "message": "why", "changes": ("ENV A=1", "CMD x")},
    )
    found = read_options(["box"])
    assert found is not None
    assert found["name"] is None


@pytest.mark.parametrize("words", [[], ["a", "b", "c"], ["--help"], ["-x", "a"], ["a", "-m"]])
def test_all_else_is_clicks(words: list[str]) -> None:
    assert read_options(words) is None
