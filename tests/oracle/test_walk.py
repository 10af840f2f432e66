"""The walk kernel against os.lstat and os.scandir."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pylayers._native import walk as kernel
from pylayers.store.entry import ENTRY_SIZE_BYTES, ENTRY_STRUCT, FLAG_HASHED, EntryTable, path_key
from pylayers.store.row import Entry
from tests.oracle.tree import FOREVER_NS, Row, observe_tree, opened, paths_of, unpack


def walk_tree(root: Path | bytes, **options: object) -> list[Row]:
    with opened(root) as fd:
        return unpack(*kernel.walk(fd, **options))  # type: ignore[arg-type]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Make one of everything that needs no privilege."""
    root = tmp_path / "root"
    (root / "a" / "b" / "c").mkdir(parents=True)
    (root / "a-b").write_bytes(b"sorts after a/b")
    (root / "a" / "file").write_bytes(b"x" * 70000)
    (root / "a" / "b" / "empty").touch()
    os.mkdir(bytes(root / "a") + b"/not-utf8-\xff\xfe")
    (root / "a" / "dangling").symlink_to("/nowhere/at/all")
    (root / "loop").symlink_to(".")
    os.link(root / "a-b", root / "a" / "b" / "z-linked")
    os.link(root / "a-b", root / "zz")
    os.link(root / "loop", root / "loop2", follow_symlinks=False)
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        place = os.open(root, os.O_PATH)
        server.bind(f"/proc/self/fd/{place}/socket")
        os.close(place)
    os.chmod(root / "a" / "file", 0o4711)
    os.utime(root / "a" / "file", ns=(1, -5_000_000_001))
    for index in range(300):
        (root / "a" / "b" / "c" / f"{index:x}-name").touch()
    return root


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_everything_equals_the_oracle(tree: Path, threads: int) -> None:
    assert walk_tree(tree, threads=threads) == observe_tree(bytes(tree))


def test_listing_larger_than_its_buffer(tmp_path: Path) -> None:
    for index in range(1200):
        (tmp_path / f"{index:x}{'-long' * 40}").touch()
    assert walk_tree(tmp_path) == observe_tree(bytes(tmp_path))


def test_threads_give_the_same_bytes(tree: Path) -> None:
    with opened(tree) as fd:
        assert len({tuple(map(bytes, kernel.walk(fd, threads=threads))) for threads in (1, 1, 2, 3, 8)}) == 1


def test_root_may_be_an_o_path_descriptor(tree: Path) -> None:
    fd = os.open(tree, os.O_PATH)
    try:
        assert unpack(*kernel.walk(fd)) == observe_tree(bytes(tree))
    finally:
        os.close(fd)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mknod and trusted xattrs need root")
def test_devices_and_owners(tmp_path: Path) -> None:
    os.mknod(tmp_path / "char", 0o600 | stat.S_IFCHR, os.makedev(10, 300))
    os.mknod(tmp_path / "block", 0o600 | stat.S_IFBLK, os.makedev(259, 1 << 18))
    os.chown(tmp_path / "char", 4_000_000_000, 70_000)
    assert walk_tree(tmp_path) == observe_tree(bytes(tmp_path))


def give_xattrs(tree: Path) -> None:
    try:
        os.setxattr(tree, "user.root", b"r")
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        pytest.skip("this file system has no user xattrs")
    os.setxattr(tree / "a" / "file", "user.z", b"\0\xff" * 400)
    os.setxattr(tree / "a" / "file", "user.a", b"")
    os.setxattr(tree / "a" / "file", "user.long" + "g" * 240, b"1")
    os.setxattr(tree / "a-b", "user.linked", b"value")
    os.setxattr(tree / "a" / "b", "user.directory", b"value")
    if os.geteuid() == 0:
        os.setxattr(tree / "loop", "trusted.symlink", b"own, not the target's", follow_symlinks=False)


def test_xattrs_equal_the_oracle(tree: Path) -> None:
    give_xattrs(tree)
    for threads in (1, 3):
        assert walk_tree(tree, xattrs=True, threads=threads) == observe_tree(bytes(tree), xattrs=True)
    assert not any(row[3] for row in walk_tree(tree))
    with opened(tree) as fd:
        records, heap = kernel.walk(fd, xattrs=True)
    for entry in EntryTable(records, heap):  # sorted by name, as the digest needs it
        names = list(EntryTable(records, heap).xattrs(entry))
        assert names == sorted(names)


