"""Real mounts in the test's own directory; the kernel is the oracle."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pylayers._native import sysmount

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
]


def is_mounted(target: Path) -> bool:
    """Ask the kernel: os.path.ismount does not see a bind mount within one file system."""
    name = bytes(target)
    for special in b"\\ \t\n":
        name = name.replace(bytes([special]), b"\\%03o" % special)
    return any(line.split()[4] == name for line in Path("/proc/self/mountinfo").read_bytes().splitlines())


@contextmanager
def unmounting(*targets: Path) -> Iterator[None]:
    try:
        yield
    finally:
        for target in targets:
            while is_mounted(target):
                sysmount.unmount(bytes(target), sysmount.MNT_DETACH)


@pytest.fixture(params=["tmpfs", "disk"])
def area(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    if request.param == "disk":
        yield tmp_path
        return
    target = tmp_path / "tmpfs"
    target.mkdir()
    sysmount.mount(b"tmpfs", bytes(target), b"tmpfs", sysmount.MS_NOSUID | sysmount.MS_NODEV, b"size=32m,mode=0755")
    with unmounting(target):
        yield target


def make_lowers(area: Path, count: int, prefix: str = "l") -> list[bytes]:
    """Make lowers, topmost first; layer N holds its own file and its word on who is on top."""
    lowers = []
    for number in range(count):
        directory = area / f"{prefix}{number}"
        directory.mkdir()
        (directory / f"own{number}").write_text(str(number))
        (directory / "top").write_text(str(number))
        lowers.append(bytes(directory))
    return lowers


def make_directories(area: Path) -> tuple[bytes, bytes, Path]:
    for name in ("upper", "work", "merged"):
        (area / name).mkdir()
    return bytes(area / "upper"), bytes(area / "work"), area / "merged"


@pytest.mark.parametrize("count", [1, 2, 125, 400])
def test_overlay_of_many_lowers(area: Path, count: int) -> None:
    lowers = make_lowers(area, count)
    upper, work, merged = make_directories(area)
    with unmounting(merged):
        sysmount.mount_overlay(lowers, upper, work, bytes(merged), [b"redirect_dir=off", b"metacopy=off", b"index=off"])
        assert sum(name.startswith("own") for name in os.listdir(merged)) == count
        assert (merged / "top").read_text() == "0"
        (merged / "top").write_text("written")
        (merged / f"own{count - 1}").unlink()
    assert (area / "upper" / "top").read_text() == "written"
    assert (area / "l0" / "top").read_text() == "0"
    whiteout = (area / "upper" / f"own{count - 1}").stat()
    assert (whiteout.st_rdev, whiteout.st_mode & 0o170000) == (0, 0o020000)
    assert not is_mounted(merged)


@pytest.mark.parametrize("name", ["a,b", "a:b", "a\\b", "a\\,b\\:c", 'quo"te', "sp ace", "new\nline", "\udcff"])
def test_awkward_paths(tmp_path: Path, name: str) -> None:
    area = tmp_path / name
    area.mkdir()
    lowers = make_lowers(area, 3)
    upper, work, merged = make_directories(area)
    with unmounting(merged):
        sysmount.mount_overlay(lowers, upper, work, bytes(merged))
        assert {"own0", "own1", "own2"} < set(os.listdir(merged))
        (merged / "new").touch()
        assert (area / "upper" / "new").exists()


def test_paths_longer_than_a_parameter(tmp_path: Path) -> None:
    area = tmp_path / ("d" * 200) / ("e" * 200)
    area.mkdir(parents=True)
    lowers = make_lowers(area, 3)
    upper, work, merged = make_directories(area)
    with unmounting(merged):
        sysmount.mount_overlay(lowers, upper, work, bytes(merged))
        assert {"own0", "own1", "own2"} < set(os.listdir(merged))
        (merged / "new").touch()
    assert (area / "upper" / "new").exists()


@pytest.mark.parametrize("with_upper", [False, True])
def test_read_only(tmp_path: Path, with_upper: bool) -> None:
    lowers = make_lowers(tmp_path, 2)
    upper, work, merged = make_directories(tmp_path)
    with unmounting(merged):
        sysmount.mount_overlay(
            lowers, upper if with_upper else b"", work if with_upper else b"", bytes(merged), readonly=with_upper
        )
        with pytest.raises(OSError) as caught:
            (merged / "x").touch()
        assert caught.value.errno == errno.EROFS


def test_userxattr_flag_option(tmp_path: Path) -> None:
    lowers = make_lowers(tmp_path, 2)
    (tmp_path / "l1" / "d").mkdir()
    (tmp_path / "l1" / "d" / "hidden").touch()
    (tmp_path / "l0" / "d").mkdir()
    os.setxattr(tmp_path / "l0" / "d", "user.overlay.opaque", b"y")
    _, _, merged = make_directories(tmp_path)
    with unmounting(merged):
        sysmount.mount_overlay(lowers, b"", b"", bytes(merged), [b"userxattr"])
        assert os.listdir(merged / "d") == []


def test_failure_carries_the_log(tmp_path: Path) -> None:
    lowers = make_lowers(tmp_path, 2)
    upper, work, merged = make_directories(tmp_path)
    with pytest.raises(OSError, match="no-such-option") as caught:
        sysmount.mount_overlay(lowers, upper, work, bytes(merged), [b"no-such-option=on"])
    assert caught.value.errno == errno.EINVAL
    assert caught.value.filename == bytes(merged)
    with pytest.raises(OSError, match=r"(?i)unknown parameter"):
        sysmount.mount_overlay(lowers, upper, work, bytes(merged), [b"no-such-option"])
    with pytest.raises(FileNotFoundError) as missing:
        sysmount.mount_overlay([*lowers, bytes(tmp_path / "gone")], upper, work, bytes(merged))
    assert "gone" in str(missing.value)
    with pytest.raises(OSError, match="workdir"):  # inside one another
        sysmount.mount_overlay(lowers, upper, upper + b"/w", bytes(merged))
    with pytest.raises(FileNotFoundError):
        sysmount.mount_overlay(lowers, upper, work, bytes(tmp_path / "nowhere"))
    assert not is_mounted(merged)


def test_too_many_lowers_is_an_error_and_leaks_nothing(tmp_path: Path) -> None:
    lowers = make_lowers(tmp_path, 2)
    _, _, merged = make_directories(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError) as caught:
        sysmount.mount_overlay(lowers * 400, b"", b"", bytes(merged))
    assert caught.value.errno in (errno.EINVAL, errno.ELOOP)
    with unmounting(merged):
        sysmount.mount_overlay(lowers, b"", b"", bytes(merged))
    assert len(os.listdir("/proc/self/fd")) == before


def test_arguments() -> None:
    with pytest.raises(ValueError):
        sysmount.mount_overlay([], b"", b"", b"/t")
    with pytest.raises(ValueError):
        sysmount.mount_overlay([b"/a", b""], b"", b"", b"/t")
    with pytest.raises(ValueError):
        sysmount.mount_overlay([b"/a"], b"/u", b"", b"/t")
    with pytest.raises(ValueError):
        sysmount.mount(b"a\0b", b"/t", b"tmpfs")
    with pytest.raises(OSError) as caught:
        sysmount.mount(b"tmpfs", b"/nowhere-at-all", b"tmpfs", 0, b"x" * 5000)
    assert caught.value.errno == errno.E2BIG


def test_mount_and_unmount_errors_name_the_target(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught:
        sysmount.unmount(bytes(tmp_path))
    assert (caught.value.errno, caught.value.filename) == (errno.EINVAL, bytes(tmp_path))
    with pytest.raises(OSError) as caught:
        sysmount.mount(b"x", bytes(tmp_path), b"no-such-file-system")
    assert (caught.value.errno, caught.value.filename) == (errno.ENODEV, bytes(tmp_path))


def test_bind_and_remount(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    target = tmp_path / "target"
    target.mkdir()
    with unmounting(target):
        sysmount.mount(bytes(tmp_path / "source"), bytes(target), b"", sysmount.MS_BIND)
        (target / "through").touch()
        sysmount.mount(b"", bytes(target), b"", sysmount.MS_REMOUNT | sysmount.MS_BIND | sysmount.MS_RDONLY)
        with pytest.raises(OSError) as caught:
            (target / "again").touch()
        assert caught.value.errno == errno.EROFS
    assert (tmp_path / "source" / "through").exists()


def test_open_tree_and_move_mount(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").touch()
    target = tmp_path / "target"
    target.mkdir()
    with unmounting(target):
        fd = sysmount.open_tree(-100, bytes(tmp_path / "source"), clone=True)
        try:
            assert os.listdir(fd if fd < 0 else f"/proc/self/fd/{fd}") == ["file"]
            assert not is_mounted(target)
            sysmount.move_mount(fd, -100, bytes(target))
        finally:
            os.close(fd)
        assert os.listdir(target) == ["file"]
    with pytest.raises(FileNotFoundError):
        sysmount.open_tree(-100, bytes(tmp_path / "gone"))


def run_in_child(source: str, *arguments: str) -> str:
    """Run Python source in a child: namespaces and filters are for the whole process and for good."""
    done = subprocess.run(
        [sys.executable, "-c", source, *arguments], capture_output=True, text=True, check=False, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_unshare_and_setns(tmp_path: Path) -> None:
    out = run_in_child(
        """
