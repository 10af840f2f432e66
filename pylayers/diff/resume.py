"""Write a layer on from where it differs from an earlier one: what was changed costs time, not what was not.

The rows before the first that differs are the earlier tar's bytes. They are not read, hashed or written again: the
hash goes on from a state kept beside the earlier layer, and the tar begins with the earlier one's bytes
(store/splice.py). See docs/internals/spliced-layer.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pylayers._native import graft
from pylayers.errors import IntegrityError, NotFound
from pylayers.record import record, replace
from pylayers.store import Store
from pylayers.store.entry import Buffer
from pylayers.store.file import CHECK_HINT, translates
from pylayers.store.layer import Layer
from pylayers.store.splice import read_range, whole_pages
from pylayers.store.state import EVERY_BYTES, STATE_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pylayers._native.sha256 import Sha256
    from pylayers.store.layerwriter import LayerWriter

# Fewer bytes are written again: a tar in one piece is worth more.
LEAST_BYTES = 16 << 20
TRAILER_BYTES = 1024
NO_LIMIT = (1 << 63) - 1


@record
class Resumption:
    """Say from where on a tar has to be written: the rows before are `earlier`'s, as are the bytes [0, end_bytes)."""

    earlier: Layer
    first_row: int
    end_bytes: int
    states: bytes  # of the earlier tar's sha256, none beyond start_bytes

    @property
    def start_bytes(self) -> int:
        """Return where the file that is written begins: the page in which end_bytes lies."""
        return whole_pages(self.end_bytes)

    @translates("read an earlier layer")
    def begin(self, writer: LayerWriter) -> tuple[Sha256, bytes] | None:
        """Give the new tar its beginning; return the hasher that has taken it, and the lead.

        None where it has to be written whole: the bytes can't be shared, or the earlier layer is damaged or gone.
        """
        try:
            hasher, lead = self.resume_hash(), self.read_lead()
            return (hasher, lead) if writer.share(self.earlier, self.end_bytes) else None
        except (FileNotFoundError, NotFound, IntegrityError):
            return None

    def give_places(self, records: bytearray) -> None:
        """Give the rows that are the earlier layer's the offsets and hashes that they have there."""
        graft.take_places(records, self.earlier.table.records, self.first_row)

    def read_lead(self) -> bytes:
        """Return the bytes between start_bytes and end_bytes."""
        return b"".join(bytes(piece) for piece in self._read(self.start_bytes, self.end_bytes))

    def resume_hash(self) -> Sha256:
        """Return the hasher that has taken the tar up to start_bytes."""
        from pylayers._native.sha256 import Sha256

        hasher = Sha256.resume(self.states, EVERY_BYTES) if self.states else Sha256(EVERY_BYTES)
        for piece in self._read(len(self.states) // STATE_BYTES * EVERY_BYTES, self.start_bytes):
            hasher.update(piece)
        return hasher

    def _read(self, at: int, end: int) -> Iterator[memoryview]:
        for piece in read_range(self.earlier.tar_path, self.earlier.base, at, end):
            at += len(piece)
            yield piece
        if at != end:
            raise IntegrityError(f"layer {self.earlier.diff_id}: its tar ends too early", hint=CHECK_HINT)


def find_resumption(store: Store, records: Buffer, heap: Buffer, earlier: Sequence[Layer]) -> Resumption | None:
    """Return how a tar of these rows (with the hashes that are known) goes on from the best of some earlier layers.

    None where too little is the same or no states were kept. An earlier layer that has a base itself is filled where
    that copies less than to go on from its base's end would write.
    """
    found = sorted((compare(records, heap, layer) for layer in earlier), key=lambda one: one.end_bytes, reverse=True)
    best = next(filter(None, (read_states(store, one) for one in found if one.end_bytes >= LEAST_BYTES)), None)
    if best is None:
        return None
    base = best.earlier.base
    if base is None or best.end_bytes <= base.end_bytes:
        return best
    if base.end_bytes <= best.end_bytes - base.end_bytes:
        try:
            best.earlier.make_whole()
        except (FileNotFoundError, NotFound, IntegrityError):
            return None  # gone or damaged
        return replace(best, earlier=replace(best.earlier, base=None))
    shorter = compare(records, heap, best.earlier, base.end_bytes)
    return read_states(store, shorter) if shorter.end_bytes >= LEAST_BYTES else None


def compare(records: Buffer, heap: Buffer, earlier: Layer, limit_bytes: int = NO_LIMIT) -> Resumption:
    """Return how a tar goes on from one earlier layer, within its first bytes; its states are still to be read."""
    table = earlier.table
    first_row = graft.count_same(records, heap, table.records, table.heap, limit_bytes)
    end_bytes = table.entry(first_row).header_offset if first_row < len(table) else earlier.size_bytes - TRAILER_BYTES
    return Resumption(earlier, first_row, end_bytes, b"")


def read_states(store: Store, found: Resumption) -> Resumption | None:
    """Give a resumption its states; None where they were not kept that far, or not well."""
    states = store.layers.read_states(found.earlier.diff_id)
    length = found.start_bytes // EVERY_BYTES * STATE_BYTES
    return None if states is None or len(states) < length else replace(found, states=states[:length])
