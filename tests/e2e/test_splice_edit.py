"""Any edit, any shape of COPY: each rebuild's layer is, bytes and index, what another root makes of it whole."""

from __future__ import annotations

import io
import os
import random
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pylayers._native import sha256
from pylayers.diff import resume, write
from pylayers.engine import Engine
from pylayers.store import Layer, state
from pylayers.store.entry import EntryTable
from tests.e2e.build_case import open_with_base

pytestmark = pytest.mark.skipif(not sha256.is_fast(), reason="without SHA instructions no hash states are kept")
STEPS = 9
SIZES = (0, 0, 1, 511, 512, 513, 4095, 4096, 5000, 65_535, 65_536, 70_001, 200_000)
SHAPES = (
    "FROM base\nCOPY t /opt/t\n",
    "FROM base\nCOPY --chown=app:staff --chmod=750 t/d0 t/d1 t/d2 /srv/\n",
    "FROM base\nCOPY --exclude=**/*1 t t/d3 lib/t/\n",
    "FROM base AS one\nCOPY t /opt/t\nFROM base\nCOPY --from=one --chown=7 /opt /etc /copy/\n",
    "FROM base\nCOPY --from=context . /\n",
    "FROM base\nCOPY <<END t t/d1 /opt/t/\nhere\nEND\n",
    "FROM base\nADD t.tar t /add/\n",
)
Edit = Callable[[random.Random, Path], None]


def fill(draw: random.Random, path: Path) -> None:
    """Write a file anew: data, a hole with something behind it, or what is easily the same again."""
    size = draw.choice(SIZES)
    with path.open("wb") as file:
        kind = draw.randrange(6)
        if kind == 0:
            file.write(b"x" * size)
        elif kind == 1:
            file.truncate(size + 40_000)
            file.seek(size + 30_000)
            file.write(b"end")
        else:
            file.write(draw.randbytes(size))


def pick(draw: random.Random, top: Path, wanted: Callable[[Path], bool]) -> Path:
    found = sorted(path for path in top.rglob("*") if not path.is_symlink() and wanted(path))
    return draw.choice(found) if found else top / "d0"


def pick_folder(draw: random.Random, top: Path) -> Path:
    return pick(draw, top, Path.is_dir)


def new_path(draw: random.Random, top: Path) -> Path:
    """Name something that is not there; now and then by a name that takes a PAX header."""
    name = draw.choice(("a", "m", "z", "é", "x" * 120, ".h", "m-", "m.")) + str(draw.randrange(1000))
    path = pick_folder(draw, top) / name
    return new_path(draw, top) if os.path.lexists(path) else path


def rewrite(draw: random.Random, top: Path) -> None:
    path = pick(draw, top, Path.is_file)
    if path.is_file():
        fill(draw, path)


def append(draw: random.Random, top: Path) -> None:
    path = pick(draw, top, Path.is_file)
    if path.is_file():
        with path.open("ab") as file:
            file.write(b"more")


def add_file(draw: random.Random, top: Path) -> None:
    fill(draw, new_path(draw, top))


def add_folder(draw: random.Random, top: Path) -> None:
    path = new_path(draw, top)
    path.mkdir()
    fill(draw, path / "inner")


def link(draw: random.Random, top: Path) -> None:
    """Link a file under another name, before or behind it."""
    path = pick(draw, top, Path.is_file)
    if path.is_file():
        os.link(path, new_path(draw, top))


def unlink(draw: random.Random, top: Path) -> None:
    """Remove a name; of a linked file perhaps the first."""
    path = pick(draw, top, lambda path: path.is_file() and path.stat().st_nlink > 1)
    if not path.is_file():
        path = pick(draw, top, Path.is_file)
    if path.is_file():
        path.unlink()


def part(draw: random.Random, top: Path) -> None:
    """Make a linked name a file of its own, of the same content."""
    path = pick(draw, top, lambda path: path.is_file() and path.stat().st_nlink > 1)
    if path.is_file():
        copy = path.with_name(path.name + "~")
        shutil.copy2(path, copy)
        os.rename(copy, path)


def move(draw: random.Random, top: Path) -> None:
    path = pick(draw, top, lambda path: path.parent != top)
    target = new_path(draw, top)
    if path.parent != top and path not in target.parents:
        os.rename(path, target)


def symlink(draw: random.Random, top: Path) -> None:
    new_path(draw, top).symlink_to("nowhere" * draw.choice((1, 20)))


