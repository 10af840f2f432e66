"""Bring a root file system's tar in as a layer, its bytes kept as they came: the diff_id is the tar's own digest."""

from __future__ import annotations

import hashlib
import io
import os
import queue
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pylayers.errors import InvalidInput, translate_os_error
from pylayers.oci.digest import digest_from_hex
from pylayers.store import Store
from pylayers.store.layer import Layer
from pylayers.store.tarindex import index_tar
from pylayers.transfer.archive import BLOCK_BYTES, PIECE_BYTES, detect_compression, is_tar, read_pieces

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

QUEUE_PIECES = 8


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
        size_bytes, digest = write_hashed(writer.fd, read_pieces(whole, compression, name))
        records, heap = index_tar(writer.fd, size_bytes, name)
        return writer.commit(records, heap, size_bytes, digest_from_hex(digest))


class Prefixed(io.RawIOBase):
    """Read bytes that were read already before the rest of their stream, which may not be seekable."""

    def __init__(self, head: bytes, stream: IO[bytes]) -> None:
        self._head = head
        self._stream = stream

    def readable(self) -> bool:
        """Say that this can be read."""
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill a buffer as far as one read goes; 0 at the end."""
        view = memoryview(buffer).cast("B")
        taken = self._head[: len(view)] or self._stream.read(len(view))
        self._head = self._head[len(taken) :]
        view[: len(taken)] = taken
        return len(taken)


def write_hashed(descriptor: int, pieces: Iterable[bytes]) -> tuple[int, str]:
    """Write pieces to a file while another thread hashes them; return the size and the sha256 in hex."""
    hasher = hashlib.sha256()
    waiting: queue.Queue[bytes | None] = queue.Queue(QUEUE_PIECES)

    def hash_pieces() -> None:
        while (piece := waiting.get()) is not None:
            hasher.update(piece)

    thread = threading.Thread(target=hash_pieces)
    thread.start()
    size_bytes = 0
    try:
        for piece in pieces:
            waiting.put(piece)
            view = memoryview(piece)
            while view:
                view = view[os.write(descriptor, view) :]
            size_bytes += len(piece)
    except OSError as error:
        raise translate_os_error(error, "write layer") from error
    finally:
        waiting.put(None)
        thread.join()
    return size_bytes, hasher.hexdigest()
