"""A file system of a chosen kind for a work, in a loop file below the cache, which ends with the work."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from source import PrepareError

from pylayers._native import sysmount

CLONE_NEWNS = 0x00020000
MS_REC = 0x4000
DISK_BYTES = 24 << 30
MAKE_DISK = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-N", "2000000"),
    "xfs": ("mkfs.xfs", "-q", "-m", "reflink=1"),
    "btrfs": ("mkfs.btrfs", "-q"),
}


def enter_own_mounts() -> None:
    """Put this process into a mount namespace of its own: others don't see what it mounts, and all of it ends with it.

    Raises PrepareError.
    """
    try:
        sysmount.unshare(CLONE_NEWNS)
        sysmount.mount(b"", b"/", b"", sysmount.MS_PRIVATE | MS_REC)
    except OSError as error:
        raise PrepareError(f"mounts need root, and a system that allows them: {error}") from None


def missing_tool(kind: str) -> str | None:
    """Return the program that a file system can't be made without, where it is not installed."""
    program = MAKE_DISK[kind][0]
    return None if shutil.which(program) else program


@contextmanager
def fresh_disk(kind: str, place: Path) -> Iterator[Path]:
    """Mount a new file system of a kind in a sparse file below place; both are gone afterwards.

    The file has no name once it is mounted, and the loop device ends with the mount: where mounts are this process's
    own (enter_own_mounts), even a kill leaves nothing but an empty folder. Raises PrepareError.
    """
    place.mkdir(parents=True, exist_ok=True)
    image, root = place / f"{kind}.image", place / kind
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    try:
        call(*MAKE_DISK[kind], str(image))
        device = call("losetup", "--direct-io=on", "--find", "--show", str(image)).strip()
        try:
            root.mkdir(exist_ok=True)
            call("mount", device, str(root))
        finally:
            call("losetup", "--detach", device)  # of a mounted one: when it isn't any more
    finally:
        image.unlink()
    try:
        yield root
    finally:
        call("umount", str(root))
        root.rmdir()


def call(*command: str) -> str:
    """Run a command that prepares or ends a work. Raises PrepareError."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except FileNotFoundError:
        raise PrepareError(f"{command[0]} is not installed") from None
    if done.returncode:
        raise PrepareError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return done.stdout
