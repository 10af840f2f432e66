from collections.abc import Callable, Sequence

_Buffer = bytes | bytearray | memoryview

def merge(tables: Sequence[tuple[_Buffer, _Buffer]]) -> tuple[bytearray, bytearray]:
    """Apply layer tables from lowest to highest and return the merged table: no whiteouts, no OPAQUE.

    Each row's `layer` is the index of the table it came from. A directory over a directory takes the upper row's
    metadata (unless it is IMPLICIT) and keeps lower children; anything else replaces with its whole subtree.
    An IMPLICIT directory that is OPAQUE empties the lower one but leaves its metadata.
    A hard link whose target was hidden or replaced becomes a file of its own, later links of the group name it;
    nlink of what is no directory becomes the number of its names. IMPLICIT directories stay, flag and all, where no
    layer has more. There is always a root row. Raises ValueError (layer and row) for a table that is not
    sorted, lacks a parent directory or points outside its heap. Releases the GIL; linear in the rows, times the
    logarithm of the number of layers.
    """

def find(records: _Buffer, heap: _Buffer, path: bytes) -> int:
    """Return the row of path by binary search, or -1. ValueError for a row outside the heap."""

def subtree(records: _Buffer, heap: _Buffer, index: int) -> int:
    """Return the end (exclusive) of the run of rows below and including row index, or raise IndexError."""

def tree_digest(
    records: _Buffer, heap: _Buffer, blake3: Callable[..., object], index: int = 0, top_metadata: bool = True
) -> bytes:
    """Return the BLAKE3 Merkle root (32 bytes) of the tree at row index.

    Covers names, types, modes, owners, xattrs, link targets, device numbers, contents; never times, inode or
    tar offsets. The first name of an inode inside the digested tree counts as a file, later ones as the same file plus
    that name relative to the top: a subtree digests like the same tree elsewhere. IMPLICIT, HASHED, SPARSE and
    layer do not enter. top_metadata=False leaves the top row's own mode, owner, xattrs out. Whiteout and opaque
    marks enter (layer tables have digests too). Raises ValueError when a regular file with content is not HASHED.
    The exact serialisation is documented in docs/internals/tree-digest.md and held by golden values.
    """

def diff(
    old_records: _Buffer, old_heap: _Buffer, new_records: _Buffer, new_heap: _Buffer, times: bool = True
) -> bytes:
    """Compare two merged tables and return packed change records (kind u32, old_row u32, new_row u32).

    kind: 0 add, 1 modify, 2 delete; a missing side is 0xFFFFFFFF. Deletes name only the top of a removed subtree.
    A row is modified when type, mode, owner, link, device, xattrs, size, content (BLAKE3 where both are HASHED,
    otherwise mtime) differ, or, with times=True, its mtime (for directories too). Of a directory replaced by something
    else only the MODIFY is told. A new name of an unchanged inode changes no other row. Releases the GIL. Linear.
    """
