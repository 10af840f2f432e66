"""Bring a root file system's tar in as a layer, its bytes kept as they came: the diff_id is the tar's own digest."""

from __future__ import annotations

import io
import os
import queue
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

from pylayers.errors import InvalidInput, translate_os_error
from pylayers.oci.digest import digest_from_hex
from pylayers.store import Store
from pylayers.store.file import translating
from pylayers.store.layer import Layer
from pylayers.store.proof import new_hasher
from pylayers.store.state import EVERY_BYTES, kept_states
from pylayers.store.tarindex import feed_table, finish_table
from pylayers.transfer.archive import BLOCK_BYTES, PIECE_BYTES, detect_compression, is_tar, read_pieces
from pylayers.transfer.layerfile import LayerFile
from pylayers.transfer.verbatim import DIRECT_FROM_BYTES

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

QUEUE_PIECES = 8
FLUSH_BYTES = 32 << 20


def import_layer(store: Store, source: Path | IO[bytes]) -> Layer:
    """Store a tar (plain, gzip, bzip2, xz or zstd; told by its content) as a layer.

    Raises NotFound, InvalidInput for what is no tar, IntegrityError with the byte offset for a malformed one.
    """
    if isinstance(source, Path):
        try:
            with source.open("rb") as stream:
                return import_stream(store, stream, str(source))
        except OSError as error:
            raise translate_os_error(error, f"read {source}") from error
    return import_stream(store, source, "standard input")


def import_stream(store: Store, stream: IO[bytes], name: str) -> Layer:
    """Store a stream as a layer."""
    head = stream.read(BLOCK_BYTES)
    compression = detect_compression(head)
    if compression is None and not is_tar(head):
        raise InvalidInput(f"{name} is neither a tar nor a compressed one")
    with store.layers.ingest() as writer:
        whole = io.BufferedReader(Prefixed(head, stream), PIECE_BYTES)
        feed = feed_table()
        size_bytes, digest, states = write_hashed(writer.fd, read_pieces(whole, compression, name), feed.take)
        records, heap = finish_table(feed, writer.fd, size_bytes, name)
        return writer.commit(records, heap, size_bytes, digest_from_hex(digest), states=states)


class Prefixed(io.RawIOBase):
    """Read bytes that were read already before the rest of their stream, which may not be seekable."""

    def __init__(self, head: bytes, stream: IO[bytes]) -> None:
        self._head = head
        self._stream = stream
        self._readinto: Callable[[memoryview], int] | None = getattr(stream, "readinto", None)

    def readable(self) -> bool:
        """Say that this can be read."""
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill a buffer as far as one read goes; 0 at the end."""
        view = memoryview(buffer).cast("B")
        if not self._head and self._readinto is not None:
            return self._readinto(view)
        taken = self._head[: len(view)] or self._stream.read(len(view))
        self._head = self._head[len(taken) :]
        view[: len(taken)] = taken
        return len(taken)


def write_hashed(descriptor: int, pieces: Iterable[bytes], take: Callable[[bytes], object]) -> tuple[int, str, bytes]:
    """Write pieces to a file and give each to `take` too, in a thread; return the size, the sha256 in hex, its states.

    Making the pieces, hashing them, taking and writing them run beside each other, and what is written into the page
    cache goes on to the disk meanwhile, so that the layer's flush at the end finds little left to do.
    """
    hasher = new_hasher(EVERY_BYTES)
    with LayerFile(descriptor) as file:
        flushed = [0]

        def write(piece: bytes) -> None:
            file.write(piece)
            flushed[0] += len(piece)
            if flushed[0] >= FLUSH_BYTES and file.size_bytes - len(piece) < DIRECT_FROM_BYTES:
                flushed[0] = 0
                flusher.put(b"")

        with (
            _Stage(lambda _: os.fdatasync(descriptor)) as flusher,
            _Stage(write) as writer,
            _Stage(take) as taking,
            _Stage(hasher.update) as hashing,
        ):
            for piece in pieces:
                hashing.put(piece)
                taking.put(piece)
                writer.put(piece)
        with translating("write layer"):
            file.finish()
        return file.size_bytes, hasher.digest().hex(), kept_states(hasher)


class _Stage:
    """Do something to pieces in a thread of its own, in order, some pieces behind; leaving waits for the last one.

    What it raised is raised by the next put, or on leaving.
    """

    def __init__(self, work: Callable[[bytes], object]) -> None:
        self._work = work
        self._waiting: queue.Queue[bytes | None] = queue.Queue(QUEUE_PIECES)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while (piece := self._waiting.get()) is not None:
            if self._error is None:  # what comes after an error is taken, so that nobody waits for room
                try:
                    self._work(piece)
                except BaseException as error:
                    self._error = error

    def put(self, piece: bytes) -> None:
        """Hand over a piece; waits while too many are waiting."""
        self._raise()
        self._waiting.put(piece)

    def _raise(self) -> None:
        if isinstance(self._error, OSError):
            raise translate_os_error(self._error, "write layer") from self._error
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._waiting.put(None)
        self._thread.join()
        if kind is None:
            self._raise()
