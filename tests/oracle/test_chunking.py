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

SIZES = (128, 256, 1024)
MULTIPLIER = 0x129348BF9B689DD
GOLDEN_64K = [
    99831,
    193771,
    265879,
    392978,
    438210,
    516449,
    595224,
    666953,
    740642,
    853438,
    882640,
    964161,
    1048576,
]
GOLDEN_4K_SHA256 = "33452897d6f37177dae72095f749513911873c6174a9d7d4815265db2b53554a"


def multiply(left: int, right: int) -> int:
    """Multiply two polynomials over GF(2)."""
    product = 0
    while right:
        low = right & -right
        product ^= left * low
        right ^= low
    return product


def fingerprints(data: bytes) -> list[int]:
    """Fingerprint every byte, as if zeros were before the data."""
    product = multiply(int.from_bytes(data, "little"), MULTIPLIER).to_bytes(len(data) + 8, "little")[: len(data)]
    found = list(product)
    for lag in (8, 16, 32):
        found = [(value + 3 * (found[at - lag] if at >= lag else 0)) % 256 for at, value in enumerate(found)]
    return found


def limits(bits: int) -> tuple[int, int, int]:
    """Give the most that the last fingerprint may be, the least of the one before, the most of the one before that."""
    shares = min(bits, 8), min(max(bits - 8, 0), 8), max(bits - 16, 0)
    low, high, third = (256 >> share for share in shares)
    return low - 1, 256 - high, third - 1


def cut_in_python(data: bytes, min_bytes: int, average_bytes: int, max_bytes: int) -> list[int]:
    bits = average_bytes.bit_length() - 1
    ends, start = [], 0
    values = fingerprints(data)
    while start < len(data):
        length = min(max_bytes, len(data) - start)
        for at in range(min_bytes - 1, length):
            low, high, third = limits(bits + 2 if at < average_bytes else bits - 2)
            place = start + at
            if values[place] <= low and values[place - 1] >= high and values[place - 2] <= third:
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
    "sparse": b"".join(bytes(count) + b"\1" for count in random.Random(9).choices(range(200), k=500)),
}


@pytest.mark.parametrize("kernel", ["auto", *chunking.kernels()])
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize(
    "sizes", [SIZES, (128, 128, 128), (128, 128, 129), (129, 256, 4096), (190, 256, 257), (333, 512, 4097)]
)
def test_equal_to_python(kernel: str, name: str, sizes: tuple[int, int, int]) -> None:
    data = bytes(INPUTS[name])
    assert cut(data, *sizes, kernel=kernel) == cut_in_python(data, *sizes)


@pytest.mark.parametrize("kernel", chunking.kernels())
@pytest.mark.parametrize("size", [0, 1, 2, 63, 64, 127, 128, 129, 191, 192, 193, 255, 256, 257, 1023, 1024, 1025, 2049])
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
    moved = chunking.manifest(data, 16384, 65536, 262144, blake3, 1 << 40)
    assert [(offset - (1 << 40), *rest) for offset, *rest in struct.iter_unpack("=QII32s", moved)] == list(
        struct.iter_unpack("=QII32s", packed)
    )
    assert chunking.manifest(b"", 128, 128, 128, blake3) == b""
    with pytest.raises(ValueError, match="32 bytes"):
        chunking.manifest(b"x", 128, 128, 128, hashlib.sha512)
    with pytest.raises(TypeError):
        chunking.manifest(b"x", 128, 128, 128, None)  # type: ignore[arg-type]


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
    [(128, 200, 1024), (128, 64, 1024), (0, 128, 128), (127, 128, 128), (129, 128, 256), (128, 256, 255),
     (128, 128, 1 << 32), (-1, 128, 128), (128, 1 << 23, 1 << 23)],
)  # fmt: skip
def test_bad_sizes(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError):
        chunking.boundaries(b"data", *sizes)
    with pytest.raises(ValueError):
        chunking.manifest(b"data", *sizes, blake3)


def test_largest_average() -> None:
    """The strict limits of the largest average have all 24 bits."""
    data = INPUTS["random"]
    assert cut(data, 128, 1 << 22, 1 << 22) == cut_in_python(data, 128, 1 << 22, 1 << 22)


def test_bad_kernel() -> None:
    with pytest.raises(ValueError, match="plain"):
        chunking.boundaries(b"data", 128, 128, 128, "fastest")
    assert chunking.kernels()[-2:] == ("plain", "reference")
