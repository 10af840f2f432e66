"""Hashing many small files and a few large ones; PYLAYERS_BENCH_ENTRIES sets how many small ones."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from blake3 import blake3

from pylayers._native import filehash as kernel
from pylayers._native import walk

ENTRIES = int(os.environ.get("PYLAYERS_BENCH_ENTRIES", "4000"))
LARGE_BYTES = 64 << 20


@pytest.fixture(scope="module", params=["small", "large"])
def tree(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp(request.param)
    content = blake3(b"content").digest(LARGE_BYTES)
    if request.param == "large":
        for index in range(2):
            (root / f"model{index}").write_bytes(content)
        return root
    for index in range(ENTRIES):
        directory = root / f"package{index // 20}"
        directory.mkdir(exist_ok=True)
        (directory / f"source{index}").write_bytes(content[: index * 7919 % 30_000])
    return root


def hash_with_python(root: Path) -> None:
    for directory, _, names in os.walk(root):
        for name in names:
            with open(os.path.join(directory, name), "rb") as file:
                blake3(file.read()).digest()


@pytest.mark.benchmark(group="hash")
def bench_filehash(benchmark, tree: Path) -> None:
    fd = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    records, heap = walk.walk(fd)
    indexes = struct.pack(f"{len(records) // 168}I", *range(len(records) // 168))
    benchmark(kernel.hash_files, fd, records, heap, indexes, blake3)
    os.close(fd)


@pytest.mark.benchmark(group="hash")
def bench_python(benchmark, tree: Path) -> None:
    benchmark(hash_with_python, tree)
