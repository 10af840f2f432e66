_Buffer = bytes | bytearray | memoryview

def graft(
    records: _Buffer,
    heap: _Buffer,
    start: int,
    end: int,
    prefix: _Buffer,
    descriptors: _Buffer,
    kind: int,
    uid: int = -1,
    gid: int = -1,
    mode: int = -1,
) -> tuple[bytearray, bytearray, bytearray]:
    """Copy rows start..end (a subtree, its top first) to a table whose top is at prefix: (records, heap, sources).

    sources holds one packed source record per row (store/entry.py): for kind SOURCE_PATH the row's old path beneath
    descriptors[0], for SOURCE_RANGE its data range in descriptors[row.layer] (packed int32). uid, gid and mode
    (07777) replace the rows' own unless -1; symlinks keep their mode.
    A hard link whose target isn't copied becomes a file.
    Stat-cache fields (but the ctime of a SOURCE_PATH row, which tarwrite asks for), tar offsets, IMPLICIT and layer are
    cleared; blake3 stays. Releases the GIL; linear.
    Raises ValueError for rows outside the table, the heap or the subtree.
    """

def adopt_hashes(records: bytearray, start: int, grafted: _Buffer, first: int, count: int) -> int:
    """Copy blake3 (and FLAG_HASHED) of grafted rows first..first+count back to rows start.. that they came from.

    Returns how many rows had another hash, or none, before.
    """

def count_same(records: _Buffer, heap: _Buffer, old_records: _Buffer, old_heap: _Buffer, limit_bytes: int) -> int:
    """Count the leading rows that make the same bytes of a canonical tar as an earlier table's, up to limit_bytes.

    Rows are the same by their metadata, names, links, xattrs, and content by BLAKE3, which both sides must
    have. Rows whose headers begin at limit_bytes of the old tar or later are not counted, and what follows the last
    row that is has headers of its own. Releases the GIL; linear. Raises ValueError for a broken record.
    """

def take_places(records: bytearray, old_records: _Buffer, count: int) -> None:
    """Give the first count rows header_offset, data_offset and blake3 (with FLAG_HASHED) of the old table's rows."""
