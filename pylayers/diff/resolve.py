"""Resolve paths and read small files in a stack of layers, without mounting anything."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Sequence

from pylayers.diff.merge import find_row, merge_layers
from pylayers.errors import IntegrityError, InvalidInput, NotFound, translate_os_error
from pylayers.record import record
from pylayers.store.entry import FLAG_HARDLINK, FLAG_SPARSE, EntryTable
from pylayers.store.layer import Layer
from pylayers.store.row import Entry

SYMLINK_LIMIT = 40  # the kernel's MAXSYMLINKS


@record
class Resolved:
    """Where a path leads: the canonical path (no symlinks, no leading slash) and its row, None where nothing is."""

    path: bytes
    row: int | None
    entry: Entry | None


def find_path(tree: EntryTable | Sequence[Layer], path: bytes, *, follow_last: bool = True) -> Resolved:
    """Follow a path through a merged table (or layers, merged first), symlinks resolved inside the root.

    `..` stops at the root. From the first missing component on, the rest is taken as it is written. follow_last=False
    returns a symlink itself. Raises InvalidInput after 40 symlinks, or when a path leads through a file.
    """
    table = tree if isinstance(tree, EntryTable) else merge_layers(tree)
    pending = _components(path)
    done: list[bytes] = []
    links = 0
    while pending:
        name = pending.pop()
        if name == b"..":
            del done[-1:]
            continue
        done.append(name)
        row = find_row(table, b"/".join(done))
        if row is None:
            continue
        entry = table.entry(row)
        if stat.S_ISLNK(entry.mode) and (pending or follow_last):
            links += 1
            if links > SYMLINK_LIMIT:
                raise InvalidInput(f"too many symbolic links in {_show(path)}")
            target = table.link(entry)
            done = [] if target.startswith(b"/") else done[:-1]
            pending += _components(target)
        elif pending and not stat.S_ISDIR(entry.mode):
            raise InvalidInput(f"{_show(b'/'.join(done))} is not a directory, and {_show(path)} leads through it")
    canonical = b"/".join(done)
    row = find_row(table, canonical)
    return Resolved(canonical, row, None if row is None else table.entry(row))


def read_file(layers: Sequence[Layer], path: bytes, limit_bytes: int, *, table: EntryTable | None = None) -> bytes:
    """Read a small file, such as etc/passwd, from the layers' tars; `table` is their merged table where known.

    Follows symlinks and hard links inside the root. Raises NotFound; InvalidInput for something else than a regular
    file or one larger than limit_bytes; IntegrityError when the tar ends before the file does.
    """
    merged = merge_layers(layers) if table is None else table
    entry = find_path(merged, path).entry
    if entry is not None and entry.flags & FLAG_HARDLINK:
        row = find_row(merged, merged.link(entry))
        entry = entry if row is None else merged.entry(row)
    if entry is None:
        raise NotFound(f"{_show(path)} is not in the image")
    if not stat.S_ISREG(entry.mode):
        raise InvalidInput(f"{_show(path)} is not a regular file")
    if entry.size_bytes > limit_bytes:
        raise InvalidInput(f"{_show(path)} has {entry.size_bytes} bytes, and the limit is {limit_bytes}")
    try:
        tar = layers[entry.layer].open_tar()
        try:
            if not entry.flags & FLAG_SPARSE:
                return _read_exactly(tar, entry.data_offset, entry.size_bytes, path)
            return _read_sparse(tar, entry, merged.link(entry), path)
        finally:
            os.close(tar)
    except OSError as error:
        raise translate_os_error(error, f"read {_show(path)} from layer {layers[entry.layer].diff_id}") from error


def _read_sparse(tar: int, entry: Entry, ranges: bytes, path: bytes) -> bytes:
    content = bytearray(entry.size_bytes)
    at = entry.data_offset
    for offset, length in struct.iter_unpack("<QQ", ranges):
        if offset + length > entry.size_bytes:
            raise IntegrityError(f"the sparse map of {_show(path)} reaches beyond the file")
        content[offset : offset + length] = _read_exactly(tar, at, length, path)
        at += length
    return bytes(content)


def _read_exactly(tar: int, offset: int, size_bytes: int, path: bytes) -> bytes:
    parts: list[bytes] = []
    while size_bytes:
        part = os.pread(tar, size_bytes, offset)
        if not part:
            raise IntegrityError(f"the layer ends inside {_show(path)}", offset=offset)
        parts.append(part)
        offset += len(part)
        size_bytes -= len(part)
    return b"".join(parts)


def _components(path: bytes) -> list[bytes]:
    """Split a path, last component first."""
    return [name for name in reversed(path.split(b"/")) if name not in (b"", b".")]


def _show(path: bytes) -> str:
    return repr("/" + os.fsdecode(path).lstrip("/"))
