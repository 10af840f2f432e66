from collections.abc import Iterable

_Buffer = bytes | bytearray | memoryview

MOST_DEVICES: int

class NotMappable(ValueError): ...

def write(
    fd: int,
    records: _Buffer,
    heap: _Buffer,
    tar_sizes: Iterable[int],
    userxattr: bool = False,
    base_ends: Iterable[int] = (),
) -> int:
    """Write an EROFS image (512-byte blocks) without data of its own to an empty file and return its size in bytes.

    tar_sizes: the sizes in bytes of the layers' tars, lowest first; a row's data lies in tar number `layer`. Each is a
    device of the mount, in this order. base_ends, none or one for each tar: data that begins before it lies, at the
    same offset, in another file (0: none does), which is a device directly after the tar. Whiteouts become character
    devices 0:0, OPAQUE directories get trusted.overlay.opaque (userxattr: user.overlay.opaque); overlayfs's own xattrs
    in rows are left out, sparse maps become holes. Equal input gives equal bytes. Releases the GIL; linear in the rows,
    56 bytes of memory a row. Raises ValueError (row) for a malformed table or data that a base's end cuts, NotMappable
    for a file whose data isn't at multiples of 512 bytes, or whose name or attributes EROFS can't hold, OSError.
    Nothing is synced.
    Source: Linux, Documentation/filesystems/erofs.rst.
    """
