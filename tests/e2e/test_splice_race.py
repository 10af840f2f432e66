"""Builds of one COPY, readers that fill, collections and repairs, all at once on one root: nothing is lost or wrong."""

from __future__ import annotations

import os
import random
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from pylayers._native import sha256
from pylayers.diff import resume, write
from pylayers.engine import Engine
from pylayers.errors import NotFound
from pylayers.store import state

pytestmark = pytest.mark.skipif(not sha256.is_fast(), reason="without SHA instructions no hash states are kept")
FILE_BYTES = 100_000
BUILDS = 8


def build(root: Path, context: Path, seed: int) -> None:
    """Build again and again with one of a few edits, so that others make the same layers at the same time."""
    draw = random.Random(seed)
    for _ in range(BUILDS):
        size = draw.choice((5, FILE_BYTES - 1, FILE_BYTES + 1))
        (context / "t" / f"{draw.randrange(4, 8)}").write_bytes(random.Random(size).randbytes(size))
        age(context)
        with Engine.open(root) as engine:
            diff_id = engine.build(context, references=[f"r{seed}"]).diff_ids[-1]
            engine.store.layers.verify(diff_id)


def plant(context: Path) -> None:
    draw = random.Random(1)
    (context / "t").mkdir(parents=True)
    for number in range(8):
        (context / "t" / f"{number}").write_bytes(draw.randbytes(FILE_BYTES))
    (context / "Dockerfile").write_text("FROM scratch\nCOPY t /opt/t\n")
    age(context)


def age(context: Path) -> None:
    """Set the times of what is copied back; contents of other sizes tell themselves."""
    for path in (context / "t", *(context / "t").iterdir()):
        os.utime(path, (1_600_000_000, 1_600_000_000))


def fill(root: Path, ended: Path) -> None:
    """Read layers as drivers do, until the builds are done."""
    draw = random.Random(3)
    while not ended.exists():
        with Engine.open(root) as engine, engine.store.lease("fill") as lease:
            for diff_id in list(engine.store.layers.walk()):
                if draw.random() < 0.2:
                    lease.hold("layer", diff_id)
                    try:
                        os.close(engine.store.layers.open(diff_id).open_tar())
                    except NotFound:
                        continue  # collected before it was held
        time.sleep(0.02)


def collect(root: Path, ended: Path) -> None:
    draw = random.Random(4)
    while not ended.exists():
        with Engine.open(root) as engine:
            engine.store.collect(keep_cache=draw.random() < 0.7)
            damaged = [found for found in engine.store.check(repair=True) if found.kind in ("layer", "blob", "image")]
            assert damaged == []
        time.sleep(0.05)


def start(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def test_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "LEAST_BYTES", FILE_BYTES)
    for module in (state, resume, write):
        monkeypatch.setattr(module, "EVERY_BYTES", 65536)
    root, ended = tmp_path / "root", tmp_path / "ended"
    Engine.open(root).close()
    contexts = [tmp_path / f"context{number}" for number in range(3)]
    for context in contexts:
        plant(context)
    others = [start(lambda: fill(root, ended)), start(lambda: collect(root, ended))]
    builders = [start(lambda at=at: build(root, contexts[at], at)) for at in range(len(contexts))]  # type: ignore[misc]
    codes = [os.waitpid(child, 0)[1] for child in builders]
    ended.touch()
    codes += [os.waitpid(child, 0)[1] for child in others]
    assert codes == [0] * 5
    with Engine.open(root) as engine, Engine.open(tmp_path / "other") as other:
        assert engine.store.check() == []
        for number, context in enumerate(contexts):
            made = engine.images.get(f"r{number}").config.diff_ids
            assert made == other.build(context, no_cache=True).diff_ids
