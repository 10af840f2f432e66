"""A COPY with a change goes on from the layer that it made before: the same bytes as if it were written whole."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pylayers._native import sha256
from pylayers.build.cache.step import LocalCache
from pylayers.build.event import BuildResult
from pylayers.diff import resume, write
from pylayers.engine import Engine
from pylayers.store import Layer, splice, state
from pylayers.store.layerstore import LayerStore
from tests.e2e.build_case import content, settle, statuses
from tests.e2e.inotify import Opened

FILE_BYTES = 3 << 20
pytestmark = pytest.mark.skipif(not sha256.is_fast(), reason="without SHA instructions no hash states are kept")


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    for number in range(8):
        path = folder / "t" / f"d{number}" / "large"
        path.parent.mkdir(parents=True)
        path.write_bytes(os.urandom(FILE_BYTES + number))
        (path.parent / "small").write_text(f"{number}\n")
    os.link(folder / "t" / "d2" / "small", folder / "t" / "d7" / "linked")
    (folder / "Dockerfile").write_text("FROM base\nCOPY t /opt/t\n")
    settle(folder)
    return folder


def layer(engine: Engine, result: BuildResult) -> Layer:
    return engine.store.layers.open(result.diff_ids[-1])


def build(engine: Engine, context: Path) -> BuildResult:
    """Build after a change, whose file the clock of the file system tells from the state before."""
    time.sleep(0.06)
    result = engine.build(context)
    assert statuses(result)[-1] == "COPY built"
    return result


def still(context: Path) -> None:
    """Set back the time of the directory that comes before all others: new names in it would leave nothing the same."""
    os.utime(context / "t", (1_600_000_000, 1_600_000_000))


def check_whole(engine: Engine, context: Path, result: BuildResult) -> None:
    """Compare with a build that uses nothing earlier, and read all of it again."""
    assert engine.build(context, no_cache=True).diff_ids == result.diff_ids
    engine.store.layers.verify(result.diff_ids[-1])
    assert engine.store.check() == []


def test_what_comes_before_the_change_is_stored_once(engine: Engine, context: Path) -> None:
    first = engine.build(context)
    (context / "t" / "d6" / "small").write_text("another\n")
    second = build(engine, context)
    made = layer(engine, second)
    assert made.base is not None, "the tests' file system shares blocks: see tests/conformance/test_reflink.py"
    assert Path(made.base.path).samefile(layer(engine, first).tar_path)
    assert made.base.end_bytes > 6 * FILE_BYTES
    assert Path(made.tar_path).stat().st_blocks * 512 < 2 * FILE_BYTES
    check_whole(engine, context, second)
    assert layer(engine, second).base is not None  # checking fills nothing
    assert content(engine, second, "opt/t/d6/small") == b"another\n"
    assert layer(engine, second).base is None
    engine.store.layers.verify(second.diff_ids[-1])


def test_what_comes_before_the_change_is_neither_read_nor_hashed(
    engine: Engine, context: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hash goes on from a state, at most 4 MiB behind; of the sources, what comes after the change is read."""
    hashed: list[int] = []
    read_range = splice.read_range

    def count(*given: Any) -> Iterator[memoryview]:
        for piece in read_range(*given):
            hashed.append(len(piece))
            yield piece

    monkeypatch.setattr("pylayers.diff.resume.read_range", count)
    time.sleep(0.06)  # or a file that was made last is read again, as racy
    first = engine.build(context)
    assert hashed == []
    (context / "t" / "d6" / "small").write_text("another\n")
    with Opened(context / "t") as opened:
        second = build(engine, context)
    assert opened.names == {"d6/small", "d7/large", "d7/small"}
    assert 0 < sum(hashed) <= state.EVERY_BYTES + 4096 < first.steps[-1].size_bytes // 4
    check_whole(engine, context, second)


