"""Unpack a layer of many small files and a few large ones, into an empty directory and over itself."""

from __future__ import annotations

import os
import random
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pylayers._native.unpack import NO_OWNER, WHITEOUT_APPLY, unpack
from pylayers.store.entry import EntryTable, TableBuilder
from pylayers.store.row import Entry

ENTRIES = int(os.environ.get("PYLAYERS_BENCH_ENTRIES", "2000"))


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EntryTable, int]]:
    contents, builder, offset = random.Random(1), TableBuilder(), 0
    builder.add(b"", Entry(mode=stat.S_IFDIR | 0o755))
    with (tmp_path_factory.mktemp("layer") / "layer.tar").open("w+b") as tar:
        for number in range(ENTRIES):
            if number % 10 == 0:
                builder.add(b"d%d" % (number // 10), Entry(mode=stat.S_IFDIR | 0o755, mtime_ns=1))
            size = 1_000_000 if number % 500 == 499 else int(contents.expovariate(1 / 8000))
            data = contents.randbytes(size)
            entry = Entry(mode=stat.S_IFREG | 0o644, data_offset=offset, size_bytes=size, mtime_ns=10**18)
            builder.add(b"d%d/file-%d" % (number // 10, number), entry)
            offset += tar.write(data + bytes(-size % 512))
        tar.flush()
        yield builder.build()[0], tar.fileno()


@pytest.mark.parametrize("over", [False, True], ids=["empty", "over-itself"])
def test_unpack(benchmark: Any, layer: tuple[EntryTable, int], tmp_path: Path, over: bool) -> None:
    table, tar_fd = layer
    directories: list[int] = []

    def prepare() -> tuple[tuple[Any, ...], dict[str, Any]]:
        target = tmp_path / (f"{len(directories)}" if not over else "0")
        if not target.exists():
            target.mkdir()
        directories.append(os.open(target, os.O_RDONLY))
        return (directories[-1], tar_fd, table.records, table.heap, WHITEOUT_APPLY, NO_OWNER), {}

    benchmark.extra_info["entries"] = len(table)
    written = benchmark.pedantic(unpack, setup=prepare, rounds=5, warmup_rounds=1)
    for fd in directories:
        os.close(fd)
    assert written == sum(entry.size_bytes for entry in table)


def test_peer_gnu_tar(benchmark: Any, layer: tuple[EntryTable, int], tmp_path: Path) -> None:
    """Extract the same tree with GNU tar."""
    table, tar_fd = layer
    (tmp_path / "source").mkdir()
    root_fd = os.open(tmp_path / "source", os.O_RDONLY)
    unpack(root_fd, tar_fd, table.records, table.heap, WHITEOUT_APPLY, NO_OWNER)
    os.close(root_fd)
    subprocess.run(["tar", "-C", tmp_path / "source", "-cf", tmp_path / "peer.tar", "."], check=True)
    rounds: list[Path] = []

    def prepare() -> tuple[tuple[Any, ...], dict[str, Any]]:
        rounds.append(tmp_path / f"t{len(rounds)}")
        rounds[-1].mkdir()
        return (["tar", "-C", str(rounds[-1]), "-xpf", str(tmp_path / "peer.tar")],), {"check": True}

    benchmark.pedantic(subprocess.run, setup=prepare, rounds=5, warmup_rounds=1)
