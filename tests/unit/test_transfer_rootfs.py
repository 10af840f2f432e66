"""Writing a layer while it is made: everything is written and hashed in order, and an error ends every thread."""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pylayers._native.sha256 import Sha256, is_fast
from pylayers.errors import IntegrityError, NoSpace
from pylayers.store.state import EVERY_BYTES
from pylayers.transfer import rootfs
from pylayers.transfer.rootfs import write_hashed


def test_order_and_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rootfs, "FLUSH_BYTES", 10_000)
    pieces = [os.urandom(size) for size in (1, 70_000, 3, 1 << 20)] * 30
    taken: list[bytes] = []
    with (tmp_path / "out").open("w+b") as out:
        told = write_hashed(out.fileno(), iter(pieces), taken.append)
        out.seek(0)
        assert out.read() == b"".join(pieces)
    assert taken == pieces
    whole = b"".join(pieces)
    hasher = Sha256(EVERY_BYTES)
    hasher.update(whole)
    states = hasher.states if is_fast() else b""
    assert told == (len(whole), hashlib.sha256(whole).hexdigest(), states)


def test_an_error_of_the_source_comes_through(tmp_path: Path) -> None:
    def damaged() -> Iterator[bytes]:
        yield b"x" * 1000
        raise IntegrityError("cut")

    before = threading.active_count()
    with (tmp_path / "out").open("wb") as out, pytest.raises(IntegrityError, match="cut"):
        write_hashed(out.fileno(), damaged(), len)
    assert threading.active_count() == before


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_full_disk(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(tmp_path)], check=True)
    try:
        before = threading.active_count()
        with (tmp_path / "out").open("wb") as out, pytest.raises(NoSpace):
            write_hashed(out.fileno(), (bytes(1 << 20) for _ in range(200)), len)
        assert threading.active_count() == before
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
