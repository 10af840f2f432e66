"""Unpack against trees read back with os.*, and against the rules of its contract one by one."""

from __future__ import annotations

import errno
import os
import random
import signal
import stat
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pylayers._native.unpack import NO_DEVICES, NO_OWNER, WHITEOUT_APPLY, WHITEOUT_OVERLAY, WHITEOUT_USERXATTR, unpack
from pylayers.store.entry import (
    FLAG_HARDLINK,
    FLAG_IMPLICIT,
    FLAG_OPAQUE,
    FLAG_SPARSE,
    FLAG_WHITEOUT,
    TableBuilder,
    encode_xattrs,
)
from pylayers.store.row import Entry

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices need root")]

TIME = 1_600_000_000_123_456_789


@dataclass
class Layer:
    """Collect rows and their data as a layer's tar would hold them."""

    builder: TableBuilder = field(default_factory=TableBuilder)
    tar: bytearray = field(default_factory=lambda: bytearray(b"#" * 512))

    def add(self, path: str | bytes, mode: int, data: bytes = b"", link: bytes = b"", **fields: Any) -> Layer:
        xattrs = encode_xattrs(fields.pop("xattrs", {}))
        if fields.get("flags", 0) & FLAG_SPARSE == 0 and data:
            fields["size_bytes"] = len(data)
        offset = len(self.tar)
        self.tar += data + b"#" * (-len(data) % 512)
        fields.setdefault("mtime_ns", TIME)
        entry = Entry(mode=mode, data_offset=offset, **fields)
        self.builder.add(os.fsencode(path), entry, link=link, xattrs=xattrs)
        return self

    def dir(self, path: str | bytes, mode: int = 0o755, **fields: Any) -> Layer:
        return self.add(path, stat.S_IFDIR | mode, **fields)

    def file(self, path: str | bytes, data: bytes = b"", mode: int = 0o644, **fields: Any) -> Layer:
        return self.add(path, stat.S_IFREG | mode, data, **fields)

    def symlink(self, path: str | bytes, target: str, **fields: Any) -> Layer:
        return self.add(path, stat.S_IFLNK | 0o777, link=target.encode(), **fields)

    def hardlink(self, path: str, target: str) -> Layer:
        return self.add(path, stat.S_IFREG | 0o644, link=target.encode(), flags=FLAG_HARDLINK)

    def whiteout(self, path: str) -> Layer:
        return self.add(path, 0, flags=FLAG_WHITEOUT)

    def unpack(self, root: Path, whiteouts: int = WHITEOUT_APPLY, flags: int = 0, cached: bool = True) -> int:
        table, _ = self.builder.build()
        tar = root.parent / "layer.tar"
        tar.write_bytes(self.tar)
        tar_fd, root_fd = os.open(tar, os.O_RDONLY), os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        if not cached:
            os.fsync(tar_fd)
            os.posix_fadvise(tar_fd, 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            return unpack(root_fd, tar_fd, table.records, table.heap, whiteouts, flags)
        finally:
            os.close(tar_fd)
            os.close(root_fd)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "root"
    directory.mkdir()
    before = len(os.listdir("/proc/self/fd"))
    yield directory
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture(params=[0o022, 0o077, 0])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def xattrs_of(path: Path) -> dict[str, bytes]:
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)}


