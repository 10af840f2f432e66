"""Early cut-off with real commands: equal trees share what follows, whatever led to them."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from pylayers.build.event import Cause, Event, StepExplained, StepStatus
from pylayers.engine import Engine
from tests.e2e.build_case import open_with_busybox, write

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("runc") is None, reason="needs root and runc"),
]
CACHED, BUILT = StepStatus.CACHED, StepStatus.BUILT
AFTER = "RUN cat /one /two > /both\nCOPY file /file\n"


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return open_with_busybox(tmp_path / "root", tmp_path)


def build(engine: Engine, context: Path, text: str, **options: str) -> tuple[list[StepStatus], list[set[Cause]]]:
    write(context, {"file": "content", "Dockerfile": text})
    events: list[Event] = []
    result = engine.build(context, subscriber=events.append, explain=True, **options)  # type: ignore[arg-type]
    told = [{reason.cause for reason in event.reasons} for event in events if isinstance(event, StepExplained)]
    return [step.status for step in result.steps], told


def test_reordered_steps_share_what_follows(engine: Engine, tmp_path: Path) -> None:
    one, two = "RUN echo 1 > /one\n", "RUN echo 2 > /two\n"
    assert build(engine, tmp_path / "a", f"FROM busybox\n{one}{two}{AFTER}")[0] == [CACHED, BUILT, BUILT, BUILT, BUILT]
    time.sleep(1.1)  # other whole-second mtimes, so other layers
    statuses, told = build(engine, tmp_path / "b", f"FROM busybox\n{two}{one}{AFTER}")
    assert statuses == [CACHED, BUILT, BUILT, CACHED, CACHED]
    assert told[3:] == [{Cause.REUSED, Cause.EQUAL_TREE}] * 2


def test_a_rewritten_step_with_the_same_result_is_the_last_one_performed(engine: Engine, tmp_path: Path) -> None:
    first = f"FROM busybox\nRUN echo 1 > /one && echo 2 > /two\n{AFTER}"
    build(engine, tmp_path / "a", first)
    time.sleep(1.1)
    rewritten = first.replace("echo 1 > /one && echo 2 > /two", "printf '2\\n' > /two; printf '1\\n' > /one")
    statuses, told = build(engine, tmp_path / "a", rewritten)
    assert statuses == [CACHED, BUILT, CACHED, CACHED]
    assert told[1] == {Cause.COMMAND}
    assert Cause.EQUAL_TREE in told[2]


@pytest.mark.parametrize("other", ["chmod 600 /one", "chown 5 /one", "mkdir /three"])
def test_another_mode_or_owner_or_path_is_another_tree(engine: Engine, tmp_path: Path, other: str) -> None:
    first = f"FROM busybox\nRUN echo 1 > /one && echo 2 > /two\n{AFTER}"
    build(engine, tmp_path / "a", first)
    statuses, told = build(engine, tmp_path / "a", first.replace("/two\n", f"/two && {other}\n", 1))
    assert statuses == [CACHED, BUILT, BUILT, BUILT]
    assert told[2] == {Cause.PARENT}


def test_docker_s_rule_on_request(engine: Engine, tmp_path: Path) -> None:
    first = f"FROM busybox\nRUN echo 1 > /one && echo 2 > /two\n{AFTER}"
    build(engine, tmp_path / "a", first, cache_key="chain")
    time.sleep(1.1)
    rewritten = first.replace("&&", ";")
    assert build(engine, tmp_path / "a", rewritten, cache_key="chain")[0] == [CACHED, BUILT, BUILT, BUILT]
    assert build(engine, tmp_path / "a", rewritten, cache_key="chain")[0] == [CACHED] * 4


def test_a_changed_variable_is_told_by_name_only(engine: Engine, tmp_path: Path) -> None:
    text = "FROM busybox\nARG TOKEN\nRUN echo > /one\n"
    write(tmp_path / "a", {"Dockerfile": text})
    engine.build(tmp_path / "a", arguments={"TOKEN": "hush-first"})
    events: list[Event] = []
    engine.build(tmp_path / "a", arguments={"TOKEN": "hush-second"}, explain=True, subscriber=events.append)
    (reason,) = [event for event in events if isinstance(event, StepExplained)][2].reasons
    assert (reason.cause, reason.names, reason.message) == (Cause.ENVIRONMENT, ("TOKEN",), "ARG TOKEN changed")
    for record in engine.store.metadata.steps.walk():
        assert "hush" not in repr(record.inputs)
