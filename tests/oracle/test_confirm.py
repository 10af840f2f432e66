"""The confirm kernel against walking again: where it says yes, a walk gives the same table."""

from __future__ import annotations

import os
import stat
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pylayers._native import confirm as kernel
from pylayers._native import walk
from pylayers.build.source.selector import renew_rows
from pylayers.store.entry import EntryTable
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


def confirm(root: Path, known: Table, threads: int = 2, before_ns: int = FOREVER_NS) -> set[bytes] | None:
    """Return the paths that the kernel says have changed."""
    with opened(root) as fd:
        rows = kernel.confirm(fd, *known, before_ns, threads)
    table = EntryTable(*known)
    return None if rows is None else {table.path(table.entry(row)) for row in memoryview(rows).cast("I")}


def holds(root: Path, known: Table, threads: int = 2, before_ns: int = FOREVER_NS) -> bool:
    return confirm(root, known, threads, before_ns) == set()


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


KEEPS_THE_SHAPE = {"grown": {b"a/b/257"}}  # the others add or remove names, or are of something else than a plain file


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_seen(tree: Path, name: str, threads: int) -> None:
    known = look(tree)
    CHANGES[name](tree)
    with opened(tree) as fd:
        assert not walk.same(*walk.walk(fd), *known, FOREVER_NS), "the oracle sees it too"
    assert confirm(tree, known, threads) == KEEPS_THE_SHAPE.get(name)


PLAIN: dict[str, Callable[[Path], object]] = {
    "content": lambda path: path.write_bytes(b"other"),
    "mode": lambda path: path.chmod(0o751),
    "owner": lambda path: os.chown(path, 3, 4) if os.geteuid() == 0 else path.chmod(0o711),
    "mtime": lambda path: os.utime(path, (5, 5)),
    "ctime": lambda path: os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns)),
    "emptied": lambda path: os.truncate(path, 0),
}


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("name", PLAIN)
def test_plain_files_are_told_by_their_rows(tree: Path, name: str, threads: int) -> None:
    """Where only they differ, a table with their rows renewed is what a walk gives."""
    plain = [tree / "a" / "b" / f"{index:x}" for index in (0, 255, 256, 599)]
    for path in plain:
        path.write_bytes(b"before")
    records, heap = look(tree)
    for path in plain:
        PLAIN[name](path)
    assert confirm(tree, (records, heap), threads) == {os.fsencode(path.relative_to(tree)) for path in plain}
    with opened(tree) as fd:
        rows = kernel.confirm(fd, records, heap, FOREVER_NS, threads)
        assert rows is not None
        renewed = renew_rows(fd, records, heap, rows)
        assert renewed is not None
        assert walk.same(*walk.walk(fd), *renewed, FOREVER_NS)
    assert holds(tree, renewed)


def test_too_many_changed_files_are_left_to_the_walk(tree: Path) -> None:
    known = look(tree)
    for count in range(257):
        (tree / "a" / "b" / f"{count:x}").write_bytes(b"x")
    assert confirm(tree, known) is None
    (tree / "few").mkdir()
    known = look(tree)
    for count in range(256):
        (tree / "a" / "b" / f"{count:x}").write_bytes(b"xx")
    assert len(confirm(tree, known) or ()) == 256


@pytest.mark.parametrize("become", ["gone", "folder", "linked", "symlink", "fifo"])
def test_a_file_that_is_no_longer_one_when_it_is_looked_at_again(tree: Path, become: str) -> None:
    records, heap = look(tree)
    path = tree / "a" / "b" / "7"
    path.write_bytes(b"x")
    with opened(tree) as fd:
        rows = kernel.confirm(fd, records, heap, FOREVER_NS)
        assert rows is not None
        path.unlink()
        {
            "gone": lambda: None,
            "folder": path.mkdir,
            "linked": lambda: (path.touch(), os.link(path, tree / "another")),
            "symlink": lambda: path.symlink_to("6"),
            "fifo": lambda: os.mkfifo(path),
        }[become]()
        assert renew_rows(fd, records, heap, rows) is None
        assert kernel.confirm(fd, records, heap, FOREVER_NS) is None


def test_rows_that_may_change_within_their_tick_are_not_trusted(tree: Path) -> None:
    known = look(tree)
    newest = max(max(os.lstat(path).st_mtime_ns, os.lstat(path).st_ctime_ns) for path in (tree, *tree.rglob("*")))
    assert holds(tree, known, before_ns=newest + 1)
    assert not holds(tree, known, before_ns=newest)


def test_plain_files_that_are_not_trusted_are_told(tree: Path) -> None:
    past = tree / "a" / "b" / "5"
    time.sleep(0.05)
    past.write_bytes(b"racy")
    known = look(tree)
    assert holds(tree, known)
    assert confirm(tree, known, before_ns=past.stat().st_ctime_ns) == {b"a/b/5"}


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
        assert work.run()
        assert all(answers)
        assert len(work.changed or b"") == (4 if change else 0)
        assert not kernel.Confirmation(fd, b"", b"", FOREVER_NS).run()
        with pytest.raises(ValueError, match="heap"):
            kernel.Confirmation(fd, known[0][:-1], known[1], FOREVER_NS)


def test_bad_tables_are_refused(tree: Path) -> None:
    records, heap = look(tree)
    with opened(tree) as fd:
        assert kernel.confirm(fd, b"", b"", FOREVER_NS) is None
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