def test_read_xattrs_fills_the_named_rows_only(tree: Path) -> None:
    give_xattrs(tree)
    expected = observe_tree(bytes(tree), xattrs=True)
    with opened(tree) as fd:
        records, heap = kernel.walk(fd)
        some = [index for index, row in enumerate(expected) if row[0] not in (b"a-b",)]
        kernel.read_xattrs(fd, records, heap, struct.pack(f"{len(some)}I", *some))
        for got, wanted in zip(unpack(records, heap), expected, strict=True):
            assert got[3] == ({} if wanted[0] == b"a-b" else wanted[3])
        kernel.read_xattrs(fd, records, heap, struct.pack("I", paths_of(expected).index(b"a-b")))
        assert unpack(records, heap) == expected


def test_read_xattrs_failure_names_the_path_and_changes_nothing(tree: Path) -> None:
    give_xattrs(tree)
    with opened(tree) as fd:
        records, heap = kernel.walk(fd)
        before = bytes(records), bytes(heap)
        (tree / "zz").unlink()
        count = len(records) // ENTRY_SIZE_BYTES
        with pytest.raises(FileNotFoundError) as caught:
            kernel.read_xattrs(fd, records, heap, struct.pack(f"{count}I", *range(count)))
        assert caught.value.filename == b"zz"
        assert (bytes(records), bytes(heap)) == before
        with pytest.raises(ValueError, match="beyond"):
            kernel.read_xattrs(fd, records, heap, struct.pack("I", count))
        with pytest.raises(ValueError, match="whole"):
            kernel.read_xattrs(fd, records, heap, b"123")


def test_select_drops_and_is_asked_once_per_directory(tree: Path) -> None:
    asked: dict[bytes, tuple[list[bytes], list[int]]] = {}

    def choose(directory: bytes, names: list[bytes], modes: bytes) -> bytes | None:
        assert directory not in asked
        asked[directory] = names, list(struct.unpack(f"{len(names)}I", modes))
        if directory == b"a":
            return bytes(name != b"b" for name in names)
        return None if directory else bytearray(name != b"a-b" for name in names)

    rows = walk_tree(tree, select=choose, threads=4)
    everything = paths_of(observe_tree(bytes(tree)))
    assert paths_of(rows) == [path for path in everything if path != b"a-b" and not (path + b"/").startswith(b"a/b/")]
    assert set(asked) == {b"", b"a", b"a/not-utf8-\xff\xfe"}
    for directory, (names, modes) in asked.items():
        assert names == sorted(os.listdir(os.path.join(bytes(tree), directory)))
        assert modes == [os.lstat(os.path.join(bytes(tree), directory, name)).st_mode for name in names]
    # The first of a hard-linked pair is gone, so the next takes its place.
    assert {row[0]: row[1].flags for row in rows}[b"zz"] == 0


@pytest.mark.parametrize("answer", [b"", b"\1" * 1000, "text", 3])
def test_select_answers_are_checked(tree: Path, answer: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        walk_tree(tree, select=lambda *_: answer)


def test_select_exceptions_pass_through(tree: Path) -> None:
    def refuse(directory: bytes, names: list[bytes], modes: bytes) -> None:
        if directory == b"a/b":
            raise KeyError(directory)

    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KeyError, match="a/b"):
        walk_tree(tree, select=refuse)
    assert len(os.listdir("/proc/self/fd")) == before


