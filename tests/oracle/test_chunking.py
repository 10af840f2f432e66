"""Chunking against a plain Python cutter, and against golden cut-points that must never change."""

from __future__ import annotations

import hashlib
import mmap
import random
import struct
from array import array
from pathlib import Path

import pytest
from blake3 import blake3

from pylayers._native import chunking

MASK64 = (1 << 64) - 1
SIZES = (64, 256, 1024)
GOLDEN_64K = [
    98747,
    178113,
    298470,
    378926,
    464920,
    536143,
    612825,
    680258,
    753528,
    783918,
    870582,
    938747,
    1007622,
    1048576,
]
GOLDEN_4K_SHA256 = "5c4cff7e8e12b384b9514463efbbbd96bfb1dd5241a3ecb5e6a7f11170de426c"


def gear_table() -> list[int]:
    """Make the gear table by splitmix64 from the documented seed."""
    state, table = int.from_bytes(b"pylayers", "big"), []
    for _ in range(256):
        state = (state + 0x9E3779B97F4A7C15) & MASK64
        mixed = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & MASK64
        table.append(mixed ^ (mixed >> 31))
    return table


GEAR = gear_table()


def cut_in_python(data: bytes, min_bytes: int, average_bytes: int, max_bytes: int) -> list[int]:
    bits = average_bytes.bit_length() - 1
    ends, start = [], 0
    while start < len(data):
        fingerprint, length = 0, min(max_bytes, len(data) - start)
        for at in range(min_bytes, length):
            top = bits + 2 if at < average_bytes else bits - 2
            fingerprint = ((fingerprint << 1) + GEAR[data[start + at]]) & MASK64
            if fingerprint >> (64 - top) == 0:
                length = at + 1
                break
        start += length
        ends.append(start)
    return ends


def cut(data: bytes, *sizes: int, kernel: str = "auto") -> list[int]:
    return list(array("Q", chunking.boundaries(data, *sizes, kernel)))


def text(size: int) -> bytes:
    return b"".join(b"line %d of some text\n" % number for number in range(size // 16))[:size]


INPUTS = {
    "random": random.Random(7).randbytes(200_000),
    "text": text(100_000),
    "zeros": bytes(50_000),
    "period": b"abcdefg" * 9_000,
    "two": random.Random(8).choices(b"ab", k=60_000),
}


@pytest.mark.parametrize("kernel", ["auto", *chunking.kernels()])
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("sizes", [SIZES, (64, 64, 64), (1, 64, 65), (64, 64, 4096), (100, 128, 131), (333, 512, 4097)])
def test_equal_to_python(kernel: str, name: str, sizes: tuple[int, int, int]) -> None:
    data = bytes(INPUTS[name])
    assert cut(data, *sizes, kernel=kernel) == cut_in_python(data, *sizes)


@pytest.mark.parametrize("kernel", chunking.kernels())
@pytest.mark.parametrize("size", [0, 1, 2, 63, 64, 65, 127, 128, 255, 256, 257, 1023, 1024, 1025, 2048, 2049])
def test_short_buffers(kernel: str, size: int) -> None:
    for data in (bytes(size), INPUTS["random"][:size]):
        assert cut(data, *SIZES, kernel=kernel) == cut_in_python(data, *SIZES)


def golden_input(size: int) -> bytes:
    """Make bytes that depend on nothing but SHA-256."""
    return b"".join(hashlib.sha256(struct.pack("<I", number)).digest() for number in range(size // 32))


@pytest.mark.parametrize("kernel", chunking.kernels())
def test_golden_cut_points(kernel: str) -> None:
    """Stored manifests name these cuts: a change here breaks every chunk store."""
    data = golden_input(1 << 20)
    assert cut(data, 16384, 65536, 262144, kernel=kernel) == GOLDEN_64K
    small = chunking.boundaries(data, 1024, 4096, 16384, kernel)
    assert hashlib.sha256(small).hexdigest() == GOLDEN_4K_SHA256


def test_manifest() -> None:
    data = golden_input(1 << 20)
    packed = chunking.manifest(data, 16384, 65536, 262144, blake3)
    start = 0
    for (offset, size, reserved, digest), end in zip(struct.iter_unpack("=QII32s", packed), GOLDEN_64K, strict=True):
        assert (offset, size, reserved) == (start, end - start, 0)
        assert digest == blake3(data[start:end]).digest()
        start = end
    assert start == len(data)
    assert chunking.manifest(b"", 64, 64, 64, blake3) == b""
    with pytest.raises(ValueError, match="32 bytes"):
        chunking.manifest(b"x", 64, 64, 64, hashlib.sha512)
    with pytest.raises(TypeError):
        chunking.manifest(b"x", 64, 64, 64, None)  # type: ignore[arg-type]


def test_any_buffer(tmp_path: Path) -> None:
    data = INPUTS["random"]
    path = tmp_path / "data"
    path.write_bytes(data)
    expected = chunking.boundaries(data, *SIZES)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        view = memoryview(mapped)
        assert chunking.boundaries(view, *SIZES) == expected
        view.release()
    assert chunking.boundaries(bytearray(data), *SIZES) == expected
    with pytest.raises((ValueError, BufferError)):
        chunking.boundaries(memoryview(data)[::2], *SIZES)


@pytest.mark.parametrize(
    "sizes",
    [(64, 100, 1024), (64, 32, 1024), (0, 64, 64), (65, 64, 128), (64, 128, 127), (64, 64, 1 << 32), (-1, 64, 64),
     (1, 1 << 31, 1 << 31)],
)  # fmt: skip
def test_bad_sizes(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError):
        chunking.boundaries(b"data", *sizes)
    with pytest.raises(ValueError):
        chunking.manifest(b"data", *sizes, blake3)


def test_bad_kernel() -> None:
    with pytest.raises(ValueError, match="pairs"):
        chunking.boundaries(b"data", 64, 64, 64, "fastest")
    assert chunking.kernels()[-1] == "reference"
