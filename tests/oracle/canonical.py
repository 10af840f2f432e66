"""The canonical tar written slowly and obviously, and tables for the kernel from the same items."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from pylayers._native import tarwrite
from pylayers.store.entry import (
    FLAG_HARDLINK,
    FLAG_IMPLICIT,
    FLAG_OPAQUE,
    FLAG_SPARSE,
    FLAG_WHITEOUT,
    SOURCE_HEAP,
    SOURCE_NONE,
    SOURCE_PATH,
    SOURCE_RANGE,
    SOURCE_STRUCT,
    EntryTable,
    TableBuilder,
    encode_xattrs,
    path_key,
)
from pylayers.store.row import Entry

TYPEFLAGS = {
    stat.S_IFREG: b"0",
    stat.S_IFLNK: b"2",
    stat.S_IFCHR: b"3",
    stat.S_IFBLK: b"4",
    stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
}


@dataclass(frozen=True)
class Item:
    path: bytes
    mode: int = stat.S_IFREG | 0o644
    content: bytes = b""
    link: bytes = b""
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    rdev: tuple[int, int] = (0, 0)
    flags: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    kind: int = SOURCE_HEAP
    ranges: tuple[tuple[int, int], ...] = ()  # of a sparse item; content is zero outside them

    @property
    def has_data(self) -> bool:
        return stat.S_ISREG(self.mode) and not self.flags & (FLAG_HARDLINK | FLAG_WHITEOUT)


def make_record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    return next(
        b"%d" % length + body for length in range(len(body), len(body) + 12) if length == len(body) + len(str(length))
    )


def make_block(
    name: bytes, prefix: bytes, typeflag: bytes, mode: int, uid: int, gid: int, size: int, mtime: int, link: bytes,
    rdev: tuple[int, int],
) -> bytes:  # fmt: skip
    def octal(digits: int, value: int) -> bytes:
        return (b"%0*o" % (digits, value if 0 <= value < 8**digits else 0)) + b"\0"

    before = name[:100].ljust(100, b"\0") + octal(7, mode) + octal(7, uid) + octal(7, gid)
    before += octal(11, size) + octal(11, mtime)
    after = typeflag + link[:100].ljust(100, b"\0") + b"ustar\0" + b"00" + bytes(64)
    after += octal(7, rdev[0]) + octal(7, rdev[1]) + prefix.ljust(155, b"\0") + bytes(12)
    checksum = b"%06o\0 " % sum(before + b" " * 8 + after)
    assert len(before + checksum + after) == 512
    return before + checksum + after


def split_name(name: bytes) -> tuple[bytes, bytes] | None:
    """Give (prefix, name) as ustar holds them, or None when PAX must."""
    if len(name) <= 100:
        return b"", name
    for at in range(1, min(len(name) - 1, 156)):
        if name[at : at + 1] == b"/" and len(name) - at - 1 <= 100:
            return name[:at], name[at + 1 :]
    return None


def is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def make_header(item: Item, name: bytes, position: int, align: int) -> bytes:
    hard = bool(item.flags & FLAG_HARDLINK)
    typeflag = b"1" if hard else TYPEFLAGS[stat.S_IFMT(item.mode)]
    link = item.link if typeflag in (b"1", b"2") else b""
    size = len(item.content) if typeflag == b"0" else 0
    mtime = item.mtime_ns // 10**9
    place = split_name(name)
    records = []
    if (place is None and not is_utf8(name)) or (len(link) > 100 and not is_utf8(link)):
        records.append((b"hdrcharset", b"BINARY"))
    if place is None:
        records.append((b"path", name))
    if len(link) > 100:
        records.append((b"linkpath", link))
    numbers = ((b"size", size, 11), (b"uid", item.uid, 7), (b"gid", item.gid, 7), (b"mtime", mtime, 11))
    for key, value, digits in numbers:
        if not 0 <= value < 8**digits:
            records.append((key, b"%d" % value))
    if not hard:
        records += [(b"SCHILY.xattr." + key, value) for key, value in sorted(item.xattrs.items())]
    pax = b"".join(make_record(key, value) for key, value in records)
    prefix, short = place if place is not None else (b"", name)
    rdev = item.rdev if typeflag in (b"3", b"4") else (0, 0)
    block = make_block(short, prefix, typeflag, item.mode & 0o7777, item.uid, item.gid, size, mtime, link, rdev)
    plain = extend(pax) + block
    if not align or (position + len(plain)) % align == 0:
        return plain
    total = len(b"11 comment=\n") - 1
    while True:  # the first comment that aligns the data and leaves no byte of its last block unused
        total += 1
        # By the whole record's length, as some of them (100, 1000) are no shortest writing of any text.
        text = total - len(b"%d comment=\n" % total)
        longer = pax + b"%d comment=%s\n" % (total, b" " * text)
        if len(longer) % 512 == 0 and (position + 1024 + len(longer)) % align == 0:
            return extend(longer) + block


def extend(pax: bytes) -> bytes:
    if not pax:
        return b""
    block = make_block(b"././@PaxHeader", b"", b"x", 0, 0, 0, len(pax), 0, b"", (0, 0))
    return block + pax + bytes(-len(pax) % 512)


def make_mark(name: bytes, position: int) -> bytes:
    return make_header(Item(name, mode=stat.S_IFREG), name, position, 0)


def write_slowly(
    items: list[Item], align: int = 4096, align_from: int = 65536
) -> tuple[bytes, dict[bytes, tuple[int, int]]]:
    """Give the tar, and (header offset, data offset) by path."""
    tar = b""
    offsets: dict[bytes, tuple[int, int]] = {}
    for item in sorted(items, key=lambda item: path_key(item.path)):
        start = len(tar)
        if item.flags & FLAG_WHITEOUT:
            folder, _, last = item.path.rpartition(b"/")
            tar += make_mark((folder + b"/" if folder else b"") + b".wh." + last, start)
            offsets[item.path] = (start, len(tar))
            continue
        offsets[item.path] = (0, 0)
        if not item.flags & FLAG_IMPLICIT:
            name = item.path + b"/" if stat.S_ISDIR(item.mode) and not item.flags & FLAG_HARDLINK else item.path
            wanted = align if item.has_data and 0 < len(item.content) >= align_from else 0
            tar += make_header(item, name if item.path else b"./", start, wanted)
            offsets[item.path] = (start, len(tar))
            if item.flags & FLAG_HARDLINK:
                offsets[item.path] = (start, offsets[item.link][1])
            elif item.has_data:
                tar += item.content + bytes(-len(item.content) % 512)
        if item.flags & FLAG_OPAQUE:
            tar += make_mark((item.path + b"/" if item.path else b"") + b".wh..wh..opq", len(tar))
    return tar + bytes(1024), offsets


EVERY_LANES = [0, *(lanes for lanes in (8, 16) if lanes <= tarwrite.LANES)]


@dataclass
class Given:
    """One call's arguments: the table, its sources, and the descriptors they name."""

    table: EntryTable
    sources: bytes
    items: list[Item]  # in the table's order
    descriptors: list[int]

    def write(self, out: Path, **options: int) -> tuple[bytes, int, bytes]:
        """Run the kernel; give the file's bytes and what it returned."""
        with open(out, "wb") as file:
            size_bytes, digest = tarwrite.write(
                file.fileno(), self.records, self.table.heap, self.sources, hashlib.sha256, blake3, **options
            )
        return out.read_bytes(), size_bytes, digest

    @property
    def records(self) -> bytearray:
        assert isinstance(self.table.records, bytearray)
        return self.table.records

    def close(self) -> None:
        for fd in self.descriptors:
            os.close(fd)


