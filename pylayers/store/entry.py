"""The entry record and entry tables: Python's view of pyx/entry.pxd.

NumPy is imported only by `EntryTable.array`; everything on the unchanged-rebuild path works on plain buffers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from pylayers.record import record
from pylayers.store.row import Entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    import numpy as np
    import numpy.typing as npt

Buffer = bytes | bytearray | memoryview

FLAG_HARDLINK = 1
FLAG_WHITEOUT = 2
FLAG_OPAQUE = 4
FLAG_IMPLICIT = 8
FLAG_HASHED = 16
FLAG_SPARSE = 32

ENTRY_FIELDS: tuple[tuple[str, str], ...] = (
    ("path_offset", "Q"),
    ("link_offset", "Q"),
    ("xattr_offset", "Q"),
    ("header_offset", "Q"),
    ("data_offset", "Q"),
    ("size_bytes", "Q"),
    ("mtime_ns", "q"),
    ("ctime_ns", "q"),
    ("device", "Q"),
    ("inode", "Q"),
    ("path_length", "I"),
    ("link_length", "I"),
    ("xattr_length", "I"),
    ("mode", "I"),
    ("uid", "I"),
    ("gid", "I"),
    ("rdev_major", "I"),
    ("rdev_minor", "I"),
    ("nlink", "I"),
    ("flags", "I"),
    ("layer", "I"),
    ("chunk_first", "I"),
    ("chunk_count", "I"),
    ("reserved", "I"),
    ("blake3", "32s"),
)
ENTRY_STRUCT = struct.Struct("<" + "".join(code for _, code in ENTRY_FIELDS))
ENTRY_SIZE_BYTES = ENTRY_STRUCT.size  # 168

# One source per entry for tarwrite: fd, kind, offset, length.
SOURCE_STRUCT = struct.Struct("<iIQQ")
SOURCE_NONE = 0  # no data
SOURCE_PATH = 1  # open heap[offset:offset+length] beneath fd
SOURCE_RANGE = 2  # size_bytes at offset of fd
SOURCE_HEAP = 3  # size_bytes at heap[offset:]


def encode_xattrs(xattrs: dict[bytes, bytes]) -> bytes:
    """Encode extended attributes as the heap holds them: sorted by name."""
    return b"".join(
        struct.pack("<HI", len(name), len(value)) + name + value for name, value in sorted(xattrs.items())
    )


def decode_xattrs(encoded: Buffer) -> dict[bytes, bytes]:
    """Decode one entry's extended attributes."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(encoded):
        name_length, value_length = struct.unpack_from("<HI", encoded, at)
        at += 6
        name = bytes(encoded[at : at + name_length])
        found[name] = bytes(encoded[at + name_length : at + name_length + value_length])
        at += name_length + value_length
    return found


def path_key(path: bytes) -> bytes:
    """Give a sort key for component order ('/' sorts before every other byte)."""
    return path.replace(b"/", b"\0")


@record
class EntryTable:
    """Records sorted in component order, and the heap that their offsets point into.

    Both are borrowed buffers (bytearray from a kernel, or a memoryview of a mapped layer.idx);
    the table keeps them alive and never resizes them.
    """

    records: Buffer
    heap: Buffer

    def __len__(self) -> int:
        return len(self.records) // ENTRY_SIZE_BYTES

    def entry(self, index: int) -> Entry:
        """Unpack one record."""
        return Entry._make(ENTRY_STRUCT.unpack_from(self.records, index * ENTRY_SIZE_BYTES))

    def __iter__(self) -> Iterator[Entry]:
        return map(Entry._make, ENTRY_STRUCT.iter_unpack(self.records))

    def path(self, entry: Entry) -> bytes:
        """Return the entry's path, relative to the root."""
        return bytes(self.heap[entry.path_offset : entry.path_offset + entry.path_length])

    def link(self, entry: Entry) -> bytes:
        """Return the symlink target or hard-link target path."""
        return bytes(self.heap[entry.link_offset : entry.link_offset + entry.link_length])

    def xattrs(self, entry: Entry) -> dict[bytes, bytes]:
        """Return the entry's extended attributes."""
        return decode_xattrs(self.heap[entry.xattr_offset : entry.xattr_offset + entry.xattr_length])

    @property
    def array(self) -> npt.NDArray[Any]:
        """View the records as a structured NumPy array (no copy)."""
        import numpy as np

        return np.frombuffer(self.records, dtype=entry_dtype())


def entry_dtype() -> np.dtype[Any]:
    """Give the NumPy dtype of a record (imports NumPy)."""
    import numpy as np

    codes = {"Q": "<u8", "q": "<i8", "I": "<u4", "32s": "V32"}
    return np.dtype([(name, codes[code]) for name, code in ENTRY_FIELDS])


class TableBuilder:
    """Collect entries in any order and give a sorted table; for small tables made in Python."""

    def __init__(self) -> None:
        self._heap = bytearray()
        self._entries: list[tuple[bytes, Entry]] = []

    def add(self, path: bytes, entry: Entry, *, link: bytes = b"", xattrs: Buffer = b"") -> None:
        """Add one entry; path, link and encoded xattrs are copied into the heap and the offsets set."""
        self._entries.append(
            (
                path,
                entry._replace(
                    path_offset=self.hold(path),
                    path_length=len(path),
                    link_offset=self.hold(link),
                    link_length=len(link),
                    xattr_offset=self.hold(xattrs),
                    xattr_length=len(xattrs),
                ),
            )
        )

    def hold(self, content: Buffer) -> int:
        """Copy bytes into the heap and return their offset."""
        offset = len(self._heap)
        self._heap += content
        return offset

    def build(self) -> tuple[EntryTable, list[int]]:
        """Return the sorted table, and for each of its rows the number of the `add` call that made it."""
        order = sorted(range(len(self._entries)), key=lambda index: path_key(self._entries[index][0]))
        records = bytearray().join(ENTRY_STRUCT.pack(*self._entries[index][1]) for index in order)
        return EntryTable(records, self._heap), order
