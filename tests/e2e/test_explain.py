"""--explain: the reason for every step, from real builds over what earlier ones left."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pylayers.build.event import Cause, Event, Reason, StepExplained
from pylayers.engine import Engine
from tests.e2e.build_case import write
from tests.e2e.cli_process import Cli


@pytest.fixture
def context(tmp_path: Path) -> Path:
    directory = tmp_path / "context"
    directory.mkdir()
    return directory


def explain(engine: Engine, context: Path, **options: object) -> list[tuple[Reason, ...]]:
    """Build and return the reasons of each step but FROM."""
    events: list[Event] = []
    engine.build(context, subscriber=events.append, explain=True, **options)  # type: ignore[arg-type]
    return [event.reasons for event in events if isinstance(event, StepExplained)][1:]


def causes(reasons: tuple[Reason, ...]) -> list[Cause]:
    return [reason.cause for reason in reasons]


def test_a_first_build_is_new_and_a_second_reuses(engine: Engine, context: Path) -> None:
    write(context, {"a": "1", "Dockerfile": "FROM base\nCOPY a /a\nWORKDIR /w\nENV X=1\n"})
    assert [causes(one) for one in explain(engine, context)] == [[Cause.NEW]] * 3
    again = explain(engine, context)
    assert [causes(one) for one in again] == [[Cause.REUSED]] * 3
    assert "COPY a /a" in again[0][0].message


def test_a_copy_names_each_path_and_what_about_it(engine: Engine, context: Path) -> None:
    files = {f"src/{name}": name for name in ("content", "mode", "removed", "kind", "same")}
    write(context, {**files, "Dockerfile": "FROM base\nCOPY src /src\nCOPY Dockerfile /d\n"})
    os.symlink("one", context / "src/link")
    os.setxattr(context / "src/same", "user.kept", b"1")
    explain(engine, context)
    (context / "src/content").write_text("other")
    (context / "src/mode").chmod(0o600)
    (context / "src/removed").unlink()
    (context / "src/kind").unlink()
    (context / "src/kind").mkdir()
    (context / "src/link").unlink()
    os.symlink("two", context / "src/link")
    os.setxattr(context / "src/same", "user.kept", b"2")
    (context / "src/added").write_text("")
    copied, after = explain(engine, context)
    assert causes(copied) == [Cause.CONTENT]
    found = {one.path: one.differences for one in copied[0].paths}
    assert found == {
        "/src/added": ("added",),
        "/src/content": ("content",),
        "/src/kind": ("type file → directory",),
        "/src/link": ("link target one → two",),
        "/src/mode": ("mode 0644 → 0600",),
        "/src/removed": ("removed",),
        "/src/same": ("xattr user.kept",),
    }
    assert copied[0].path_count == 7
    assert causes(after) == [Cause.PARENT]
    assert "COPY src /src" in after[0].message


def test_at_most_twenty_paths_and_their_count(engine: Engine, context: Path) -> None:
    write(context, {**{f"d/{number}": "1" for number in range(30)}, "Dockerfile": "FROM base\nCOPY d /d\n"})
    explain(engine, context)
    write(context, {f"d/{number}": "2" for number in range(30)})
    for path in (context / "d").iterdir():
        os.utime(path, (1_600_000_001, 1_600_000_001))
    (reason,) = explain(engine, context)[0]
    assert (len(reason.paths), reason.path_count) == (20, 30)


def test_owner_no_cache_and_a_lost_layer(engine: Engine, context: Path) -> None:
    write(context, {"a": "1", "Dockerfile": "FROM base\nARG WHO=1\nCOPY --chown=$WHO a /a\n"})
    explain(engine, context)
    owner = explain(engine, context, arguments={"WHO": "5"})[1]
    assert Cause.OPTION in causes(owner)
    assert [causes(one) for one in explain(engine, context, no_cache=True)] == [[Cause.NO_CACHE]] * 2
    result = engine.build(context)
    engine.store.layers.delete(result.diff_ids[-1])
    assert causes(explain(engine, context)[1]) == [Cause.COLLECTED]


def test_an_edited_instruction_tells_what_it_was(engine: Engine, context: Path) -> None:
    write(context, {"a": "1", "b": "1", "Dockerfile": "FROM base\nCOPY a /x\nLABEL l=1\n"})
    explain(engine, context)
    write(context, {"Dockerfile": "FROM base\nCOPY b /x\nLABEL l=2\n"})
    copied, label = explain(engine, context)
    assert (Cause.INSTRUCTION in causes(copied), "'a'" in copied[0].message) == (True, True)
    assert (causes(label), "LABEL l=1" in label[0].message) == ([Cause.INSTRUCTION], True)


def test_nothing_is_told_unless_asked(engine: Engine, context: Path) -> None:
    write(context, {"a": "1", "Dockerfile": "FROM base\nCOPY a /a\n"})
    events: list[Event] = []
    engine.build(context, subscriber=events.append)
    assert not [event for event in events if isinstance(event, StepExplained)]


@pytest.mark.parametrize("mode", ["plain", "rawjson"])
def test_the_command_line_shows_it(tmp_path: Path, engine: Engine, context: Path, mode: str) -> None:
    write(context, {"a": "1", "Dockerfile": "FROM base\nCOPY a /a\n"})
    engine.build(context)
    (context / "a").write_text("2")
    engine.close()
    shown = Cli(tmp_path)("build", "--explain", "--progress", mode, str(context)).stderr
    if mode == "plain":
        assert "because content: 1 path changed" in shown
        assert "/a: content" in shown
        return
    lines = [json.loads(line) for line in shown.splitlines()]
    told = [line for line in lines if line["event"] == "step_explained"][1]
    assert (told["status"], told["reasons"][0]["cause"]) == ("built", "content")
    assert told["reasons"][0]["paths"] == [{"path": "/a", "differences": ["content"]}]
