"""A stored layer: its tar, its entry table, its identity. Immutable."""

from __future__ import annotations

import os
from pathlib import Path

from pylayers.record import record
from pylayers.store.entry import Buffer, EntryTable


@record
class Layer:
    """View one stored layer. `table` is mapped from layer.idx and lives as long as this object."""

    diff_id: str  # "sha256:<hex>" of layer.tar
    size_bytes: int  # of layer.tar
    tar_path: Path
    table: EntryTable
    chunks: Buffer = b""  # packed chunk records (chunking.manifest); empty until the layer was chunked

    def open_tar(self) -> int:
        """Open layer.tar for reading; the caller closes the descriptor."""
        return os.open(self.tar_path, os.O_RDONLY | os.O_CLOEXEC)
