"""The head start of a `build` process: it must never be seen but in the time that it saves."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pylayers.build.source import ahead
from pylayers.engine import Engine
from pylayers.store.statcache import StatCache
from tests.e2e.build_case import content, statuses

OLD_SECONDS = 0.06


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """Make a context that is large enough to be begun with."""
    folder = tmp_path / "context"
    (folder / "many").mkdir(parents=True)
    (folder / "Dockerfile").write_text("FROM base\nCOPY . /opt\n")
    for number in range(ahead.LEAST_ROWS):
        (folder / "many" / str(number)).write_text(str(number))
    time.sleep(OLD_SECONDS)
    return folder


def begin(engine: Engine, context: Path, dockerfile: str | None = None) -> list[ahead.Start]:
    ahead._started.clear()
    ahead.begin(str(engine.root), str(context), dockerfile)
    return list(ahead._started.values())


def test_a_build_takes_what_was_begun(engine: Engine, context: Path) -> None:
    assert begin(engine, context) == []
    first = engine.build(context)
    for _ in range(2):
        (start,) = begin(engine, context)
        again = engine.build(context)
        assert start.work.changed == b""
        assert ahead._started == {}
        assert (statuses(again), again.image_digest) == (["FROM cached", "COPY cached"], first.image_digest)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(start.descriptor)


def test_a_change_before_the_start_is_found(engine: Engine, context: Path) -> None:
    engine.build(context)
    (context / "many" / "7").write_text("other")
    (start,) = begin(engine, context)
    changed = engine.build(context)
    assert len(start.work.changed or b"") == 4
    assert statuses(changed)[1] == "COPY built"
    assert content(engine, changed, "opt/many/7") == b"other"


def test_a_start_that_is_not_fresh_counts_for_nothing(
    engine: Engine, context: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.build(context)
    (start,) = begin(engine, context)
    assert start.finish() == b""
    (context / "many" / "7").write_text("other")
    monkeypatch.setattr(ahead, "FRESH_NS", 0)
    assert content(engine, engine.build(context), "opt/many/7") == b"other"


def test_another_directory_in_the_same_place_counts_for_nothing(engine: Engine, context: Path) -> None:
    engine.build(context)
    (start,) = begin(engine, context)
    assert start.finish() == b""
    context.rename(context.with_name("old"))
    (context / "many").mkdir(parents=True)
    (context / "many" / "7").write_text("new")
    (context / "Dockerfile").write_text("FROM base\nCOPY . /opt\n")
    assert content(engine, engine.build(context), "opt/many/7") == b"new"


def test_small_trees_and_other_dockerfiles_are_not_begun(engine: Engine, context: Path) -> None:
    (context / "Dockerfile").write_text("FROM base\nCOPY many/1 /opt/\n")
    engine.build(context)
    assert begin(engine, context) == []
    (context / "Dockerfile").write_text("FROM base\nCOPY many /opt/\n")
    engine.build(context)
    assert len(begin(engine, context)) == 1
    other = context / "Other"
    other.write_text("FROM base\n")
    assert begin(engine, context, str(other)) == []


@pytest.mark.parametrize("harm", ["directory", "garbage", "cut", "gone", "unreadable table"])
def test_damage_costs_the_head_start_alone(engine: Engine, context: Path, harm: str) -> None:
    first = engine.build(context)
    folder = engine.root / "buildkit" / "stat"
    (note,) = folder.glob("*.next")
    if harm == "directory":
        note.unlink()
        note.mkdir()
    elif harm == "garbage":
        note.write_bytes(bytes(range(256)))
    elif harm == "cut":
        note.write_bytes(note.read_bytes()[:-5])
    elif harm == "gone":
        note.unlink()
    else:
        for table in folder.glob("*.idx"):
            table.write_bytes(table.read_bytes()[:-1000])
    assert begin(engine, context) == []
    assert engine.build(context).image_digest == first.image_digest
    assert len(begin(engine, context)) == (harm != "directory")


def test_names_with_the_separators_are_left_out(tmp_path: Path) -> None:
    cache = StatCache(tmp_path)
    cache.expect("a\0b", ["x\0y\0", "line\nend\0\0", "one\1\0\0", "\udcff\0\0"])
    assert cache.expected("a\0b") == ["x\0y\0", "\udcff\0\0"]
    assert cache.expected("a\0c") == []
    cache.expect("a\nb", ["x"])
    assert cache.expected("a\nb") == []


def test_processes_build_what_is_there(engine: Engine, context: Path) -> None:
    def build() -> str:
        command = [sys.executable, "-m", "pylayers.cli", "--root", engine.root, "build", "-q", context]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    first = build()
    assert build() == first
    (context / "many" / "7").write_text("other")
    assert build() != first
    (context / "many" / "7").write_text("7")
    time.sleep(OLD_SECONDS)
    assert build() == first == build()
