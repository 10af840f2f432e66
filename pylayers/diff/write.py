"""Write a layer table and its sources as a stored layer."""

from __future__ import annotations

import os
from collections.abc import Sequence

from blake3 import blake3

from pylayers._native import tarwrite
from pylayers.errors import Conflict, InvalidInput, translate_os_error
from pylayers.oci.digest import SMALL_BYTES, choose_sha256, digest_from_hex
from pylayers.store import Store
from pylayers.store.entry import Buffer, EntryTable
from pylayers.store.layer import Layer
from pylayers.store.state import EVERY_BYTES, kept_states

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pylayers.diff.resume import Resumption

# Large layers pass the page cache by: see docs/decisions/0006.
DIRECT_FROM_BYTES = 64 << 20
# Larger files share their blocks with the layer where the file system can: see docs/decisions/0011.
CLONE_FROM_BYTES = 64 << 10
# Sources of more than this share of the memory do not fill it as page cache: see docs/decisions/0018.
FORGOTTEN_SHARE = 2
SMALL_ROWS = 64


def write_layer(
    store: Store,
    records: bytearray,
    heap: Buffer,
    sources: Buffer,
    *,
    known: Buffer = b"",
    earlier: Sequence[Layer] = (),
) -> Layer:
    """Write the canonical tar of a sorted table, with its index, in one pass over the sources.

    Of rows that begin one of the earlier layers (which somebody keeps from the collector) in the same way nothing is
    read; `known` are the rows with the hashes that this is decided by. Fills offsets and hashes in records. Nothing is
    stored unless all of it is. Raises Conflict when a source changes while it is read, InvalidInput for rows that no
    tar can hold, NoSpace.
    """
    resumption = find(store, known, heap, earlier) if earlier else None
    with store.layers.ingest() as writer:
        begun = resumption.begin(writer) if resumption is not None else None
        hasher, lead = begun if begun is not None else (choose_hasher(count_bytes(records)), b"")
        first_row = start_bytes = 0
        if resumption is not None and begun is not None:
            first_row, start_bytes = resumption.first_row, resumption.start_bytes
            resumption.give_places(records)
        try:
            size_bytes, digest = tarwrite.write(
                writer.fd,
                records,
                heap,
                sources,
                lambda: hasher,
                blake3,
                direct_from_bytes=DIRECT_FROM_BYTES,
                clone_from_bytes=CLONE_FROM_BYTES,
                forget_from_bytes=measure_memory() // FORGOTTEN_SHARE,
                first_row=first_row,
                start_bytes=start_bytes,
                lead=lead,
                lanes=tarwrite.LANES,
            )
        except tarwrite.SourceChanged as error:
            raise Conflict(
                f"{show_name(error.filename)} changed while it was copied", hint="run the build again"
            ) from error
        except OSError as error:
            raise translate_os_error(error, "write layer") from error
        except ValueError as error:
            raise InvalidInput(f"cannot be stored in a layer: {error}") from error
        return writer.commit(
            records, heap, size_bytes, digest_from_hex(digest.hex()), states=kept_states(hasher)
        )


def find(store: Store, known: Buffer, heap: Buffer, earlier: Sequence[Layer]) -> Resumption | None:
    """Return how the tar goes on from one of the earlier layers; None where it does not, or hashing can't."""
    from pylayers._native import sha256

    if not sha256.is_fast():
        return None
    from pylayers.diff.resume import find_resumption

    return find_resumption(store, known, heap, earlier)


def choose_hasher(size_bytes: int | None) -> object:
    """Return a new sha256 for about as many bytes (None: many): one that may keep its states, for more than a few."""
    if size_bytes is not None and size_bytes <= SMALL_BYTES:
        return choose_sha256(size_bytes)()
    from pylayers.store.proof import new_hasher

    return new_hasher(EVERY_BYTES)


def count_bytes(records: bytearray) -> int | None:
    """Count the bytes that the files of a small table have; None for one of many rows, each of which takes a look."""
    table = EntryTable(records, b"")
    return None if len(table) > SMALL_ROWS else sum(entry.size_bytes for entry in table)


def show_name(name: object) -> str:
    """Return a file name of either type as text."""
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)


def measure_memory() -> int:
    """Return the machine's memory in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
