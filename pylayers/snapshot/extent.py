"""Count the disk bytes that a tree shares with nothing else (linux/fiemap.h)."""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from pathlib import Path

FIEMAP = 0xC020660B
EXTENT_LAST, EXTENT_INLINE, EXTENT_SHARED = 0x1, 0x200, 0x2000
EXTENTS = 128
HEADER = struct.Struct("<QQIIII")
EXTENT = struct.Struct("<QQQ2QI3I")


def exclusive_usage(top: Path) -> tuple[int, int]:
    """Count the bytes of extents that no other tree has, and all inodes of a tree, its top included, links once."""
    size_bytes, inodes = 0, 1
    seen: set[int] = set()
    pending = [os.fspath(top)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                found = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    pending.append(entry.path)
                elif found.st_nlink > 1:
                    if found.st_ino in seen:
                        continue
                    seen.add(found.st_ino)
                inodes += 1
                if stat.S_ISREG(found.st_mode) and found.st_blocks:
                    size_bytes += exclusive_bytes(entry.path)
    return size_bytes, inodes


def exclusive_bytes(path: str) -> int:
    """Sum a file's extents that are not shared. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    total, start = 0, 0
    try:
        while True:
            buffer = bytearray(HEADER.pack(start, (1 << 64) - 1 - start, 0, 0, EXTENTS, 0))
            buffer += bytes(EXTENTS * EXTENT.size)
            fcntl.ioctl(descriptor, FIEMAP, buffer)
            count = HEADER.unpack_from(buffer)[3]
            if not count:
                return total
            for number in range(count):
                logical, _, length, _, _, flags, *_ = EXTENT.unpack_from(buffer, HEADER.size + number * EXTENT.size)
                if not flags & EXTENT_SHARED:
                    total += length
                start = logical + length
            if flags & EXTENT_LAST:
                return total
    finally:
        os.close(descriptor)