def make_chain(root: Path, depth: int, side: bool) -> None:
    fd = os.open(root, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("down", dir_fd=fd)
        if side:
            os.mkdir("aside", dir_fd=fd)
            os.mkdir("zside", dir_fd=fd)
        below = os.open("down", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def remove_chain(root: Path) -> None:
    """Shorten the chain from its top: no removal that recurses gets through it."""
    for side in ("aside", "zside"):
        (root / side).mkdir(exist_ok=True)
    while (root / "down").exists():
        for side in ("aside", "zside"):
            (root / side).rmdir()
            if (root / "down" / side).exists():
                (root / "down" / side).rename(root / side)
            else:
                (root / side).mkdir()
        (root / "down").rename(root / "old")
        if (root / "old" / "down").exists():
            (root / "old" / "down").rename(root / "down")
        (root / "old").rmdir()


@pytest.mark.parametrize(("depth", "side"), [(5000, False), (1200, True)])
@pytest.mark.parametrize("threads", [1, 2])
def test_deep_trees_need_few_descriptors(tmp_path: Path, depth: int, side: bool, threads: int) -> None:
    import resource

    make_chain(tmp_path, depth, side)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(os.sched_getaffinity(0)) + used + 90, hard))
    try:
        rows = walk_tree(tmp_path, threads=threads)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    expected = [b"/".join([b"down"] * level) for level in range(depth + 1)]
    if side:
        expected += [(path + b"/" if path else b"") + name for path in expected[:-1] for name in (b"aside", b"zside")]
        expected.sort(key=path_key)
    assert paths_of(rows) == expected
    assert len(os.listdir("/proc/self/fd")) == used
    remove_chain(tmp_path)


def test_without_openat2(tmp_path: Path) -> None:
    """A kernel or seccomp profile that lacks openat2 only makes deep trees slower."""
    make_chain(tmp_path, 100, True)
    script = """
import ctypes, os, struct, sys
from pylayers._native import walk
code = [(0x20, 0, 0, 0), (0x15, 0, 1, 437), (0x06, 0, 0, 0x50000 | int(sys.argv[2])), (0x06, 0, 0, 0x7FFF0000)]
block = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in code))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(code), ctypes.addressof(block)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0
assert libc.syscall(437, -1, None, None, 0) == -1 and ctypes.get_errno() == int(sys.argv[2])
records, heap = walk.walk(os.open(sys.argv[1], os.O_RDONLY), threads=2)
sys.stdout.buffer.write(records + heap)
"""
    with opened(tmp_path) as fd:
        expected = b"".join(kernel.walk(fd))
    for error in (errno.ENOSYS, errno.EPERM):
        done = subprocess.run(
            [sys.executable, "-c", script, tmp_path, str(error)], stdout=subprocess.PIPE, check=True,
            cwd=Path(__file__).parents[2],
        )
        assert done.stdout == expected
    remove_chain(tmp_path)


