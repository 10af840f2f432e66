"""How the command line writes sizes, ages, tables and templates."""

from __future__ import annotations

import io
import time

import pytest

from pylayers.cli.form import (
    clip,
    confirm,
    fill_template,
    print_rows,
    show_ago,
    show_duration,
    show_size,
)
from pylayers.cli.option import read_pairs
from pylayers.errors import InvalidInput, PylayersError


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [(0, "0B"), (999, "999B"), (1000, "1kB"), (1536, "1.54kB"), (999_499, "999kB"), (999_500, "1MB"),
     (12_345_678, "12.3MB"), (5_000_000_000, "5GB"), (7 * 10**15, "7PB"), (10**18, "1EB")],
)  # fmt: skip
def test_size(size_bytes: int, shown: str) -> None:
    assert show_size(size_bytes) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (60, "About a minute"), (119, "About a minute"),
     (120, "2 minutes"), (3600, "About an hour"), (7200, "2 hours"), (48 * 3600, "2 days"), (14 * 86400, "2 weeks"),
     (60 * 86400, "2 months"), (730 * 86400, "2 years")],
)  # fmt: skip
def test_duration(seconds: float, shown: str) -> None:
    assert show_duration(seconds) == shown


def test_ago_of_a_clock_that_went_back() -> None:
    assert show_ago(time.time() + 100) == "Less than a second ago"


def test_table_pads_columns_and_trims_line_ends(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"A": "long value", "B": "x", "Hidden": 1}, {"A": "s", "B": "", "Hidden": 2}]
    print_rows(("A", "B"), rows)
    assert capsys.readouterr().out == "A            B\nlong value   x\ns\n"


def test_table_without_rows_has_its_titles(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(("A", "B"), [], "table")
    assert capsys.readouterr().out == "A   B\n"


def test_json_rows_are_one_line_each_with_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(("A",), [{"A": "x", "Hidden": 1}, {"A": "ü", "Hidden": 2}], "json")
    assert capsys.readouterr().out == '{"A": "x", "Hidden": 1}\n{"A": "ü", "Hidden": 2}\n'


@pytest.mark.parametrize(
    ("template", "shown"),
    [("{{.A}}", "x"), ("{{ .A }}-{{.In.B}}", "x-2"), ("{{json .In}}", '{"B": 2}'), ("{{.T}}", "true"),
     (r"{{.A}}\t!", "x\t!")],
)  # fmt: skip
def test_template(template: str, shown: str) -> None:
    assert fill_template(template, {"A": "x", "In": {"B": 2}, "T": True}) == shown


def test_template_leaves_values_alone() -> None:
    assert fill_template("{{.A}}", {"A": r"{{.B}}\n", "B": "no"}) == r"{{.B}}\n"


@pytest.mark.parametrize("template", ["{{.Missing}}", "{{.A.B}}", "{{range .}}x{{end}}", "plain", "{{.A}} {{", ""])
def test_template_refused(template: str) -> None:
    with pytest.raises(InvalidInput):
        fill_template(template, {"A": "x"})


def test_clip() -> None:
    assert clip("abcdef", 6) == "abcdef"
    assert clip("abcdefg", 6) == "abcde…"


@pytest.mark.parametrize("answer", ["y\n", "YES\n"])
def test_confirm_yes(answer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    confirm(["WARNING! All."], "prune")
    assert capsys.readouterr().out == "WARNING! All.\nAre you sure you want to continue? [y/N] "


@pytest.mark.parametrize("answer", ["", "\n", "n\n", "yikes\n"])
def test_confirm_anything_else(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    with pytest.raises(PylayersError, match="cancelled"):
        confirm(["WARNING! All."], "prune")


def test_pairs() -> None:
    assert read_pairs(["a=1", "b", "c=x=y"]) == {"a": "1", "b": "", "c": "x=y"}
    with pytest.raises(InvalidInput):
        read_pairs(["=x"])
