"""File systems for thin devices: which one, by which program, and how it is mounted."""

from __future__ import annotations

import os
import shutil
import subprocess

from pylayers.errors import DriverError, InvalidInput, Unsupported

FILE_SYSTEM_VARIABLE = "PYLAYERS_DM_FS"
# Thin blocks read as zeros until they are written, so nothing has to be zeroed, now or in the background.
MKFS_OPTIONS = {
    "xfs": ("-q", "-f", "-K"),
    "ext4": ("-q", "-F", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1"),
}
MOUNT_OPTIONS = {"xfs": ("nouuid",), "ext4": ("noinit_itable",)}
MKFS_TIMEOUT_SECONDS = 120


def choose_file_system() -> str:
    """Name the file system for new devices. Raises Unsupported where no mkfs for it is installed."""
    wanted = os.environ.get(FILE_SYSTEM_VARIABLE, "")
    if wanted and wanted not in MKFS_OPTIONS:
        raise InvalidInput(f"{FILE_SYSTEM_VARIABLE} is {wanted!r}", hint=f"choose from: {', '.join(MKFS_OPTIONS)}")
    for kind in [wanted] if wanted else MKFS_OPTIONS:
        if find_mkfs(kind):
            return kind
    names = [f"mkfs.{kind}" for kind in ([wanted] if wanted else MKFS_OPTIONS)]
    raise Unsupported(f"no {' or '.join(names)} program", hint="install the package xfsprogs or e2fsprogs")


def find_mkfs(kind: str) -> str | None:
    """Find the program that makes a file system."""
    return shutil.which(f"mkfs.{kind}", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def make_file_system(kind: str, node: str) -> None:
    """Make a file system on a device. Raises DriverError with the program's words."""
    program = find_mkfs(kind)
    if program is None:
        raise Unsupported(f"no mkfs.{kind} program on the PATH")
    try:
        done = subprocess.run(
            [program, *MKFS_OPTIONS[kind], node], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=MKFS_TIMEOUT_SECONDS, check=False, env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise DriverError(f"mkfs.{kind} did not end in {MKFS_TIMEOUT_SECONDS} s") from None
    if done.returncode:
        raise DriverError(f"mkfs.{kind} failed: {done.stderr.strip() or done.stdout.strip()}")