def test_unreadable_directory_names_its_path(tree: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    os.chmod(tree / "a" / "b", 0)
    try:
        with pytest.raises(PermissionError) as caught:
            walk_tree(tree)
        assert caught.value.filename == b"a/b"
    finally:
        os.chmod(tree / "a" / "b", 0o755)


@pytest.mark.parametrize("depth", [0, 100])
def test_swapped_directory_does_not_escape(tmp_path: Path, depth: int) -> None:
    """A symlink put in the place of a directory between its stat and its opening is an error, or never followed."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").touch()
    root = tmp_path / "root"
    root.mkdir()
    below = root
    for level in range(depth):  # so deep that descriptors run out and the victim is opened by its path
        (below / "zz").mkdir()
        below = below / f"d{level}"
        below.mkdir()
    (below / "victim").mkdir()
    (below / "victim" / "inside").mkdir()

    def swap(directory: bytes, names: list[bytes], modes: bytes) -> None:
        if b"victim" in names:
            os.rename(below / "victim", tmp_path / "moved")
            os.symlink(secret, below / "victim")

    with pytest.raises(NotADirectoryError) as caught:
        walk_tree(root, select=swap)
    assert caught.value.filename == os.path.relpath(bytes(below / "victim"), bytes(root))


def test_vanishing_directory_is_left_out(tree: Path) -> None:
    def remove(directory: bytes, names: list[bytes], modes: bytes) -> None:
        if directory == b"a":
            os.rmdir(bytes(tree) + b"/a/not-utf8-\xff\xfe")

    expected = observe_tree(bytes(tree))
    assert paths_of(walk_tree(tree, select=remove)) == [path for path in paths_of(expected) if b"\xff" not in path]


def test_walks_while_the_tree_changes(tmp_path: Path) -> None:
    """Directories, files and symlinks come and go in another thread; what stays is always found."""
    for index in range(60):
        (tmp_path / f"stays{index:02}" / "too").mkdir(parents=True)
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            for index in range(0, 60, 7):
                place = tmp_path / f"stays{index:02}" / "too"
                (place / "new").mkdir()
                (place / "new" / "file").touch()
                (place / "link").symlink_to("target")
                (place / "new" / "file").unlink()
                (place / "new").rmdir()
                (place / "link").unlink()

    worker = threading.Thread(target=churn)
    worker.start()
    try:
        staying = [b"stays%02d" % index for index in range(60)]
        for turn in range(150):
            rows = walk_tree(tmp_path, threads=1 + turn % 3, xattrs=turn % 2 == 0)
            assert [path for path in paths_of(rows) if b"/" not in path and path] == staying
            assert all(row[2] == b"target" for row in rows if row[0].endswith(b"/link"))
    finally:
        stop.set()
        worker.join()


def test_mount_points_are_listed_but_not_descended() -> None:
    with opened(b"/") as fd:
        device = os.fstat(fd).st_dev

        def keep(directory: bytes, names: list[bytes], modes: bytes) -> bytes:
            return bytes(not directory and name in (b"proc", b"dev") for name in names)

        rows = unpack(*kernel.walk(fd, keep, cross_devices=False))
        mounts = [row for row in rows[1:] if row[1].device != device]
        if not mounts:
            pytest.skip("neither /proc nor /dev is a mount here")
        asked: list[bytes] = []
        kernel.walk(fd, lambda at, names, modes: asked.append(at) or keep(at, names, modes), cross_devices=False)
        assert not {row[0] for row in mounts} & set(asked)
        asked.clear()
        kernel.walk(fd, lambda at, names, modes: asked.append(at) or keep(at, names, modes))
        assert {row[0] for row in mounts} <= set(asked)


def test_bad_arguments() -> None:
    with pytest.raises(OSError, match="descriptor"):
        kernel.walk(-1)
    with pytest.raises(ValueError, match="threads"):
        kernel.walk(0, threads=0)
    fd = os.open(os.devnull, os.O_RDONLY)
    try:
        with pytest.raises(NotADirectoryError):
            kernel.walk(fd)
    finally:
        os.close(fd)


def change(records: bytearray, row: int, **fields: object) -> bytearray:
    entry = EntryTable(records, b"").entry(row)._replace(**fields)  # type: ignore[arg-type]
    changed = bytearray(records)
    ENTRY_STRUCT.pack_into(changed, row * ENTRY_SIZE_BYTES, *entry)
    return changed


def test_same_sees_every_field(tree: Path) -> None:
    with opened(tree) as fd:
        records, heap = kernel.walk(fd)
        again = kernel.walk(fd, threads=2)
    assert kernel.same(records, heap, *again, FOREVER_NS)
    assert kernel.same(memoryview(records), bytes(heap), bytes(again[0]), memoryview(again[1]), FOREVER_NS)
    stat_fields = ("size_bytes", "mtime_ns", "ctime_ns", "device", "inode", "mode", "uid", "gid")
    for field in (*stat_fields, "rdev_major", "rdev_minor", "nlink", "flags", "path_length", "link_length"):
        old = getattr(EntryTable(records, heap).entry(5), field)
        new = old - 1 if field.endswith("_length") and old else old ^ (0 if field.endswith("_length") else 1)
        if new != old:
            assert not kernel.same(records, heap, change(records, 5, **{field: new}), heap, FOREVER_NS), field
    ignored = {"blake3": b"\1" * 32, "header_offset": 7, "layer": 3}
    flags = EntryTable(records, heap).entry(5).flags | FLAG_HASHED
    assert kernel.same(records, heap, change(records, 5, flags=flags, **ignored), heap, FOREVER_NS)
    assert not kernel.same(records, heap, records[:-ENTRY_SIZE_BYTES], heap, FOREVER_NS)
    for word in (b"dangling", b"/nowhere"):  # a name, a link target
        assert not kernel.same(records, heap, records, heap.replace(word, word.upper()), FOREVER_NS)


def test_same_distrusts_racy_entries(tree: Path) -> None:
    with opened(tree) as fd:
        records, heap = kernel.walk(fd)
    newest = max(max(entry.mtime_ns, entry.ctime_ns) for entry in EntryTable(records, heap))
    assert kernel.same(records, heap, records, heap, newest + 1)
    assert not kernel.same(records, heap, records, heap, newest)


def test_recall_equals_the_oracle(tree: Path) -> None:
    give_xattrs(tree)
    with opened(tree) as fd:
        known, known_heap = kernel.walk(fd, xattrs=True)
        for row, entry in enumerate(EntryTable(known, known_heap)):
            if stat.S_ISREG(entry.mode) and row % 7:
                flags = entry.flags | FLAG_HASHED
                known = change(known, row, flags=flags, blake3=row.to_bytes(32, "big"))
        (tree / "a" / "b" / "empty").write_bytes(b"now")
        (tree / "a" / "b" / "c2").touch()
        (tree / "zz").unlink()
        os.chmod(tree / "a", 0o700)
        records, heap = kernel.walk(fd)
    before = {row[0]: row for row in unpack(known, known_heap)}
    walked = unpack(records, heap)
    racy_ns = before[b"a/b/c/100-name"][1].ctime_ns
    others = kernel.recall(records, heap, known, known_heap, racy_ns)
    expected_others = []
    for index, (path, entry, link, attributes) in enumerate(walked):
        fields = ("device", "inode", "size_bytes", "mtime_ns", "ctime_ns", "mode", "uid", "gid")
        _, old, _, old_attributes = before.get(path, (path, Entry(), b"", {}))
        hit = all(getattr(entry, field) == getattr(old, field) for field in fields)
        hit = hit and max(entry.mtime_ns, entry.ctime_ns) < racy_ns
        hit = hit and (not stat.S_ISREG(old.mode) or bool(old.flags & FLAG_HASHED))
        got = unpack(records[index * ENTRY_SIZE_BYTES : (index + 1) * ENTRY_SIZE_BYTES], heap)[0]
        if hit:
            flags = entry.flags | old.flags & FLAG_HASHED
            entry = entry._replace(flags=flags, blake3=old.blake3, xattr_length=old.xattr_length)  # noqa: PLW2901
            assert got == (path, entry, link, old_attributes)
        else:
            expected_others.append(index)
            assert got == (path, entry, link, attributes)
    assert list(memoryview(others).cast("I")) == expected_others
    assert 0 < len(expected_others) < len(walked)


def test_recall_changes_nothing_when_the_heap_cannot_grow(tree: Path) -> None:
    give_xattrs(tree)
    with opened(tree) as fd:
        known, known_heap = kernel.walk(fd, xattrs=True)
        records, heap = kernel.walk(fd)
    before = bytes(records), bytes(heap)
    with memoryview(heap), pytest.raises(BufferError):
        kernel.recall(records, heap, known, known_heap, FOREVER_NS)
    assert (bytes(records), bytes(heap)) == before


@pytest.mark.parametrize("field", ["path_offset", "path_length", "link_offset", "link_length", "xattr_length"])
def test_records_that_reach_beyond_the_heap_are_refused(tree: Path, field: str) -> None:
    with opened(tree) as fd:
        records, heap = kernel.walk(fd)
    for value in (len(heap) + 1, (1 << (64 if field.endswith("offset") else 32)) - 1):
        bad = change(records, 3, **{field: value})
        with pytest.raises(ValueError, match="beyond"):
            kernel.same(records, heap, bad, heap, 0)
        with pytest.raises(ValueError, match="beyond"):
            kernel.recall(records, heap, bad, heap, 0)
        with opened(tree) as fd, pytest.raises(ValueError, match="beyond"):
            kernel.read_xattrs(fd, bad, heap, b"")
    with pytest.raises(ValueError, match="whole"):
        kernel.same(records[:-1], heap, records, heap, 0)
    assert kernel.same(b"", b"", b"", b"", 0)
    assert kernel.recall(bytearray(), bytearray(), b"", b"", 0) == b""


RETURNED = """
import os, sys
from pylayers._native import walk
def read_rss():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("RssAnon"))
block = bytearray(18 << 20)   # malloc maps it; once it is freed, malloc keeps smaller blocks for itself
del block
root = os.open(sys.argv[1], os.O_RDONLY)
before = read_rss()
records, heap = walk.walk(root, None, True, 2)
print(read_rss() - before - len(records) - len(heap))
"""


@pytest.mark.skipif("san.so" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer has memory of its own")
def test_what_a_walk_gathered_is_given_back(tmp_path: Path) -> None:
    """The names and stats of 20,000 files take some 8 MB while they are gathered."""
    for number in range(20_000):
        os.close(os.open(tmp_path / f"{number:0250}", os.O_CREAT | os.O_WRONLY))
    done = subprocess.run([sys.executable, "-c", RETURNED, tmp_path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2 << 20
