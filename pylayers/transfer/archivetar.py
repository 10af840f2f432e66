"""Write a bundle as one tar: an OCI archive, with docker's manifest.json also what `docker load` reads."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from pathlib import Path

from pylayers.errors import translate_os_error
from pylayers.oci.digest import digest_hex
from pylayers.oci.document import encode
from pylayers.oci.reference import Reference
from pylayers.store.clone import append_file
from pylayers.store.file import write_all
from pylayers.transfer.archive import BLOCK_BYTES
from pylayers.transfer.content import (
    DOCKER_NAME,
    INDEX_NAME,
    LAYOUT_CONTENT,
    LAYOUT_NAME,
    Bundle,
    DockerImage,
)

ALIGN_BYTES = 4096
ALIGN_FROM_BYTES = 65536
USTAR_SIZE_LIMIT = 1 << 33
BLOBS = "blobs/sha256/"


def write_archive(bundle: Bundle, out_fd: int) -> None:
    """Write a bundle as a tar to a file or pipe, the same bytes each time; large blobs are copied by the kernel.

    Raises NoSpace and what else writing meets.
    """
    try:
        writer = TarWriter(out_fd)
        writer.add_directory("blobs/")
        writer.add_directory(BLOBS)
        for blob in bundle.distinct_blobs():
            name = BLOBS + digest_hex(blob.digest)
            if isinstance(blob.content, bytes):
                writer.add(name, blob.content, 0o444)
            else:
                writer.add_file(name, blob.content, blob.size_bytes, 0o444)
        writer.add(INDEX_NAME, bundle.index_json())
        if bundle.docker:
            writer.add(DOCKER_NAME, docker_manifest(bundle.docker))
        writer.add(LAYOUT_NAME, LAYOUT_CONTENT)
        writer.finish()
    except OSError as error:
        raise translate_os_error(error, "write the archive") from error


def docker_manifest(images: tuple[DockerImage, ...]) -> bytes:
    """Return docker's manifest.json."""
    return encode(
        [
            {
                "Config": BLOBS + digest_hex(image.config),
                "RepoTags": [Reference.parse(name).familiar for name in image.names] or None,
                "Layers": [BLOBS + digest_hex(layer) for layer in image.layers],
            }
            for image in images
        ]
    )


class TarWriter:
    """Write entries to a tar; data of large files is aligned, so that file systems can share its blocks."""

    def __init__(self, out_fd: int) -> None:
        self._fd = out_fd
        self._position = 0

    def add_directory(self, name: str) -> None:
        """Write a directory."""
        self._put(make_header(name, 0, 0o755, tarfile.DIRTYPE))

    def add(self, name: str, content: bytes, mode: int = 0o644) -> None:
        """Write a small file."""
        self._put(make_header(name, len(content), mode) + content)
        self._pad()

    def add_file(self, name: str, source: Path, size_bytes: int, mode: int) -> None:
        """Write a file's content as an entry."""
        records = b"" if size_bytes < USTAR_SIZE_LIMIT else pax_record("size", str(size_bytes))
        if size_bytes >= ALIGN_FROM_BYTES:
            records = align_records(records, self._position)
        if records:
            self._put(make_header("././@PaxHeader", len(records), 0, tarfile.XHDTYPE) + records)
            self._pad()
        self._put(make_header(name, size_bytes if size_bytes < USTAR_SIZE_LIMIT else 0, mode))
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        try:
            append_file(descriptor, self._fd, size_bytes)
        finally:
            os.close(descriptor)
        self._position += size_bytes
        self._pad()

    def finish(self) -> None:
        """Write the end mark."""
        self._put(bytes(2 * BLOCK_BYTES))

    def _put(self, content: bytes) -> None:
        write_all(self._fd, content)
        self._position += len(content)

    def _pad(self) -> None:
        self._put(bytes(-self._position % BLOCK_BYTES))


def make_header(name: str, size_bytes: int, mode: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """Return one ustar block; what would differ from day to day is zero."""
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.type = size_bytes, mode, kind
    return member.tobuf(tarfile.USTAR_FORMAT)


def pax_record(key: str, value: str) -> bytes:
    """Return one PAX record, whose length counts itself."""
    rest = f" {key}={value}\n".encode()
    length = len(rest)
    while len(str(length)) + len(rest) != length:
        length = len(str(length)) + len(rest)
    return str(length).encode() + rest


def align_records(records: bytes, position: int) -> bytes:
    """Add a comment of spaces, if needed, after which the next file's data begins at a multiple of ALIGN_BYTES."""
    headers = BLOCK_BYTES + (BLOCK_BYTES + -(-len(records) // BLOCK_BYTES) * BLOCK_BYTES if records else 0)
    if (position + headers) % ALIGN_BYTES == 0:
        return records
    # Two headers and one block of records at the least; the comment fills its last block to the last byte.
    base = position + 2 * BLOCK_BYTES
    size = -(-(len(records) + 64) // BLOCK_BYTES) * BLOCK_BYTES
    size += -(base + size) % ALIGN_BYTES
    return records + fill_comment(size - len(records))


def fill_comment(length: int) -> bytes:
    """Return a comment record of exactly this many bytes."""
    head = f"{length} comment=".encode()
    return head + b" " * (length - len(head) - 1) + b"\n"


def write_output(destination: str, write: Callable[[int], object]) -> None:
    """Open a destination, `-` for standard output, and let `write` fill it; a regular file appears when it is whole.

    Raises what opening and writing meet.
    """
    if destination == "-":
        import sys

        sys.stdout.flush()
        write(1)
        return
    path = Path(destination)
    try:
        if path.exists() and not path.is_file():
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)  # a pipe or a device takes it as it comes
            try:
                write(descriptor)
            finally:
                os.close(descriptor)
            return
        write_beside(Path(os.path.realpath(path)), write)
    except OSError as error:
        raise translate_os_error(error, f"write {path}") from error


def write_beside(path: Path, write: Callable[[int], object]) -> None:
    """Write a file beside its place and rename it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name[:64]}-{os.urandom(6).hex()}")
    descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        write(descriptor)
        os.close(descriptor)
        descriptor = -1
        os.rename(beside, path)
    finally:
        if descriptor >= 0:
            os.close(descriptor)
        beside.unlink(missing_ok=True)