def test_a_miss_asks_once_and_reads_one_layers_states(
    engine: Engine, context: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many earlier layers there are to go on from."""
    engine.build(context)
    for text in ("one", "two", "three"):
        (context / "t" / "d6" / "small").write_text(text)
        build(engine, context)
    calls: list[str] = []
    for owner, name in ((LocalCache, "earlier"), (LayerStore, "read_states")):
        called = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda *given, name=name, called=called: (calls.append(name), called(*given))[1]
        )
    (context / "t" / "d6" / "small").write_text("four")
    last = build(engine, context)
    assert layer(engine, last).base is not None
    assert sorted(calls) == ["earlier", "read_states"]


def test_the_earlier_image_can_be_removed(engine: Engine, context: Path) -> None:
    first = engine.build(context)
    (context / "t" / "d6" / "small").write_text("another\n")
    time.sleep(0.06)
    second = engine.build(context, references=["app"])
    assert engine.images.remove([first.image_digest]).deleted
    engine.system.prune()
    assert not engine.store.layers.exists(first.diff_ids[-1])
    assert layer(engine, second).base is not None
    engine.store.layers.verify(second.diff_ids[-1])
    assert content(engine, second, "opt/t/d0/small") == b"0\n"


def edit(path: str, text: str) -> Callable[[Path], None]:
    return lambda top: (top / path).write_text(text) and None


def grow(top: Path) -> None:
    with (top / "d5" / "large").open("ab") as file:
        file.write(b"more")


EDITS: tuple[tuple[str, Callable[[Path], None]], ...] = (
    ("late", edit("d6/small", "a")),
    ("later", edit("d7/small", "bb")),
    ("the same again", edit("d7/small", "ccc" * 400)),
    ("in the middle", edit("d3/small", "d")),
    ("late again", edit("d7/small", "e")),
    ("a size", grow),
    ("a mode", lambda top: (top / "d4" / "large").chmod(0o600)),
    ("a new file", edit("d1/added", "new")),
    ("a removed file", lambda top: (top / "d1" / "small").unlink()),
    ("the first", lambda top: (top / "d0").chmod(0o700)),
    ("a linked file", edit("d2/small", "linked")),
    ("the last is gone", lambda top: shutil.rmtree(top / "d7")),
    ("one more at the end", edit("z", "end")),
    ("a directory's mode", lambda top: (top / "d6").chmod(0o700)),
)


def test_any_edit_gives_the_bytes_of_a_whole_build(
    engine: Engine, context: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small steps, so that every way is taken: a base of a base, rows written again, a tar that is filled first."""
    monkeypatch.setattr(resume, "LEAST_BYTES", 8192)
    for module in (state, resume, write):
        monkeypatch.setattr(module, "EVERY_BYTES", 65536)
    engine.build(context)
    shared = []
    for name, change in EDITS:
        change(context / "t")
        still(context)
        result = build(engine, context)
        shared.append((name, layer(engine, result).base is not None))
        check_whole(engine, context, result)
    assert [name for name, base in shared if not base] == ["the first"]


def test_a_base_is_never_based_on_another(engine: Engine, context: Path) -> None:
    first = engine.build(context)
    (context / "t" / "d6" / "small").write_text("1\n")
    second = build(engine, context)
    (context / "t" / "d7" / "small").write_text("2\n")
    third = build(engine, context)
    base = layer(engine, third).base
    assert base is not None
    assert Path(base.path).samefile(layer(engine, first).tar_path)  # less than the base was common beyond it
    assert base.end_bytes == layer(engine, second).base.end_bytes  # type: ignore[union-attr]
    check_whole(engine, context, third)


def test_a_short_base_is_filled_when_much_more_is_common(engine: Engine, context: Path) -> None:
    for number in range(8, 14):
        (context / "t" / f"e{number}").write_bytes(os.urandom(FILE_BYTES))
    still(context)
    engine.build(context)
    (context / "t" / "d6" / "small").write_text("1\n")
    second = build(engine, context)
    assert layer(engine, second).base is not None
    (context / "t" / "f").write_bytes(os.urandom(40 << 20))
    still(context)
    build(engine, context)
    (context / "t" / "z").write_text("2\n")
    still(context)
    fourth = build(engine, context)
    made = layer(engine, fourth)
    assert made.base is not None
    assert made.base.end_bytes > 80 << 20
    check_whole(engine, context, fourth)


@pytest.mark.parametrize("damage", ["gone", "torn"])
def test_without_sound_states_a_layer_is_written_whole(engine: Engine, context: Path, damage: str) -> None:
    path = Path(layer(engine, engine.build(context)).tar_path).with_name(state.STATES_NAME)
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-40] + bytes(40))
    (context / "t" / "d6" / "small").write_text("another\n")
    second = build(engine, context)
    assert layer(engine, second).base is None
    check_whole(engine, context, second)


