"""Wait for the kernel's cgroup lock while something else is done.

Whoever moves a process to a cgroup, as each runtime does, first waits for an RCU grace period (5 to 15 ms), unless
somebody has moved one within the last such period: the lock is a percpu_rw_semaphore. So a thread of the kernel
`headstart` moves this process to the cgroup that it is in, which changes nothing, and goes on to until the runtime
should have moved its own.
"""

from __future__ import annotations

import os

from pylayers._native import headstart

CGROUP_ROOT = "/sys/fs/cgroup"
INTERVAL_NS = 3_000_000  # shorter than a grace period
LASTING_NS = 100_000_000
EARLY_NS = 20_000_000  # a command's: its monitor begins within that and goes on


def begin(lasting_ns: int = LASTING_NS) -> None:
    """Have the wait behind us soon and for some time. Where that cannot be done, nothing happens."""
    path = find_own_procs()
    if path is not None:
        try:
            headstart.rewrite(os.open(path, os.O_WRONLY | os.O_CLOEXEC), INTERVAL_NS, lasting_ns)
        except OSError:  # the runtime waits by itself
            return


def find_own_procs() -> str | None:
    """Return the cgroup.procs file of a cgroup that this process is in, None where it may write none."""
    try:
        with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as table:
            lines = table.read().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        procs = os.path.normpath(f"{CGROUP_ROOT}/{controllers.removeprefix('name=')}/{path}/cgroup.procs")
        if os.access(procs, os.W_OK):  # one hierarchy does, as all have one lock
            return procs
    return None