def make_table(items: list[Item], folder: Path, range_align: int = 1) -> Given:
    """Build the kernel's arguments. Data goes to the heap, to files below folder, or packed into one file."""
    folder.mkdir()
    builder = TableBuilder()
    root_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    packed_fd = os.open(folder / "packed", os.O_RDWR | os.O_CREAT)
    sources = []
    for number, item in enumerate(items):
        source = (-1, SOURCE_NONE, 0, 0)
        ctime_ns = 0
        link, flags = item.link, item.flags
        if item.has_data and item.ranges:
            link = b"".join(o.to_bytes(8, "little") + n.to_bytes(8, "little") for o, n in item.ranges)
            flags |= FLAG_SPARSE
            offset = os.lseek(packed_fd, 0, os.SEEK_END) + number
            os.pwrite(packed_fd, b"".join(item.content[o : o + n] for o, n in item.ranges), offset)
            source = (packed_fd, SOURCE_RANGE, offset, 0)
        elif item.has_data and item.kind == SOURCE_RANGE:
            offset = -(-(os.lseek(packed_fd, 0, os.SEEK_END) + number) // range_align) * range_align
            os.pwrite(packed_fd, item.content, offset)
            source = (packed_fd, SOURCE_RANGE, offset, len(item.content))
        elif item.has_data and item.kind == SOURCE_PATH:
            name = f"d{number % 3}/e/f{number}" if number % 4 else f"f{number}"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(item.content)
            ctime_ns = os.stat(folder / name).st_ctime_ns + (number % 3 == 1)  # some that changed since the walk
            ctime_ns *= number % 3 != 2
            source = (root_fd, SOURCE_PATH, builder.hold(name.encode()), len(name))
        elif item.has_data and item.content:
            source = (-1, SOURCE_HEAP, builder.hold(item.content), 0)
        entry = Entry(
            size_bytes=len(item.content) if item.has_data else 0,
            mode=item.mode,
            uid=item.uid,
            gid=item.gid,
            mtime_ns=item.mtime_ns,
            ctime_ns=ctime_ns,
            rdev_major=item.rdev[0],
            rdev_minor=item.rdev[1],
            flags=flags,
        )
        builder.add(item.path, entry, link=link, xattrs=encode_xattrs(item.xattrs))
        sources.append(SOURCE_STRUCT.pack(*source))
    table, order = builder.build()
    return Given(table, b"".join(sources[at] for at in order), [items[at] for at in order], [root_fd, packed_fd])


def check_against_oracle(
    given: Given,
    out: Path,
    align: int = 4096,
    align_from: int = 65536,
    direct_from: int = 1 << 62,
    clone_from: int = tarwrite.CLONE_NEVER,
    lanes: int = tarwrite.LANES,
) -> bytes:
    """Write with the kernel; hold tar, digest and every record against the oracle. Gives the tar."""
    expected, offsets = write_slowly(given.items, align, align_from)
    tar, size_bytes, digest = given.write(
        out,
        align_bytes=align,
        align_from_bytes=align_from,
        direct_from_bytes=direct_from,
        clone_from_bytes=clone_from,
        lanes=lanes,
    )
    if tar != expected:
        differ = (at for at, (x, y) in enumerate(zip(tar, expected, strict=False)) if x != y)
        at = next(differ, min(len(tar), len(expected)))
        raise AssertionError(f"first difference at byte {at}: {tar[at : at + 60]!r} != {expected[at : at + 60]!r}")
    assert size_bytes == len(tar)
    assert digest == hashlib.sha256(expected).digest()
    hashes = {item.path: blake3(item.content).digest() for item in given.items if item.has_data}
    for entry, item in zip(given.table, given.items, strict=True):
        assert (entry.header_offset, entry.data_offset) == offsets[item.path], item.path
        hashed = hashes.get(item.link if item.flags & FLAG_HARDLINK else item.path)
        assert bool(entry.flags & 16) == (hashed is not None), item.path
        assert not entry.flags & FLAG_SPARSE
        assert entry.ctime_ns == 0
        if hashed is not None:
            assert entry.blake3 == hashed, item.path
        if item.has_data and align and len(item.content) >= max(align_from, 1):
            assert entry.data_offset % align == 0
    return tar
