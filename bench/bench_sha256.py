"""SHA-256 with and without states kept, per kernel, beside hashlib's."""

from __future__ import annotations

import hashlib
import mmap
import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pylayers._native import sha256

SIZE_BYTES = int(os.environ.get("PYLAYERS_BENCH_BYTES", str(16 << 20)))
STREAMED_TIMES = 64  # as much as the processor caches nowhere
EVERY_BYTES = 4 << 20
PIECES = (512, 4 << 10, 1 << 20)  # the last is a slot of tarwrite's ring

MAKERS: dict[str, Callable[[], Any]] = {
    "hashlib": hashlib.sha256,
    **{kernel: lambda kernel=kernel: sha256.Sha256(0, kernel) for kernel in sha256.kernels()},
    "states": lambda: sha256.Sha256(EVERY_BYTES),
}


@pytest.fixture(scope="module")
def data() -> bytes:
    return random.Random(1).randbytes(SIZE_BYTES)


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> Iterator[mmap.mmap]:
    path = tmp_path_factory.mktemp("sha256") / "file"
    with path.open("wb") as file:
        for _ in range(STREAMED_TIMES):
            file.write(data)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        yield mapped


def hash_pieces(make: Callable[[], Any], data: bytes | mmap.mmap, piece_bytes: int) -> bytes:
    hasher = make()
    view = memoryview(data)
    for at in range(0, len(data), piece_bytes):
        hasher.update(view[at : at + piece_bytes])
    digest: bytes = hasher.digest()
    return digest


@pytest.mark.parametrize("piece_bytes", PIECES)
@pytest.mark.parametrize("maker", MAKERS)
def test_sha256(benchmark: Any, data: bytes, maker: str, piece_bytes: int) -> None:
    benchmark.extra_info["bytes"] = len(data)
    assert benchmark(hash_pieces, MAKERS[maker], data, piece_bytes) == hashlib.sha256(data).digest()


@pytest.mark.parametrize("maker", MAKERS)
def test_file(benchmark: Any, streamed: mmap.mmap, maker: str) -> None:
    """A mapped file that no cache of the processor holds, in one call: what fetching ahead saves shows here alone."""
    benchmark.extra_info["bytes"] = len(streamed)
    assert benchmark(hash_pieces, MAKERS[maker], streamed, len(streamed)) == hashlib.sha256(streamed).digest()


def test_resume(benchmark: Any, data: bytes) -> None:
    """What follows the last state but one of an input whose beginning is known."""
    hasher = sha256.Sha256(EVERY_BYTES)
    hasher.update(data)
    states = hasher.states[:-32]
    rest = memoryview(data)[len(states) // 32 * EVERY_BYTES :]

    def resume() -> bytes:
        resumed = sha256.Sha256.resume(states, EVERY_BYTES)
        resumed.update(rest)
        return resumed.digest()

    assert benchmark(resume) == hashlib.sha256(data).digest()


@pytest.mark.parametrize("kernel", sha256.kernels())
def test_two(benchmark: Any, data: bytes, kernel: str) -> None:
    """Two inputs side by side; as many bytes as one input has in test_sha256."""
    half = len(data) // 2
    one, other = memoryview(data)[:half], memoryview(data)[half:]

    def hash_two() -> tuple[bytes, bytes]:
        pair = sha256.Sha256(0, kernel), sha256.Sha256(0, kernel)
        sha256.update_two(pair[0], one, pair[1], other)
        return pair[0].digest(), pair[1].digest()

    assert benchmark(hash_two) == (hashlib.sha256(one).digest(), hashlib.sha256(other).digest())
