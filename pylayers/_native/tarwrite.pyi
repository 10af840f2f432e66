from collections.abc import Callable

Buffer = bytes | bytearray | memoryview

class SourceChanged(OSError):
    """A source file's size is not the record's any more; filename names it."""

def write(
    out_fd: int,
    records: bytearray,
    heap: Buffer,
    sources: Buffer,
    sha256: Callable[..., object],
    blake3: Callable[..., object],
    align_bytes: int = 4096,
    align_from_bytes: int = 65536,
) -> tuple[int, bytes]:
    """Write the canonical tar of a sorted table to out_fd and return (size_bytes, sha256 digest of the tar).

    sources is one packed source record per row (see store/entry.py: fd i32, kind u32, offset u64, length u64).
    Reading, sha256, BLAKE3 and writing overlap on threads of their own; each source byte is read once.
    Sets header_offset, data_offset, blake3 and FLAG_HASHED in records (a row already HASHED is not hashed again;
    hard-link rows take their target's offsets and hash). Rows: IMPLICIT directories are left out; WHITEOUT becomes
    an empty `.wh.NAME`; OPAQUE adds `.wh..wh..opq` after its directory. Memory is bounded by a fixed ring.
    Raises SourceChanged, OSError (with filename), ValueError for a table that cannot be a tar.
    """
