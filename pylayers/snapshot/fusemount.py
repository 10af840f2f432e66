"""Mount overlays through the fuse-overlayfs program, and find the programs that are at work."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from pylayers.snapshot.snapshotter import Mount

PROGRAM = "fuse-overlayfs"
TYPE = "fuse-overlayfs"
TIMEOUT_SECONDS = 30


def find_program() -> str | None:
    """Find the program on the PATH."""
    return shutil.which(PROGRAM)


def mount_by_program(one: Mount, target: Path) -> None:
    """Start the program, which stays as long as its mount. Raises OSError with its words."""
    program = find_program()
    if program is None:
        raise OSError(errno.ENOENT, f"no {PROGRAM} program on the PATH")
    options = [f"lowerdir={':'.join(map(escape, one.lowers))}"]
    if one.upper:
        options += [f"upperdir={escape(one.upper)}", f"workdir={escape(one.work)}"]
    options += [*one.options, *(["ro"] if one.readonly else [])]
    # The daemon keeps what it gets as stderr, so a pipe would never end.
    with tempfile.TemporaryFile() as said:
        try:
            code = subprocess.run(
                [program, "-o", ",".join(options), str(target)],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said, timeout=TIMEOUT_SECONDS, check=False,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            raise OSError(errno.ETIMEDOUT, f"{PROGRAM} did not answer in {TIMEOUT_SECONDS} s") from None
        if code:
            said.seek(0)
            words = [line for line in said.read().decode(errors="replace").splitlines() if "ignored" not in line]
            raise OSError(errno.EIO, f"{PROGRAM} left with {code}: {'; '.join(words)}")


def escape(path: str) -> str:
    """Write a path as the program reads it in its options."""
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def is_served(identity: str) -> bool:
    """Tell whether a program here has a snapshot's id on its command line."""
    wanted = os.fsencode(f"/{identity}/")
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            words = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if PROGRAM.encode() in words and b"upperdir=" in words and wanted in words.partition(b"upperdir=")[2]:
            return True
    return False
