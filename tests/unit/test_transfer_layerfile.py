"""A layer's file gets the bytes that it was given, whatever their pieces, wherever direct writing begins or fails."""

from __future__ import annotations

import errno
import fcntl
import os
import random
from pathlib import Path

import pytest

from pylayers.errors import NoSpace
from pylayers.transfer import layerfile
from pylayers.transfer.layerfile import LayerFile
from pylayers.transfer.rootfs import write_hashed

BUFFER_BYTES = 16384


@pytest.fixture
def descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(layerfile, "BUFFER_BYTES", BUFFER_BYTES)
    opened = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT | os.O_EXCL)
    yield opened
    os.close(opened)


def cut(content: bytes, seed: int) -> list[bytes]:
    chosen = random.Random(seed)
    pieces = []
    while content:
        length = chosen.choice((1, 4096, 5000, BUFFER_BYTES, 3 * BUFFER_BYTES + 1))
        pieces.append(content[:length])
        content = content[length:]
    return pieces


def is_direct(descriptor: int) -> bool:
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)


@pytest.mark.parametrize("size", [0, 1, 8191, 8192, 8193, 12_288, 70_000, 200_000, 12 * BUFFER_BYTES])
@pytest.mark.parametrize("direct_from", [0, 8192, 1 << 30])
def test_any_pieces(descriptor: int, monkeypatch: pytest.MonkeyPatch, size: int, direct_from: int) -> None:
    monkeypatch.setattr(layerfile, "DIRECT_FROM_BYTES", direct_from)
    content = random.Random(size).randbytes(size)
    with LayerFile(descriptor) as file:
        for piece in cut(content, size):
            file.write(piece)
        file.finish()
        assert file.size_bytes == size
    assert not is_direct(descriptor)
    assert os.pread(descriptor, size + 1, 0) == content


@pytest.mark.parametrize("failing", [1, 3])
def test_a_file_system_that_wants_another_alignment(
    descriptor: int, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    write_now, calls = os.write, [0]

    def write(descriptor: int, part: bytes) -> int:
        if is_direct(descriptor):
            calls[0] += 1
            if calls[0] >= failing:
                raise OSError(errno.EINVAL, "Invalid argument")
        return write_now(descriptor, part)

    monkeypatch.setattr(layerfile, "DIRECT_FROM_BYTES", 8192)
    monkeypatch.setattr(os, "write", write)
    content = random.Random(failing).randbytes(150_001)
    with LayerFile(descriptor) as file:
        for piece in cut(content, failing):
            file.write(piece)
        if not calls[0]:
            pytest.skip("this file system has no O_DIRECT")
        file.finish()
    assert calls[0] == failing
    assert os.pread(descriptor, 1 << 20, 0) == content


@pytest.mark.parametrize("direct", [True, False])
def test_a_full_disk_is_named(descriptor: int, monkeypatch: pytest.MonkeyPatch, direct: bool) -> None:
    def write(descriptor: int, part: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(layerfile, "DIRECT_FROM_BYTES", 0 if direct else 1 << 30)
    monkeypatch.setattr(os, "write", write)
    with pytest.raises(NoSpace):  # at the end, when all fits the buffer
        write_hashed(descriptor, [b"x" * 100] * 3, len)
    with pytest.raises(NoSpace):
        write_hashed(descriptor, [b"x" * 9000] * 100, len)
