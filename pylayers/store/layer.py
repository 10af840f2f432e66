"""A stored layer: its tar, its entry table, its identity. Immutable."""

from __future__ import annotations

import os

from pylayers.record import record
from pylayers.store.splice import Base, fill_hole, find_base

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pylayers.store.entry import Buffer, EntryTable

TAR_NAME, INDEX_NAME = "layer.tar", "layer.idx"


@record
class Layer:
    """View one stored layer. `table` is mapped from layer.idx and lives as long as this object."""

    diff_id: str  # "sha256:<hex>" of layer.tar
    size_bytes: int  # of layer.tar
    tar_path: str
    table: EntryTable
    chunks: Buffer = b""  # packed chunk records (chunking.manifest); empty until the layer was chunked
    base: Base | None = None  # what holds the tar's beginning, where layer.tar has a hole (see store/splice.py)

    def make_whole(self) -> str:
        """Fill the hole of a spliced layer's tar, and return its path. Raises NoSpace."""
        # Looked for anew: a layer that was made again since this one was opened may have a base, and another one.
        if find_base(os.path.dirname(self.tar_path)) is not None:
            fill_hole(self.tar_path)
        return self.tar_path

    def open_tar(self) -> int:
        """Open layer.tar, made whole, for reading; the caller closes the descriptor."""
        return os.open(self.make_whole(), os.O_RDONLY | os.O_CLOEXEC)
