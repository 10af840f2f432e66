"""Write a layer table and its sources as a stored layer."""

from __future__ import annotations

from blake3 import blake3

from pylayers._native import tarwrite
from pylayers.errors import Conflict, InvalidInput, translate_os_error
from pylayers.oci.digest import choose_sha256, digest_from_hex
from pylayers.store import Store
from pylayers.store.entry import Buffer, EntryTable
from pylayers.store.layer import Layer

# Large layers pass the page cache by: see docs/decisions/0006.
DIRECT_FROM_BYTES = 64 << 20
# Larger files share their blocks with the layer where the file system can: see docs/decisions/0011.
CLONE_FROM_BYTES = 64 << 10
SMALL_ROWS = 64


def write_layer(store: Store, records: bytearray, heap: Buffer, sources: Buffer) -> Layer:
    """Write the canonical tar of a sorted table, with its index, in one pass over the sources.

    Fills offsets and hashes in records. Nothing is stored unless all of it is. Raises Conflict when a source changes
    while it is read, InvalidInput for rows that no tar can hold, NoSpace.
    """
    with store.layers.ingest() as writer:
        try:
            size_bytes, digest = tarwrite.write(
                writer.fd,
                records,
                heap,
                sources,
                choose_sha256(count_bytes(records)),
                blake3,
                direct_from_bytes=DIRECT_FROM_BYTES,
                clone_from_bytes=CLONE_FROM_BYTES,
            )
        except tarwrite.SourceChanged as error:
            raise Conflict(
                f"{show_name(error.filename)} changed while it was copied", hint="run the build again"
            ) from error
        except OSError as error:
            raise translate_os_error(error, "write layer") from error
        except ValueError as error:
            raise InvalidInput(f"cannot be stored in a layer: {error}") from error
        return writer.commit(records, heap, size_bytes, digest_from_hex(digest.hex()))


def count_bytes(records: bytearray) -> int | None:
    """Count the bytes that the files of a small table have; None for one of many rows, each of which takes a look."""
    table = EntryTable(records, b"")
    return None if len(table) > SMALL_ROWS else sum(entry.size_bytes for entry in table)


def show_name(name: object) -> str:
    """Return a file name of either type as text."""
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)