def test_every_type_with_its_metadata(root: Path, umask: int) -> None:
    capability = struct.pack("<IIIII", 0x02000000, 1 << 10, 0, 0, 0)
    layer = (
        Layer()
        .dir("", 0o750, uid=3, gid=4)
        .dir("d", 0o1777, uid=1, gid=2, xattrs={b"user.d": b"1"}, mtime_ns=-1)
        .file("d/empty", mode=0)
        .file("d/set", b"x" * 100, 0o6755, uid=1000, gid=1001)
        .file("d/cap", b"elf", 0o755, uid=7, xattrs={b"security.capability": capability, b"user.empty": b""})
        .file(b"d/\xff\n name", b"odd")
        .file("d/big", bytes(range(256)) * 1200, 0o600)
        .symlink("d/link", "/absolute/../nowhere", uid=5, gid=6, xattrs={b"trusted.l": b"s"})
        .add("d/fifo", stat.S_IFIFO | 0o640, uid=8)
        .add("d/sock", stat.S_IFSOCK | 0o666)
        .add("d/chr", stat.S_IFCHR | 0o666, rdev_major=1, rdev_minor=3, xattrs={b"trusted.c": b"d"})
        .add("d/blk", stat.S_IFBLK | 0o4660, rdev_major=7, rdev_minor=300, gid=9)
        .file("d/old", b"before 1970", mtime_ns=-1_500_000_000)
    )
    written = layer.unpack(root)
    table, _ = layer.builder.build()
    assert written == sum(entry.size_bytes for entry in table)
    for entry in table:
        path = root / os.fsdecode(table.path(entry))
        found = path.lstat()
        assert (found.st_mode, found.st_uid, found.st_gid, found.st_mtime_ns, found.st_atime_ns) == (
            entry.mode,
            entry.uid,
            entry.gid,
            entry.mtime_ns,
            entry.mtime_ns,
        ), path
        assert xattrs_of(path) == {k.decode(): v for k, v in table.xattrs(entry).items()}, path
        if stat.S_ISREG(entry.mode):
            assert path.read_bytes() == layer.tar[entry.data_offset : entry.data_offset + entry.size_bytes], path
        elif stat.S_ISLNK(entry.mode):
            assert os.readlink(path).encode() == table.link(entry)
        elif stat.S_ISCHR(entry.mode) or stat.S_ISBLK(entry.mode):
            assert found.st_rdev == os.makedev(entry.rdev_major, entry.rdev_minor)
    assert {os.fsencode(p.relative_to(root)) for p in root.rglob("*")} == {table.path(e) for e in table} - {b""}


def test_many_files_of_all_sizes_in_shuffled_tar_order(root: Path) -> None:
    random.seed(1)
    contents = {
        f"d{number % 7}/f{number}": random.randbytes(random.choice([0, 1, 100, 5000, 65535, 65536, 65537, 300_000]))
        for number in range(120)
    }
    layer = Layer().dir("")
    for number in range(7):
        layer.dir(f"d{number}")
    for name in random.sample(sorted(contents), len(contents)):
        layer.file(name, contents[name])
    assert layer.unpack(root) == sum(map(len, contents.values()))
    assert {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("f*")} == contents


@contextmanager
def processors(count: int) -> Iterator[None]:
    """Let this thread, and those it starts, run on so many processors."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def count_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def all_have_ended(before: int) -> bool:
    """Tell whether there are as few threads as before: one that has been joined is seen for some moments more."""
    deadline = time.monotonic() + 10
    while count_threads() > before and time.monotonic() < deadline:
        time.sleep(0.001)
    return count_threads() == before


def fill_wide(layer: Layer, folders: int, files: int) -> dict[str, bytes]:
    """Add more files than one thread takes, each folder's with links to files of others; return what each holds."""
    chance, contents = random.Random(5), dict[str, bytes]()
    layer.dir("")
    for folder in range(folders):
        layer.dir(f"{folder:03}")
        for number in range(files):
            name = f"{folder:03}/f{number}"
            contents[name] = chance.randbytes(chance.choice([0, 1, 600, 5000, 70_000]) if number else 300_000)
            layer.file(name, contents[name], mode=0o600 | number % 8, mtime_ns=TIME + number)
        layer.symlink(f"{folder:03}/s", f"f{folder}")
        layer.hardlink(f"{folder:03}/h", target := f"{chance.randrange(folder + 1):03}/f1")
        contents[f"{folder:03}/h"] = contents[target]
    return contents


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("over", [False, True])
def test_many_rows_by_several_threads(root: Path, count: int, over: bool) -> None:
    layer = Layer()
    contents = fill_wide(layer, folders=60, files=40)
    if over:  # things of other kinds are in the way, and what the layer deletes
        for folder in range(60):
            (root / f"{folder:03}").mkdir()
            (root / f"{folder:03}" / "f3").mkdir()
            (root / f"{folder:03}" / "f3" / "inside").write_text("goes")
            (root / f"{folder:03}" / "f4").symlink_to("f5")
            (root / f"{folder:03}" / "s").write_text("goes")
            (root / f"{folder:03}" / "h").mkdir()
            (root / f"{folder:03}" / "w").write_text("goes")
            layer.whiteout(f"{folder:03}/w")
    with processors(count):
        assert layer.unpack(root) == sum(len(data) for name, data in contents.items() if not name.endswith("/h"))
    found = {str(path.relative_to(root)): path for path in root.rglob("*") if not path.is_dir() or path.is_symlink()}
    links = {name: path for name, path in found.items() if path.is_symlink()}
    assert {name: os.readlink(path) for name, path in links.items()} == {f"{n:03}/s": f"f{n}" for n in range(60)}
    assert found.keys() - links.keys() == contents.keys()
    for name, data in contents.items():
        assert found[name].read_bytes() == data, name
        if "/f" in name:
            seen, number = found[name].stat(), int(name.partition("/f")[2])
            assert (seen.st_mode & 0o7777, seen.st_mtime_ns) == (0o600 | number % 8, TIME + number), name
        else:
            assert found[name].stat().st_nlink > 1, name
    assert {path.stat().st_mtime_ns for path in root.iterdir()} == {TIME}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor has one thread")
