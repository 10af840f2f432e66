"""A real ZFS pool on a sparse file, in a mount namespace of the tests' own: OpenZFS's, else zfs-fuse's."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import pytest

from pylayers._native import sysmount
from pylayers.snapshot.backing import find_mount
from pylayers.snapshot.zfscommand import FSNAME_VARIABLE, ZFS_TYPES, uses_fuse
from pylayers.store.mountpoint import detach_below

CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000
MS_REC = 0x4000
# Where the daemon keeps its socket, its pid file and its cache; each gets a tmpfs of its own.
DAEMON_FOLDERS = ("/run/zfs", "/var/lib/zfs", "/var/lock")
POOL = "pylayerstest"
POOL_BYTES = 1 << 30
DESTROY_TRIES = 50


def run(*command: str) -> str:
    """Run one of the tools, unlocked: no two tests do so at once."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, "LC_ALL": "C"})
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


@contextmanager
def own_mounts() -> Iterator[None]:
    """Put this thread into a mount namespace of its own, and back; what was mounted inside goes with its last user."""
    outside = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    here = os.getcwd()
    try:
        sysmount.unshare(CLONE_NEWNS)
        sysmount.mount(b"", b"/", b"", sysmount.MS_PRIVATE | MS_REC)
        try:
            yield
        finally:
            sysmount.unshare(CLONE_FS)  # threads that were started meanwhile stay inside
            sysmount.setns(outside, CLONE_NEWNS)
            os.chdir(here)
    finally:
        os.close(outside)


@contextmanager
def serving(directory: Path) -> Iterator[None]:
    """Have a zfs-fuse at work that dies with the tests, however they end."""
    for folder in DAEMON_FOLDERS:
        Path(folder).mkdir(parents=True, exist_ok=True)
        sysmount.mount(b"tmpfs", os.fsencode(folder), b"tmpfs")
    log = directory / "zfs-fuse.log"
    with open(log, "wb") as out:
        daemon = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "zfs-fuse", "-n", "-p", "/run/zfs/pid", "--no-kstat-mount", "-x",
             "-a", "1", "-e", "1"],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 20
        while subprocess.run(["zpool", "list"], capture_output=True).returncode:
            assert daemon.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "zfs-fuse did not answer"
            time.sleep(0.05)
        yield
    finally:
        daemon.kill()
        daemon.wait()


@contextmanager
def pool(directory: Path) -> Iterator[Path]:
    """Make a pool mounted at a directory of its own: OpenZFS's where the kernel has that, else zfs-fuse's.

    Skips where neither can be.
    """
    if os.geteuid() != 0:
        pytest.skip("needs root for mounts, devices and owners")
    for program in ("zfs", "zpool", *(("zfs-fuse", "setpriv") if uses_fuse() else ())):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (Debian: zfs-fuse, util-linux)")
    if uses_fuse() and not os.path.exists("/dev/fuse"):
        pytest.skip("no /dev/fuse")
    with own_mounts(), serving(directory) if uses_fuse() else nullcontext(), pool_on_file(directory, POOL, POOL_BYTES):
        yield directory / POOL


@contextmanager
def pool_on_file(directory: Path, name: str, size_bytes: int) -> Iterator[Path]:
    """Make one more pool beside it, mounted below a directory, on a sparse file."""
    from tests.conformance.conftest import image_directory  # which imports this module

    image = image_directory(directory) / f"pylayers-{os.getpid()}.{name}"
    point = directory / name
    with open(image, "wb") as file:
        file.truncate(size_bytes)
    try:
        run("zpool", "create", "-O", "atime=off", "-o", "cachefile=none", "-o", "ashift=9", "-m", str(point), name,
            str(image))  # fmt: skip
        try:
            yield point
        finally:
            with suppress(OSError):  # the daemon takes its mounts away meanwhile
                detach_below(point)
            for _ in range(DESTROY_TRIES):  # what was unmounted takes a moment to end
                if not subprocess.run(["zpool", "destroy", "-f", name], capture_output=True, timeout=60).returncode:
                    break
                time.sleep(0.1)
    finally:
        image.unlink()
        with suppress(OSError):
            point.rmdir()


@contextmanager
def named_pool(directory: Path) -> Iterator[str]:
    """Have the zfs driver use a pool of its own, wherever the data roots are."""
    with pool(directory), pytest.MonkeyPatch.context() as patch:
        patch.setenv(FSNAME_VARIABLE, POOL)
        yield POOL


def destroy_below(directory: Path) -> None:
    """Destroy the datasets of the data roots below a directory, where that is on a pool."""
    if find_mount(directory)[0] not in ZFS_TYPES:
        return
    found = [line.split("\t") for line in run("zfs", "list", "-H", "-o", "name,mountpoint").splitlines()]
    detach_below(directory)
    for name, point in found:
        if point.startswith(f"{directory}/"):
            subprocess.run(["zfs", "destroy", "-R", name], capture_output=True, timeout=60)
