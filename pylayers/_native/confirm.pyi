from typing import Self, final

_Buffer = bytes | bytearray | memoryview

def confirm(
    root_fd: int, records: _Buffer, heap: _Buffer, trusted_before_ns: int, threads: int = 1
) -> bytes | None:
    """Tell what a walk of root_fd would find changed in this table, by one statx per row.

    Returns the rows (native uint32, in no order, 256 at most) of regular files of one name that are still that but have
    another stat, or one that isn't before trusted_before_ns (git's rule); none of them: the walk would give the table
    again. None where anything else differs, and for a table that spans devices or has a path of 4096 bytes or more.
    Nothing is listed: that no name was added is told by the directories' own times, which holds where the file system
    keeps them (see read_filesystem_type), and where all names of a listed directory were either taken or left out by
    rules that its listing decides. Symlinks are statted, not read: one cannot be rewritten in place. Releases the GIL.
    ValueError when a record reaches beyond its heap.
    """

@final
class Confirmation:
    """One such confirmation as an object: each thread that calls run() takes blocks of rows until none is left.

    `changed` is the answer when run() has returned in every thread that called it, at least one. The object keeps the
    buffers alive; root_fd is the caller's and must stay open. ValueError as above.
    """

    def __new__(cls, root_fd: int, records: _Buffer, heap: _Buffer, trusted_before_ns: int) -> Self: ...
    def run(self) -> bool:
        """Work until nothing is left to begin with; False once more than plain files differs. No GIL."""

    @property
    def changed(self) -> bytes | None:
        """The changed rows, as confirm() returns them."""

def read_filesystem_type(fd: int) -> int:
    """Return the f_type of statfs(2) for what fd is open on, as an unsigned 32-bit number; OSError."""
