"""Read an EROFS image the slow and obvious way, after Linux's Documentation/filesystems/erofs.rst."""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass, field

SUPER = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQB23x")
DEVICE = struct.Struct("<64sII56x")
INODE = struct.Struct("<HHHHQIIIIQII16x")
DIRENT = struct.Struct("<QHBB")
PREFIXES = {1: b"user.", 2: b"system.posix_acl_access", 3: b"system.posix_acl_default", 4: b"trusted.", 6: b"security."}
KINDS = {1: stat.S_IFREG, 2: stat.S_IFDIR, 3: stat.S_IFCHR, 4: stat.S_IFBLK, 5: stat.S_IFIFO, 6: stat.S_IFSOCK,
         7: stat.S_IFLNK}  # fmt: skip
HOLE = 0xFFFFFFFF


@dataclass
class Node:
    """One inode."""

    number: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    nlink: int
    size: int
    rdev: tuple[int, int] = (0, 0)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    content: bytes = b""  # of files, the target of links


class Reader:
    """Hold an image and its devices' bytes."""

    def __init__(self, image: bytes, devices: list[bytes]) -> None:
        self.image = image
        self.devices = devices
        fields = SUPER.unpack_from(image, 1024)
        magic, checksum, compatible, bits, slots, root = fields[:6]
        assert magic == 0xE0F5E1E2
        assert (bits, slots, compatible & 3) == (9, 0, 3)
        self.block = 1 << bits
        self.root, self.inodes, self.blocks, self.meta = root, fields[6], fields[9], fields[10]
        assert fields[14] == 0x4 | 0x8  # chunked files, a device table
        assert fields[16] == len(devices)
        assert fields[17] * 128 == 1024 + 128
        assert self.blocks * self.block == len(image)
        if len(devices) <= 3:
            plain = bytearray(image[1024 : 1024 + self.block])
            plain[4:8] = bytes(4)
            assert crc32c(bytes(plain)) == checksum
        for number, device in enumerate(devices):
            _, blocks, _ = DEVICE.unpack_from(image, 1152 + 128 * number)
            assert blocks == -(-len(device) // self.block)

    def tree(self) -> dict[bytes, Node]:
        """Read everything, by path."""
        found: dict[bytes, Node] = {}
        pending = [(b"", self.root, self.root)]
        while pending:
            path, number, above = pending.pop()
            node, data = self.read(number)
            found[path] = node
            if not stat.S_ISDIR(node.mode):
                node.content = data
                continue
            names = self.names(data)
            assert [name for name, _, _ in names] == sorted(name for name, _, _ in names)
            listed = {name: (inode, kind) for name, inode, kind in names}
            assert len(listed) == len(names)
            assert listed.pop(b".")[0] == number
            assert listed.pop(b"..")[0] == above
            for name, (inode, kind) in listed.items():
                assert stat.S_IFMT(self.read(inode)[0].mode) == KINDS[kind]
                pending.append((path + b"/" + name if path else name, inode, number))
        return found

    def names(self, data: bytes) -> list[tuple[bytes, int, int]]:
        """Read a directory's blocks."""
        found = []
        for start in range(0, len(data), self.block):
            block = data[start : start + self.block]
            count = DIRENT.unpack_from(block)[1] // DIRENT.size
            entries = [DIRENT.unpack_from(block, DIRENT.size * at) for at in range(count)]
            ends = [entry[1] for entry in entries[1:]] + [len(block)]
            for (inode, offset, kind, _), end in zip(entries, ends, strict=True):
                found.append((block[offset:end].split(b"\0")[0], inode, kind))
        return found

    def read(self, number: int) -> tuple[Node, bytes]:
        """Read an inode and its data."""
        at = self.meta * self.block + number * 32
        form, xattr_count, mode, _, size, place, _, uid, gid, seconds, nanoseconds, nlink = INODE.unpack_from(
            self.image, at
        )
        assert form & 1
        seconds = seconds - (1 << 64) if seconds >> 63 else seconds
        node = Node(number, mode, uid, gid, seconds * 10**9 + nanoseconds, nlink, size)
        tail = at + INODE.size
        if xattr_count:
            length = 12 + 4 * (xattr_count - 1)
            node.xattrs = self.xattrs(self.image[tail + 12 : tail + length])
            tail += length
        layout = form >> 1
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            node.rdev = (place >> 8 & 0xFFF, place & 0xFF | place >> 12 & 0xFFF00)
            return node, b""
        if layout == 4:
            return node, self.chunks(-(-tail // 8) * 8, place, size)
        if layout == 2:
            assert tail % self.block + size <= self.block, "inline data crosses a block"
            return node, self.image[tail : tail + size]
        assert layout == 0
        return node, self.image[place * self.block : place * self.block + size]

    def chunks(self, at: int, form: int, size: int) -> bytes:
        """Read a file's data from the devices."""
        assert form & ~0x3F == 0
        assert form & 0x20
        length = self.block << (form & 0x1F)
        parts = []
        for start in range(0, size, length):
            _, device, block = struct.unpack_from("<HHI", self.image, at)
            at += 8
            wanted = min(length, size - start)
            if block == HOLE:
                parts.append(bytes(wanted))
            else:
                offset = block * self.block
                parts.append(self.devices[device - 1][offset : offset + wanted])
        return b"".join(parts)

    def xattrs(self, area: bytes) -> dict[bytes, bytes]:
        """Read inline attributes."""
        found = {}
        at = 0
        while at < len(area):
            name_length, index, value_length = struct.unpack_from("<BBH", area, at)
            name = area[at + 4 : at + 4 + name_length]
            found[PREFIXES[index] + name] = area[at + 4 + name_length : at + 4 + name_length + value_length]
            at += -(-(4 + name_length + value_length) // 4) * 4
        return found


def crc32c(content: bytes) -> int:
    """Compute the CRC-32C without its last inversion, a bit at a time."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc
