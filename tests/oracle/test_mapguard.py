"""Mapped files that become shorter: zeros and a mark with a guard, the end of the process without one."""

from __future__ import annotations

import faulthandler
import hashlib
import mmap
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pylayers._native.mapguard import MapGuard
from pylayers._native.tarscan import scan

SIZE_BYTES = 1 << 20
alone = pytest.mark.skipif("san.so" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer has a handler of its own")
PAGE_BYTES = mmap.PAGESIZE


class Mapped:
    """A mapped file of random bytes."""

    def __init__(self, path: Path, size_bytes: int = SIZE_BYTES) -> None:
        self.content = os.urandom(size_bytes)
        path.write_bytes(self.content)
        self.path = path
        with path.open("rb") as file:
            self.mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.view = memoryview(self.mapping)


@pytest.fixture
def mapped(tmp_path: Path) -> Iterator[Mapped]:
    made = Mapped(tmp_path / "file")
    yield made
    made.view.release()
    made.mapping.close()


@pytest.mark.parametrize("left", [0, 1, PAGE_BYTES, 5 * PAGE_BYTES + 77])
def test_what_is_gone_is_zeros(mapped: Mapped, left: int) -> None:
    guard = MapGuard(mapped.view)
    assert bytes(mapped.view) == mapped.content
    assert not guard.broken
    os.truncate(mapped.path, left)
    expected = mapped.content[:left].ljust(SIZE_BYTES, b"\0")  # the kernel clears the rest of the last page
    assert bytes(mapped.view) == expected
    assert guard.broken
    guard.close()
    assert guard.broken
    guard.close()
    assert bytes(mapped.view) == expected


def test_a_file_that_only_lost_what_is_not_read(mapped: Mapped) -> None:
    guard = MapGuard(mapped.view)
    os.truncate(mapped.path, SIZE_BYTES // 2)
    assert bytes(mapped.view[: SIZE_BYTES // 2]) == mapped.content[: SIZE_BYTES // 2]
    assert not guard.broken
    guard.close()


def test_only_the_file_that_broke_is_told(mapped: Mapped, tmp_path: Path) -> None:
    other = Mapped(tmp_path / "other")
    guards = [MapGuard(mapped.view), MapGuard(other.view)]
    os.truncate(other.path, 0)
    assert bytes(other.view) == bytes(SIZE_BYTES)
    assert bytes(mapped.view) == mapped.content
    assert [guard.broken for guard in guards] == [False, True]
    for guard in guards:
        guard.close()
    other.view.release()
    other.mapping.close()


def test_threads_read_past_the_end_at_once(mapped: Mapped) -> None:
    guard = MapGuard(mapped.view)
    os.truncate(mapped.path, 0)
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(hashlib.sha256(mapped.view).digest())) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [hashlib.sha256(bytes(SIZE_BYTES)).digest()] * 8
    assert guard.broken
    guard.close()


def test_a_scan_by_two_threads(mapped: Mapped) -> None:
    """Zeros are the end mark of a tar, so that the scan ends well: the mark is what tells."""
    guard = MapGuard(mapped.view)
    os.truncate(mapped.path, 0)
    records, _ = scan(mapped.view)
    assert len(records) == len(scan(b"")[0])
    assert guard.broken
    guard.close()


def test_the_table_of_guards_is_bounded_and_used_again(mapped: Mapped) -> None:
    for _ in range(3):
        guards = [MapGuard(mapped.view) for _ in range(64)]
        with pytest.raises(OSError, match="Too many"):
            MapGuard(mapped.view)
        for guard in guards:
            guard.close()


def test_what_cannot_be_guarded(mapped: Mapped) -> None:
    with pytest.raises(ValueError, match="nothing"):
        MapGuard(memoryview(b""))
    with pytest.raises(ValueError, match="page"):
        MapGuard(mapped.view[1:])
    guard = MapGuard(mapped.view)
    with pytest.raises(BufferError):
        mapped.mapping.close()
    guard.close()


READ_PAST = """
import faulthandler, mmap, os, signal, sys
from pylayers._native.mapguard import MapGuard
path, way = sys.argv[1:]
def map_file(name):
    with open(name, "wb") as file:
        file.write(b"x" * 8192)
    with open(name, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
guarded, bare = map_file(path + "1"), map_file(path + "2")
if way == "faulthandler":
    faulthandler.enable()
guard = MapGuard(memoryview(guarded))
if way == "closed":
    guard.close()
os.truncate(path + "1", 0)
os.truncate(path + "2", 0)
if way != "closed":
    assert guarded[5000] == 0 and guard.broken
print("read", flush=True)
bare[5000]
"""


@alone
@pytest.mark.parametrize("way", ["beside", "closed", "faulthandler"])
def test_other_reads_end_the_process_as_ever(tmp_path: Path, way: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", READ_PAST, str(tmp_path / "file"), way], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "read\n")
    assert ("Fatal Python error: Bus error" in done.stderr) == (way == "faulthandler")


@alone
def test_the_handler_goes_with_the_last_guard(mapped: Mapped) -> None:
    """By what the kernel says is caught; pytest's faulthandler catches SIGBUS, too, unless it is turned off."""
    was_enabled = faulthandler.is_enabled()
    faulthandler.disable()
    try:
        assert not is_caught()
        first, second = MapGuard(mapped.view), MapGuard(mapped.view)
        assert is_caught()
        first.close()
        assert is_caught()
        second.close()
        assert not is_caught()
    finally:
        if was_enabled:
            faulthandler.enable(sys.__stderr__)


def is_caught() -> bool:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(line.split()[1], 16) >> (signal.SIGBUS - 1) & 1)
