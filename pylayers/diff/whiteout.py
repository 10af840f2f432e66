"""Turn a walk of an overlay's upper directory into a layer table: kernel marks become WHITEOUT and OPAQUE rows."""

from __future__ import annotations

import stat

from pylayers.diff.overlaymark import OPAQUE_NAMES, OVERLAY_PREFIXES, is_whiteout
from pylayers.store.entry import (
    ENTRY_SIZE_BYTES,
    ENTRY_STRUCT,
    FLAG_OPAQUE,
    FLAG_WHITEOUT,
    EntryTable,
    decode_xattrs,
    encode_xattrs,
)
from pylayers.store.row import Entry


def convert_upper(records: bytearray, heap: bytearray) -> None:
    """Convert a walked upper (xattrs read) in place: whiteouts, opaque marks; overlayfs's own xattrs go.

    heap grows by the xattrs that had to be written anew. Nothing may hold a view of either buffer.
    """
    from pylayers._native import changeset

    for row in memoryview(changeset.find_marked(records)).cast("I"):
        entry = Entry._make(ENTRY_STRUCT.unpack_from(records, row * ENTRY_SIZE_BYTES))
        if is_whiteout(entry.mode, entry.rdev_major, entry.rdev_minor):
            # The kernel makes all whiteouts links of one inode, so the walk saw hard links here.
            entry = entry._replace(mode=stat.S_IFCHR, flags=FLAG_WHITEOUT, link_length=0, xattr_length=0, nlink=1)
        else:
            entry = _convert_xattrs(entry, heap)
        ENTRY_STRUCT.pack_into(records, row * ENTRY_SIZE_BYTES, *entry)


def visible_xattrs(table: EntryTable, entry: Entry) -> dict[bytes, bytes]:
    """Return an entry's extended attributes without overlayfs's own."""
    return {name: value for name, value in table.xattrs(entry).items() if not name.startswith(OVERLAY_PREFIXES)}


def _convert_xattrs(entry: Entry, heap: bytearray) -> Entry:
    xattrs = decode_xattrs(heap[entry.xattr_offset : entry.xattr_offset + entry.xattr_length])
    kept = {name: value for name, value in xattrs.items() if not name.startswith(OVERLAY_PREFIXES)}
    if len(kept) == len(xattrs):
        return entry
    flags = entry.flags
    if stat.S_ISDIR(entry.mode) and any(xattrs.get(name) == b"y" for name in OPAQUE_NAMES):
        flags |= FLAG_OPAQUE
    encoded = encode_xattrs(kept)
    offset = len(heap)
    heap += encoded
    return entry._replace(flags=flags, xattr_offset=offset, xattr_length=len(encoded))
