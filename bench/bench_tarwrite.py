"""tarwrite: a tree of many small files and some large ones, made here; PYLAYERS_BENCH_ENTRIES sets how many."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3
from pytest_benchmark.fixture import BenchmarkFixture

from pylayers._native import tarwrite
from pylayers.store.entry import SOURCE_HEAP, SOURCE_PATH, SOURCE_STRUCT, EntryTable, TableBuilder
from pylayers.store.row import Entry

ENTRIES = int(os.environ.get("PYLAYERS_BENCH_ENTRIES", "2000"))
FILE = 0o100644


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EntryTable, bytes]]:
    """Files as in a package tree: half under 4 KiB, a twentieth of 64 KiB to 1 MiB, twenty to a directory."""
    root = tmp_path_factory.mktemp("tree")
    draw = random.Random(1)
    noise = draw.randbytes(1 << 20)
    root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    builder = TableBuilder()
    sources = []
    for number in range(ENTRIES):
        path = b"d%d/f%d" % (number // 20, number)
        kind = draw.random()
        size = draw.randrange(4096) if kind < 0.5 else draw.randrange(65536 if kind < 0.95 else 1 << 20)
        (root / os.fsdecode(path)).parent.mkdir(exist_ok=True)
        (root / os.fsdecode(path)).write_bytes(noise[:size])
        builder.add(path, Entry(size_bytes=size, mode=FILE))
        sources.append(SOURCE_STRUCT.pack(root_fd, SOURCE_PATH, builder.hold(path), len(path)))
    table, order = builder.build()
    yield table, b"".join(sources[at] for at in order)
    os.close(root_fd)


@pytest.mark.parametrize("hashed", [False, True], ids=["all-hashes", "blake3-known"])
def test_write_tree(benchmark: BenchmarkFixture, tree: tuple[EntryTable, bytes], tmp_path: Path, hashed: bool) -> None:
    table, sources = tree
    out_fd = os.open(tmp_path / "tar", os.O_RDWR | os.O_CREAT)

    def fresh() -> tuple[tuple[bytearray], dict[str, object]]:
        records = bytearray(table.records)
        if hashed:
            for start in range(0, len(records), 168):
                records[start + 116] |= 16  # FLAG_HASHED
        os.ftruncate(out_fd, 0)
        return (records,), {}

    def write(records: bytearray) -> tuple[int, bytes]:
        return tarwrite.write(out_fd, records, table.heap, sources, hashlib.sha256, blake3)

    size_bytes, _ = benchmark.pedantic(write, setup=fresh, rounds=5)  # type: ignore[no-untyped-call]
    benchmark.extra_info["size_bytes"] = size_bytes
    os.close(out_fd)


def test_write_headers(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """Empty files from the heap: what one row costs."""
    builder = TableBuilder()
    for number in range(ENTRIES * 10):
        builder.add(b"d%d/f%d" % (number // 20, number), Entry(mode=FILE))
    table, order = builder.build()
    sources = SOURCE_STRUCT.pack(-1, SOURCE_HEAP, 0, 0) * len(order)
    out_fd = os.open(tmp_path / "tar", os.O_RDWR | os.O_CREAT)

    def write() -> tuple[int, bytes]:
        return tarwrite.write(out_fd, bytearray(table.records), table.heap, sources, hashlib.sha256, blake3)

    size_bytes, _ = benchmark.pedantic(write, rounds=5)  # type: ignore[no-untyped-call]
    benchmark.extra_info["size_bytes"] = size_bytes
    os.close(out_fd)