def test_a_second_thread_writes_beside_the_caller(root: Path) -> None:
    layer, before, most, done = Layer(), count_threads(), 0, threading.Event()
    fill_wide(layer, folders=60, files=40)

    def look() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, count_threads())

    looking = threading.Thread(target=look)
    looking.start()
    try:
        layer.unpack(root)
    finally:
        done.set()
        looking.join()
    assert most > before + 1
    assert all_have_ended(before)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("folder", [0, 31, 59])
def test_a_row_that_fails_among_many_ends_every_thread(root: Path, count: int, folder: int) -> None:
    layer, before = Layer(), count_threads()
    fill_wide(layer, folders=60, files=40)
    layer.file(f"{folder:03}/bad", b"x", xattrs={b"nonsense": b"1"})
    with processors(count), pytest.raises(OSError) as caught:
        layer.unpack(root)
    assert (caught.value.errno, caught.value.filename) == (errno.EOPNOTSUPP, f"{folder:03}/bad".encode())
    assert "extended attribute" in str(caught.value)
    assert all_have_ended(before)


def test_an_interrupt_ends_every_thread(root: Path) -> None:
    """Whenever it comes: before the files, between two batches, at the end. What was made stays."""
    layer, before, interrupted = Layer(), count_threads(), 0
    fill_wide(layer, folders=30, files=40)
    table, _ = layer.builder.build()
    tar = root.parent / "layer.tar"
    tar.write_bytes(layer.tar)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    earlier = signal.signal(signal.SIGALRM, interrupt)
    tar_fd = os.open(tar, os.O_RDONLY)
    try:
        for turn in range(12):
            (root / str(turn)).mkdir()
            root_fd = os.open(root / str(turn), os.O_RDONLY | os.O_DIRECTORY)
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.001 + 0.004 * turn)
                    unpack(root_fd, tar_fd, table.records, table.heap)
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
            finally:
                os.close(root_fd)
            assert all_have_ended(before)
    finally:
        signal.signal(signal.SIGALRM, earlier)
        os.close(tar_fd)
    assert interrupted


LARGE = [65_537, 262_143, 262_144, 262_145, 266_240, 4_190_208, 4_190_209, 4_194_304, 9_000_001]


@pytest.mark.parametrize("place", ["own", "memory", "btrfs", "xfs"])
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("aligned", [True, False])
def test_large_files(tmp_path: Path, place: str, cached: bool, aligned: bool) -> None:
    with ground(tmp_path, place) as directory:
        root = directory / "root"
        root.mkdir()
        layer = Layer()
        contents = {f"f{number}": random.Random(number).randbytes(size) for number, size in enumerate(LARGE)}
        for name, content in contents.items():
            layer.tar += b"#" * (-len(layer.tar) % 4096 + (0 if aligned else 1536))
            layer.file(name, content)
        os.sync()
        assert layer.unpack(root, cached=cached) == sum(LARGE)
        assert {name: (root / name).read_bytes() for name in contents} == contents
        os.sync()
        for name in ("f0", "f8") if place in ("btrfs", "xfs") else ():  # the file system's own word on sharing
            told = subprocess.run(["filefrag", "-v", str(root / name)], capture_output=True, text=True, check=True)
            assert ("shared" in told.stdout) == aligned, told.stdout


