"""Blobs: whole files under the sha256 of their content. Verified when written and when read."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType

from pylayers.errors import IntegrityError, InvalidInput, NotFound
from pylayers.oci.digest import check_digest, choose_sha256, digest_hex, digest_of
from pylayers.record import record
from pylayers.store.file import CHECK_HINT, read_file, remove_file, sync_path, translates, translating, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

    from _typeshed import StrPath

    from pylayers.store.lease import Lease
    from pylayers.store.workspace import Workspace

# Takes the collect lock shared and has the named lease (or all of this Store's) hold (kind, name).
Admit = Callable[[str, str, "Lease | None"], AbstractContextManager[None]]


@record
class BlobStat:
    """Describe a stored blob."""

    digest: str
    size_bytes: int


class VerifiedReader(io.RawIOBase):
    """Read a file and compare its digest at the end; the last read raises IntegrityError instead of ending."""

    def __init__(self, path: str, digest: str) -> None:
        super().__init__()
        self._file = io.FileIO(path)
        self._path = path
        self._digest = digest
        self._hasher = choose_sha256(os.fstat(self._file.fileno()).st_size)()

    def readable(self) -> bool:
        """Tell that reading works."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill a buffer; 0 at the end, which is reached only by content that matches the digest."""
        count: int = self._file.readinto(buffer) or 0
        if count:
            self._hasher.update(memoryview(buffer)[:count])
        elif len(buffer):
            found = f"sha256:{self._hasher.hexdigest()}"
            if found != self._digest:
                raise IntegrityError(f"{self._path}: the content's digest is {found}", hint=CHECK_HINT)
        return count

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


