"""Archives as they come: recognise compression and tar by content, and give one stream of plain tar bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol, cast

from pylayers.errors import IntegrityError, InvalidInput

BLOCK_BYTES = 512
MAGIC_OFFSET = 257
COMPRESSIONS: tuple[tuple[str, bytes], ...] = (
    ("gzip", b"\x1f\x8b\x08"),
    ("bzip2", b"BZh"),
    ("xz", b"\xfd7zXZ\x00"),
    ("zstd", b"\x28\xb5\x2f\xfd"),
)
PIECE_BYTES = 1 << 20


class Readable(Protocol):
    """Give bytes, in order."""

    def read(self, size: int = -1, /) -> bytes:
        """Return up to size bytes, all for -1; none at the end."""


def detect_compression(head: bytes) -> str | None:
    """Name the compression that a file's first bytes show, or None."""
    for name, magic in COMPRESSIONS:
        if head.startswith(magic):
            return name
    return None


def is_tar(head: bytes) -> bool:
    """Tell whether a block is a tar header: ustar's or GNU's magic, or a checksum that fits; or an empty archive."""
    if len(head) < BLOCK_BYTES:
        return False
    if head[MAGIC_OFFSET : MAGIC_OFFSET + 5] == b"ustar" or not any(head[:BLOCK_BYTES]):
        return True
    try:
        written = int(head[148:156].split(b"\0")[0].strip() or b"x", 8)
    except ValueError:
        return False
    return written == sum(head[:148]) + 8 * 32 + sum(head[156:BLOCK_BYTES])


def detect_archive(path: Path) -> str | None:
    """Name what a file is by its content: "tar", or the compression around a tar; None for anything else."""
    with path.open("rb") as stream:
        head = stream.read(BLOCK_BYTES)
        if is_tar(head):
            return "tar"
        compression = detect_compression(head)
        if compression is None:
            return None
        stream.seek(0)
        damaged: tuple[type[BaseException], ...] = (OSError, *damage_errors(compression))
        try:
            with decompress(stream, compression) as plain:
                return compression if is_tar(plain.read(BLOCK_BYTES)) else None
        except damaged:
            return None


class ZstdReader(io.RawIOBase):
    """Read zstd frames to their end; zstandard's own stream reader takes a cut frame for a whole one."""

    def __init__(self, stream: Readable) -> None:
        import zstandard

        self._stream = stream
        self._open = zstandard.ZstdDecompressor().decompressobj
        self._frame = self._open()
        self._ready = b""
        self._begun = False  # inside a frame

    def read(self, size: int = -1, /) -> bytes:
        """Return up to size bytes. Raises EOFError when the stream ends inside a frame."""
        while not self._ready or size < 0:
            packed = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame, self._begun = self._open(), False
            packed = packed or self._stream.read(PIECE_BYTES)
            if not packed:
                if self._begun:
                    raise EOFError("the data ends inside a frame")
                break
            self._begun = True
            self._ready += self._frame.decompress(packed)
        taken = self._ready if size < 0 else self._ready[:size]
        self._ready = self._ready[len(taken) :]
        return taken


@contextmanager
def decompress(stream: Readable, compression: str | None) -> Iterator[Readable]:
    """Give the plain bytes of a stream; the libraries release the GIL while they decompress."""
    opened: Any
    if compression is None:
        yield stream
        return
    if compression == "gzip":
        from isal import igzip

        opened = igzip.open(stream, "rb")  # type: ignore[no-untyped-call]
    elif compression == "bzip2":
        import bz2

        opened = bz2.BZ2File(cast(IO[bytes], stream))
    elif compression == "xz":
        import lzma

        opened = lzma.LZMAFile(cast(IO[bytes], stream))  # noqa: SIM115 closed below
    elif compression == "zstd":
        opened = ZstdReader(stream)
    else:
        raise InvalidInput(f"compression {compression!r} is not known")
    with opened:
        yield opened


def damage_errors(compression: str | None) -> tuple[type[BaseException], ...]:
    """Return what a compression's library raises for data that is damaged, beside OSError."""
    import zlib
    from lzma import LZMAError

    damaged: tuple[type[BaseException], ...] = (EOFError, ValueError, zlib.error, LZMAError)
    if compression == "zstd":
        import zstandard

        damaged = (*damaged, zstandard.ZstdError)
    if compression == "gzip":
        from isal import isal_zlib

        damaged = (*damaged, cast(type[BaseException], isal_zlib.error))
    return damaged


def read_pieces(stream: Readable, compression: str | None, name: str) -> Iterator[bytes]:
    """Yield a stream's plain bytes in pieces. Raises IntegrityError where the compressed data is damaged."""
    damaged = damage_errors(compression)
    try:
        with decompress(stream, compression) as plain:
            while piece := plain.read(PIECE_BYTES):
                yield piece
    except damaged as error:
        raise IntegrityError(f"{name}: the {compression} data is damaged: {error}") from error
    except OSError as error:
        if error.errno is not None or compression is None:
            raise
        raise IntegrityError(f"{name}: the {compression} data is damaged: {error}") from error
