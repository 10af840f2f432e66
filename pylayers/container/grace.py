"""Wait for the kernel's cgroup lock while something else is done.

Whoever moves a process to a cgroup, as each runtime does, first waits for an RCU grace period (5 to 15 ms), unless
somebody has moved one within the last such period: the lock is a percpu_rw_semaphore. So a thread moves this process to
the cgroup that it is in, which changes nothing, and goes on to until the runtime should have moved its own.
"""

from __future__ import annotations

import contextlib
import os
import time
from _thread import LockType, allocate_lock, start_new_thread

CGROUP_ROOT = "/sys/fs/cgroup"
INTERVAL_S = 0.003  # shorter than a grace period
LASTING_S = 0.1

_lock = allocate_lock()  # held by the thread
_until_s = [0.0]


def begin() -> None:
    """Have the wait behind us for the next tenth of a second. Where that cannot be done, nothing happens."""
    _until_s[0] = time.monotonic() + LASTING_S
    path = find_own_procs()
    if path is not None and _lock.acquire(blocking=False):
        begun = allocate_lock()
        begun.acquire()
        start_new_thread(_hold, (path, begun))
        begun.acquire()  # else it would get its first turn when we have used up ours, 5 ms later


def _hold(path: str, begun: LockType) -> None:
    try:
        begun.release()
        with contextlib.suppress(OSError):  # a cgroup2 that may hold no processes
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                while time.monotonic() < _until_s[0]:
                    os.write(descriptor, b"0")
                    time.sleep(INTERVAL_S)
            finally:
                os.close(descriptor)
    finally:
        _lock.release()


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
