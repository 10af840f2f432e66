from collections.abc import Callable, Sequence

Buffer = bytes | bytearray | memoryview

def merge(tables: Sequence[tuple[Buffer, Buffer]]) -> tuple[bytearray, bytearray]:
    """Apply layer tables from lowest to highest and return the merged table: no whiteouts, no OPAQUE.

    Each row's `layer` is the index of the table it came from. A directory over a directory takes the upper row's
    metadata (unless it is IMPLICIT) and keeps lower children; anything else replaces with its whole subtree.
    A hard link whose target was hidden or replaced becomes a file of its own, later links of the group name it.
    IMPLICIT directories of the lowest layer stay, flag and all. Releases the GIL; linear in the rows.
    """

def find(records: Buffer, heap: Buffer, path: bytes) -> int:
    """Return the row of path by binary search, or -1."""

def subtree(records: Buffer, heap: Buffer, index: int) -> int:
    """Return the end (exclusive) of the run of rows below and including row index."""

def tree_digest(
    records: Buffer, heap: Buffer, blake3: Callable[..., object], index: int = 0, top_metadata: bool = True
) -> bytes:
    """Return the BLAKE3 Merkle root (32 bytes) of the tree at row index.

    Covers names, types, modes, owners, xattrs, link targets, device numbers, contents; never times, inode or
    tar offsets. A hard link counts as its file plus its target path relative to the digested tree when that lies inside it. IMPLICIT, HASHED and
    layer do not enter. top_metadata=False leaves the top row's own mode, owner, xattrs out. Whiteout and opaque
    marks enter (layer tables have digests too). Raises ValueError when a regular file with content is not HASHED.
    The exact serialisation is documented in docs/internals/tree-digest.md and held by golden values.
    """

def diff(
    old_records: Buffer, old_heap: Buffer, new_records: Buffer, new_heap: Buffer, times: bool = True
) -> bytes:
    """Compare two merged tables and return packed change records (kind u32, old_row u32, new_row u32).

    kind: 0 add, 1 modify, 2 delete; a missing side is 0xFFFFFFFF. Deletes name only the top of a removed subtree.
    A row is modified when type, mode, owner, link, device, xattrs, size, content (BLAKE3 where both are HASHED,
    otherwise mtime) differ, or, with times=True, its mtime (for directories too). Linear.
    """
