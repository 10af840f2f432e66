"""Compress layers on every processor, into bytes that don't depend on how many there are.

Each thread of a pool reads a unit of the tar, verifies it and packs it (packer.py); one thread takes the units in
order, hashes what they became, and writes it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from pylayers.errors import IntegrityError, translate_os_error
from pylayers.oci.descriptor import Descriptor
from pylayers.oci.digest import digest_from_hex
from pylayers.oci.manifest import MEDIA_LAYER_GZIP, MEDIA_LAYER_ZSTD
from pylayers.record import record
from pylayers.store import Store
from pylayers.store.file import write_all
from pylayers.store.proof import DisprovedError, TarProof, new_hasher, update_both
from pylayers.transfer.content import Blob
from pylayers.transfer.packer import UNIT_BYTES, choose_packer

MOST_THREADS = 16  # the packed side's sha256 is one stream, which more could not fill
UNITS_WAITING = 2  # for the one thread that takes them in order
NOTHING = memoryview(b"")
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

    Raises IntegrityError when the layer's tar isn't what its digest says, NoSpace; nothing is left then.
    """
    layer = store.layers.open(diff_id)
    target = store.scratch("packed")
    proof = TarProof.find(store.layers.read_states(diff_id), layer.size_bytes, diff_id)
    try:
        try:
            made = _compress_to(layer.make_whole(), target, compression, level, proof)
        except DisprovedError:  # by its states: whether it is the tar that is wrong, its own digest tells
            made = _compress_to(layer.make_whole(), target, compression, level, None)
        if made.plain_digest != diff_id:
            raise IntegrityError(
                f"layer {diff_id}: its tar's digest is {made.plain_digest}",
                hint="run: pylayers system check --repair",
            )
    except OSError as error:
        target.unlink(missing_ok=True)
        raise translate_os_error(error, "compress a layer") from error
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return Descriptor(MEDIA_TYPES[compression], made.digest, made.size_bytes), Blob(
        made.digest, made.size_bytes, target
    )


def _compress_to(path: str, target: Path, compression: str, level: int | None, proof: TarProof | None) -> Compressed:
    with open(path, "rb", buffering=0) as stream, target.open("wb", buffering=0) as out:
        return compress_file(
            stream.fileno(), lambda piece: write_all(out.fileno(), piece), compression, level, proof=proof
        )


def compress_file(
    descriptor: int,
    write: Callable[[bytes], object],
    compression: str,
    level: int | None = None,
    threads: int | None = None,
    proof: TarProof | None = None,
) -> Compressed:
    """Compress a file from its start and pass the result to write, in order and in one thread.

    level None is the fastest that is worth its size; another is zlib's (gzip) or zstd's. threads: default one for each
    processor; the bytes are the same. Holds a unit for each thread, and two. The plain side is hashed; where a proof
    is given it is proved instead, by the threads, which takes half the time: DisprovedError for a file that is not
    the proof's. Raises OSError, and what write raises.
    """
    threads = min(threads or len(os.sched_getaffinity(0)), MOST_THREADS)
    size_bytes = os.fstat(descriptor).st_size
    packer = choose_packer(compression, level, threads, size_bytes)
    if packer.unit_bytes < UNIT_BYTES:  # a small file's, which end between two states
        proof = None
    plain, packed = new_hasher(), new_hasher()
    sizes = [0, 0]
    waiting: deque[tuple[bytearray, Future[tuple[memoryview, bytes]]]] = deque()
    unused = [bytearray(min(packer.unit_bytes, size_bytes)) for _ in range(threads + UNITS_WAITING)]

    def work(offset_bytes: int, buffer: bytearray) -> tuple[memoryview, bytes]:
        content = read_unit(descriptor, offset_bytes, buffer)
        if proof is not None:
            proof.verify(offset_bytes, content)
        return content, packer.pack(content)

    def pass_on(content: memoryview, piece: bytes) -> None:
        if proof is None:
            update_both(plain, content, packed, piece)
        else:
            packed.update(piece)
        sizes[0] += len(content)
        sizes[1] += len(piece)
        write(piece)

    def finish_one() -> None:
        buffer, future = waiting.popleft()
        content, made = future.result()
        with content:
            pass_on(content, packer.join(content, made))
        unused.append(buffer)

    with ThreadPoolExecutor(threads, "compress") as pool:
        pass_on(NOTHING, packer.begin())
        for offset_bytes in range(0, size_bytes, packer.unit_bytes):
            if not unused:
                finish_one()
            buffer = unused.pop()
            waiting.append((buffer, pool.submit(work, offset_bytes, buffer)))
        while waiting:
            finish_one()
        pass_on(NOTHING, packer.end())
    if proof is not None and sizes[0] != proof.size_bytes:
        raise DisprovedError
    plain_digest = proof.diff_id if proof is not None else digest_from_hex(plain.digest().hex())
    return Compressed(plain_digest, sizes[0], digest_from_hex(packed.digest().hex()), sizes[1])


def read_unit(descriptor: int, offset_bytes: int, buffer: bytearray) -> memoryview:
    """Read as much as the buffer takes from an offset on, cut short by the file's end alone; return what was read."""
    with memoryview(buffer) as view:
        size_bytes = 0
        while size_bytes < len(view):
            with view[size_bytes:] as rest:
                count = os.preadv(descriptor, [rest], offset_bytes + size_bytes)
            if not count:
                break
            size_bytes += count
        return view[:size_bytes]
