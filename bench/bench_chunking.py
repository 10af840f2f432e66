"""Chunk boundaries, per kernel, and the manifest with its hashes."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
from blake3 import blake3

from pylayers._native import chunking

SIZE_BYTES = int(os.environ.get("PYLAYERS_BENCH_BYTES", str(16 << 20)))
SIZES = (16 << 10, 64 << 10, 256 << 10)


@pytest.fixture(scope="module")
def data() -> bytes:
    return random.Random(1).randbytes(SIZE_BYTES)


@pytest.mark.parametrize("kernel", chunking.kernels())
def test_boundaries(benchmark: Any, data: bytes, kernel: str) -> None:
    benchmark.extra_info["bytes"] = len(data)
    assert benchmark(chunking.boundaries, data, *SIZES, kernel)


def test_manifest(benchmark: Any, data: bytes) -> None:
    benchmark.extra_info["bytes"] = len(data)
    assert benchmark(chunking.manifest, data, *SIZES, blake3)
