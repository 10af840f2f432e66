from typing import Self, final

@final
class MapGuard:
    """Keep a mapped file that becomes shorter from killing the process with SIGBUS.

    What lies beyond the file's new end is read as zeros by every thread, from the first such read on, and `broken`
    tells of it. Zeros are no answer: whoever reads through a guard asks for `broken` before believing a result, good or
    bad. While any guard is open the process has a handler for SIGBUS, which hands on what is no guard's to the one that
    was there before. Costs nothing until then. A system call that is given the mapping fails with EFAULT instead, and
    `broken` stays False, until some instruction reads there.
    """

    def __new__(cls, mapped: memoryview) -> Self:
        """Guard a read-only mapping, whole, for as long as the guard is open; it holds the buffer.

        ValueError for an empty buffer, OSError when too many are guarded or the handler cannot be set.
        """

    @property
    def broken(self) -> bool:
        """Whether zeros were read in a file's place."""

    def close(self) -> None:
        """Guard no more. The mapping keeps its zeros."""
