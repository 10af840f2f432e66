"""What a compression makes of a file's units: packed in any thread, joined in order, the same bytes whoever packs them.

gzip: blocks of a fixed size are compressed apart (none looks back into the one before) and joined into one member, as
RFC 1951 lets blocks be joined that end at a byte. zstd: each unit is a frame of its own, which RFC 8878 lets follow one
another; at a level that somebody chose, the library's own workers make one frame.
"""

from __future__ import annotations

import struct
import threading
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from zstandard import ZstdCompressor

UNIT_BYTES = 8 << 20  # a zstd frame; and pairs of the pieces between two states of a layer (store/state.py)
BLOCK_BYTES = 1 << 20
# isal's: 5 times as fast as pigz at 1.12 times its size, digests included; level 2 is at 1.144 of the 1.15 we allow.
GZIP_LEVEL = 3
ZSTD_LEVEL = 3
# For frames of a whole unit: they look back over all of it, not 2 MiB, and the shorter matches' table, half as large,
# leaves more of the processor's cache to the rest: 5 to 9 % less time than level 3's own, 0 to 4 % fewer bytes.
ZSTD_WIDE = {"window_log": 23, "chain_log": 15}
GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"  # no name, no time, unknown system
GZIP_END = b"\x03\x00"  # a last block that holds nothing


class Packer(Protocol):
    """Make one stream of a file's units. `unit_bytes`: the length of each but the last."""

    unit_bytes: int

    def begin(self) -> bytes:
        """Return what comes first."""

    def pack(self, content: memoryview) -> bytes:
        """Pack a unit, in any thread."""

    def join(self, content: memoryview, packed: bytes) -> bytes:
        """Return what stands for the next unit, which has been packed; one thread calls it, in order."""

    def end(self) -> bytes:
        """Return what comes last."""


def choose_packer(compression: str, level: int | None, threads: int, size_bytes: int) -> Packer:
    """Return the packer for a file of about this size. level None is the fastest that is worth its size."""
    if compression == "gzip":
        return GzipPacker(level, threads, size_bytes)
    return FramePacker(size_bytes) if level is None else StreamPacker(level, threads)


class GzipPacker:
    """Make one gzip member. A small file has small units, so that every thread has one; its bytes are the same."""

    def __init__(self, level: int | None, threads: int, size_bytes: int) -> None:
        share = -(-size_bytes // threads // BLOCK_BYTES) * BLOCK_BYTES
        self.unit_bytes = min(max(share, BLOCK_BYTES), UNIT_BYTES)
        self._level = level
        self._checksum = self._size_bytes = 0

    def begin(self) -> bytes:
        """Return the member's header."""
        return GZIP_HEADER

    def pack(self, content: memoryview) -> bytes:
        """Compress the unit's blocks."""
        parts = []
        for at in range(0, len(content), BLOCK_BYTES):
            with content[at : at + BLOCK_BYTES] as block:
                parts.append(deflate_block(block, self._level))
        return b"".join(parts)

    def join(self, content: memoryview, packed: bytes) -> bytes:
        """Take the unit into the checksum."""
        from isal import isal_zlib

        self._checksum = isal_zlib.crc32(content, self._checksum)
        self._size_bytes += len(content)
        return packed

    def end(self) -> bytes:
        """Return the last block and the trailer."""
        return GZIP_END + struct.pack("<II", self._checksum, self._size_bytes & 0xFFFFFFFF)


def deflate_block(block: memoryview, level: int | None) -> bytes:
    """Compress one block to raw deflate data that ends at a byte and is not the last."""
    if level is None:
        from isal import isal_zlib

        fast = isal_zlib.compressobj(GZIP_LEVEL, isal_zlib.DEFLATED, -15)
        return bytes(fast.compress(block) + fast.flush(isal_zlib.Z_SYNC_FLUSH))
    import zlib

    slow = zlib.compressobj(level, zlib.DEFLATED, -15)
    return slow.compress(block) + slow.flush(zlib.Z_SYNC_FLUSH)


class FramePacker:
    """Make one zstd frame of each unit. Compressed whole, from the buffer that was read into, it isn't copied first."""

    unit_bytes = UNIT_BYTES

    def __init__(self, size_bytes: int) -> None:
        self._own = threading.local()
        self._wide = size_bytes > UNIT_BYTES  # what fits one frame is level 3's as it is, which goes by small sizes too
        self._empty = True

    def begin(self) -> bytes:
        """Return nothing."""
        return b""

    def pack(self, content: memoryview) -> bytes:
        """Compress the unit; each thread has a compressor of its own."""
        compressor = getattr(self._own, "compressor", None)
        if compressor is None:
            compressor = self._own.compressor = self._new_compressor()
        packed: bytes = compressor.compress(content)
        return packed

    def _new_compressor(self) -> ZstdCompressor:
        from zstandard import ZstdCompressionParameters, ZstdCompressor

        if not self._wide:
            return ZstdCompressor(level=ZSTD_LEVEL)
        return ZstdCompressor(compression_params=ZstdCompressionParameters.from_level(ZSTD_LEVEL, **ZSTD_WIDE))

    def join(self, content: memoryview, packed: bytes) -> bytes:
        """Return the frame."""
        self._empty = False
        return packed

    def end(self) -> bytes:
        """Return the frame of an empty file, which has no unit."""
        return self.pack(memoryview(b"")) if self._empty else b""


class StreamPacker:
    """Make one zstd frame by the library's own workers, which give the same for every number of them.

    Its jobs look back into those before, which the slower levels gain from.
    """

    unit_bytes = UNIT_BYTES

    def __init__(self, level: int, threads: int) -> None:
        import zstandard

        # Without workers it would be another frame, so that one processor has a worker too.
        self._stream = zstandard.ZstdCompressor(level=level, threads=threads).compressobj()

    def begin(self) -> bytes:
        """Return nothing."""
        return b""

    def pack(self, content: memoryview) -> bytes:
        """Leave it to the stream, which has the threads."""
        return b""

    def join(self, content: memoryview, packed: bytes) -> bytes:
        """Give the unit to the stream and return what has become ready."""
        return self._stream.compress(content)

    def end(self) -> bytes:
        """Wait for the workers and return the rest."""
        return self._stream.flush()
