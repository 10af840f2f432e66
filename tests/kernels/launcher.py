"""Run a selection of the tests inside another kernel: user-mode Linux, a kernel that is a process.

Its root is this machine's, through hostfs, so the checkout and the interpreter are where they are here. The tests
write to tmpfs inside; only the report goes to a directory of this machine.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "PYLAYERS_UML"
DEFAULT = "/usr/bin/linux.uml"
MODULE_FOLDER = Path("/usr/lib/uml/modules")
MODULES = ("dm-mod", "dm-thin-pool", "overlay", "loop", "fuse")
MEMORY = "3G"
REGISTERS_FAILED = "ptrace set fp regs failed"  # what it says as it panics, at its first process
REPOSITORY = Path(__file__).resolve().parents[2]

INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/dev/shm TMPDIR=/dev/shm LC_ALL=C.UTF-8 DM_DISABLE_UDEV=1
mount -t proc proc /proc
mount -t sysfs sys /sys
mountpoint -q /dev || mount -t devtmpfs dev /dev
mkdir -p /dev/shm /dev/pts
mount -t tmpfs -o size=80% tmpfs /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /run
mkdir -p /run/modules/lib/modules
ln -s {modules}/$(uname -r) /run/modules/lib/modules/
for module in {wanted}; do modprobe -q -d /run/modules $module; done
ip link set lo up 2>/dev/null
uname -r >{report}/kernel
cd {repository}
{environment} {command} >{report}/output 2>&1
echo $? >{report}/status
halt -f
"""


@dataclass(frozen=True, slots=True)
class Finished:
    """What a run inside another kernel came to."""

    kernel: str
    status: int | None  # of the command; None when the kernel never got that far
    output: str


def find_kernel() -> tuple[str, str]:
    """Return the kernel's program and "", or "" and the reason why none can be run."""
    program = os.environ.get(VARIABLE) or DEFAULT
    if shutil.which(program) is None:
        return "", f"no {program} (Debian: user-mode-linux; another by {VARIABLE})"
    if os.geteuid() != 0:
        return "", "needs root"
    if shutil.which("modprobe", path="/usr/sbin:/sbin:/usr/bin") is None:
        return "", "no modprobe (Debian: kmod)"
    return program, ""


def run_tests(selection: Sequence[str], report: Path, *, timeout_seconds: int) -> Finished:
    """Run pytest on a selection inside the kernel, and kill that when it takes too long. report is an empty folder."""
    # A virtual environment is known by the place of its python: the link must not be resolved.
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--basetemp=/dev/shm/tests", "-ra", "-q"]
    return run_inside([*command, *selection], report, timeout_seconds=timeout_seconds)


def run_inside(
    command: Sequence[str], report: Path, *, timeout_seconds: int, settings: Mapping[str, str] | None = None
) -> Finished:
    """Run a command in the checkout inside the kernel, with more variables; the rest is as `run_tests` says."""
    program, reason = find_kernel()
    if not program:
        raise RuntimeError(reason)
    kept = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(REPOSITORY), "PYLAYERS_INSIDE": "uml", **(settings or {})}
    init = report / "init"
    init.write_text(
        INIT.format(
            modules=MODULE_FOLDER, wanted=" ".join(MODULES), report=shlex.quote(str(report)),
            repository=shlex.quote(str(REPOSITORY)), command=shlex.join(command),
            environment=" ".join(f"{name}={shlex.quote(value)}" for name, value in kept.items()),
        )
    )  # fmt: skip
    init.chmod(0o700)
    arguments = [
        program, "quiet", f"mem={MEMORY}", "rootfstype=hostfs", "rw", f"init={init}", "con=null", "con0=fd:0,fd:1",
    ]  # fmt: skip
    with open(report / "console", "wb") as console:
        # The kernel is many processes; a session of their own lets one signal reach them all.
        machine = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True,
            env={"PATH": os.environ.get("PATH", ""), "HOME": str(report), "TMPDIR": "/dev/shm"},
        )  # fmt: skip
        try:
            with suppress(subprocess.TimeoutExpired):
                machine.wait(timeout_seconds)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(machine.pid, signal.SIGKILL)
            machine.wait()
    said = read(report / "output") or read(report / "console")
    return Finished(read(report / "kernel").strip(), read_status(report), said)


def explain_refusal(found: Finished) -> str:
    """Say why the kernel cannot run on this machine's processor at all; "" where it can."""
    if found.status is None and not found.kernel and REGISTERS_FAILED in found.output:
        return "user-mode Linux has too little room for this processor's registers (AMX has 8 KiB of them)"
    return ""


def read(path: Path) -> str:
    """Read what a run left, "" when it left nothing."""
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def read_status(report: Path) -> int | None:
    """Read the command's exit status."""
    text = read(report / "status").strip()
    return int(text) if text else None
