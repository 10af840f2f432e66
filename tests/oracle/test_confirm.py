"""The confirm kernel against walking again: where it says yes, a walk gives the same table."""

from __future__ import annotations

import os
import stat
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pylayers._native import confirm as kernel
from pylayers._native import walk
from tests.oracle.tree import FOREVER_NS, opened

Table = tuple[bytearray, bytearray]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Make one of everything that needs no privilege, in more than one block of rows."""
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "file").write_bytes(b"content")
    os.mkdir(bytes(root / "a") + b"/not-utf8-\xff\xfe")
    (root / "a" / "link").symlink_to("/nowhere")
    os.link(root / "a" / "file", root / "linked")
    os.mkfifo(root / "fifo")
    for index in range(600):
        (root / "a" / "b" / f"{index:x}").touch()
    return root


def look(root: Path) -> Table:
    with opened(root) as fd:
        return walk.walk(fd)


def holds(root: Path, known: Table, threads: int = 2, before_ns: int = FOREVER_NS) -> bool:
    with opened(root) as fd:
        return kernel.confirm(fd, *known, before_ns, threads)


@pytest.mark.parametrize("threads", [1, 2, 7, 1000])
def test_an_unchanged_tree_is_confirmed(tree: Path, threads: int) -> None:
    assert holds(tree, look(tree), threads)


def test_reading_changes_nothing(tree: Path) -> None:
    known = look(tree)
    (tree / "a" / "file").read_bytes()
    os.listdir(tree / "a" / "b")
    assert holds(tree, known)


def rewrite_in_place(tree: Path) -> None:
    times = (tree / "a" / "file").stat()
    with open(tree / "a" / "file", "r+b") as file:
        file.write(b"CONTENT")
    os.utime(tree / "a" / "file", ns=(times.st_atime_ns, times.st_mtime_ns))


def replace_by_symlink(tree: Path) -> None:
    (tree / "a").rename(tree.parent / "elsewhere")
    (tree / "a").symlink_to("../elsewhere")


def replace_root(tree: Path) -> None:
    tree.rename(tree.parent / "old")
    tree.mkdir()


CHANGES: dict[str, Callable[[Path], object]] = {
    "grown": lambda tree: (tree / "a" / "b" / "257").write_bytes(b"x"),
    "rewritten, mtime put back": rewrite_in_place,
    "added": lambda tree: (tree / "a" / "b" / "new").touch(),
    "added to an empty folder": lambda tree: os.mkfifo(bytes(tree) + b"/a/not-utf8-\xff\xfe/new"),
    "removed": lambda tree: (tree / "a" / "b" / "0").unlink(),
    "removed last": lambda tree: (tree / "linked").unlink(),
    "renamed": lambda tree: (tree / "a" / "b" / "0").rename(tree / "a" / "b" / "00"),
    "renamed over": lambda tree: (tree / "a" / "b" / "0").replace(tree / "a" / "b" / "1"),
    "mode": lambda tree: (tree / "fifo").chmod(0o600 ^ stat.S_IMODE((tree / "fifo").stat().st_mode)),
    "mtime": lambda tree: os.utime(tree / "a" / "b", (5, 5)),
    "symlink": lambda tree: ((tree / "a" / "link").unlink(), (tree / "a" / "link").symlink_to("/elsewher")),
    "hard link": lambda tree: os.link(tree / "fifo", tree.parent / "outside"),
    "folder by a symlink to it": replace_by_symlink,
    "root": replace_root,
}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_seen(tree: Path, name: str, threads: int) -> None:
    known = look(tree)
    CHANGES[name](tree)
    with opened(tree) as fd:
        assert not walk.same(*walk.walk(fd), *known, FOREVER_NS), "the oracle sees it too"
        assert not kernel.confirm(fd, *known, FOREVER_NS, threads)


def test_rows_that_may_change_within_their_tick_are_not_trusted(tree: Path) -> None:
    known = look(tree)
    newest = max(max(os.lstat(path).st_mtime_ns, os.lstat(path).st_ctime_ns) for path in (tree, *tree.rglob("*")))
    assert holds(tree, known, before_ns=newest + 1)
    assert not holds(tree, known, before_ns=newest)


def test_a_tree_of_two_devices_is_left_to_the_walk(tree: Path) -> None:
    records, heap = look(tree)
    device = struct.unpack_from("<Q", records, 168 + 64)[0]
    at = records.find(struct.pack("<Q", device), 168)
    assert at > 0
    struct.pack_into("<Q", records, at, device + 1)
    assert not holds(tree, (records, heap))


@pytest.mark.parametrize("change", [False, True])
def test_threads_share_one_confirmation(tree: Path, change: bool) -> None:
    known = look(tree)
    if change:
        (tree / "a" / "b" / "257").chmod(0o400)
    with opened(tree) as fd:
        work = kernel.Confirmation(fd, *known, FOREVER_NS)
        answers: list[bool] = []
        threads = [threading.Thread(target=lambda: answers.append(work.run())) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert work.run() is not change
        assert all(answers) or change
        assert not kernel.Confirmation(fd, b"", b"", FOREVER_NS).run()
        with pytest.raises(ValueError, match="heap"):
            kernel.Confirmation(fd, known[0][:-1], known[1], FOREVER_NS)


def test_bad_tables_are_refused(tree: Path) -> None:
    records, heap = look(tree)
    with opened(tree) as fd:
        assert not kernel.confirm(fd, b"", b"", FOREVER_NS)
        with pytest.raises(ValueError, match="heap"):
            kernel.confirm(fd, records[:-1], heap, FOREVER_NS)
        with pytest.raises(ValueError, match="heap"):
            kernel.confirm(fd, records, heap[:-10], FOREVER_NS)
        with pytest.raises(ValueError, match="threads"):
            kernel.confirm(fd, records, heap, FOREVER_NS, 0)


def test_paths_beyond_the_kernels_limit_are_left_to_the_walk(tmp_path: Path) -> None:
    below = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("x" * 250, dir_fd=below)
        inner = os.open("x" * 250, os.O_RDONLY, dir_fd=below)
        os.close(below)
        below = inner
    os.close(below)
    assert not holds(tmp_path, look(tmp_path))


def test_filesystem_type_is_the_kernels(tmp_path: Path) -> None:
    with opened("/proc") as fd:  # type: ignore[arg-type]
        assert kernel.read_filesystem_type(fd) == 0x9FA0
    with pytest.raises(OSError, match="Bad file descriptor"):
        kernel.read_filesystem_type(-1)
