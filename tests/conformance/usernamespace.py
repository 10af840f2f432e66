"""Run a command as root of a user namespace, which has every right over its own things and none over the machine's.

All ids are mapped to themselves, so that files keep their owners and paths stay readable; what is gone are the rights
that the kernel gives in its first namespace alone: devices, trusted attributes, overlayfs's own marks, loop devices.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

# Two pipes: the child says that it has its namespace, and waits until it has its ids.
CHILD = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x10000000 | 0x20000):  # CLONE_NEWUSER | CLONE_NEWNS
    raise SystemExit(f"no user namespace: {os.strerror(ctypes.get_errno())}")
os.write(int(sys.argv[1]), b"x")
os.read(int(sys.argv[2]), 1)
os.execvp(sys.argv[3], sys.argv[3:])
"""
EVERY_ID = "0 0 4294967295"


def run_in_user_namespace(
    command: Sequence[str], environment: Mapping[str, str] | None = None, timeout_s: int = 300
) -> subprocess.CompletedProcess[str]:
    """Run a command in a user and a mount namespace of its own; its output is text, both streams in one."""
    ready_read, ready_write = os.pipe()
    mapped_read, mapped_write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(ready_write), str(mapped_read), *command],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, **(environment or {})}, pass_fds=(ready_write, mapped_read),
    )  # fmt: skip
    for descriptor in (ready_write, mapped_read):
        os.close(descriptor)
    try:
        if os.read(ready_read, 1):
            for name in ("uid_map", "gid_map"):
                with open(f"/proc/{process.pid}/{name}", "w", encoding="ascii") as file:
                    file.write(EVERY_ID)
            os.write(mapped_write, b"x")
    finally:
        os.close(ready_read)
        os.close(mapped_write)
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
    return subprocess.CompletedProcess(list(command), process.returncode, output)
