from collections.abc import Iterable

_Buffer = bytes | bytearray | memoryview

MOST_DEVICES: int

class NotMappable(ValueError): ...

def write(fd: int, records: _Buffer, heap: _Buffer, devices: Iterable[int], userxattr: bool = False) -> int:
    """Write an EROFS image (512-byte blocks) without data of its own to an empty file and return its size in bytes.

    devices: the sizes in bytes of the tars, in the order of the mount's device= options; a row's data lies in device
    number `layer`. Whiteouts become character devices 0:0, OPAQUE directories get trusted.overlay.opaque (userxattr:
    user.overlay.opaque); overlayfs's own xattrs in rows are left out, sparse maps become holes. Equal input gives
    equal bytes. Releases the GIL; linear in the rows, 56 bytes of memory a row. Raises ValueError (row) for a
    malformed table, NotMappable for a file whose data isn't at multiples of 512 bytes, or whose name or attributes
    EROFS can't hold, OSError. Nothing is synced.
    Source: Linux, Documentation/filesystems/erofs.rst.
    """