@contextmanager
def ground(tmp_path: Path, kind: str) -> Iterator[Path]:
    """Give a directory on a file system of this kind."""
    if kind == "own":
        yield tmp_path
        return
    place, image = tmp_path / "place", tmp_path / "image"
    place.mkdir()
    if kind == "memory":
        subprocess.run(["mount", "-t", "tmpfs", "none", str(place)], check=True)
    else:
        with image.open("wb") as file:
            file.truncate(400 << 20)
        subprocess.run([f"mkfs.{kind}", "-q", str(image)], check=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_tar_that_ends_early(root: Path) -> None:
    layer = Layer().file("large", b"l" * 5_000_000)
    tar_bytes = len(layer.tar)
    table, _ = layer.builder.build()
    tar = root.parent / "layer.tar"
    tar.write_bytes(layer.tar)
    tar_fd, root_fd = os.open(tar, os.O_RDWR), os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.truncate(tar_fd, 3_000_000)
        with pytest.raises(ValueError, match="outside the tar"):
            unpack(root_fd, tar_fd, table.records, table.heap)
        assert tar_bytes > 5_000_000
    finally:
        os.close(tar_fd)
        os.close(root_fd)


def test_hard_links(root: Path) -> None:
    (root / "b").mkdir()
    (root / "b" / "l").write_text("in the way")
    Layer().dir("").file("a", b"data", mtime_ns=5).hardlink("a2", "a").dir("b").hardlink("b/l", "a").symlink(
        "s", "x"
    ).add("t", stat.S_IFLNK | 0o777, link=b"s", flags=FLAG_HARDLINK).unpack(root)
    assert (root / "a").stat().st_nlink == 3
    assert (root / "b" / "l").read_text() == "data"
    assert (root / "s").lstat().st_ino == (root / "t").lstat().st_ino
    with pytest.raises(FileNotFoundError) as caught:
        Layer().dir("").hardlink("z", "gone").unpack(root)
    assert caught.value.filename == b"z"


def test_sparse_files_keep_their_holes(root: Path) -> None:
    ranges = [(0, 4096), (1 << 20, 100_000), (3 << 20, 0), (5 << 20, 10)]
    data = random.Random(2).randbytes(sum(length for _, length in ranges))
    size = (64 << 20) + 1
    link = b"".join(struct.pack("<QQ", *pair) for pair in ranges)
    layer = Layer().dir("").file("sparse", data, link=link, flags=FLAG_SPARSE, size_bytes=size)
    assert layer.unpack(root) == len(data)
    expected, at = bytearray(size), 0
    for offset, length in ranges:
        expected[offset : offset + length] = data[at : at + length]
        at += length
    assert (root / "sparse").read_bytes() == expected
    assert (root / "sparse").stat().st_blocks * 512 < 1 << 20


def fill(root: Path) -> None:
    """Make a lower tree in which every kind of thing stands in some row's way."""
    (root / "tree" / "deep" / "er").mkdir(parents=True)
    (root / "tree" / "deep" / "er" / "f").touch()
    (root / "tree" / "link").symlink_to("/")
    (root / "file").write_text("old")
    (root / "link").symlink_to("tree")
    os.mkfifo(root / "fifo")


@pytest.mark.parametrize("name", ["tree", "file", "link", "fifo", "new"])
@pytest.mark.parametrize("kind", ["dir", "file", "symlink", "chr"])
def test_replacement(root: Path, name: str, kind: str) -> None:
    fill(root)
    layer = Layer().dir("", flags=FLAG_IMPLICIT)
    make: dict[str, Callable[[], Layer]] = {
        "dir": lambda: layer.dir(name, 0o700).file(f"{name}/child", b"c"),
        "file": lambda: layer.file(name, b"new"),
        "symlink": lambda: layer.symlink(name, "target"),
        "chr": lambda: layer.add(name, stat.S_IFCHR | 0o600, rdev_major=1, rdev_minor=3),
    }
    make[kind]()
    layer.unpack(root)
    found = (root / name).lstat()
    assert found.st_mtime_ns == TIME
    if kind == "dir":
        assert stat.S_ISDIR(found.st_mode)
        assert (root / name / "child").read_bytes() == b"c"
        assert (root / name / "deep" / "er" / "f").exists() == (name == "tree")  # a directory keeps its content
    else:
        assert {"file": stat.S_ISREG, "symlink": stat.S_ISLNK, "chr": stat.S_ISCHR}[kind](found.st_mode)
    if name == "link":
        assert not (root / "tree" / "child").exists()
        assert (root / "tree" / "deep" / "er" / "f").exists()


def test_directory_over_directory_replaces_metadata(root: Path) -> None:
    directory = root / "d"
    directory.mkdir()
    os.setxattr(directory, "user.old", b"1")
    os.setxattr(directory, "user.both", b"1")
    os.chown(directory, 9, 9)
    Layer().dir("", flags=FLAG_IMPLICIT).dir("d", 0o711, xattrs={b"user.both": b"2", b"user.new": b"3"}).unpack(root)
    assert xattrs_of(directory) == {"user.both": b"2", "user.new": b"3"}
    assert (directory.stat().st_uid, directory.stat().st_mode & 0o7777) == (0, 0o711)


def test_implicit_rows_change_nothing_that_exists(root: Path) -> None:
    (root / "d" / "e").mkdir(parents=True)
    os.chmod(root / "d", 0o3750)
    os.chown(root / "d", 11, 12)
    for path in (root / "d", root):
        os.utime(path, ns=(1_000_000_001, 2_000_000_002))
    before = (root / "d").stat()
    Layer().dir("", flags=FLAG_IMPLICIT).dir("d", flags=FLAG_IMPLICIT).file("d/f").dir("n", flags=FLAG_IMPLICIT).unpack(
        root
    )
    after = (root / "d").stat()
    fields = ("st_mode", "st_uid", "st_gid", "st_mtime_ns", "st_atime_ns")
    assert [getattr(after, name) for name in fields] == [getattr(before, name) for name in fields]
    assert root.stat().st_mtime_ns == 2_000_000_002
    assert (root / "n").stat().st_mode == stat.S_IFDIR | 0o755


def test_whiteouts_and_opaque_applied(root: Path) -> None:
    fill(root)
    (root / "opaque" / "sub").mkdir(parents=True)
    (root / "opaque" / "x").write_text("old")
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    (root / "tree" / "out").symlink_to(outside)
    (root / "opaque" / "out").symlink_to(outside)
    Layer().dir("", flags=FLAG_IMPLICIT).whiteout("tree").whiteout("file").whiteout("link").whiteout("none").dir(
        "opaque", flags=FLAG_OPAQUE
    ).file("opaque/y", b"new").unpack(root)
    assert sorted(os.listdir(root)) == ["fifo", "opaque"]
    assert os.listdir(root / "opaque") == ["y"]
    assert (outside / "precious").exists()


def test_opaque_root(root: Path) -> None:
    fill(root)
    Layer().dir("", flags=FLAG_OPAQUE).file("only").unpack(root)
    assert os.listdir(root) == ["only"]


@pytest.mark.parametrize(("mode", "prefix"), [(WHITEOUT_OVERLAY, "trusted"), (WHITEOUT_USERXATTR, "user")])
def test_whiteouts_for_overlay(root: Path, mode: int, prefix: str) -> None:
    (root / "w2").write_text("in the way")
    layer = (
        Layer()
        .dir("")
        .whiteout("w")
        .whiteout("w2")
        .dir("o", 0o700, flags=FLAG_OPAQUE, uid=4)
        .dir("i", flags=FLAG_OPAQUE | FLAG_IMPLICIT)
        .file("steer", xattrs={f"{prefix}.overlay.redirect".encode(): b"/etc", b"user.plain": b"p"})
    )
    layer.unpack(root, mode)
    layer.unpack(root, mode)  # a second time, over itself
    for name in ("w", "w2"):
        found = (root / name).lstat()
        assert stat.S_ISCHR(found.st_mode)
        assert found.st_rdev == 0
    assert os.getxattr(root / "o", f"{prefix}.overlay.opaque") == b"y"
    assert os.getxattr(root / "i", f"{prefix}.overlay.opaque") == b"y"
    assert (root / "o").stat().st_mtime_ns == TIME
    assert xattrs_of(root / "steer") == {f"{prefix}.overlay.overlay.redirect": b"/etc", "user.plain": b"p"}


def test_nothing_goes_through_a_symlink(root: Path) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "victim").write_text("old")
    for target in (str(outside), "../outside", "real"):
        for kind in ("file", "whiteout", "link"):
            (root / "real").mkdir(exist_ok=True)
            (root / "real" / "victim").write_text("old")
            (root / "way").unlink(missing_ok=True)
            (root / "way").symlink_to(target)
            layer = Layer().dir("", flags=FLAG_IMPLICIT)  # no row for "way": the symlink stays in the way
            if kind == "file":
                layer.file("way/victim", b"new")
            elif kind == "whiteout":
                layer.whiteout("way/victim")
            else:
                layer.add("way2", stat.S_IFREG, link=b"way/victim", flags=FLAG_HARDLINK)
            with pytest.raises(OSError) as caught:
                layer.unpack(root)
            assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR)
            assert caught.value.filename == (b"way2" if kind == "link" else b"way/victim")
            assert (outside / "victim").read_text() == (root / "real" / "victim").read_text() == "old"
    Layer().dir("", flags=FLAG_IMPLICIT).dir("way", flags=FLAG_IMPLICIT).file("way/victim", b"new").unpack(root)
    assert not (root / "way").is_symlink()
    assert (root / "real" / "victim").read_text() == "old"


