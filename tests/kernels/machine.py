"""Run a selection of the tests inside a machine that qemu emulates: for what user-mode Linux lacks, or cannot run on.

Its root is a Debian tree (`tests/kernels/make_tree DIRECTORY` makes one) which holds the kernel and the tools. The
checkout and the interpreter are there where they are here, by 9p and read-only; the tests write to memory.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.kernels.launcher import REPOSITORY, Finished, read, read_status

VARIABLE = "PYLAYERS_KERNEL_TREE"
MAKE = "tests/kernels/make_tree"
MAKE_TIMEOUT_SECONDS = 900
PROGRAM = "qemu-system-x86_64"
MEMORY = "4G"
REPORT = "/run/report"

# The tree's own /init mounts the report and goes on with this.
INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/dev/shm TMPDIR=/dev/shm LC_ALL=C.UTF-8 DM_DISABLE_UDEV=1
mount -t proc proc /proc
mountpoint -q /sys || mount -t sysfs sys /sys
mountpoint -q /dev || mount -t devtmpfs dev /dev
mkdir -p /dev/shm /dev/pts
mount -t tmpfs -o size=80% tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
mount -t devpts devpts /dev/pts
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
for module in zfs dm-mod dm-thin-pool overlay loop fuse xfs btrfs ext4; do modprobe -q $module; done
while read -r tag folder; do
    mkdir -p "$folder"
    mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose "$tag" "$folder"
done <{report}/shares
uname -r >{report}/kernel
[ ! -e /sys/module/zfs ] || echo " with OpenZFS $(cat /sys/module/zfs/version)" >>{report}/kernel
cd {repository}
{command} >{report}/output 2>&1
echo $? >{report}/status
sync
echo o >/proc/sysrq-trigger
sleep 60
"""


def explain_missing() -> str:
    """Say why no machine can be emulated here; "" where one can."""
    return "" if shutil.which(PROGRAM) else f"no {PROGRAM} (Debian: qemu-system-x86)"


def find_tree() -> tuple[Path | None, str]:
    """Return the tree that is named, or None and the reason why nothing can be run in it."""
    named = os.environ.get(VARIABLE)
    if not named:
        return None, f"{VARIABLE} names no tree ({MAKE} makes one)"
    tree = Path(named)
    if not (tree / "init").exists() or not list((tree / "boot").glob("vmlinuz-*")):
        return None, f"{tree} is no tree that {MAKE} made"
    return (None, explain_missing()) if explain_missing() else (tree, "")


def make_tree(tree: Path) -> str:
    """Make a tree with Debian's kernel as it is; return why that failed, or ""."""
    if explain_missing():
        return explain_missing()
    if shutil.which("mmdebstrap") is None:
        return "no mmdebstrap"
    done = subprocess.run(
        [REPOSITORY / MAKE, tree], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=MAKE_TIMEOUT_SECONDS,
    )  # fmt: skip
    return f"{MAKE} left with {done.returncode}: {done.stderr[-400:]}" if done.returncode else ""


def has_zfs(tree: Path) -> bool:
    """Tell whether a tree's kernel has OpenZFS."""
    return any((tree / "lib/modules").glob("*/updates/dkms/zfs.ko*"))


def run_tests(tree: Path, selection: Sequence[str], report: Path, *, timeout_seconds: int) -> Finished:
    """Run pytest on a selection inside the machine, and kill that when it takes too long. report is an empty folder."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--basetemp=/dev/shm/tests", "-ra", "-q"]
    variables = [f"PYTHONPATH={REPOSITORY}", "PYTHONDONTWRITEBYTECODE=1", "PYLAYERS_INSIDE=qemu"]
    return run_inside(tree, ["env", *variables, *command, *selection], report, timeout_seconds=timeout_seconds)


def run_inside(tree: Path, command: Sequence[str], report: Path, *, timeout_seconds: int) -> Finished:
    """Run a command in the checkout inside the machine."""
    shares = {"checkout": REPOSITORY}
    if Path(sys.base_prefix) != Path("/usr"):  # the tree's own python is the same where Debian's is used
        shares["python"] = Path(sys.base_prefix)
    (report / "shares").write_text("".join(f"{tag} {folder}\n" for tag, folder in shares.items()))
    (report / "init").write_text(
        INIT.format(report=REPORT, repository=shlex.quote(str(REPOSITORY)), command=shlex.join(command))
    )
    kernel = max((tree / "boot").glob("vmlinuz-*"))
    arguments = [
        PROGRAM, "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(os.cpu_count() or 1), "-m", MEMORY,
        "-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio",
        "-kernel", str(kernel), "-initrd", str(kernel.with_name(kernel.name.replace("vmlinuz", "initrd.img"))),
        "-append", "console=ttyS0 quiet panic=1 root=tree rootfstype=9p"
        " rootflags=trans=virtio,version=9p2000.L,msize=512000,cache=loose rw init=/init mitigations=off",
        *share("tree", tree), *share("report", report),
        *(argument for tag, folder in shares.items() for argument in share(tag, folder, writable=False)),
    ]  # fmt: skip
    with open(report / "console", "wb") as console:
        machine = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=console, stderr=console)
        try:
            with suppress(subprocess.TimeoutExpired):
                machine.wait(timeout_seconds)
        finally:
            machine.kill()
            machine.wait()
    said = read(report / "output") or read(report / "console")
    return Finished(" ".join(read(report / "kernel").split()), read_status(report), said)


def share(tag: str, folder: Path, *, writable: bool = True) -> list[str]:
    """Return qemu's words for a folder that the machine can mount by its tag."""
    device = f"local,id={tag},path={folder},security_model=none,multidevs=remap{'' if writable else ',readonly=on'}"
    return ["-fsdev", device, "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
