"""Ask about threads without loading `threading` (1 ms of a short command), which is there once anything started one."""

from __future__ import annotations

import sys
from _thread import RLock, allocate_lock

__all__ = ["RLock", "allocate_lock", "is_alone", "is_main"]


def is_alone() -> bool:
    """Tell whether the calling thread is this process's only one."""
    threading = sys.modules.get("threading")
    return threading is None or threading.active_count() == 1


def is_main() -> bool:
    """Tell whether the calling thread is the main one, which alone may set signal handlers."""
    threading = sys.modules.get("threading")
    return threading is None or threading.current_thread() is threading.main_thread()
