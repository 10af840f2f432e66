"""Compressed streams: the same bytes for every number of threads, and what everybody's tools unpack to the original."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import random
import shutil
import subprocess
import tempfile
import zlib
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pylayers.transfer.compress import Compressed, compress_file
from pylayers.transfer.packer import BLOCK_BYTES, UNIT_BYTES

EDGES = [edge + beside for edge in (BLOCK_BYTES, UNIT_BYTES) for beside in (-1, 0, 1)]
SIZES = st.sampled_from([0, 1, 511, *EDGES, 5_000_000])


def make_content(size: int, seed: int) -> bytes:
    """Make bytes of which some can be compressed and some can't."""
    chance = random.Random(seed)
    numbers = range(size // 1000 + 1)
    return b"".join(chance.randbytes(1000) if one % 3 else bytes(3000) + b"text " * 400 for one in numbers)[:size]


def compress(content: bytes, compression: str, level: int | None = None, threads: int = 2) -> tuple[bytes, Compressed]:
    out = io.BytesIO()
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        made = compress_file(file.fileno(), out.write, compression, level, threads)
    return out.getvalue(), made


def unpack_zstd(packed: bytes) -> bytes:
    """Unpack every frame; what is after the last one would fail."""
    with zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True) as stream:
        return stream.read()


@settings(deadline=None, max_examples=25)
@given(SIZES, st.integers(0, 1000), st.sampled_from([None, 1, 6]), st.sampled_from(["gzip", "zstd"]))
def test_the_same_for_every_number_of_threads(size: int, seed: int, level: int | None, compression: str) -> None:
    content = make_content(size, seed)
    packed, made = compress(content, compression, level, 1)
    for threads in (2, 3):
        assert compress(content, compression, level, threads) == (packed, made)
    digests = [f"sha256:{hashlib.sha256(one).hexdigest()}" for one in (content, packed)]
    assert made == Compressed(digests[0], size, digests[1], len(packed))
    if compression == "gzip":
        assert gzip.decompress(packed) == content
        one = zlib.decompressobj(31)
        assert one.decompress(packed) + one.flush() == content
        assert one.eof and not one.unused_data  # noqa: PT018  one member
    else:
        assert unpack_zstd(packed) == content


def test_zstd_jobs_that_look_back_are_the_same_for_every_number_of_threads() -> None:
    content = make_content(20_000_000, 3)
    content += content + content[:-1]  # 60 MB, some jobs
    packed, made = compress(content, "zstd", None, 1)
    for threads in (2, 3):
        assert compress(content, "zstd", None, threads) == (packed, made)
    assert made.plain_digest == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert unpack_zstd(packed) == content


@pytest.mark.parametrize(
    ("compression", "command"),
    [("gzip", ["gunzip", "-c"]), ("gzip", ["pigz", "-dc"]), ("zstd", ["zstd", "-dqc"])],
)
def test_other_programs_read_it(compression: str, command: list[str]) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    content = make_content(6_000_000, 7)
    packed, _ = compress(content, compression)
    assert subprocess.run(command, input=packed, capture_output=True, check=True).stdout == content


def test_an_error_of_the_writer_comes_through(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(40 * BLOCK_BYTES))

    def refuse(piece: bytes) -> None:
        if len(piece) > 100:
            raise OSError(errno.ENOSPC, "full")

    for compression in ("gzip", "zstd"):
        with source.open("rb") as file, pytest.raises(OSError, match="full"):
            compress_file(file.fileno(), refuse, compression)


def test_what_shrinks_meanwhile_has_another_digest(tmp_path: Path) -> None:
    content = os.urandom(8 * BLOCK_BYTES)
    source = tmp_path / "source"
    source.write_bytes(content)
    seen: list[bytes] = []

    def cut(piece: bytes) -> None:
        if not seen:
            os.truncate(source, 7 * BLOCK_BYTES + 5)
        seen.append(piece)

    with source.open("rb") as file:
        made = compress_file(file.fileno(), cut, "gzip")
    assert made.plain_bytes == 7 * BLOCK_BYTES + 5
    assert gzip.decompress(b"".join(seen)) == content[: made.plain_bytes]
    assert made.plain_digest != f"sha256:{hashlib.sha256(content).hexdigest()}"
