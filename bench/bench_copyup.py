"""Copy a tree of many small files, and one large file, beside `cp -a`."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pylayers._native.copyup import copy_file, copy_tree

ENTRIES = int(os.environ.get("PYLAYERS_BENCH_ENTRIES", "2000"))
SIZE_BYTES = int(os.environ.get("PYLAYERS_BENCH_BYTES", str(32 << 20)))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    contents = random.Random(1)
    for number in range(ENTRIES):
        directory = root / f"d{number // 10}"
        directory.mkdir(exist_ok=True)
        (directory / f"file-{number}").write_bytes(contents.randbytes(int(contents.expovariate(1 / 8000))))
    return root


def test_copy_tree(benchmark: Any, tree: Path, tmp_path: Path) -> None:
    descriptors: list[int] = []

    def prepare() -> tuple[tuple[Any, ...], dict[str, Any]]:
        target = tmp_path / str(len(descriptors))
        target.mkdir()
        descriptors.extend([os.open(tree, os.O_RDONLY), os.open(target, os.O_RDONLY)])
        return tuple(descriptors[-2:]), {}

    entries, _ = benchmark.pedantic(copy_tree, setup=prepare, rounds=5, warmup_rounds=1)
    for fd in descriptors:
        os.close(fd)
    assert entries == ENTRIES + -(-ENTRIES // 10)


def test_peer_cp(benchmark: Any, tree: Path, tmp_path: Path) -> None:
    """Copy the same tree with cp -a."""
    rounds: list[Path] = []

    def prepare() -> tuple[tuple[Any, ...], dict[str, Any]]:
        rounds.append(tmp_path / f"c{len(rounds)}")
        return (["cp", "-a", str(tree), str(rounds[-1])],), {"check": True}

    benchmark.pedantic(subprocess.run, setup=prepare, rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_copy_file(benchmark: Any, tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source"
    with source.open("wb") as file:
        if kind == "dense":
            file.write(random.Random(2).randbytes(SIZE_BYTES))
        else:
            file.truncate(SIZE_BYTES * 32)
            for offset in range(0, SIZE_BYTES * 32, SIZE_BYTES):
                os.pwrite(file.fileno(), b"data" * 4096, offset)
    with source.open("rb") as reader, (tmp_path / "target").open("w+b") as writer:
        way = benchmark(copy_file, reader.fileno(), writer.fileno(), source.stat().st_size)
    benchmark.extra_info["way"] = way