import os, sys
from pylayers._native import sysmount
target = sys.argv[1].encode()
home = os.open("/proc/self/ns/mnt", os.O_RDONLY)
sysmount.unshare(sysmount.CLONE_NEWNS)
sysmount.mount(b"none", b"/", b"", sysmount.MS_REC | sysmount.MS_PRIVATE)
sysmount.mount(b"tmpfs", target, b"tmpfs")
inside = os.path.ismount(target)
sysmount.setns(home, sysmount.CLONE_NEWNS)
print(inside, os.path.ismount(target))
""",
        str(tmp_path),
    )
    assert out == "True False"
    with pytest.raises(OSError) as caught:
        sysmount.setns(-1)
    assert caught.value.errno == errno.EBADF


FILTER = """
import ctypes, errno, os, struct, sys
# seccomp: fsopen (430 everywhere) fails with ENOSYS, as on a kernel before 5.2
code = b"".join(struct.pack("HBBI", *line) for line in [
    (0x20, 0, 0, 0), (0x15, 0, 1, 430), (0x06, 0, 0, 0x00050000 | errno.ENOSYS), (0x06, 0, 0, 0x7FFF0000)])
program = ctypes.create_string_buffer(code)
filter = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", 4, ctypes.addressof(program)))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(22, 2, filter) != 0:
    sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
