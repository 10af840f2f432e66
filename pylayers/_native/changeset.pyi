_Buffer = bytes | bytearray | memoryview

def find_marked(records: _Buffer) -> bytes:
    """List the rows that may carry an overlay's mark: character devices 0:0, and what has xattrs.

    Packed u32 row numbers, ascending. Raises ValueError for a cut record. Releases the GIL; linear.
    """

def find_flagged(records: _Buffer, flags: int) -> bytes:
    """List the rows that have one of these flags, as find_marked does. Raises ValueError for no flag."""

def keep_tree(records: bytearray, keep: bytearray, begin: int, end: int, hides: bool) -> None:
    """Keep the rows of a tree below which nothing shines through: marks inside it hide nothing.

    keep has a byte for each row; WHITEOUT rows of begin to end are set to 0 and all others to 1. OPAQUE goes from all,
    but hides gives it to the top, row begin. Raises ValueError for a range outside the table. Releases the GIL.
    """

def pack(records: _Buffer, heap: _Buffer, keep: bytearray, root_changed: bool) -> bytearray:
    """Return the kept rows with what they need: whole groups of hard links, the directories above, the root.

    keep has a byte for each row, and is completed in place; sockets are left out. Fields that only a walk has (ctime,
    device, inode) are 0 in the result. Row 0 is IMPLICIT unless root_changed. Raises ValueError for a row that points
    outside the heap, MemoryError. Releases the GIL; linear in the rows, times the depth.
    """

def list_sources(records: _Buffer, descriptor: int) -> bytes:
    """Return a source record (fd i32, kind u32, offset u64, length u64) for each row.

    A regular file's is its own path below descriptor; hard links, WHITEOUTs and everything else have none. Releases
    the GIL; linear.
    """
