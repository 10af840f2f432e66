"""Compress layers on every processor, into bytes that don't depend on how many there are.

gzip: blocks of a fixed size are compressed apart (none looks back into the one before) and joined into one member, as
RFC 1951 lets blocks be joined that end at a byte. zstd: the library's own workers, which give the same frame for every
number of them.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from pylayers.errors import IntegrityError, translate_os_error
from pylayers.oci.descriptor import Descriptor
from pylayers.oci.digest import digest_from_hex
from pylayers.oci.manifest import MEDIA_LAYER_GZIP, MEDIA_LAYER_ZSTD
from pylayers.record import record
from pylayers.store import Store
from pylayers.store.file import write_all
from pylayers.transfer.content import Blob

BLOCK_BYTES = 1 << 20
HASHED_BEHIND = 16
# isal's: 5 times as fast as pigz at 1.12 times its size, digests included; level 2 is at 1.144 of the 1.15 we allow.
GZIP_LEVEL = 3
ZSTD_LEVEL = 3
GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"  # no name, no time, unknown system
GZIP_END = b"\x03\x00"  # a last block that holds nothing
MEDIA_TYPES = {"gzip": MEDIA_LAYER_GZIP, "zstd": MEDIA_LAYER_ZSTD}


@record
class Compressed:
    """Say what a stream was and what it has become: digests and sizes of both."""

    plain_digest: str
    plain_bytes: int
    digest: str
    size_bytes: int


def compress_layer(store: Store, diff_id: str, compression: str, level: int | None) -> tuple[Descriptor, Blob]:
    """Compress a layer into a scratch file. Equal input gives equal bytes, however many processors there are.

    Raises IntegrityError when the layer's tar isn't what its digest says, NoSpace.
    """
    layer = store.layers.open(diff_id)
    target = store.scratch("packed")
    try:
        with layer.make_whole().open("rb", buffering=0) as stream, target.open("wb", buffering=0) as out:
            made = compress_file(stream.fileno(), lambda piece: write_all(out.fileno(), piece), compression, level)
    except OSError as error:
        raise translate_os_error(error, "compress a layer") from error
    if made.plain_digest != diff_id:
        raise IntegrityError(
            f"layer {diff_id}: its tar's digest is {made.plain_digest}",
            hint="run: pylayers system check --repair",
        )
    return Descriptor(MEDIA_TYPES[compression], made.digest, made.size_bytes), Blob(
        made.digest, made.size_bytes, target
    )


def compress_file(
    descriptor: int,
    write: Callable[[bytes], object],
    compression: str,
    level: int | None = None,
    threads: int | None = None,
) -> Compressed:
    """Compress a file from its start and pass the result to write, in order and in one thread.

    level None is the fastest that is worth its size; another is zlib's (gzip) or zstd's. threads: default one for each
    processor; the bytes are the same. Holds some blocks for each thread. Raises OSError, and what write raises.
    """
    threads = threads or len(os.sched_getaffinity(0))
    plain, packed = hashlib.sha256(), hashlib.sha256()
    sizes = [0, 0]
    with ThreadPoolExecutor(1, "hash") as hashing, ThreadPoolExecutor(threads, "compress") as pool:

        def read() -> Iterator[bytes]:
            """Yield the file's blocks; one thread hashes them in order, some blocks behind at most."""
            hashed: deque[Future[None]] = deque()
            while block := read_block(descriptor, sizes[0]):
                sizes[0] += len(block)
                hashed.append(hashing.submit(plain.update, block))
                if len(hashed) > HASHED_BEHIND:
                    hashed.popleft().result()
                yield block
            for one in hashed:
                one.result()

        pieces = deflate(read(), pool, level, threads) if compression == "gzip" else squeeze(read(), level, threads)
        for piece in pieces:
            packed.update(piece)
            sizes[1] += len(piece)
            write(piece)
    return Compressed(digest_from_hex(plain.hexdigest()), sizes[0], digest_from_hex(packed.hexdigest()), sizes[1])


def read_block(descriptor: int, offset: int) -> bytes:
    """Read the block at an offset, cut short by the file's end alone."""
    block = os.pread(descriptor, BLOCK_BYTES, offset)
    while 0 < len(block) < BLOCK_BYTES:
        more = os.pread(descriptor, BLOCK_BYTES - len(block), offset + len(block))
        if not more:
            break
        block += more
    return block


def deflate(blocks: Iterator[bytes], pool: ThreadPoolExecutor, level: int | None, threads: int) -> Iterator[bytes]:
    """Yield the parts of one gzip member that holds these blocks."""
    from isal import isal_zlib

    waiting: deque[Future[bytes]] = deque()
    checksum = size_bytes = 0
    yield GZIP_HEADER
    for block in blocks:
        checksum = isal_zlib.crc32(block, checksum)
        size_bytes += len(block)
        waiting.append(pool.submit(deflate_block, block, level))
        if len(waiting) > 2 * threads:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
    yield GZIP_END + struct.pack("<II", checksum, size_bytes & 0xFFFFFFFF)


def deflate_block(block: bytes, level: int | None) -> bytes:
    """Compress one block to raw deflate data that ends at a byte and is not the last."""
    if level is None:
        from isal import isal_zlib

        fast = isal_zlib.compressobj(GZIP_LEVEL, isal_zlib.DEFLATED, -15)
        return bytes(fast.compress(block) + fast.flush(isal_zlib.Z_SYNC_FLUSH))
    import zlib

    slow = zlib.compressobj(level, zlib.DEFLATED, -15)
    return slow.compress(block) + slow.flush(zlib.Z_SYNC_FLUSH)


def squeeze(blocks: Iterator[bytes], level: int | None, threads: int) -> Iterator[bytes]:
    """Yield the parts of one zstd frame that holds these blocks."""
    import zstandard

    # Without workers it would be another frame, so that one processor has a worker too.
    compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL if level is None else level, threads=threads).compressobj()
    for block in blocks:
        if piece := compressor.compress(block):
            yield piece
    yield compressor.flush()