def test_a_default_acl_is_not_inherited(root: Path) -> None:
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, perm, who) for tag, perm, who in [(1, 7, ~0 & 0xFFFFFFFF), (2, 7, 1000),
                                                                 (4, 0, ~0 & 0xFFFFFFFF), (16, 7, ~0 & 0xFFFFFFFF),
                                                                 (32, 0, ~0 & 0xFFFFFFFF)]
    )  # fmt: skip
    (root / "old").mkdir()
    os.setxattr(root / "old", "system.posix_acl_default", acl)
    layer = Layer().dir("").dir("new", xattrs={b"system.posix_acl_default": acl}).dir("old", flags=FLAG_IMPLICIT)
    for parent in ("new", "old"):
        layer.file(f"{parent}/f", b"1", 0o644).dir(f"{parent}/d", 0o755).file(f"{parent}/d/g", b"1", 0o600)
        layer.add(f"{parent}/p", stat.S_IFIFO | 0o644)
    layer.unpack(root)
    for parent in ("new", "old"):
        assert xattrs_of(root / parent) == {"system.posix_acl_default": acl}
        for name, mode in [("f", 0o644), ("d", 0o755), ("d/g", 0o600), ("p", 0o644)]:
            path = root / parent / name
            assert xattrs_of(path) == {}, path
            assert path.stat().st_mode & 0o7777 == mode, path


