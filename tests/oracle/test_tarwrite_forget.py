"""Large sources of a large tar do not stay in the page cache, unless they were there before."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import random
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from pylayers._native import tarwrite
from pylayers.diff import write
from pylayers.engine import Engine
from pylayers.store.entry import SOURCE_PATH
from tests.oracle.canonical import Given, Item, make_table, write_slowly

FILE = stat.S_IFREG | 0o644
PAGE_BYTES = mmap.PAGESIZE
FORGET_BYTES = 8 << 20
BEFORE_CACHESTAT = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2]) < (6, 5)


def count_cached(path: Path) -> int:
    """Count a file's pages that are in the page cache."""
    libc = ctypes.CDLL(None, use_errno=True)
    size_bytes = path.stat().st_size
    pages = -(-size_bytes // PAGE_BYTES)
    found = (ctypes.c_ubyte * pages)()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), size_bytes) as view:
        at = ctypes.c_char.from_buffer(view)
        failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(at)), ctypes.c_size_t(size_bytes), found)
        del at
    assert failed == 0, os.strerror(ctypes.get_errno())
    return sum(page & 1 for page in found)


def forget(path: Path) -> None:
    """Drop a file from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.fixture
def given(tmp_path: Path) -> Iterator[Given]:
    draw = random.Random(5)
    sizes = {b"large": 3 * FORGET_BYTES + 4097, b"least": FORGET_BYTES, b"small": FORGET_BYTES - 1}
    made = make_table([Item(name, FILE, draw.randbytes(size), kind=SOURCE_PATH) for name, size in sizes.items()],
                      tmp_path / "source")  # fmt: skip
    for path in find_paths(tmp_path).values():
        forget(path)
        if count_cached(path):
            pytest.skip("this file system keeps its files in memory")
    yield made
    made.close()


def find_paths(tmp_path: Path) -> dict[int, Path]:
    """Return the source files by size."""
    return {path.stat().st_size: path for path in (tmp_path / "source").rglob("f*") if path.is_file()}


@pytest.mark.parametrize("clone_from_bytes", [tarwrite.CLONE_NEVER, 65536])
def test_large_sources_are_forgotten_from_so_much_data_on(given: Given, tmp_path: Path, clone_from_bytes: int) -> None:
    expected, _ = write_slowly(given.items, 4096, 65536)
    total = sum(len(item.content) for item in given.items)
    tar, *_ = given.write(tmp_path / "tar", forget_from_bytes=total, clone_from_bytes=clone_from_bytes)
    assert tar == expected
    paths = find_paths(tmp_path)
    assert count_cached(paths[3 * FORGET_BYTES + 4097]) == 0
    assert count_cached(paths[FORGET_BYTES]) == 0
    assert count_cached(paths[FORGET_BYTES - 1]) == FORGET_BYTES // PAGE_BYTES


def test_less_data_stays(given: Given, tmp_path: Path) -> None:
    total = sum(len(item.content) for item in given.items)
    given.write(tmp_path / "tar", forget_from_bytes=total + 1)
    assert all(count_cached(path) == -(-size // PAGE_BYTES) for size, path in find_paths(tmp_path).items())


@pytest.mark.skipif(BEFORE_CACHESTAT, reason="cachestat(2) needs Linux 6.5")
def test_what_was_in_the_page_cache_stays(given: Given, tmp_path: Path) -> None:
    path = find_paths(tmp_path)[3 * FORGET_BYTES + 4097]
    path.read_bytes()
    given.write(tmp_path / "tar", forget_from_bytes=0)
    assert count_cached(path) == -(-path.stat().st_size // PAGE_BYTES)
    assert count_cached(find_paths(tmp_path)[FORGET_BYTES]) == 0


@pytest.mark.parametrize("memory_bytes", [8 << 20, 1 << 40])
def test_a_build_forgets_what_is_more_than_half_of_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory_bytes: int
) -> None:
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text("FROM scratch\nCOPY large /\n")
    large = context / "large"
    large.write_bytes(os.urandom(FORGET_BYTES))
    forget(large)
    if count_cached(large):
        pytest.skip("this file system keeps its files in memory")
    monkeypatch.setattr(write, "measure_memory", lambda: memory_bytes)
    with Engine.open(tmp_path / "root", driver="vfs") as engine:
        engine.build(context)
    assert count_cached(large) == (0 if memory_bytes < FORGET_BYTES * 2 else FORGET_BYTES // PAGE_BYTES)
