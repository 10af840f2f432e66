"""The short reader of run's command line gives what click gives, and leaves to click what it isn't sure of."""

from __future__ import annotations

from typing import Any

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylayers.cli.option import FLAG
from pylayers.cli.runcommand import run
from pylayers.cli.runline import DETACH, OPTIONS, read_line, read_options

FLAGS = [flag for option in (DETACH, *OPTIONS) for flag in option.flags]
VALUES = ["image", "", "-", "a=b", "-v", "--rm", "sh -c", "é", "3"]
WORDS = st.one_of(
    st.sampled_from(FLAGS),
    st.sampled_from(VALUES),
    st.tuples(st.sampled_from(FLAGS), st.sampled_from(VALUES)).map("=".join),
    st.sampled_from(["--help", "-it", "--", "--nope", "-eA=1", "--vol", "-dit"]),
)


def read_by_click(words: list[str]) -> dict[str, Any] | None:
    try:
        with run.make_context("run", list(words), obj=None) as context:
            return dict(context.params)
    except (click.ClickException, click.exceptions.Exit):
        return None


@settings(deadline=None, max_examples=400)
@given(st.lists(WORDS, max_size=8))
def test_what_it_reads_is_what_click_reads(words: list[str]) -> None:
    found = read_options(words)
    if found is not None:
        assert found == read_by_click(words)


@pytest.mark.parametrize("option", [DETACH, *OPTIONS], ids=lambda option: option.name)
def test_reads_every_option(option: Any) -> None:
    for flag in option.flags:
        words = [flag] if option.kind == FLAG else [flag, "v"]
        line = [*words, "image", "sh", "-c", "--rm"]
        found = read_options(line)
        if option.number is not None:
            assert found is None
            continue
        assert found is not None
        assert found == read_by_click(line)
        assert found["command"] == ("sh", "-c", "--rm")


@pytest.mark.parametrize(
    "words", [["run"], ["run", "--help"], ["run", "-it", "a"], ["-D", "run", "a"], ["container", "run", "a"]]
)
def test_leaves_other_lines_to_click(words: list[str]) -> None:
    assert read_line(words) is None


def test_global_options() -> None:
    found = read_line(["--root=/r", "run", "--rm", "image", "true"])
    assert found is not None
    assert found[0] == {"root": "/r"}
    assert (found[1]["remove"], found[1]["image"], found[1]["command"]) == (True, "image", ("true",))
