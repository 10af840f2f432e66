"""Write a part of the tree that stacked layers make, straight from their tars."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Sequence

from pylayers._native import graft, unpack
from pylayers.diff.apply import device_flags
from pylayers.diff.merge import subtree_end
from pylayers.errors import translate_os_error
from pylayers.store.entry import FLAG_HARDLINK, SOURCE_NONE, SOURCE_RANGE, EntryTable, entry_dtype
from pylayers.store.layer import Layer


def extract_tree(layers: Sequence[Layer], table: EntryTable, row: int, into_fd: int) -> int:
    """Write a directory of stacked layers into a directory, which gets its metadata; return the bytes of file data.

    table is the layers' merged one, row the directory's. Nothing is mounted, each byte is read once. Names of one inode
    stay one; a link to a file outside the directory becomes a file. Raises NoSpace, PermissionDenied; what was written
    before an error stays.
    """
    import numpy as np

    # A layer's number stands in for its tar's descriptor.
    numbers = struct.pack(f"={len(layers)}i", *range(len(layers)))
    end = subtree_end(table, row)
    records, heap, packed = graft.graft(table.records, table.heap, row, end, b"", numbers, SOURCE_RANGE)
    rows = np.frombuffer(records, dtype=entry_dtype())
    sources = np.frombuffer(packed, np.dtype([("fd", "<i4"), ("kind", "<u4"), ("offset", "<u8"), ("length", "<u8")]))
    rows["data_offset"] = sources["offset"]
    rows["mtime_ns"] = table.array["mtime_ns"][row:end]  # a graft's are whole seconds, as a canonical tar's
    directory = (rows["mode"] & 0o170000) == stat.S_IFDIR
    with_data = (sources["kind"] != SOURCE_NONE) & (rows["size_bytes"] > 0) & (rows["flags"] & FLAG_HARDLINK == 0)
    used = [int(number) for number in np.unique(sources["fd"][with_data])]
    written = 0
    used = used or [-1]
    for number in used:
        chosen = with_data & (sources["fd"] == number)
        if number == used[-1]:
            chosen |= ~with_data  # links last, when their targets are there
        written += _unpack(layers[number] if number >= 0 else None, rows[chosen | directory].tobytes(), heap, into_fd)
    return written


def _unpack(layer: Layer | None, records: bytes, heap: bytearray, into_fd: int) -> int:
    tar = -1
    try:
        tar = -1 if layer is None else layer.open_tar()
        return unpack.unpack(into_fd, tar, records, heap, unpack.WHITEOUT_APPLY, device_flags())
    except OSError as error:
        raise translate_os_error(error, "write what the image holds") from error
    finally:
        if tar >= 0:
            os.close(tar)
