"""Layers: image/layers/sha256/<hex of diff_id>/{layer.tar,layer.idx}, made complete in tmp/ and renamed into place.

`layer.states` may lie beside them (store/state.py), and `base-<n>.tar` (store/splice.py).
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from pylayers.errors import IntegrityError, InvalidInput, NotFound
from pylayers.oci.digest import digest_from_hex, digest_hex, is_digest
from pylayers.store.blob import Admit
from pylayers.store.entry import ENTRY_SIZE_BYTES, Buffer, EntryTable
from pylayers.store.file import CHECK_HINT, fresh_name, remove_tree, sync_path, translates, translating
from pylayers.store.index import CHUNK_SIZE_BYTES, LayerIndex, check_rows, open_index, write_index
from pylayers.store.layer import Layer
from pylayers.store.splice import Base, fill_hole, find_base, is_same_between, read_range, share_beginning
from pylayers.store.state import STATES_NAME, pack_states, read_states

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from pylayers.store.lease import Lease
    from pylayers.store.workspace import Workspace

TAR_NAME = "layer.tar"
INDEX_NAME = "layer.idx"
# Below this the disk is done before a thread would have started.
_OVERLAP_BYTES = 1 << 20


class LayerWriter:
    """Take one layer: write layer.tar through `fd`, then commit. Leaving the context without it drops everything."""

    def __init__(self, store: LayerStore, scratch: Path, lease: Lease | None) -> None:
        self._store = store
        self._lease = lease
        self.scratch = scratch
        scratch.mkdir(mode=0o700)
        # An empty read-write file on the store's file system; the writer closes it.
        self.fd = os.open(scratch / TAR_NAME, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    @translates("share a layer's bytes")
    def share(self, earlier: Layer, end_bytes: int) -> bool:
        """Let the tar begin with another's first bytes (a page or more); False where that can't be.

        What is written to `fd` begins at end_bytes, rounded down to a page. Raises InvalidInput for an earlier layer
        that does not hold them in one file, NotFound when it is gone.
        """
        for again in (True, False):
            base = find_base(earlier.tar_path.parent)
            if base is not None and base.end_bytes < end_bytes:
                raise InvalidInput(f"layer {earlier.diff_id} has a base of {base.end_bytes} bytes, not {end_bytes}")
            try:
                path = earlier.tar_path if base is None else base.path
                return share_beginning(path, self.fd, self.scratch, end_bytes)
            except FileNotFoundError:
                if not again:  # a base goes once, when the earlier layer is filled
                    raise
        return False

    def commit(
        self,
        records: Buffer,
        heap: Buffer,
        size_bytes: int,
        diff_id: str,
        *,
        chunks: Buffer = b"",
        states: Buffer = b"",
    ) -> Layer:
        """Write layer.idx, make both files durable and the layer visible; an equal layer that is there wins.

        states are those of the tar's sha256. diff_id is believed: it was computed while the tar was written
        (LayerStore.verify hashes again). Raises IntegrityError when the file's size isn't size_bytes, NoSpace with
        nothing left behind.
        """
        if self.fd < 0:
            raise InvalidInput("a layer can be committed once")
        diff_hex = digest_hex(diff_id)
        if len(records) % ENTRY_SIZE_BYTES or len(chunks) % CHUNK_SIZE_BYTES:
            raise InvalidInput("a layer's records or chunks end inside a record")
        with translating("store a layer"):
            found = os.fstat(self.fd).st_size
            if found != size_bytes:
                raise IntegrityError(f"layer {diff_id}: {found} bytes were written instead of {size_bytes}")
            with _Syncing(self.fd, size_bytes) as syncing:
                _write_synced_index(
                    self.scratch / INDEX_NAME, records, heap, chunks, size_bytes=size_bytes, diff_hex=diff_hex,
                    first=syncing.catch_up,
                )  # fmt: skip
            if states:
                # Not synced: a torn one is found out by its checksum, and then not used.
                (self.scratch / STATES_NAME).write_bytes(pack_states(states, diff_hex))
            sync_path(self.scratch)
            layer = self._store._adopt(self.scratch, diff_id, self._lease)
        self.drop()
        return layer

    def drop(self) -> None:
        """Forget what was written; harmless after commit."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            remove_tree(self.scratch)

    def __enter__(self) -> LayerWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.drop()


