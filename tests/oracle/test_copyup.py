"""Copies compared with what `cp -a` makes of the same tree, and with the file system's own answers."""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pylayers._native import sysmount
from pylayers._native.copyup import copy_file, copy_range, copy_tree


def copy(source: Path, target: Path) -> tuple[int, int]:
    with ExitStack() as stack:
        fds = []
        for path in (source, target):
            fds.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY))
            stack.callback(os.close, fds[-1])
        return copy_tree(*fds)


def describe(root: Path, times: bool = True) -> dict[str, tuple[object, ...]]:
    """Describe a tree: everything but inode numbers, which become groups of names."""
    groups: dict[tuple[int, int], str] = {}
    described = {}
    for path in [root, *sorted(root.rglob("*"))]:
        name = str(path.relative_to(root))
        found = path.lstat()
        content: object = None
        if stat.S_ISREG(found.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(found.st_mode):
            content = os.readlink(path)
        described[name] = (
            found.st_mode,
            found.st_uid,
            found.st_gid,
            found.st_rdev,
            found.st_mtime_ns if times else None,
            found.st_nlink if not path.is_dir() or path.is_symlink() else None,
            groups.setdefault((found.st_dev, found.st_ino), name),
            {key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)},
            content,
        )
    return described


def acl(named: int) -> bytes:
    entries = [(1, 7, 0xFFFFFFFF), (2, 5, named), (4, 5, 0xFFFFFFFF), (16, 5, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Make a tree with every kind of thing and attribute."""
    root = tmp_path / "source"
    (root / "a" / "b" / "c").mkdir(parents=True)
    (root / "empty").mkdir()
    contents = random.Random(3)
    for number, size in enumerate([0, 1, 4095, 65536, 65537, 300_000]):
        (root / "a" / f"f{number}").write_bytes(contents.randbytes(size))
    (root / os.fsdecode(b"\xfe odd\n")).write_text("odd")
    with (root / "a" / "sparse").open("wb") as file:
        file.truncate(50 << 20)
        os.pwrite(file.fileno(), b"x" * 5000, 10 << 20)
    with (root / "a" / "small hole").open("wb") as file:
        file.truncate(30_000)
    os.link(root / "a" / "f1", root / "a" / "b" / "f1 too")
    os.link(root / "a" / "f1", root / "f1 again")
    (root / "link").symlink_to("nowhere/../at all")
    (root / "a" / "to dir").symlink_to("b")
    os.link(root / "link", root / "a" / "link too", follow_symlinks=False)
    os.mkfifo(root / "fifo", 0o604)
    os.mknod(root / "sock", stat.S_IFSOCK | 0o644)
    os.mknod(root / "chr", stat.S_IFCHR | 0o620, os.makedev(1, 3))
    os.mknod(root / "blk", stat.S_IFBLK | 0o660, os.makedev(7, 300))
    os.mknod(root / "whiteout", stat.S_IFCHR, 0)
    for number, path in enumerate(sorted(root.rglob("*"))):
        os.chown(path, number, number * 2, follow_symlinks=False)
    os.chmod(root / "a" / "f2", 0o6711)
    os.chmod(root / "a" / "b" / "c", 0o1000)
    os.chmod(root / "a" / "f3", 0)
    os.setxattr(root / "a" / "f4", "user.x", b"y" * 1000)
    os.setxattr(root / "a" / "f4", "security.capability", struct.pack("<IIIII", 0x02000000, 1 << 10, 0, 0, 0))
    os.setxattr(root / "a" / "f5", "system.posix_acl_access", acl(1234))
    os.setxattr(root / "a" / "b", "system.posix_acl_default", acl(77))
    os.setxattr(root / "link", "trusted.l", b"", follow_symlinks=False)
    os.setxattr(root / "fifo", "trusted.f", b"1")
    os.setxattr(root, "user.top", b"t")
    os.chmod(root, 0o751)
    os.chown(root, 21, 22)
    for number, path in enumerate([*sorted(root.rglob("*"), reverse=True), root]):
        os.utime(path, ns=(10**18 + number, 10**18 + 7 * number + 1), follow_symlinks=False)
    os.utime(root / "fifo", ns=(-5, -1_500_000_001))
    return root


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices need root")
class TestTree:
    def test_equals_cp(self, tree: Path, tmp_path: Path) -> None:
        before_atimes = {path: path.lstat().st_atime_ns for path in [tree, *tree.rglob("*")] if not path.is_dir()}
        target, oracle = tmp_path / "target", tmp_path / "oracle"
        target.mkdir()
        descriptors = len(os.listdir("/proc/self/fd"))
        entries, data_bytes = copy(tree, target)
        assert len(os.listdir("/proc/self/fd")) == descriptors
        copied_atimes = {path: (target / path.relative_to(tree)).lstat().st_atime_ns for path in before_atimes}
        subprocess.run(["cp", "-a", tree, oracle], check=True)
        assert describe(target) == describe(oracle) == describe(tree)
        links = {path for path in before_atimes if path.is_symlink()}  # rglob itself has read those
        assert {p: t for p, t in copied_atimes.items() if p not in links} == {
            p: t for p, t in before_atimes.items() if p not in links
        }
        assert entries == len(list(tree.rglob("*")))
        files = [path.lstat() for path in tree.rglob("*") if stat.S_ISREG(path.lstat().st_mode)]
        assert data_bytes == sum({found.st_ino: found.st_size for found in files}.values())
        for name in ("a/sparse", "a/small hole"):
            assert (target / name).stat().st_blocks <= (oracle / name).stat().st_blocks

    def test_to_and_from_another_file_system(self, tree: Path, tmp_path: Path) -> None:
        area = tmp_path / "tmpfs"
        area.mkdir()
        sysmount.mount(b"tmpfs", bytes(area), b"tmpfs", 0, b"size=64m")
        try:
            (area / "there").mkdir()
            copy(tree, area / "there")
            assert describe(area / "there") == describe(tree)
            assert (area / "there" / "a" / "sparse").stat().st_blocks < 100
            (tmp_path / "back").mkdir()
            copy(area / "there", tmp_path / "back")
            assert describe(tmp_path / "back") == describe(tree)
        finally:
            sysmount.unmount(bytes(area), sysmount.MNT_DETACH)

    def test_umask_and_default_acl_do_not_matter(self, tree: Path, tmp_path: Path) -> None:
        target = tmp_path / "target"
        target.mkdir()
        os.setxattr(target, "system.posix_acl_default", acl(5))
        umask = os.umask(0o077)
        try:
            copy(tree, target)
        finally:
            os.umask(umask)
        assert describe(target) == {**describe(tree)}

    def test_symlinks_in_the_target_are_not_followed(self, tmp_path: Path) -> None:
        source, target, outside = (tmp_path / name for name in ("source", "target", "outside"))
        for directory in (source, target, outside):
            directory.mkdir()
        (source / "d").mkdir()
        (source / "d" / "f").write_text("new")
        (target / "d").symlink_to(outside)
        with pytest.raises(FileExistsError) as caught:
            copy(source, target)
        assert caught.value.filename == b"d"
        assert os.listdir(outside) == []


def test_merges_directories_and_refuses_the_rest(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "d").mkdir(parents=True)
    (target / "d").mkdir(parents=True)
    (source / "d" / "f").write_text("new")
    (target / "d" / "own").write_text("own")
    copy(source, target)
    assert sorted(os.listdir(target / "d")) == ["f", "own"]
    with pytest.raises(FileExistsError) as caught:
        copy(source, target)
    assert caught.value.filename == b"d/f"


def test_refuses_to_copy_into_itself(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for source, target in [(tmp_path, tmp_path), (tmp_path, tmp_path / "a" / "b")]:
        with pytest.raises(OSError) as caught:
            copy(source, target)
        assert caught.value.errno == errno.EINVAL
    with pytest.raises(OSError) as caught:
        copy_tree(-1, -1)
    assert caught.value.errno == errno.EBADF


def test_deep_and_wide(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for directory in (source, target):
        directory.mkdir()
    depth = 430  # the path is longer than PATH_MAX
    fd = os.open(source, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("deep-name", dir_fd=fd)
        below = os.open("deep-name", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    for number in range(3000):
        os.close(os.open(f"f{number}", os.O_CREAT, dir_fd=fd))
    os.close(fd)
    try:
        assert copy(source, target) == (depth + 3000, 0)
    finally:
        subprocess.run(["rm", "-rf", source, target], check=True)  # pytest's own removal recurses


def test_many_hard_links(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "x").mkdir(parents=True)
    target.mkdir()
    for number in range(700):
        (source / f"f{number}").write_text(str(number))
        os.link(source / f"f{number}", source / "x" / f"l{number}")
    copy(source, target)
    for number in range(700):
        first, second = target / f"f{number}", target / "x" / f"l{number}"
        assert first.stat().st_ino == second.stat().st_ino
        assert first.read_text() == str(number)


def extents(path: Path) -> list[tuple[int, int]]:
    """List a file's data ranges as the file system tells them."""
    found = []
    with path.open("rb") as file:
        size, end = path.stat().st_size, 0
        while end < size:
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found.append((start, end))
    return found


@pytest.fixture(scope="module")
def mounts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Mount an xfs with reflinks and a tmpfs, as far as this machine lets us."""
    area = tmp_path_factory.mktemp("mounts")
    mounted = {}
    if os.geteuid() == 0:
        for name in ("reflink", "across", "ext4"):
            (area / name).mkdir()
        sysmount.mount(b"tmpfs", bytes(area / "across"), b"tmpfs", 0, b"size=64m")
        mounted["across"] = area / "across"
        image = area / "image"
        with image.open("wb") as file:
            file.truncate(320 << 20)
        if shutil.which("mkfs.xfs") is not None:
            subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", image], check=True)
            done = subprocess.run(["mount", "-o", "loop", image, area / "reflink"], check=False, capture_output=True)
            if done.returncode == 0:
                mounted["reflink"] = area / "reflink"
        small = area / "small-image"
        with small.open("wb") as file:
            file.truncate(24 << 20)
        if shutil.which("mkfs.ext4") is not None:
            subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", small], check=True)
            done = subprocess.run(["mount", "-o", "loop", small, area / "ext4"], check=False, capture_output=True)
            if done.returncode == 0:
                mounted["ext4"] = area / "ext4"
    try:
        yield mounted
    finally:
        for target in mounted.values():
            subprocess.run(["umount", target], check=True)


@pytest.fixture(params=["same", "reflink", "across", "ext4"])
def place(request: pytest.FixtureRequest, tmp_path: Path, mounts: dict[str, Path]) -> Iterator[tuple[Path, Path, str]]:
    """Give a source and a target directory, and the way a large file should go."""
    if request.param == "same":
        yield tmp_path, tmp_path, ""
    elif request.param not in mounts:
        pytest.skip("needs root, and loop mounts with mkfs.xfs for reflinks, mkfs.ext4 for a small disk")
    else:
        area = mounts[request.param] / tmp_path.name
        area.mkdir()
        way = {"across": "", "reflink": "reflink", "ext4": "copy_file_range"}[request.param]
        yield (tmp_path if request.param == "across" else area), area, way
        shutil.rmtree(area)


@pytest.mark.parametrize("size", [0, 1, 65536, 65537, 3_000_000])
def test_copy_file(place: tuple[Path, Path, str], size: int) -> None:
    source, target = place[0] / "s", place[1] / "t"
    source.write_bytes(random.Random(size).randbytes(size))
    target.write_bytes(b"older, and longer" * 300_000)
    with source.open("rb") as reader, target.open("r+b") as writer:
        way = copy_file(reader.fileno(), writer.fileno(), size)
    assert target.read_bytes() == source.read_bytes()
    if place[2] and size > 65536:
        assert way == place[2]
    assert way in ("reflink", "copy_file_range", "read_write")


def test_holes_stay_holes(place: tuple[Path, Path, str]) -> None:
    source, target = place[0] / "s", place[1] / "t"
    with source.open("wb") as file:
        file.truncate((40 << 20) + 13)
        for offset in (0, 1 << 20, 33 << 20):
            os.pwrite(file.fileno(), os.urandom(70_000), offset)
    with source.open("rb") as reader, target.open("wb") as writer:
        copy_file(reader.fileno(), writer.fileno(), (40 << 20) + 13)
    assert target.read_bytes() == source.read_bytes()
    assert len(extents(target)) == len(extents(source)) == 3
    assert target.stat().st_blocks * 512 < 1 << 20


def test_a_copy_on_ext4_takes_the_blocks_of_what_was_written(mounts: dict[str, Path]) -> None:
    """Blocks are set aside before: no more of them than the data has, none beyond its end, and none unwritten."""
    if "ext4" not in mounts:
        pytest.skip("needs root, and mkfs.ext4 with loop mounts")
    source, target = mounts["ext4"] / "blocks", mounts["ext4"] / "blocks-copy"
    source.write_bytes(random.Random(3).randbytes(3_000_001))
    with source.open("rb") as reader, target.open("xb") as writer:
        assert copy_file(reader.fileno(), writer.fileno(), 3_000_001) == "copy_file_range"
        os.fsync(writer.fileno())
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks == source.stat().st_blocks
    assert extents(target) == [(0, 3_000_001)]
    if shutil.which("filefrag") is not None:
        told = subprocess.run(["filefrag", "-v", target], check=True, capture_output=True, text=True).stdout
        assert "unwritten" not in told
    source.unlink()
    target.unlink()


def test_a_copy_that_finds_no_room_on_ext4_says_so(mounts: dict[str, Path], tmp_path: Path) -> None:
    if "ext4" not in mounts:
        pytest.skip("needs root, and mkfs.ext4 with loop mounts")
    source, target = tmp_path / "s", mounts["ext4"] / "too-large"
    source.write_bytes(bytes(range(256)) * (32 << 12))
    with source.open("rb") as reader, target.open("xb") as writer:
        with pytest.raises(OSError) as caught:
            copy_file(reader.fileno(), writer.fileno(), 32 << 20)
        # Nothing that was not copied can be read.
        assert source.read_bytes().startswith(target.read_bytes())
    assert caught.value.errno == errno.ENOSPC
    target.unlink()


def test_copy_file_of_a_part_and_beyond_the_end(tmp_path: Path) -> None:
    source, target = tmp_path / "s", tmp_path / "t"
    source.write_bytes(bytes(range(256)) * 1000)
    with source.open("rb") as reader, target.open("wb") as writer:
        copy_file(reader.fileno(), writer.fileno(), 100_001)
        assert target.read_bytes() == source.read_bytes()[:100_001]
        with pytest.raises(OSError):
            copy_file(reader.fileno(), writer.fileno(), 300_000)
        with pytest.raises(ValueError):
            copy_file(reader.fileno(), writer.fileno(), -1)
        with pytest.raises(OSError) as caught:
            copy_file(reader.fileno(), -1, 1)
    assert caught.value.errno == errno.EBADF


@pytest.mark.parametrize(("at", "to", "size"), [(0, 0, 0), (1, 5, 10), (4096, 8192, 70_000), (3, 100_000, 200_000)])
def test_copy_range(place: tuple[Path, Path, str], at: int, to: int, size: int) -> None:
    source, target = place[0] / "s", place[1] / "t"
    source.write_bytes(random.Random(1).randbytes(256_000))
    old = random.Random(2).randbytes(400_000)
    target.write_bytes(old)
    with source.open("rb") as reader, target.open("r+b") as writer:
        copy_range(reader.fileno(), at, writer.fileno(), to, size)
        with pytest.raises(OSError) as caught:
            copy_range(reader.fileno(), 255_999, writer.fileno(), 0, 2)
        assert caught.value.errno == errno.EIO
        os.pwrite(writer.fileno(), old[:1], 0)
    expected = bytearray(old)
    expected[to : to + size] = source.read_bytes()[at : at + size]
    expected[:1] = old[:1]
    assert target.read_bytes() == expected