class BlobWriter:
    """Take a blob's bytes; nothing is visible until commit. Leaving the context without it drops them."""

    def __init__(
        self, store: BlobStore, scratch: str, expected_digest: str | None, size_bytes: int | None, lease: Lease | None
    ) -> None:
        self._store = store
        self.scratch = scratch
        self._expected = expected_digest
        self._limit = size_bytes
        self._lease = lease
        self._hasher = choose_sha256(size_bytes)()
        self._descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self.size_bytes = 0

    def write(self, content: bytes | bytearray | memoryview) -> int:
        """Append bytes. Raises IntegrityError beyond the size announced, NoSpace when the disk is full."""
        if self._descriptor < 0:
            raise InvalidInput("write to a blob that was committed or dropped")
        length = len(content)
        if self._limit is not None and self.size_bytes + length > self._limit:
            raise IntegrityError(f"more than the {self._limit} bytes announced for {self._expected or 'the blob'}")
        with translating("write a blob"):
            write_all(self._descriptor, content)
        self._hasher.update(content)
        self.size_bytes += length
        return length

    def commit(self) -> str:
        """Verify, make durable and visible; return the digest. Raises IntegrityError when size or digest differ."""
        found = self.flush()
        with translating("store a blob"):
            self._store._adopt(self.scratch, found, self._lease)
            self._store.sync()
        self.drop()
        return found

    def flush(self) -> str:
        """Verify and make the bytes durable, where nobody sees them yet; return the digest. Raises as commit."""
        if self._descriptor < 0:
            raise InvalidInput("a blob can be committed once")
        found = f"sha256:{self._hasher.hexdigest()}"
        if self._limit is not None and self.size_bytes != self._limit:
            raise IntegrityError(f"{self.size_bytes} bytes instead of {self._limit} for {self._expected or found}")
        if self._expected is not None and found != self._expected:
            raise IntegrityError(f"the content's digest is {found}, not {self._expected}")
        with translating("store a blob"):
            os.fsync(self._descriptor)
        return found

    def drop(self) -> None:
        """Forget what was written; harmless after commit."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            remove_file(self.scratch, durable=False)

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.drop()


class BlobStore:
    """Keep blobs in image/blobs/sha256/<hex>."""

    def __init__(self, directory: StrPath, workspace: Workspace, admit: Admit) -> None:
        self._directory = os.fspath(directory)
        self._workspace = workspace
        self._admit = admit

    def path(self, digest: str) -> str:
        """Return where a blob lies, whether it exists or not."""
        return f"{self._directory}/{digest_hex(digest)}"

    def exists(self, digest: str) -> bool:
        """Tell whether a blob is stored."""
        return os.path.isfile(self.path(digest))

    def stat(self, digest: str) -> BlobStat:
        """Describe a blob. Raises NotFound."""
        try:
            return BlobStat(digest, os.stat(self.path(digest)).st_size)
        except FileNotFoundError:
            raise NotFound(f"blob {digest} is not stored") from None

    def open(self, digest: str) -> BinaryIO:
        """Open a blob for one pass from start to end; the read that would end it raises IntegrityError if it's damaged.

        The caller closes it. Raises NotFound.
        """
        path = self.path(digest)
        try:
            return io.BufferedReader(VerifiedReader(path, digest), 256 << 10)
        except FileNotFoundError:
            raise NotFound(f"blob {digest} is not stored") from None

    @translates("read a blob")
    def read(self, digest: str, limit_bytes: int) -> bytes:
        """Return a whole blob, verified. Raises NotFound, IntegrityError, and InvalidInput above limit_bytes."""
        size_bytes = self.stat(digest).size_bytes
        if size_bytes > limit_bytes:
            raise InvalidInput(f"blob {digest}: {size_bytes} bytes, more than the limit of {limit_bytes}")
        path = self.path(digest)
        try:
            content = read_file(path)
        except FileNotFoundError:
            raise NotFound(f"blob {digest} is not stored") from None
        found = digest_of(content)
        if found != digest:
            raise IntegrityError(f"{path}: the content's digest is {found}", hint=CHECK_HINT)
        return content

    @translates("store a blob")
    def ingest(
        self, expected_digest: str | None = None, size_bytes: int | None = None, *, lease: Lease | None = None
    ) -> BlobWriter:
        """Begin a blob; None is not known yet. On commit `lease`, or each open lease of the Store, holds it."""
        if expected_digest is not None:
            check_digest(expected_digest, "expected_digest")
        return BlobWriter(self, self._workspace.path("blob"), expected_digest, size_bytes, lease)

    @translates("store a blob")
    def put(self, content: bytes, *, lease: Lease | None = None) -> str:
        """Store bytes and return their digest; bytes that are already stored are not written again."""
        return self.put_all((content,), lease=lease)[0]

    @translates("store blobs")
    def put_all(self, contents: Sequence[bytes], *, lease: Lease | None = None) -> list[str]:
        """Store several blobs as put does: all are written before the first flush, and one flush takes all names."""
        digests = [digest_of(content) for content in contents]
        with ExitStack() as stack:
            writers: list[tuple[str, BlobWriter]] = []
            for digest, content in zip(digests, contents, strict=True):
                if not self._holds(digest, content, lease):
                    writer = stack.enter_context(self.ingest(digest, len(content), lease=lease))
                    writer.write(content)
                    writers.append((digest, writer))
            for _, writer in writers:
                writer.flush()
            for digest, writer in writers:
                self._adopt(writer.scratch, digest, lease)
            if writers:
                self.sync()
        return digests

    def _holds(self, digest: str, content: bytes, lease: Lease | None) -> bool:
        with self._admit("blob", digest, lease):
            try:
                return read_file(self.path(digest)) == content
            except FileNotFoundError:
                return False

    @translates("delete a blob")
    def delete(self, digest: str) -> None:
        """Remove a blob. Raises NotFound. The caller knows that nothing needs it; see Store.collect."""
        self.stat(digest)
        remove_file(self.path(digest))

    def walk(self) -> Iterator[BlobStat]:
        """Yield every blob, in the order of their digests."""
        for name in sorted(os.listdir(self._directory)):
            try:
                yield self.stat(f"sha256:{name}")
            except (InvalidInput, NotFound):
                continue  # not a blob's name, or removed meanwhile

    def _adopt(self, scratch: str, digest: str, lease: Lease | None) -> None:
        with self._admit("blob", digest, lease):
            # rename replaces an equal blob, and heals a damaged one.
            os.rename(scratch, self.path(digest))

    def sync(self) -> None:
        """Make the names of blobs durable."""
        sync_path(self._directory)