class _Syncing:
    """Sync a descriptor while the block runs; leaving the block waits, and raises what fsync raised.

    A short file is synced when the block says so: after it has written its own, which then costs the journal less.
    """

    def __init__(self, descriptor: int, size_bytes: int) -> None:
        self._descriptor = descriptor
        self._error: OSError | None = None
        self._thread: threading.Thread | None = None
        if size_bytes >= _OVERLAP_BYTES:
            import threading

            self._thread = threading.Thread(target=self._sync)

    def catch_up(self) -> None:
        """Sync what no thread does."""
        if self._thread is None:
            os.fsync(self._descriptor)

    def _sync(self) -> None:
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            self._error = error

    def __enter__(self) -> _Syncing:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._thread.join()
        if error is None and self._error is not None:
            raise self._error


def _write_synced_index(
    path: Path,
    records: Buffer,
    heap: Buffer,
    chunks: Buffer,
    *,
    size_bytes: int,
    diff_hex: str,
    first: Callable[[], None] | None = None,
) -> None:
    """Write a layer.idx to a new file, do what comes first, and sync it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        write_index(descriptor, records, heap, chunks, size_bytes=size_bytes, diff_hex=diff_hex)
        if first is not None:
            first()
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class LayerStore:
    """Keep layers under their diff_ids. A stored layer never changes."""

    def __init__(self, directory: Path, workspace: Workspace, admit: Admit) -> None:
        self._directory = directory
        self._workspace = workspace
        self._admit = admit

    def path(self, diff_id: str) -> Path:
        """Return a layer's directory, whether it exists or not."""
        return self._directory / digest_hex(diff_id)

    def exists(self, diff_id: str) -> bool:
        """Tell whether a layer is stored. To rely on it, have a lease hold the layer first."""
        return (self.path(diff_id) / INDEX_NAME).is_file()

    @translates("store a layer")
    def ingest(self, *, lease: Lease | None = None) -> LayerWriter:
        """Begin a layer. On commit `lease`, or each open lease of the Store, holds it."""
        return LayerWriter(self, self._workspace.path("layer"), lease)

    @translates("open a layer")
    def open(self, diff_id: str) -> Layer:
        """Open a layer without reading it through. Raises NotFound, IntegrityError when its files disagree."""
        index, size_bytes, base = self._look(diff_id, again=True)
        self._compare(diff_id, index, size_bytes)
        return Layer(diff_id, size_bytes, self.path(diff_id) / TAR_NAME, index.table, index.chunks, base)

    def _look(self, diff_id: str, *, again: bool) -> tuple[LayerIndex, int, Base | None]:
        """Open a layer's index and look at its tar."""
        directory = self.path(diff_id)
        try:
            return open_index(directory / INDEX_NAME), (directory / TAR_NAME).stat().st_size, find_base(directory)
        except FileNotFoundError as error:
            if not directory.is_dir():
                raise NotFound(f"layer {diff_id} is not stored") from None
            if again:  # it may have appeared whole since the first look; to call it damaged would have it deleted
                return self._look(diff_id, again=False)
            raise IntegrityError(f"layer {diff_id}: {error.filename} is missing", hint=CHECK_HINT) from None

    def _compare(self, diff_id: str, index: LayerIndex, size_bytes: int) -> None:
        if digest_from_hex(index.diff_hex) != diff_id:
            raise IntegrityError(f"layer {diff_id}: its index is of sha256:{index.diff_hex}", hint=CHECK_HINT)
        if index.size_bytes != size_bytes:
            raise IntegrityError(
                f"layer {diff_id}: layer.tar has {size_bytes} bytes, its index says {index.size_bytes}", hint=CHECK_HINT
            )

    @translates("read a layer's size")
    def size_bytes(self, diff_id: str) -> int:
        """Return the size of a layer's tar. Raises NotFound."""
        try:
            return (self.path(diff_id) / TAR_NAME).stat().st_size
        except FileNotFoundError:
            raise NotFound(f"layer {diff_id} is not stored") from None

    @translates("read a layer's hash states")
    def read_states(self, diff_id: str) -> bytes | None:
        """Return the states of a tar's sha256 after every 4 MiB, where they were kept and are sound."""
        return read_states(self.path(diff_id) / STATES_NAME, digest_hex(diff_id))

    @translates("read a layer's size")
    def stored_bytes(self, diff_id: str, seen: set[int]) -> int:
        """Return the bytes of a layer's tar and base that are in no file among `seen`, which gets their inodes.

        Raises NotFound.
        """
        path = self.path(diff_id) / TAR_NAME
        try:
            own, base = path.stat(), find_base(path.parent)
        except FileNotFoundError:
            raise NotFound(f"layer {diff_id} is not stored") from None
        sizes = {own.st_ino: own.st_size}
        if base is not None:
            with contextlib.suppress(FileNotFoundError):  # filled meanwhile
                below = base.path.stat()
                sizes = {own.st_ino: own.st_size - base.start_bytes, below.st_ino: below.st_size}
        total = sum(size for inode, size in sizes.items() if inode not in seen)
        seen.update(sizes)
        return total

    @translates("fill a layer's tar")
    def make_whole(self, diff_id: str) -> Path:
        """Fill the hole of a spliced layer's tar, its index unseen, and return the tar's path. Raises NoSpace."""
        path = self.path(diff_id) / TAR_NAME
        fill_hole(path)
        return path

    def verify(self, diff_id: str) -> None:
        """Read the whole layer: hash the tar, check the index's checksum and rows. Raises IntegrityError."""
        self.verify_tar(diff_id)
        self.verify_index(diff_id)

    @translates("verify a layer")
    def verify_tar(self, diff_id: str) -> None:
        """Hash layer.tar and compare it with the diff_id. Raises IntegrityError, NotFound."""
        import hashlib

        hasher = hashlib.sha256()
        try:
            path = self.path(diff_id) / TAR_NAME
            base = find_base(path.parent)
            for piece in read_range(path, base, 0, path.stat().st_size):
                hasher.update(piece)
            same = base is None or is_same_between(path, base)
        except FileNotFoundError:
            raise NotFound(f"layer {diff_id} is not stored") from None
        digest = f"sha256:{hasher.hexdigest()}"
        if digest != diff_id:
            raise IntegrityError(f"layer {diff_id}: layer.tar's digest is {digest}", hint=CHECK_HINT)
        if not same:
            raise IntegrityError(f"layer {diff_id}: layer.tar does not go on as its base does", hint=CHECK_HINT)

    @translates("verify a layer")
    def verify_index(self, diff_id: str) -> None:
        """Compare the index with its checksum and with the tar's size, and check every row. Raises IntegrityError."""
        layer = self.open(diff_id)
        path = layer.tar_path.with_name(INDEX_NAME)
        open_index(path).verify(path)
        wrong = check_rows(layer.table)
        if wrong is not None:
            raise IntegrityError(f"{path}: {wrong}", hint=CHECK_HINT)

    @translates("write a layer's index")
    def replace_index(self, diff_id: str, table: EntryTable, chunks: Buffer) -> Layer:
        """Write a layer's index anew (chunks added, or a repair); who has the old one open keeps it."""
        directory = self.path(diff_id)
        for again in (True, True, False):
            try:
                self._exchange_index(directory, table, chunks, digest_hex(diff_id))
                break
            except FileNotFoundError:  # the layer is gone; or a repair took the new file for what a dead process left
                if not again or not (directory / TAR_NAME).exists():
                    raise NotFound(f"layer {diff_id} is not stored") from None
        sync_path(directory)
        return self.open(diff_id)

    def _exchange_index(self, directory: Path, table: EntryTable, chunks: Buffer, diff_hex: str) -> None:
        # Named like an atomic write's own file: if it is left behind, check removes it.
        beside = directory / fresh_name(f".{INDEX_NAME}")
        try:
            size_bytes = (directory / TAR_NAME).stat().st_size
            _write_synced_index(beside, table.records, table.heap, chunks, size_bytes=size_bytes, diff_hex=diff_hex)
            os.rename(beside, directory / INDEX_NAME)
        finally:
            beside.unlink(missing_ok=True)

    @translates("delete a layer")
    def delete(self, diff_id: str) -> None:
        """Remove a layer at once. Raises NotFound. The caller knows that nothing needs it; see Store.collect."""
        directory = self.path(diff_id)
        if not directory.is_dir():
            raise NotFound(f"layer {diff_id} is not stored")
        self._workspace.discard(directory)
        sync_path(self._directory)

    def walk(self) -> Iterator[str]:
        """Yield the diff_id of every layer directory, sorted; a damaged layer's too."""
        for name in sorted(os.listdir(self._directory)):
            if is_digest(f"sha256:{name}"):
                yield f"sha256:{name}"

    def _adopt(self, scratch: Path, diff_id: str, lease: Lease | None) -> Layer:
        with self._admit("layer", diff_id, lease):
            try:
                existing = self.open(diff_id)
            except NotFound:
                pass
            except IntegrityError:
                self._workspace.discard(self.path(diff_id))
            else:
                sync_path(self._directory)  # its writer may be about to do so; we promise it now
                return existing
            try:
                os.rename(scratch, self.path(diff_id))
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise  # otherwise another process was first, and equal
            sync_path(self._directory)
            return self.open(diff_id)
