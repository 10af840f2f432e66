"""What must hold for every buffer: equal kernels, whole coverage, sizes within bounds, local changes."""

from __future__ import annotations

import random
from array import array

from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from pylayers._native import chunking

SIZES = st.tuples(st.integers(128, 400), st.sampled_from([128, 256, 512]), st.integers(0, 2000)).map(
    lambda chosen: (min(chosen[0], chosen[1]), chosen[1], chosen[1] + chosen[2])
)
DATA = st.one_of(
    st.binary(max_size=3000),
    st.builds(lambda seed, size: random.Random(seed).randbytes(size), st.integers(0, 1 << 32), st.integers(0, 50_000)),
    st.builds(lambda piece, count: piece * count, st.binary(min_size=1, max_size=50), st.integers(0, 500)),
    st.builds(
        lambda seed, letters, size: bytes(random.Random(seed).choices(letters, k=size)),
        st.integers(0, 1 << 32),
        st.binary(min_size=1, max_size=4),
        st.integers(0, 20_000),
    ),
)


def cut(data: bytes, sizes: tuple[int, int, int], kernel: str = "auto") -> list[int]:
    return list(array("Q", chunking.boundaries(data, *sizes, kernel)))


@settings(deadline=None, max_examples=200)
@given(DATA, SIZES)
def test_kernels_agree_and_cover_within_bounds(data: bytes, sizes: tuple[int, int, int]) -> None:
    ends = cut(data, sizes, "reference")
    for kernel in chunking.kernels():
        assert cut(data, sizes, kernel) == ends
    lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    assert sum(lengths) == len(data)
    assert all(sizes[0] <= length <= sizes[2] for length in lengths[:-1])
    assert all(0 < length <= sizes[2] for length in lengths[-1:])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([64, 128, 1, 7]), max_size=40), st.integers(0, 1 << 32), SIZES)
def test_kernels_agree_on_places_that_often_pass(gaps: list[int], seed: int, sizes: tuple[int, int, int]) -> None:
    """The 64 bytes before a cut, again and again: whatever a kernel keeps from step to step is asked for."""
    data = random.Random(seed).randbytes(20_000)
    ends = cut(data, sizes, "reference")
    piece = data[max(ends[0] - 70, 0) : ends[0]]
    again = b"".join(piece + bytes(gap) for gap in gaps)
    expected = cut(again, sizes, "reference")
    for kernel in chunking.kernels():
        assert cut(again, sizes, kernel) == expected


@settings(deadline=None, max_examples=100)
@given(DATA, SIZES)
def test_a_chunk_depends_on_its_own_bytes_only(data: bytes, sizes: tuple[int, int, int]) -> None:
    ends = cut(data, sizes)
    if ends:
        assert cut(data[ends[0] :], sizes) == [end - ends[0] for end in ends[1:]]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 1 << 32), st.integers(0, 300_000), st.binary(min_size=1, max_size=500))
def test_an_insertion_changes_few_chunks(seed: int, at: int, inserted: bytes) -> None:
    data = random.Random(seed).randbytes(300_000)
    sizes = (256, 1024, 8192)

    def chunks(content: bytes) -> set[bytes]:
        ends = cut(content, sizes)
        return {content[start:end] for start, end in zip([0, *ends], ends, strict=False)}

    before, after = chunks(data), chunks(data[:at] + inserted + data[at:])
    assert len(before) > 100
    assert len(after - before) <= 20


@settings(deadline=None, max_examples=60)
@given(DATA, SIZES)
def test_manifest_follows_the_boundaries(data: bytes, sizes: tuple[int, int, int]) -> None:
    packed = memoryview(chunking.manifest(data, *sizes, blake3))
    start = 0
    for number, end in enumerate(cut(data, sizes)):
        record = packed[number * 48 : number * 48 + 48]
        assert int.from_bytes(record[:8], "little") == start
        assert int.from_bytes(record[8:12], "little") == end - start
        assert record[16:] == blake3(data[start:end]).digest()
        start = end
