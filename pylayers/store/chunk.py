"""Cut a stored layer into content-defined chunks and keep them in its layer.idx.

Chunks are cut within files, so that a file has the same chunks in whichever layer it lies. It costs one read of the
layer and is done when something needs chunks (a transfer, a look at what images share), never while building.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
from collections.abc import Iterator
from typing import NamedTuple

from blake3 import blake3

from pylayers._native import chunking
from pylayers.store.entry import ENTRY_FIELDS, ENTRY_SIZE_BYTES, FLAG_HARDLINK, FLAG_HASHED, FLAG_SPARSE
from pylayers.store.index import CHUNK_SIZE_BYTES, CHUNK_STRUCT
from pylayers.store.layer import Layer
from pylayers.store.row import Entry
from pylayers.store.store import Store

MIN_BYTES = 64 << 10
AVERAGE_BYTES = 256 << 10
MAX_BYTES = 1 << 20
SEGMENT_BYTES = 32 << 20  # the least that is cut beside the rest of a large file
SEGMENTS_PER_THREAD = 8
FIRST_AT = struct.calcsize("<" + "".join(code for _, code in ENTRY_FIELDS[:21]))  # chunk_first; chunk_count follows


class Chunk(NamedTuple):
    """One chunk of a layer's tar."""

    offset: int
    size_bytes: int
    blake3: bytes


def chunk_layer(store: Store, diff_id: str) -> Layer:
    """Return a layer whose index lists its chunks, cutting it where that wasn't done yet; one read of the layer."""
    layer = store.layers.open(diff_id)
    if len(layer.chunks) or not len(layer.table) or layer.size_bytes == 0:
        return layer
    records = bytearray(layer.table.records)
    chunks = bytearray()
    tar = layer.open_tar()
    try:
        with mmap.mmap(tar, layer.size_bytes, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
            for row, entry in enumerate(layer.table):
                if is_chunked(entry):
                    first = len(chunks) // CHUNK_SIZE_BYTES
                    chunks += cut(entry, view)
                    count = len(chunks) // CHUNK_SIZE_BYTES - first
                    struct.pack_into("<II", records, row * ENTRY_SIZE_BYTES + FIRST_AT, first, count)
    finally:
        os.close(tar)
    return store.layers.replace_index(diff_id, type(layer.table)(records, layer.table.heap), chunks)


def chunk_content(content: memoryview, threads: int | None = None) -> bytearray:
    """Return the chunk records of a buffer: offset u64, size u32, reserved u32, BLAKE3.

    Large buffers are cut in segments on every processor. A segment's cuts are those of the whole from the first on that
    the whole has too, since where a chunk ends depends on nothing before its start; until then chunks are cut anew.
    The records don't depend on the number of threads.
    """
    threads = threads or len(os.sched_getaffinity(0))
    if threads == 1 or len(content) < 2 * SEGMENT_BYTES:
        return chunking.manifest(content, MIN_BYTES, AVERAGE_BYTES, MAX_BYTES, blake3)
    from concurrent.futures import ThreadPoolExecutor

    # What is cut anew is done twice: in large buffers few segments, yet enough that no thread waits long for the last.
    segment_bytes = max(SEGMENT_BYTES, len(content) // (threads * SEGMENTS_PER_THREAD))

    def cut_segment(start: int) -> bytearray:
        with content[start : start + segment_bytes] as segment:
            return chunking.manifest(segment, MIN_BYTES, AVERAGE_BYTES, MAX_BYTES, blake3, start)

    found = bytearray()
    begin = 0  # of the next chunk
    with ThreadPoolExecutor(threads) as pool:
        starts = range(0, len(content), segment_bytes)
        for start, part in zip(starts, pool.map(cut_segment, starts), strict=True):
            begin = _join_segment(content, found, begin, min(start + segment_bytes, len(content)), part)
    return found


def _join_segment(content: memoryview, found: bytearray, begin: int, end: int, part: bytearray) -> int:
    """Append the chunks from begin on that end in a segment, which ends at end; return where the next one begins."""
    at = 0  # of the part's first chunk that begins at or after begin
    while begin < end:
        while at < len(part) and struct.unpack_from("<Q", part, at)[0] < begin:
            at += CHUNK_SIZE_BYTES
        if at < len(part) and struct.unpack_from("<Q", part, at)[0] == begin:
            # The segment's end cuts its last chunk short, unless it is the end of all.
            stop = len(part) if end == len(content) else max(at, len(part) - CHUNK_SIZE_BYTES)
            if at < stop:
                found += part[at:stop]
                offset, size_bytes = struct.unpack_from("<QI", found, len(found) - CHUNK_SIZE_BYTES)
                return int(offset + size_bytes)
            return begin
        with content[begin : begin + MAX_BYTES] as ahead:
            [size_bytes] = struct.unpack_from("=Q", chunking.boundaries(ahead, MIN_BYTES, AVERAGE_BYTES, MAX_BYTES))
            found += CHUNK_STRUCT.pack(begin, size_bytes, 0, blake3(ahead[:size_bytes]).digest())
        begin += size_bytes
    return begin


def is_chunked(entry: Entry) -> bool:
    """Tell whether a row has data of its own. A sparse file's lies packed: it moves as a whole."""
    return stat.S_ISREG(entry.mode) and entry.size_bytes > 0 and not entry.flags & (FLAG_HARDLINK | FLAG_SPARSE)


def cut(entry: Entry, tar: memoryview) -> bytes | bytearray:
    """Return one file's chunk records, their offsets being those in the tar."""
    start = entry.data_offset
    if entry.size_bytes <= MIN_BYTES and entry.flags & FLAG_HASHED:
        return CHUNK_STRUCT.pack(start, entry.size_bytes, 0, entry.blake3)
    with tar[start : start + entry.size_bytes] as content:
        found = chunk_content(content)
    for at in range(0, len(found), CHUNK_SIZE_BYTES):
        struct.pack_into("<Q", found, at, struct.unpack_from("<Q", found, at)[0] + start)
    return found


def read_chunks(layer: Layer) -> Iterator[Chunk]:
    """Yield a layer's chunks in file order."""
    for offset, size_bytes, _, digest in CHUNK_STRUCT.iter_unpack(layer.chunks):
        yield Chunk(offset, size_bytes, digest)
