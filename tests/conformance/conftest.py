"""Real file systems for the conformance suites: the tests' own directory where it can serve, and loop files."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pylayers.diff.apply import in_user_namespace
from pylayers.snapshot import overlay2
from tests.conformance.zfspool import destroy_below, pool

pytest.register_assert_rewrite(
    *(
        f"tests.conformance.{name}"
        for name in ("snapshotter_suite", "content_suite", "foreign_suite", "crash_suite", "stage")
    )
)

LOOP_SIZES = {"ext4": 256 << 20, "xfs": 320 << 20, "btrfs": 256 << 20}
MKFS_OPTIONS = {"ext4": ["-q", "-F"], "xfs": ["-q"], "btrfs": ["-q"]}


def image_directory(directory: Path) -> Path:
    """Choose where a loop file lies: in memory where there is room, so that its fsyncs cost nothing."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2 << 30
    return memory if roomy else directory


@contextmanager
def loop_file_system(kind: str, directory: Path, size_bytes: int = 0) -> Iterator[Path]:
    """Mount a new file system from a sparse loop file; skips where that can't be done."""
    mkfs = shutil.which(f"mkfs.{kind}", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if mkfs is None:
        pytest.skip(f"mkfs.{kind} is not installed")
    point = directory / kind
    point.mkdir()
    image = image_directory(directory) / f"pylayers-{os.getpid()}-{os.urandom(4).hex()}.{kind}"
    with open(image, "wb") as file:
        file.truncate(size_bytes or LOOP_SIZES[kind])
    subprocess.run([mkfs, *MKFS_OPTIONS[kind], str(image)], check=True, capture_output=True)
    done = subprocess.run(["mount", "-o", "loop", str(image), str(point)], capture_output=True, text=True)
    if done.returncode:
        image.unlink()
        pytest.skip(f"cannot mount a {kind} loop file: {done.stderr.strip()}")
    try:
        yield point
    finally:
        unmount(point)
        image.unlink()


def unmount(point: Path) -> None:
    """Unmount a file system; a monitor that has told its container's end may hold its log there for a moment."""
    for left in range(100, -1, -1):
        done = subprocess.run(["umount", str(point)], capture_output=True, text=True)
        if done.returncode == 0 or "busy" not in done.stderr or not left:
            break
        time.sleep(0.05)
    done.check_returncode()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a suite on the file systems that its class names: "own", "ext4", "xfs", "btrfs", "zfs"."""
    if "file_system" in metafunc.fixturenames:
        kinds = getattr(metafunc.cls, "file_systems", ("own", "xfs", "btrfs"))
        metafunc.parametrize("file_system", kinds, indirect=True, scope="session")


@pytest.fixture(scope="session")
def file_system(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give a directory on each file system; "own" is the tests' own, or a loop ext4 where overlayfs can't use that.

    In a user namespace, where neither can be mounted, it is the tests' own.
    """
    if os.geteuid() != 0:
        pytest.skip("needs root for mounts, devices and owners")
    directory = tmp_path_factory.mktemp(f"fs-{request.param}")
    if request.param == "own" and (in_user_namespace() or overlay2.probe(directory).usable):
        yield directory
        return
    if request.param == "zfs":
        with pool(directory) as point:
            yield point
        return
    with loop_file_system("ext4" if request.param == "own" else request.param, directory) as point:
        yield point


@pytest.fixture
def ground(file_system: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Give an empty directory on the file system, removed afterwards."""
    directory = file_system / f"t{abs(hash(request.node.nodeid)):x}"
    directory.mkdir()
    yield directory
    destroy_below(directory)
    shutil.rmtree(directory)
