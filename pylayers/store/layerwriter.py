"""Write a layer: its tar through a descriptor, its index and its states, all durable before it appears."""

from __future__ import annotations

import os
from types import TracebackType

from pylayers.errors import IntegrityError, InvalidInput
from pylayers.oci.digest import digest_hex
from pylayers.store.entry import ENTRY_SIZE_BYTES, Buffer
from pylayers.store.file import remove_tree, sync_path, translates, translating
from pylayers.store.index import CHUNK_SIZE_BYTES, write_index
from pylayers.store.layer import INDEX_NAME, TAR_NAME, Layer
from pylayers.store.splice import find_base, share_beginning
from pylayers.store.state import STATES_NAME, pack_states

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from _typeshed import StrPath

    from pylayers.store.layerstore import LayerStore
    from pylayers.store.lease import Lease

# Below this the disk is done before a thread would have started.
_OVERLAP_BYTES = 1 << 20


class LayerWriter:
    """Take one layer: write layer.tar through `fd`, then commit. Leaving the context without it drops everything."""

    def __init__(self, store: LayerStore, scratch: str, lease: Lease | None) -> None:
        self._store = store
        self._lease = lease
        self.scratch = scratch
        os.mkdir(scratch, 0o700)
        # An empty read-write file on the store's file system; the writer closes it.
        self.fd = os.open(f"{scratch}/{TAR_NAME}", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    @translates("share a layer's bytes")
    def share(self, earlier: Layer, end_bytes: int) -> bool:
        """Let the tar begin with another's first bytes (a page or more); False where that can't be.

        What is written to `fd` begins at end_bytes, rounded down to a page. Raises InvalidInput for an earlier layer
        that does not hold them in one file, NotFound when it is gone.
        """
        for again in (True, False):
            base = find_base(os.path.dirname(earlier.tar_path))
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
                write_synced_index(
                    f"{self.scratch}/{INDEX_NAME}", records, heap, chunks, size_bytes=size_bytes, diff_hex=diff_hex,
                    first=syncing.catch_up,
                )  # fmt: skip
            if states:
                # Not synced: a torn one is found out by its checksum, and then not used.
                with open(f"{self.scratch}/{STATES_NAME}", "wb") as file:
                    file.write(pack_states(states, diff_hex))
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


def write_synced_index(
    path: StrPath,
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
