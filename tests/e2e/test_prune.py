"""What system df tells, against the disk; and what a prune says it freed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pylayers.engine import Engine
from pylayers.engine.container import ContainerOptions
from pylayers.snapshot.select import probe_driver
from pylayers.volume.volumes import disk_bytes
from tests.e2e.build_case import open_with_busybox, write

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("runc") is None, reason="needs root and runc"),
]
LARGE_BYTES = 3 << 20
BESIDES_BYTES = 1 << 20  # the database, indexes of layers, folders, configs


@pytest.fixture(params=["overlay2", "erofs"])
def engine(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Open an engine whose snapshots hold files of their own, and one whose snapshots have the store's linked."""
    usable = probe_driver(tmp_path / "root", request.param).probe
    if not usable.usable:
        pytest.skip(usable.reason)
    with open_with_busybox(tmp_path / "root", tmp_path, request.param) as opened:
        yield opened


def build(engine: Engine, context: Path, text: str, reference: str) -> None:
    write(context, {"Dockerfile": text, "large": os.urandom(LARGE_BYTES)})
    engine.build(context, references=[reference])


def rows(engine: Engine) -> dict[str, int]:
    return {row.kind: row.size_bytes for row in engine.system.usage()}


def test_df_is_what_the_disk_holds(engine: Engine, tmp_path: Path) -> None:
    text = "FROM busybox\nRUN head -c 2000000 /dev/urandom > /made\nCOPY large /\nRUN touch /after\n"
    build(engine, tmp_path / "c", text, "app")
    build(engine, tmp_path / "d", text.replace("/made", "/other"), "gone")
    engine.images.remove(["gone"])
    volume = engine.volumes.create("kept")
    (volume.path / "file").write_bytes(os.urandom(1 << 20))
    command = ["sh", "-c", "head -c 3000000 /dev/urandom > /mine"]
    container = engine.containers.create("app", command, ContainerOptions())
    engine.containers.start(container.id)
    engine.containers.wait(container.id)
    found = rows(engine)
    assert abs(sum(found.values()) - disk_bytes(engine.root)) < BESIDES_BYTES
    assert found["Containers"] > 3_000_000
    assert found["Local Volumes"] >= 1 << 20
    assert found["Build Cache"] > LARGE_BYTES
    reclaimable = {row.kind: row.reclaimable_bytes for row in engine.system.usage()}
    before = disk_bytes(engine.root)
    freed = engine.system.prune(everything=True).freed_bytes
    after = disk_bytes(engine.root)
    assert abs(freed - (before - after)) < BESIDES_BYTES
    assert freed > sum(reclaimable.values()) - reclaimable["Local Volumes"] - BESIDES_BYTES
    assert set(rows(engine)) == set(found)
    assert sum(rows(engine).values()) - found["Local Volumes"] < BESIDES_BYTES


def test_what_is_in_use_stays(engine: Engine, tmp_path: Path) -> None:
    build(engine, tmp_path / "c", "FROM busybox\nCOPY large /\n", "app")
    container = engine.containers.create("app", ["sleep", "100"], ContainerOptions())
    engine.containers.start(container.id)
    images = next(row for row in engine.system.usage() if row.kind == "Images")
    assert images.active == 1
    result = engine.system.prune(everything=True)
    assert result.containers == ()
    assert engine.images.get("app").config.diff_ids
    assert rows(engine)["Images"] > LARGE_BYTES
    engine.containers.kill(container.id)
    engine.containers.wait(container.id)
    assert engine.system.prune(everything=True).containers == (container.id,)
    assert rows(engine)["Images"] == 0


def test_prune_without_anything(tmp_path: Path) -> None:
    with Engine.open(tmp_path / "root") as engine:
        assert engine.system.prune(everything=True, volumes=True).freed_bytes == 0
        assert all(row.size_bytes == 0 for row in engine.system.usage())
