"""Layers: image/layers/sha256/<hex of diff_id>/{layer.tar,layer.idx}, made complete in tmp/ and renamed into place.

`layer.states` may lie beside them (store/state.py), and `base-<n>.tar` (store/splice.py). A build that finds all its
layers opens none: what opens and writes them is loaded by the first.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from pylayers.errors import IntegrityError, NotFound
from pylayers.oci.digest import digest_from_hex, digest_hex, is_digest
from pylayers.store.file import CHECK_HINT, fresh_name, remove_file, sync_path, translates
from pylayers.store.layer import INDEX_NAME, TAR_NAME, Layer
from pylayers.store.splice import fill_hole, find_base, is_same_between, read_range

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _typeshed import StrPath

    from pylayers.store.blob import Admit
    from pylayers.store.entry import Buffer, EntryTable
    from pylayers.store.index import LayerIndex
    from pylayers.store.layerwriter import LayerWriter
    from pylayers.store.lease import Lease
    from pylayers.store.splice import Base
    from pylayers.store.workspace import Workspace


class LayerStore:
    """Keep layers under their diff_ids. A stored layer never changes."""

    def __init__(self, directory: StrPath, workspace: Workspace, admit: Admit) -> None:
        self._directory = os.fspath(directory)
        self._workspace = workspace
        self._admit = admit

    def path(self, diff_id: str) -> str:
        """Return a layer's directory, whether it exists or not."""
        return f"{self._directory}/{digest_hex(diff_id)}"

    def _tar(self, diff_id: str) -> str:
        return f"{self.path(diff_id)}/{TAR_NAME}"

    def exists(self, diff_id: str) -> bool:
        """Tell whether a layer is stored. To rely on it, have a lease hold the layer first."""
        return os.path.isfile(f"{self.path(diff_id)}/{INDEX_NAME}")

    @translates("store a layer")
    def ingest(self, *, lease: Lease | None = None) -> LayerWriter:
        """Begin a layer. On commit `lease`, or each open lease of the Store, holds it."""
        from pylayers.store.layerwriter import LayerWriter

        return LayerWriter(self, self._workspace.path("layer"), lease)

    @translates("open a layer")
    def open(self, diff_id: str) -> Layer:
        """Open a layer without reading it through. Raises NotFound, IntegrityError when its files disagree."""
        index, size_bytes, base = self._look(diff_id, again=True)
        self._compare(diff_id, index, size_bytes)
        return Layer(diff_id, size_bytes, self._tar(diff_id), index.table, index.chunks, base)

    def _look(self, diff_id: str, *, again: bool) -> tuple[LayerIndex, int, Base | None]:
        """Open a layer's index and look at its tar."""
        from pylayers.store.index import open_index

        directory = self.path(diff_id)
        try:
            index = open_index(f"{directory}/{INDEX_NAME}")
            return index, os.stat(f"{directory}/{TAR_NAME}").st_size, find_base(directory)
        except FileNotFoundError as error:
            if not os.path.isdir(directory):
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
            return os.stat(self._tar(diff_id)).st_size
        except FileNotFoundError:
            raise NotFound(f"layer {diff_id} is not stored") from None

    @translates("read a layer's hash states")
    def read_states(self, diff_id: str) -> bytes | None:
        """Return the states of a tar's sha256 after every 4 MiB, where they were kept and are sound."""
        from pylayers.store.state import STATES_NAME, read_states

        return read_states(f"{self.path(diff_id)}/{STATES_NAME}", digest_hex(diff_id))

    @translates("read a layer's size")
    def stored_bytes(self, diff_id: str, seen: set[int]) -> int:
        """Return the bytes of a layer's tar and base that are in no file among `seen`, which gets their inodes.

        Raises NotFound.
        """
        directory = self.path(diff_id)
        try:
            own, base = os.stat(self._tar(diff_id)), find_base(directory)
        except FileNotFoundError:
            raise NotFound(f"layer {diff_id} is not stored") from None
        sizes = {own.st_ino: own.st_size}
        if base is not None:
            with contextlib.suppress(FileNotFoundError):  # filled meanwhile
                below = os.stat(base.path)
                sizes = {own.st_ino: own.st_size - base.start_bytes, below.st_ino: below.st_size}
        total = sum(size for inode, size in sizes.items() if inode not in seen)
        seen.update(sizes)
        return total

    @translates("fill a layer's tar")
    def make_whole(self, diff_id: str) -> str:
        """Fill the hole of a spliced layer's tar, its index unseen, and return the tar's path. Raises NoSpace."""
        path = self._tar(diff_id)
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
            path = self._tar(diff_id)
            base = find_base(self.path(diff_id))
            for piece in read_range(path, base, 0, os.stat(path).st_size):
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
        from pylayers.store.index import check_rows, open_index

        layer = self.open(diff_id)
        path = f"{self.path(diff_id)}/{INDEX_NAME}"
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
                if not again or not os.path.exists(self._tar(diff_id)):
                    raise NotFound(f"layer {diff_id} is not stored") from None
        sync_path(directory)
        return self.open(diff_id)

    def _exchange_index(self, directory: str, table: EntryTable, chunks: Buffer, diff_hex: str) -> None:
        from pylayers.store.layerwriter import write_synced_index

        # Named like an atomic write's own file: if it is left behind, check removes it.
        beside = f"{directory}/{fresh_name(f'.{INDEX_NAME}')}"
        try:
            size_bytes = os.stat(f"{directory}/{TAR_NAME}").st_size
            write_synced_index(beside, table.records, table.heap, chunks, size_bytes=size_bytes, diff_hex=diff_hex)
            os.rename(beside, f"{directory}/{INDEX_NAME}")
        finally:
            remove_file(beside, durable=False)

    @translates("delete a layer")
    def delete(self, diff_id: str) -> None:
        """Remove a layer at once. Raises NotFound. The caller knows that nothing needs it; see Store.collect."""
        directory = self.path(diff_id)
        if not os.path.isdir(directory):
            raise NotFound(f"layer {diff_id} is not stored")
        self._workspace.discard(directory)
        sync_path(self._directory)

    def walk(self) -> Iterator[str]:
        """Yield the diff_id of every layer directory, sorted; a damaged layer's too."""
        for name in sorted(os.listdir(self._directory)):
            if is_digest(f"sha256:{name}"):
                yield f"sha256:{name}"

    def _adopt(self, scratch: str, diff_id: str, lease: Lease | None) -> Layer:
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
