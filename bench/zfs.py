"""A pool for the zfs driver: OpenZFS's where the kernel has it, else zfs-fuse's, in a mount namespace of ours."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pylayers._native import sysmount
from pylayers.errors import PylayersError
from pylayers.snapshot.zfscommand import run_zfs, uses_fuse
from pylayers.store.mountpoint import detach_below

# Where the daemon keeps its socket, its pid file and its cache; each gets a tmpfs of its own.
DAEMON_FOLDERS = ("/run/zfs", "/var/lib/zfs", "/var/lock")
POOL_BYTES = 4 << 30
START_LIMIT_S = 20
DESTROY_TRIES = 50


@contextmanager
def serve(place: Path) -> Iterator[None]:
    """Have a zfs-fuse at work that ends with this process. Raises PylayersError where it can't be."""
    for program in ("zpool", "zfs-fuse", "setpriv"):
        if shutil.which(program) is None:
            raise PylayersError(f"no {program} program, and this kernel has no OpenZFS")
    for folder in DAEMON_FOLDERS:
        Path(folder).mkdir(parents=True, exist_ok=True)
        sysmount.mount(b"tmpfs", os.fsencode(folder), b"tmpfs")
    with (place / "zfs-fuse.log").open("wb") as log:
        daemon = subprocess.Popen(
            ("setpriv", "--pdeathsig", "KILL", "zfs-fuse", "-n", "-p", "/run/zfs/pid", "--no-kstat-mount", "-x",
             "-a", "1", "-e", "1"),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + START_LIMIT_S
        while subprocess.run(("zpool", "list"), capture_output=True).returncode:
            if daemon.poll() is not None or time.monotonic() > deadline:
                raise PylayersError(f"zfs-fuse did not answer; see {place / 'zfs-fuse.log'}")
            time.sleep(0.05)
        yield
    finally:
        daemon.kill()
        daemon.wait()


@contextmanager
def zfs_pool(place: Path) -> Iterator[Path]:
    """Make a pool in a file and give where it is mounted. Raises PylayersError where that can't be."""
    with ExitStack() as stack:
        if uses_fuse():
            stack.enter_context(serve(place))
        image, point = place / "pool.image", place / "pool"
        with image.open("wb") as file:
            file.truncate(POOL_BYTES)
        stack.callback(image.unlink)
        name = f"pylayers{os.getpid()}"
        command = ("zpool", "create", "-O", "atime=off", "-o", "cachefile=none", "-o", "ashift=9", "-m", str(point),
                   name, str(image))  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise PylayersError(f"zpool: {done.stderr.strip()}")
        stack.callback(destroy, name, point)
        yield point


def used_bytes(point: Path) -> int:
    """Return what a dataset and those below it take; statvfs tells of the one alone."""
    name = run_zfs("list", "-H", "-o", "name", str(point)).strip()
    return int(run_zfs("get", "-Hp", "-o", "value", "used", name))


def destroy(name: str, point: Path) -> None:
    """Destroy a pool; what was unmounted takes a moment to end."""
    with suppress(OSError):
        detach_below(point)
    for _ in range(DESTROY_TRIES):
        if not subprocess.run(("zpool", "destroy", "-f", name), capture_output=True).returncode:
            return
        time.sleep(0.1)
