"""What of a walked directory belongs to a copy (ignore rules, --exclude, --parents), and what a tar can hold of it."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable, Sequence
from itertools import compress
from typing import TYPE_CHECKING

from pylayers._native import walk
from pylayers.dockerfile.ignore import IgnoreRules
from pylayers.record import field, record
from pylayers.store.entry import (
    ENTRY_SIZE_BYTES,
    ENTRY_STRUCT,
    FLAG_HARDLINK,
    FLAG_HASHED,
    Buffer,
    EntryTable,
    decode_xattrs,
    encode_xattrs,
)

if TYPE_CHECKING:
    from pylayers.build.source.pathfilter import PathFilter

WORDS_PER_ENTRY = ENTRY_SIZE_BYTES // 4
WORD_LINK_LENGTH = 21
WORD_XATTR_LENGTH = 22
WORD_MODE = 23
WORD_FLAGS = 29
XATTR_AT = 16  # in bytes
SIZE_AT = 40
BLAKE3_AT = 136
TYPE_AT = 93  # the mode's byte of the file type
FLAGS_AT = 116  # the flags' lowest byte: they have no other
# What these bytes stand for. Columns are read and translated as a whole: a loop over the rows costs milliseconds.
IS_FILE = bytes(kind & 0xF0 == stat.S_IFREG >> 8 for kind in range(256))
IS_SOCKET = bytes(kind & 0xF0 == stat.S_IFSOCK >> 8 for kind in range(256))
IS_UNHASHED = bytes(not flags & FLAG_HASHED for flags in range(256))
# Labels and overlay's own marks belong to the host, not to the content.
HOST_XATTRS = (
    b"security.selinux", b"security.ima", b"security.evm", b"trusted.overlay.", b"user.overlay.", b"system.nfs4",
)  # fmt: skip


@record(frozen=False)
class Selector:
    """Decide for walk() which names of a directory belong to the copy."""

    rules: IgnoreRules | None
    base: str
    only: frozenset[bytes] | None  # names in the walked directory
    chosen: PathFilter | None = None  # --exclude and --parents, relative to the walked directory
    hollow: set[bytes] = field(default_factory=set)  # directories that only count if something inside them does
    unchosen: set[bytes] = field(default_factory=set)  # those of them that `chosen` would leave out

    def __call__(self, directory: bytes, names: list[bytes], modes: bytes) -> bytearray:
        """Return one byte per name: 0 leaves it out."""
        if self.only is not None:
            return bytearray(name in self.only and not directory for name in names)
        keep = bytearray(b"\1" * len(names))
        inside = os.fsdecode(directory)
        if self.rules is not None:
            self.ignore(self.rules, inside, names, modes, keep)
        if self.chosen is not None:
            self.choose(self.chosen, inside, names, modes, keep)
        return keep

    def ignore(self, rules: IgnoreRules, inside: str, names: list[bytes], modes: bytes, keep: bytearray) -> None:
        """Clear what the ignore rules exclude."""
        base = "/".join(part for part in (self.base, inside) if part)
        for index, mode in enumerate(memoryview(modes).cast("I")):
            name = os.fsdecode(names[index])
            path = f"{base}/{name}" if base else name
            is_directory = stat.S_ISDIR(mode)
            if rules.excluded(path, is_directory):
                if is_directory and rules.may_contain(path):
                    self.enter(inside, name)
                else:
                    keep[index] = 0

    def choose(self, chosen: PathFilter, inside: str, names: list[bytes], modes: bytes, keep: bytearray) -> None:
        """Clear what --exclude and --parents leave out."""
        for index, mode in enumerate(memoryview(modes).cast("I")):
            name = os.fsdecode(names[index])
            path = f"{inside}/{name}" if inside else name
            is_directory = stat.S_ISDIR(mode)
            if keep[index] and not chosen.takes(path, is_directory):
                if is_directory and chosen.may_contain(path):
                    self.unchosen.add(self.enter(inside, name))
                else:
                    keep[index] = 0

    def enter(self, inside: str, name: str) -> bytes:
        """Note a directory that only counts if something inside it does."""
        path = os.fsencode(f"{inside}/{name}" if inside else name)
        self.hollow.add(path)
        return path


def walk_selected(
    root_fd: int, selector: Selector, *, xattrs: bool
) -> tuple[bytearray, bytearray, frozenset[int]]:
    """Walk what belongs to a copy; the last value is the rows of sockets, which have become empty files."""
    needed = selector.rules is not None or selector.only is not None or selector.chosen is not None
    records, heap = walk.walk(root_fd, selector if needed else None, xattrs, os.cpu_count() or 1)
    if selector.hollow:
        records = drop_hollow(records, heap, selector.hollow)
    if selector.only is not None and len(selector.only) > 1:
        part_links(records)
    sockets = frozenset(compress(range(len(records) // ENTRY_SIZE_BYTES), read_column(records, TYPE_AT, IS_SOCKET)))
    if sockets:
        empty_sockets(records, sockets)
    return records, heap, sockets


def part_links(records: bytearray) -> None:
    """Make later names of an inode files of their own: sources that are copied one by one share nothing."""
    words = memoryview(records).cast("I")
    for at in range(0, len(words), WORDS_PER_ENTRY):
        if words[at + WORD_FLAGS] & FLAG_HARDLINK:
            words[at + WORD_FLAGS] &= ~FLAG_HARDLINK
            words[at + WORD_LINK_LENGTH] = 0


def drop_hollow(records: bytearray, heap: bytearray, hollow: set[bytes]) -> bytearray:
    """Leave out the given directories where nothing in them was kept."""
    table = EntryTable(records, heap)
    wanted: set[bytes] = set()
    kept: list[int] = []
    for row in range(len(table) - 1, -1, -1):
        path = table.path(table.entry(row))
        if path in hollow and path not in wanted:
            continue
        kept.append(row)
        while path:
            path = path.rpartition(b"/")[0]
            if path in wanted:
                break
            wanted.add(path)
    return take_rows(records, kept[::-1])


def take_rows(records: Buffer, rows: Sequence[int]) -> bytearray:
    """Copy the given rows."""
    view = memoryview(records)
    return bytearray().join(view[row * ENTRY_SIZE_BYTES : (row + 1) * ENTRY_SIZE_BYTES] for row in rows)


def read_column(records: Buffer, at: int, table: bytes) -> bytes:
    """Return one byte of every record, by a table of what it stands for."""
    return bytes(memoryview(records)[at::ENTRY_SIZE_BYTES]).translate(table)


def unhashed_rows(records: Buffer) -> bytes:
    """Return the uint32 rows of regular files without a content hash."""
    plain = int.from_bytes(read_column(records, TYPE_AT, IS_FILE), "little")
    unhashed = int.from_bytes(read_column(records, FLAGS_AT, IS_UNHASHED), "little")
    count = len(records) // ENTRY_SIZE_BYTES
    rows = list(compress(range(count), (plain & unhashed).to_bytes(count, "little")))
    return struct.pack(f"={len(rows)}I", *rows)


def renew_rows(
    root_fd: int, known_records: Buffer, known_heap: Buffer, rows: Buffer
) -> tuple[bytearray, bytearray] | None:
    """Return a table with some of its rows, plain files, as they are now: their stat and xattrs, and no hash.

    None where one of them is no longer a plain file of one name: the tree must be walked.
    """
    records, heap = bytearray(known_records), bytearray(known_heap)
    table = EntryTable(records, heap)
    for row in memoryview(rows).cast("I"):
        entry = table.entry(row)
        try:
            found = os.stat(table.path(entry), dir_fd=root_fd, follow_symlinks=False)
        except OSError:
            return None
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            return None
        made = entry._replace(
            mode=found.st_mode,
            uid=found.st_uid,
            gid=found.st_gid,
            size_bytes=found.st_size,
            mtime_ns=found.st_mtime_ns,
            ctime_ns=found.st_ctime_ns,
            inode=found.st_ino,
            flags=entry.flags & ~FLAG_HASHED,
            xattr_length=0,
        )
        ENTRY_STRUCT.pack_into(records, row * ENTRY_SIZE_BYTES, *made)
    try:
        walk.read_xattrs(root_fd, records, heap, rows)
    except OSError:
        return None
    drop_host_xattrs(records, heap)
    return records, heap


def empty_sockets(records: bytearray, rows: Iterable[int]) -> None:
    """Make sockets, which a tar cannot hold, the empty files that BuildKit makes of them."""
    from blake3 import blake3

    words = memoryview(records).cast("I")
    for row in rows:
        words[row * WORDS_PER_ENTRY + WORD_MODE] = stat.S_IFREG | words[row * WORDS_PER_ENTRY + WORD_MODE] & 0o7777
        words[row * WORDS_PER_ENTRY + WORD_FLAGS] |= FLAG_HASHED
        at = row * ENTRY_SIZE_BYTES
        struct.pack_into("<Q", records, at + SIZE_AT, 0)
        records[at + BLAKE3_AT : at + ENTRY_SIZE_BYTES] = blake3().digest()


def drop_host_xattrs(records: bytearray, heap: bytearray) -> None:
    """Leave out extended attributes that belong to the host."""
    words = memoryview(records).cast("I")
    lengths = words[WORD_XATTR_LENGTH::WORDS_PER_ENTRY]
    if not any(lengths):
        return
    for row, length in enumerate(lengths):
        if not length:
            continue
        at = row * ENTRY_SIZE_BYTES + XATTR_AT
        offset = struct.unpack_from("<Q", records, at)[0]
        found = decode_xattrs(heap[offset : offset + length])
        kept = encode_xattrs({name: value for name, value in found.items() if not name.startswith(HOST_XATTRS)})
        if len(kept) != length:
            struct.pack_into("<Q", records, at, len(heap))
            words[row * WORDS_PER_ENTRY + WORD_XATTR_LENGTH] = len(kept)
            heap += kept
