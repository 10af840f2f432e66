"""Walking, comparing and recalling a tree; PYLAYERS_BENCH_ENTRIES sets its size.

The unchanged rebuild is one walk and one `same`. os.scandir with lstat is the plain Python way of the same work.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pylayers._native import confirm
from pylayers._native import walk as kernel

ENTRIES = int(os.environ.get("PYLAYERS_BENCH_ENTRIES", "4000"))
FOREVER_NS = 1 << 62


@pytest.fixture(scope="module")
def root_fd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Make a package-like tree: ten names per directory, one in twenty a symlink."""
    root = tmp_path_factory.mktemp("tree")
    for number in range(ENTRIES // 10):
        directory = root / f"package{number // 100}" / f"part{number // 10 % 10}" / f"module-{number}"
        directory.mkdir(parents=True)
        for index in range(9):
            place = directory / f"source_file_{index}.py"
            if (number * 9 + index) % 20:
                place.write_bytes(b"content")
            else:
                place.symlink_to("source_file_1.py")
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def scan(path: Path | str) -> list[os.stat_result]:
    found = []
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            found.append(os.lstat(entry.path))
            if entry.is_dir(follow_symlinks=False):
                found += scan(entry.path)
            elif entry.is_symlink():
                os.readlink(entry.path)
    return found


@pytest.mark.benchmark(group="walk")
@pytest.mark.parametrize("threads", [1, 2])
def bench_walk(benchmark, root_fd: int, threads: int) -> None:
    records, _ = benchmark(kernel.walk, root_fd, threads=threads)
    benchmark.extra_info["entries"] = len(records) // 168


@pytest.mark.benchmark(group="walk")
def bench_walk_xattrs(benchmark, root_fd: int) -> None:
    benchmark(kernel.walk, root_fd, xattrs=True)


@pytest.mark.benchmark(group="walk")
def bench_walk_select(benchmark, root_fd: int) -> None:
    benchmark(kernel.walk, root_fd, lambda directory, names, modes: None)


@pytest.mark.benchmark(group="walk")
def bench_python_scandir(benchmark, root_fd: int) -> None:
    found = benchmark(scan, f"/proc/self/fd/{root_fd}")
    assert len(found) + 1 == len(kernel.walk(root_fd)[0]) // 168


@pytest.mark.benchmark(group="compare")
def bench_same(benchmark, root_fd: int) -> None:
    old, new = kernel.walk(root_fd), kernel.walk(root_fd)
    assert benchmark(kernel.same, *old, *new, FOREVER_NS)


@pytest.mark.benchmark(group="compare")
def bench_recall(benchmark, root_fd: int) -> None:
    old, new = kernel.walk(root_fd), kernel.walk(root_fd)
    benchmark(kernel.recall, *new, *old, FOREVER_NS)


@pytest.mark.benchmark(group="compare")
@pytest.mark.parametrize("threads", [1, 2])
def bench_confirm(benchmark, root_fd: int, threads: int) -> None:
    known = kernel.walk(root_fd)
    assert benchmark(confirm.confirm, root_fd, *known, FOREVER_NS, threads) == b""
