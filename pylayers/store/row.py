"""One record of an entry table."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple
else:
    from pylayers.record import NamedTuple


class Entry(NamedTuple):
    """One record, unpacked; field meanings are those of pyx/entry.pxd."""

    path_offset: int = 0
    link_offset: int = 0
    xattr_offset: int = 0
    header_offset: int = 0
    data_offset: int = 0
    size_bytes: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    device: int = 0
    inode: int = 0
    path_length: int = 0
    link_length: int = 0
    xattr_length: int = 0
    mode: int = 0
    uid: int = 0
    gid: int = 0
    rdev_major: int = 0
    rdev_minor: int = 0
    nlink: int = 1
    flags: int = 0
    layer: int = 0
    chunk_first: int = 0
    chunk_count: int = 0
    reserved: int = 0
    blake3: bytes = bytes(32)
