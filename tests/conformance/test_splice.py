"""Layers that go on from earlier ones, on real file systems: shared blocks, full disks, and power cuts."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pylayers._native import sha256
from pylayers.build.event import BuildResult
from pylayers.diff import resume, write
from pylayers.engine import Engine
from pylayers.errors import NoSpace
from pylayers.snapshot.extent import exclusive_bytes
from pylayers.store import Layer, state
from tests.conformance.conftest import MKFS_OPTIONS, loop_file_system
from tests.e2e.test_reap import SHUT_DOWN, WITHOUT_LOG, remount

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not sha256.is_fast(), reason="without SHA instructions no hash states are kept"),
]
MEBIBYTE = 1 << 20
FILES = 8


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Splice what is small."""
    monkeypatch.setattr(resume, "LEAST_BYTES", MEBIBYTE)
    for module in (state, resume, write):
        monkeypatch.setattr(module, "EVERY_BYTES", 65536)


def plant(context: Path) -> Path:
    draw = random.Random(5)
    (context / "t").mkdir(parents=True)
    for number in range(FILES):
        (context / "t" / f"{number}").write_bytes(draw.randbytes(MEBIBYTE + 77 * number))
    os.link(context / "t" / "0", context / "t" / "9")
    (context / "Dockerfile").write_text("FROM scratch\nCOPY t /opt/t\n")
    return age(context)


def age(context: Path) -> Path:
    """Set every time back, so that no file is racy; contents of other sizes tell themselves."""
    for path in (context, *context.rglob("*")):
        os.utime(path, (1_600_000_000, 1_600_000_000))
    return context


def edit(context: Path, number: int, size: int) -> None:
    (context / "t" / f"{number}").write_bytes(random.Random(size).randbytes(size))
    age(context)


def layer(engine: Engine, result: BuildResult) -> Layer:
    return engine.store.layers.open(result.diff_ids[-1])


