"""What a user namespace keeps from whoever is in it."""

from __future__ import annotations

import functools
import os

FIRST_USER_NAMESPACE = 0xEFFFFFFD  # PROC_USER_INIT_INO (linux/proc_ns.h)


@functools.cache
def in_user_namespace() -> bool:
    """Tell whether this process is in another user namespace than the kernel's first: no devices, no trusted names."""
    try:
        return os.stat("/proc/self/ns/user").st_ino != FIRST_USER_NAMESPACE
    except OSError:  # a kernel without namespaces
        return False
