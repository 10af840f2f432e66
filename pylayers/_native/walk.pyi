from collections.abc import Callable

_Buffer = bytes | bytearray | memoryview

def walk(
    root_fd: int,
    select: Callable[[bytes, list[bytes], bytes], _Buffer | None] | None = None,
    xattrs: bool = False,
    threads: int = 1,
    cross_devices: bool = True,
) -> tuple[bytearray, bytearray]:
    """Walk the directory tree below root_fd and return (records, heap) in component order.

    Row 0 is the root itself, with the empty path. Symlinks are read, never followed. Of several non-directories
    with one (device, inode), all but the first carry FLAG_HARDLINK and the first's path as link.
    select(directory_path, names, modes) is called once per directory, with `modes` one native uint32 st_mode per
    name, and returns one byte per name (0 drops it: it is neither listed nor descended) or None to keep all.
    xattrs=True also reads extended attributes (needs /proc). cross_devices=False lists what lies on another device than
    the root but does not descend it. The GIL is released except while select runs, which keeps the work in one thread.
    Raises OSError with the filename (bytes, relative to the root) on the first failure, among them a directory that
    was replaced by something else between statx and open; an entry that vanishes is left out.
    """

def read_xattrs(root_fd: int, records: bytearray, heap: bytearray, indexes: _Buffer) -> None:
    """Read the extended attributes of the rows named by indexes (native uint32) into the table, growing heap.

    Raises OSError with the filename on the first failure, a vanished entry included; the table is unchanged then.
    """

def same(
    records: _Buffer, heap: _Buffer, known_records: _Buffer, known_heap: _Buffer, trusted_before_ns: int
) -> bool:
    """Tell whether two walked tables name the same paths with the same stat and links, none of them racy.

    blake3, FLAG_HASHED, xattrs and heap offsets are not compared. An entry whose mtime or ctime is not before
    trusted_before_ns is racy (git's rule) and makes the answer False. Releases the GIL; one pass. Here and in the
    other functions a record that reaches beyond its heap raises ValueError.
    """

def recall(
    records: bytearray, heap: bytearray, known_records: _Buffer, known_heap: _Buffer, trusted_before_ns: int
) -> bytes:
    """Copy blake3 and xattrs from the known table to the rows whose stat is unchanged; return the others.

    Rows match by path and (device, inode, size, mtime_ns, ctime_ns, mode, uid, gid) and must not be racy. The result is
    the native uint32 indexes of rows (any type) that did not match; a regular file whose known row has no hash counts
    as one. heap grows by the recalled xattrs (so nothing may export it); on an exception nothing was changed.
    """