def test_a_processor_without_the_instructions_uses_openssl(
    engine: Engine, context: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sha256, "is_fast", lambda: False)
    first = engine.build(context)
    assert not Path(layer(engine, first).tar_path).with_name(state.STATES_NAME).exists()
    (context / "t" / "d6" / "small").write_text("another\n")
    second = build(engine, context)
    assert layer(engine, second).base is None
    check_whole(engine, context, second)


def test_no_cache_goes_on_from_nothing(engine: Engine, context: Path) -> None:
    engine.build(context)
    (context / "t" / "d6" / "small").write_text("another\n")
    time.sleep(0.06)
    assert layer(engine, engine.build(context, no_cache=True)).base is None


@pytest.mark.parametrize("damage", ["short", "removed"])
def test_an_earlier_layer_whose_bytes_are_not_there(
    engine: Engine, context: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """Cut short, or removed by a repair since it was opened: the layer is written whole."""
    engine.build(context)
    (context / "t" / "d6" / "small").write_text("another\n")
    second = build(engine, context)
    base = layer(engine, second).base
    assert base is not None
    if damage == "short":
        os.truncate(base.path, base.end_bytes - (1 << 20))

    def find(*given: Any) -> resume.Resumption | None:
        found = original(*given)
        if damage == "removed":
            for one in given[-1]:
                engine.store.layers.delete(one.diff_id)
        return found

    original = resume.find_resumption
    monkeypatch.setattr(resume, "find_resumption", find)
    (context / "t" / "d6" / "small").write_text("one more\n")
    third = build(engine, context)
    assert layer(engine, third).base is None
    assert engine.build(context, no_cache=True).diff_ids == third.diff_ids
    engine.store.layers.verify(third.diff_ids[-1])


def test_sources_that_change_between_the_look_and_the_writing(
    engine: Engine, context: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is shared is what was looked up, what is written is what was read; the step's key is of both."""
    engine.build(context)
    (context / "t" / "d6" / "small").write_text("another\n")
    early, late = context / "t" / "d1" / "large", context / "t" / "d7" / "large"
    before = early.read_bytes()
    original = resume.find_resumption

    def find(*given: Any) -> resume.Resumption | None:
        found = original(*given)
        assert found is not None
        for path in (early, late):
            with path.open("r+b") as file:
                file.write(b"changed")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(resume, "find_resumption", find)
        second = build(engine, context)
    assert layer(engine, second).base is not None
    engine.store.layers.verify(second.diff_ids[-1])
    assert content(engine, second, "opt/t/d1/large") == before
    assert content(engine, second, "opt/t/d7/large")[:7] == b"changed"
    third = build(engine, context)
    assert third.diff_ids != second.diff_ids
    check_whole(engine, context, third)
    early.write_bytes(before)
    time.sleep(0.06)
    again = engine.build(context)
    assert statuses(again)[-1] == "COPY cached"
    assert again.diff_ids == second.diff_ids


def test_a_damaged_earlier_layer_is_no_trouble(engine: Engine, context: Path) -> None:
    Path(layer(engine, engine.build(context)).tar_path).with_name("layer.idx").write_bytes(b"")
    (context / "t" / "d6" / "small").write_text("another\n")
    second = build(engine, context)
    assert layer(engine, second).base is None
    engine.store.layers.verify(second.diff_ids[-1])