def make_fifo(draw: random.Random, top: Path) -> None:
    os.mkfifo(new_path(draw, top))


def change_mode(draw: random.Random, top: Path) -> None:
    pick(draw, top, lambda _: True).chmod(draw.choice((0o600, 0o755, 0o4711, 0o700)))


def change_time(draw: random.Random, top: Path) -> None:
    os.utime(pick(draw, top, lambda _: True), ns=(0, draw.choice((1, 999_999_999, -1, 10**18))))


def change_xattr(draw: random.Random, top: Path) -> None:
    os.setxattr(pick(draw, top, lambda path: not path.is_fifo()), b"user.x", draw.randbytes(draw.choice((1, 90))))


def remove_folder(draw: random.Random, top: Path) -> None:
    path = pick(draw, top, lambda path: path.is_dir() and path.parent != top)
    if path.parent != top:
        shutil.rmtree(path)


EDITS: tuple[Edit, ...] = (
    rewrite, rewrite, append, add_file, add_folder, link, link, unlink, part, move, symlink, make_fifo, change_mode,
    change_time, change_xattr, remove_folder,
)  # fmt: skip


def plant(draw: random.Random, top: Path) -> None:
    """Make a tree of five folders."""
    for number in range(5):
        (top / f"d{number}").mkdir(parents=True)
        for name in ("a1", "b", "c"):
            fill(draw, top / f"d{number}" / name)
    for _ in range(4):
        link(draw, top)


def pack(context: Path) -> None:
    """Make the archive of the tree as it is; its own time is the source's that ADD unpacks, so it stays."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path in sorted((context / "t").rglob("*")):
            tar.add(path, str(path.relative_to(context)), recursive=False)
    (context / "t.tar").write_bytes(stream.getvalue())


def settle(draw: random.Random, top: Path) -> None:
    """Set back the times of directories that names came to, mostly: a change of those is a change of its own."""
    for path in (top, *top.rglob("*")):
        if path.is_dir() and not path.is_symlink() and draw.random() < 0.9:
            os.utime(path, (1_600_000_000, 1_600_000_000))


def rows(layer: Layer) -> list[tuple[object, ...]]:
    """Return all that an index tells of its tar, wherever its heap keeps the texts."""
    table: EntryTable = layer.table
    told: list[tuple[object, ...]] = []
    for entry in table:
        placeless = entry._replace(path_offset=0, link_offset=0, xattr_offset=0)
        told.append((table.path(entry), table.link(entry), table.xattrs(entry), *placeless))
    return told


@pytest.mark.parametrize("seed", range(2))
def test_edits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    draw = random.Random(seed)
    monkeypatch.setattr(resume, "LEAST_BYTES", draw.choice((4096, 8192, 100_000)))
    for module in (state, resume, write):
        monkeypatch.setattr(module, "EVERY_BYTES", 65536)
    context = tmp_path / "context"
    plant(draw, context / "t")
    taken: list[bool] = []
    original = resume.Resumption.begin
    monkeypatch.setattr(resume.Resumption, "begin", lambda *given: [taken.append(True), original(*given)][1])
    with open_with_base(tmp_path / "root") as engine, open_with_base(tmp_path / "other") as other:
        for step in range(STEPS):
            # Times alone make no new key, and a step that is found in the cache keeps its old ones.
            (context / "t" / "d2" / "n").write_text(f"{step}\n")
            settle(draw, context / "t")
            pack(context)
            time.sleep(0.02)  # a file younger than the file system's clock tick is racy, and would be read again
            for shape in draw.sample(SHAPES, 3):
                compare(engine, other, context, shape, f"seed {seed}, step {step}: {shape}")
            for _ in range(draw.choice((1, 1, 1, 2, 5))):
                draw.choice(EDITS)(draw, context / "t")
        assert len(taken) > 3
        assert engine.store.check() == []


def compare(engine: Engine, other: Engine, context: Path, shape: str, told: str) -> None:
    """Build by a store that has earlier layers, and by one that uses none."""
    dockerfile = context.with_name("Dockerfile")
    dockerfile.write_text(shape)
    named = {"context": str(context / "t")}
    made = engine.build(context, dockerfile=dockerfile, contexts=named).diff_ids
    whole = other.build(context, dockerfile=dockerfile, contexts=named, no_cache=True).diff_ids
    assert made == whole, told
    for diff_id in made:
        engine.store.layers.verify(diff_id)
        assert rows(engine.store.layers.open(diff_id)) == rows(other.store.layers.open(diff_id)), told