from pylayers._native import sysmount
"""
FILTERED = FILTER + """
area, count = os.fsencode(sys.argv[1]), int(sys.argv[2])
lowers = [area + b"/l%d" % n for n in range(count)]
try:
    sysmount.mount_overlay(lowers, area + b"/upper", area + b"/work", area + b"/merged", [b"index=off"])
except OSError as error:
    print(errno.errorcode[error.errno])
else:
    open(area + b"/merged/new", "x").close()
    print(sorted(os.listdir(os.fsdecode(area) + "/merged")))
    sysmount.unmount(area + b"/merged")
"""


@pytest.mark.skipif(struct.calcsize("P") != 8 or ctypes.sizeof(ctypes.c_long) != 8, reason="the filter is for 64 bits")
def test_fallback_to_one_string(tmp_path: Path) -> None:
    area = tmp_path / "co:lon,com\\ma"
    area.mkdir()
    make_lowers(area, 3)
    make_directories(area)
    assert run_in_child(FILTERED, str(area), "3") == "['new', 'own0', 'own1', 'own2', 'top']"
    assert (area / "upper" / "new").exists()


@pytest.mark.skipif(struct.calcsize("P") != 8 or ctypes.sizeof(ctypes.c_long) != 8, reason="the filter is for 64 bits")
def test_fallback_is_limited_to_a_page(tmp_path: Path) -> None:
    area = tmp_path / ("x" * 100)
    area.mkdir()
    make_lowers(area, 60)
    make_directories(area)
    assert run_in_child(FILTERED, str(area), "60") == "E2BIG"


ASK_X32 = "import ctypes, platform; print(platform.machine() == 'x86_64' and ctypes.CDLL(None).syscall(0x40000027) > 0)"
KILL_X32 = """
import ctypes, struct
from pylayers._native import sysmount
code = b"".join(struct.pack("<HBBI", *one) for one in (
    (0x20, 0, 0, 0), (0x45, 0, 1, 0x40000000), (0x06, 0, 0, 0x80000000), (0x06, 0, 0, 0x7FFF0000)))
room = ctypes.create_string_buffer(code)
program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", 4, ctypes.addressof(room)))
libc = ctypes.CDLL(None)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(program)):
    raise SystemExit("no filter")
print(sysmount.has_x32())
"""


def test_x32_is_asked_of_the_kernel() -> None:
    told = subprocess.run([sys.executable, "-c", ASK_X32], capture_output=True, text=True, check=True).stdout.strip()
    assert str(sysmount.has_x32()) == told


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x32 is an ABI of x86-64")
def test_asking_survives_a_filter_that_kills() -> None:
    told = subprocess.run([sys.executable, "-c", KILL_X32], capture_output=True, text=True, check=True).stdout.strip()
    assert told == "False"


def test_sync_file_system(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    sysmount.sync_file_system(descriptor)
    os.close(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        sysmount.sync_file_system(descriptor)


def test_subreaper_gets_orphans() -> None:
    code = (
        "import os, time\n"
        "from pylayers._native import sysmount\n"
        "sysmount.become_subreaper()\n"
        "if os.fork() == 0:\n"
        "    if os.fork() == 0:\n"
        "        time.sleep(0.05)\n"
        "        os._exit(7)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "print(os.waitstatus_to_exitcode(os.wait()[1]))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "7\n"