def count_from(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note where each layer goes on from an earlier one."""
    taken: list[int] = []
    original = resume.Resumption.begin

    def begin(self: resume.Resumption, writer: object) -> object:
        taken.append(self.end_bytes)
        return original(self, writer)  # type: ignore[arg-type]

    monkeypatch.setattr(resume.Resumption, "begin", begin)
    return taken


class TestSharing:
    file_systems = ("xfs", "btrfs")

    @pytest.mark.parametrize("direct_from", [1, 1 << 62])
    @pytest.mark.parametrize("near", [False, True])
    def test_rebuilds(
        self, ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct_from: int, near: bool
    ) -> None:
        """One tar each, whose beginning takes no block; its rest is written, or cloned from sources that lie near."""
        monkeypatch.setattr(write, "DIRECT_FROM_BYTES", direct_from)
        taken = count_from(monkeypatch)
        context = plant((ground if near else tmp_path) / "context")
        with Engine.open(ground / "root") as engine, Engine.open(tmp_path / "other") as other:
            results = [engine.build(context, references=["first"])]
            for count, (number, size) in enumerate(((7, 5000), (7, 70_001), (5, 9), (6, MEBIBYTE // 2)), 1):
                edit(context, number, size)
                result = engine.build(context, references=[f"of {number}".replace(" ", "")])
                results.append(result)
                assert len(taken) == count
                assert other.build(context, no_cache=True).diff_ids == result.diff_ids
                made = layer(engine, result)
                assert made.base is None
                assert sorted(os.listdir(Path(made.tar_path).parent)) == ["layer.idx", "layer.states", "layer.tar"]
                os.sync()
                alone = made.size_bytes - taken[-1] + 3 * 4096
                assert exclusive_bytes(str(made.tar_path)) <= alone < made.size_bytes // 2
                engine.store.layers.verify(made.diff_id)
            assert engine.store.check() == []
            for result in results[:-1]:
                engine.images.remove([result.image_digest])
            engine.system.prune()
            assert list(engine.store.layers.walk()) == [results[-1].diff_ids[-1]]
            engine.store.layers.verify(results[-1].diff_ids[-1])

    def test_an_earlier_layer_that_is_damaged_where_it_is_read(self, ground: Path, tmp_path: Path) -> None:
        """A tar that lost its end does not open: the next layer is written whole."""
        context = plant(tmp_path / "context")
        with Engine.open(ground / "root") as engine, Engine.open(tmp_path / "other") as other:
            os.truncate(layer(engine, engine.build(context)).tar_path, 3 * MEBIBYTE)
            edit(context, 7, 5000)
            result = engine.build(context)
            assert other.build(context, no_cache=True).diff_ids == result.diff_ids
            engine.store.layers.verify(result.diff_ids[-1])


class TestFull:
    file_systems = ("ext4", "xfs")

    def test_no_step_leaves_the_disk_fuller(self, ground: Path, tmp_path: Path) -> None:
        """NoSpace where a layer is written on and where it is filled; with room again, both work."""
        context = plant(tmp_path / "context")
        with Engine.open(ground / "root") as engine:
            first = engine.build(context)
            edit(context, 7, 5000)
            second = engine.build(context)
            base = layer(engine, second).base
            edit(context, 7, 6 * MEBIBYTE)
            with filled(ground, 3 * MEBIBYTE):
                before = free_bytes(ground)
                with pytest.raises(NoSpace):
                    engine.build(context)
                assert list((ground / "root" / "tmp").glob("*/layer*")) == []
                if base is not None:
                    with pytest.raises(NoSpace):
                        layer(engine, second).open_tar()
                    assert layer(engine, second).base == base
                assert free_bytes(ground) >= before - MEBIBYTE // 2
                for result in (first, second):
                    engine.store.layers.verify(result.diff_ids[-1])
            third = engine.build(context)
            for result in (first, second, third):
                os.close(layer(engine, result).open_tar())
                assert layer(engine, result).base is None
                engine.store.layers.verify(result.diff_ids[-1])
            assert engine.store.check() == []


def free_bytes(place: Path) -> int:
    """Count what root can use."""
    os.sync()
    found = os.statvfs(place)
    return found.f_bfree * found.f_frsize


@contextlib.contextmanager
def filled(place: Path, left_bytes: int) -> Iterator[None]:
    """Leave so much of a file system free."""
    path = place / "filler"
    with path.open("wb") as file, contextlib.suppress(OSError):  # what could be had is taken all the same
        os.posix_fallocate(file.fileno(), 0, free_bytes(place) - left_bytes)
    try:
        yield
    finally:
        path.unlink()
        os.sync()


def cut(place: Path) -> None:
    """Stop the file system, with nothing more on its disk, and this process."""
    descriptor = os.open(place, os.O_RDONLY)
    fcntl.ioctl(descriptor, SHUT_DOWN, struct.pack("I", WITHOUT_LOG))
    os.kill(os.getpid(), signal.SIGKILL)


def cut_after(place: Path, name: str, count: int) -> None:
    """Stop everything right after a function of os was called for the nth time."""
    original: Callable[..., object] = getattr(os, name)
    left = count

    def step(*given: object, **named: object) -> object:
        nonlocal left
        result = original(*given, **named)
        left -= 1
        if not left:
            cut(place)
        return result

    setattr(os, name, step)


def go_on(root: Path, context: Path, moment: str) -> None:
    """Build on from the earlier layer, do something with what was made, and stop everything at a moment."""
    with Engine.open(root) as engine:
        edit(context, 7, 5000)
        second = engine.build(context, references=["second"])
        if moment == "collected":
            engine.images.remove(["first"])
            engine.system.prune()
        elif moment == "filled":
            os.close(layer(engine, second).open_tar())
        elif moment in FILL_STEPS:
            cut_after(root.parent, *FILL_STEPS[moment])
            layer(engine, second).open_tar()
            raise AssertionError("there was nothing to fill")
        cut(root.parent)


FILL_STEPS = {"synced": ("fsync", 1), "unlinked": ("unlink", 1), "done": ("fsync", 2)}


@pytest.mark.parametrize("moment", ["built", "collected", "filled", *FILL_STEPS])
@pytest.mark.parametrize("kind", ["ext4", "xfs", "xfs without clones"])
def test_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, moment: str) -> None:
    """What a build said that it made is there, whole, whatever was done with it when the power went."""
    context = plant(tmp_path / "context")
    if kind.endswith("clones"):
        monkeypatch.setitem(MKFS_OPTIONS, "xfs", ["-q", "-m", "reflink=0"])
    elif kind == "xfs" and moment not in ("built", "collected"):
        pytest.skip("what is cloned is never filled")
    (tmp_path / "disk").mkdir()
    with loop_file_system(kind.partition(" ")[0], tmp_path / "disk") as point:
        with Engine.open(point / "root") as engine:
            engine.build(context, references=["first"])
        child = os.fork()
        if child == 0:
            try:
                go_on(point / "root", context, moment)
            finally:
                os._exit(1)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        remount(point)
        edit(context, 7, 5000)
        with Engine.open(point / "root") as engine, Engine.open(tmp_path / "other") as other:
            spliced = kind != "xfs" and moment in ("built", "collected", "synced", "unlinked")
            inspect(engine, engine.images.get("second").config.diff_ids[-1], spliced)
            edit(context, 6, 5001)
            assert engine.build(context).diff_ids == other.build(context, no_cache=True).diff_ids


def inspect(engine: Engine, diff_id: str, spliced: bool) -> None:
    """Read a layer as it lies there, and once it is filled."""
    engine.store.layers.verify(diff_id)
    made = engine.store.layers.open(diff_id)
    assert (made.base is not None) == spliced
    os.close(made.open_tar())
    engine.store.layers.verify(diff_id)
    assert engine.store.check() == []
