from typing import Self, final

_Buffer = bytes | bytearray | memoryview

def confirm(root_fd: int, records: _Buffer, heap: _Buffer, trusted_before_ns: int, threads: int = 1) -> bool:
    """Tell whether a walk of root_fd would give this table again, by one statx per row.

    False also for a table whose times are not all before trusted_before_ns (git's rule), that spans devices, or that
    has a path of 4096 bytes or more. Nothing is listed: that no name was added is told by the directories' own times,
    which holds where the file system keeps them (see read_filesystem_type), and where all names of a listed directory
    were either taken or left out by rules that its listing decides. Symlinks are statted, not read: one cannot be
    rewritten in place. Releases the GIL. ValueError when a record reaches beyond its heap.
    """

@final
class Confirmation:
    """One such confirmation as an object: each thread that calls run() takes blocks of rows until none is left.

    It is confirmed when run() has returned in every thread that called it, at least one, and each time with True.
    The object keeps the buffers alive; root_fd is the caller's and must stay open. ValueError as above.
    """

    def __new__(cls, root_fd: int, records: _Buffer, heap: _Buffer, trusted_before_ns: int) -> Self: ...
    def run(self) -> bool:
        """Work until nothing is left to begin with, and tell whether all that was looked at holds. No GIL."""

def read_filesystem_type(fd: int) -> int:
    """Return the f_type of statfs(2) for what fd is open on, as an unsigned 32-bit number; OSError."""
