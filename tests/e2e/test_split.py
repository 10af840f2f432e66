"""--split-layers for real: the same tree in several layers, of which a change makes one anew."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pylayers.build.event import BuildResult
from pylayers.diff.merge import merge_layers, tree_digest
from pylayers.engine import Engine
from pylayers.errors import InvalidInput
from tests.e2e.build_case import content, members, settle, statuses

FILE_BYTES = 100_000


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    for number in range(60):
        path = folder / "t" / f"d{number % 5}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(FILE_BYTES))
    os.link(folder / "t" / "d0" / "f0", folder / "t" / "z")
    (folder / "t" / "link").symlink_to("d0")
    (folder / "Dockerfile").write_text("FROM base\nCOPY t /opt/t\nCOPY t/link /end\n")
    settle(folder)
    return folder


def digest(engine: Engine, result: BuildResult) -> bytes:
    return tree_digest(merge_layers([engine.store.layers.open(diff_id) for diff_id in result.diff_ids]))


def test_one_tree_in_several_layers(engine: Engine, context: Path) -> None:
    whole = engine.build(context)
    split = engine.build(context, split_layers="1m")
    assert len(whole.diff_ids) == 3
    assert len(split.diff_ids) > 6
    assert digest(engine, split) == digest(engine, whole)
    sizes = [engine.store.layers.size_bytes(diff_id) for diff_id in split.diff_ids[1:-1]]
    assert max(sizes) < 3 << 20
    for layer in range(1, len(split.diff_ids) - 1):
        names = set(members(engine, split, layer))
        assert all(os.path.dirname(name) in (*names, "") for name in names)
    again = engine.build(context, split_layers="1m")
    assert statuses(again) == ["FROM cached", "COPY cached", "COPY cached"]
    assert (again.image_digest, again.diff_ids) == (split.image_digest, split.diff_ids)
    history = engine.images.get(split.image_digest).config.history
    assert sum(not line.empty_layer for line in history) == len(split.diff_ids)


def test_a_change_makes_one_layer_anew(engine: Engine, context: Path) -> None:
    first = engine.build(context, split_layers="1m")
    time.sleep(0.06)
    path = context / "t" / "d3" / "f33"
    path.write_bytes(os.urandom(FILE_BYTES))
    os.utime(path, (1_600_000_000, 1_600_000_000))
    layers = set(engine.store.layers.walk())
    second = engine.build(context, split_layers="1m")
    assert len(second.diff_ids) == len(first.diff_ids)
    assert len(set(second.diff_ids) - set(first.diff_ids)) == 1
    assert len(set(engine.store.layers.walk()) - layers) == 1
    changed = next(number for number, diff_id in enumerate(second.diff_ids) if diff_id not in first.diff_ids)
    assert content(engine, second, "opt/t/d3/f33", changed) == path.read_bytes()
    assert engine.build(context, split_layers="1m", no_cache=True).diff_ids == second.diff_ids


def test_a_small_copy_stays_whole_and_bad_sizes_are_refused(engine: Engine, context: Path) -> None:
    assert engine.build(context, split_layers="100m").diff_ids == engine.build(context).diff_ids
    for size in ("much", "10k"):
        with pytest.raises(InvalidInput, match=r"split-layers|size"):
            engine.build(context, split_layers=size)
