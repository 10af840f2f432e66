def rewrite(descriptor: int, interval_ns: int, lasting_ns: int) -> None:
    """Write "0" to a descriptor every interval for a time, from a thread that takes no GIL; the first time at once.

    The descriptor is the thread's from here on, also when this raises. There is one thread in a process: while it runs,
    another call only says from when on its time counts. It ends at the first write that fails. A forked child has none.
    Raises OSError when no thread can be had.
    """

def is_rewriting() -> bool:
    """Tell whether this process has such a thread."""