def test_deep_trees_are_removed_with_few_descriptors(root: Path) -> None:
    depth = 3000
    fd = os.open(root, os.O_RDONLY)
    for level in range(depth):
        os.mkdir("d" * 10, dir_fd=fd)
        if level % 500 == 0:
            os.close(os.open("f", os.O_CREAT, dir_fd=fd))
        below = os.open("d" * 10, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    Layer().dir("", flags=FLAG_IMPLICIT).whiteout("d" * 10).whiteout("f").unpack(root)
    assert os.listdir(root) == []


def test_wide_trees_are_removed(root: Path) -> None:
    for outer in range(60):
        (root / "w" / f"directory-{outer}" / "inner").mkdir(parents=True)
        for inner in range(30):
            (root / "w" / f"directory-{outer}" / "inner" / f"file-{inner}").touch()
    Layer().dir("", flags=FLAG_IMPLICIT).file("w", b"file now").unpack(root)
    assert (root / "w").read_bytes() == b"file now"


def test_paths_longer_than_path_max(root: Path) -> None:
    layer, path = Layer().dir(""), ""
    for _ in range(45):
        path = f"{path}/{'n' * 100}" if path else "n" * 100
        layer.dir(path, 0o555)
    layer.file(f"{path}/f", b"deep")
    layer.unpack(root)
    fd = os.open(root, os.O_RDONLY)
    for _ in range(45):
        below = os.open("n" * 100, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    assert os.listdir(fd) == ["f"]
    os.close(fd)
    Layer().dir("", flags=FLAG_IMPLICIT).whiteout("n" * 100).unpack(root)


def test_flags(root: Path) -> None:
    (root / "dev").write_text("in the way")
    Layer().dir("", uid=5).file("f", uid=6, mode=0o4755).add("dev", stat.S_IFCHR | 0o600, rdev_major=1).whiteout(
        "w"
    ).unpack(root, WHITEOUT_OVERLAY, NO_OWNER | NO_DEVICES)
    assert sorted(os.listdir(root)) == ["f", "w"]
    assert (root / "f").stat().st_uid == root.stat().st_uid == 0
    assert (root / "f").stat().st_mode & 0o7777 == 0o4755


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (Layer().dir("").file("../x"), "normalised"),
        (Layer().dir("").file("a/../x"), "normalised"),
        (Layer().dir("").file("a//x"), "normalised"),
        (Layer().dir("").file("/x"), "normalised"),
        (Layer().dir("").file("x/"), "normalised"),
        (Layer().dir("").file("."), "normalised"),
        (Layer().dir("").file(b"a\0b"), "normalised"),
        (Layer().dir("").file("a").file("a"), "order"),
        (Layer().dir("").file("a", size_bytes=10_000), "outside the tar"),
        (Layer().dir("").file("a", size_bytes=1 << 63), "out of range"),
        (Layer().dir("").hardlink("a", "b"), "before its target"),
        (Layer().dir("").hardlink("a", "../b"), "target"),
        (Layer().dir("").symlink("a", "x\0y"), "symlink"),
        (Layer().dir("").symlink("a", ""), "symlink"),
        (Layer().dir("").add("a", 0o644), "type"),
        (Layer().file(""), "root"),
        (Layer().whiteout(""), "root"),
        (Layer().dir("").file("a", uid=0xFFFFFFFF), "owner"),
        (Layer().dir("").file("a", flags=FLAG_SPARSE, size_bytes=5, link=b"x" * 15), "sparse"),
        (Layer().dir("").file("a", flags=FLAG_SPARSE, size_bytes=5, link=struct.pack("<QQ", 0, 6)), "sparse"),
        (Layer().dir("").file("a", flags=FLAG_SPARSE, size_bytes=5, link=struct.pack("<4Q", 3, 1, 0, 1)), "sparse"),
        (
            Layer().dir("").file("a", flags=FLAG_SPARSE, size_bytes=1 << 40, link=struct.pack("<QQ", 0, 1 << 40)),
            "outside the tar",
        ),
    ],
)
def test_bad_tables(root: Path, layer: Layer, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        layer.unpack(root)
    assert os.listdir(root) == []  # checked before anything is made


def test_bad_buffers(root: Path) -> None:
    fd = os.open(root, os.O_RDONLY)
    table, _ = Layer().dir("").file("a", xattrs={b"user.a": b"b"}).builder.build()
    try:
        with pytest.raises(ValueError, match="whole number"):
            unpack(fd, -1, bytes(table.records)[:-1], table.heap)
        with pytest.raises(ValueError, match="heap"):
            unpack(fd, -1, table.records, b"")
        with pytest.raises(ValueError, match="unknown"):
            unpack(fd, -1, table.records, table.heap, 3)
        heap = bytearray(table.heap)
        heap[heap.index(b"user.a") - 2] = 200  # the value's length
        with pytest.raises(ValueError, match="xattr"):
            unpack(fd, -1, table.records, heap)
        assert unpack(fd, -1, b"", b"") == 0
        with pytest.raises(OSError):
            unpack(-1, -1, table.records, table.heap)
    finally:
        os.close(fd)


def test_errors_name_the_path(root: Path) -> None:
    with pytest.raises(OSError) as caught:
        Layer().dir("").dir("d").file("d/f", xattrs={b"nonsense": b"1"}).unpack(root)
    assert (caught.value.errno, caught.value.filename) == (errno.EOPNOTSUPP, b"d/f")
    with pytest.raises(OSError) as caught:
        Layer().dir("").file("n" * 256).unpack(root)
    assert (caught.value.errno, caught.value.filename) == (errno.ENAMETOOLONG, b"n" * 256)
    with pytest.raises(FileNotFoundError):
        Layer().dir("").file("no/parent").unpack(root)
