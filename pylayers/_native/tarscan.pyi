_Buffer = bytes | bytearray | memoryview

class TarFormatError(ValueError):
    """The tar is malformed; `offset` is the byte at which."""

    offset: int

    def __init__(self, message: str, offset: int) -> None: ...

def scan(tar: _Buffer, max_entries: int = 10_000_000) -> tuple[bytearray, bytearray]:
    """Read every header of a mapped tar and return (records, heap) in component order.

    ustar, PAX (global and per file, SCHILY.xattr.*, GNU.sparse.* 0.0, 0.1 and 1.0), GNU long names and links,
    base-256 numbers, old GNU sparse, contiguous and v7 headers. Paths are normalised: leading '/' and './',
    doubled and trailing slashes go; a '..' component is a TarFormatError. `.wh.NAME` becomes a WHITEOUT row of NAME,
    `.wh..wh..opq` sets OPAQUE on its directory. Missing parents are added as IMPLICIT directories (mode 0755), the
    root as well. Of several entries of one path the last wins (a later directory keeps its children, anything else
    hides them). A hard link names the entry that its target was at that moment; of its group's names the first
    in component order becomes the file, the others are HARDLINK rows that repeat its fields, header_offset and
    data_offset too, SPARSE with them (but `link` is then the path). nlink counts the names in this tar; directories: 1.
    A row wins over a whiteout of its own path (whiteouts concern lower layers only); a directory is then OPAQUE, not
    IMPLICIT though only things below it name it. aufs' own .wh..wh.* entries are skipped.
    Bounds: max_entries rows, 4095 bytes a path, 1 MiB a PAX header or GNU long name, a heap of 8 times the tar
    and 64 MiB. A missing end mark is accepted at a block boundary, anything after one ignored.
    Never reads outside the buffer. Releases the GIL. A tar of 8 MiB or more is read by two threads where the process
    may use two processors; what is returned or raised is the same.
    """

def scan_split(
    tar: _Buffer, max_entries: int = 10_000_000, helper_first: bool = False
) -> tuple[bytearray, bytearray, int, int]:
    """Scan, and tell how: return (records, heap, threads, rows that the second one read).

    For tests: what `scan` does, with helper_first at any size and whatever the timing, as the second thread's part is
    then done before the first's (by one thread).
    """
