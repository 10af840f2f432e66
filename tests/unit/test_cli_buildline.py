"""The short reader of build's command line gives what click gives, and leaves to click what it isn't sure of."""

from __future__ import annotations

from typing import Any

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylayers.cli.buildcommand import build
from pylayers.cli.buildline import OPTIONS, read_line, read_options
from pylayers.cli.option import FLAG

VALUES = ["a", "", "-", "x=y", "type=local,dest=o", "plain", "tree", "chain", "auto", "-q", "--pull", "é"]
FLAGS = [flag for option in OPTIONS for flag in option.flags]
WORDS = st.one_of(
    st.sampled_from(FLAGS),
    st.sampled_from(VALUES),
    st.tuples(st.sampled_from(FLAGS), st.sampled_from(VALUES)).map("=".join),
    st.sampled_from(["--help", "-h", "--", "--nope", "-tname", "--no-cach", "-qt"]),
)


def read_by_click(words: list[str]) -> dict[str, Any] | None:
    try:
        with build.make_context("build", list(words), obj=None) as context:
            return dict(context.params)
    except (click.ClickException, click.exceptions.Exit):
        return None


@settings(deadline=None, max_examples=400)
@given(st.lists(WORDS, max_size=8))
def test_what_it_reads_is_what_click_reads(words: list[str]) -> None:
    found = read_options(words)
    if found is not None:
        assert found == read_by_click(words)


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_reads_every_option(option: Any) -> None:
    value = option.choices[-1] if option.choices else "v"
    for flag in option.flags:
        words = [flag] if option.kind == FLAG else [flag, value]
        found = read_options([*words, "context"])
        assert found is not None
        assert found == read_by_click([*words, "context"])
        assert found["context"] == "context"


def test_the_environment_counts_where_the_option_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYLAYERS_PROGRESS", "rawjson")
    for words in ([], ["--progress", "plain"]):
        found = read_options(words)
        assert found is not None
        assert found == read_by_click(words)
    monkeypatch.setenv("PYLAYERS_PROGRESS", "nonsense")
    assert read_options([]) is None


def test_global_options() -> None:
    found = read_line(["--root", "/r", "--driver=vfs", "build", "-q", "."])
    assert found is not None
    assert found[0] == {"root": "/r", "driver": "vfs"}
    assert found[1]["quiet"] is True


@pytest.mark.parametrize(
    "words", [[], ["--root"], ["--root", "build"], ["-D", "build"], ["image", "build"], ["images"], ["build", "a", "b"]]
)
def test_leaves_other_lines_to_click(words: list[str]) -> None:
    assert read_line(words) is None
