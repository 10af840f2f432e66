from collections.abc import Callable

_Buffer = bytes | bytearray | memoryview

CLONE_NEVER: int
DIRECT_NEVER: int
FORGET_NEVER: int
LANES: int  # the most that this machine has; 0: none

class SourceChanged(OSError):
    """A source file's size is not the record's any more; filename names it."""

def write(
    out_fd: int,
    records: bytearray,
    heap: _Buffer,
    sources: _Buffer,
    sha256: Callable[..., object],
    blake3: Callable[..., object],
    align_bytes: int = 4096,
    align_from_bytes: int = 65536,
    direct_from_bytes: int = 9223372036854775807,
    clone_from_bytes: int = 9223372036854775807,
    forget_from_bytes: int = 9223372036854775807,
    first_row: int = 0,
    start_bytes: int = 0,
    lead: bytes = b"",
    lanes: int = 0,
) -> tuple[int, bytes]:
    """Write the canonical tar of a sorted table to out_fd (at its own offsets); return (size_bytes, its sha256 digest).

    sources is one packed source record per row (see store/entry.py: fd i32, kind u32, offset u64, length u64); only
    regular files that are no hard links have one, and `length` counts for SOURCE_PATH alone. SOURCE_PATH opens
    beneath fd and follows no symlink. The format is docs/internals/canonical-tar.md.
    Sets header_offset, data_offset, blake3 and FLAG_HASHED in records (a row already HASHED is not hashed again;
    hard-link rows keep their own header_offset and take their target's data_offset and hash). A SPARSE row, whose
    source must be a SOURCE_RANGE of packed data, is written in full and its record loses FLAG_SPARSE and its map.
    IMPLICIT directories are left out (both offsets 0); WHITEOUT becomes an empty `.wh.NAME`; OPAQUE adds
    `.wh..wh..opq` after its directory. After an error records and out_fd hold no meaning.
    The whole blocks of a file of clone_from_bytes or more, whose data is aligned, are shared with its source where the
    file system can (FICLONERANGE), and not written; the ring still carries them to the hashers. They are read back from
    out_fd when the source's ctime could not tell of a write (younger than a second, or not on btrfs or xfs); otherwise
    from the source, and another ctime afterwards is SourceChanged. out_fd is opened anew through /proc for it.
    From forget_from_bytes of data on (in all that is written), a source of 8 MiB or more of which less than half was in
    the page cache does not stay there: what was read is given back on the way.
    Rows below first_row are laid already: their offsets and hashes are set, they keep them, and their sources are
    neither checked nor opened (a hard link after them may name one). Then the tar is written from start_bytes on, a
    multiple of 4096: first `lead`, the tar's bytes [start_bytes, first_row's headers), less than 4096; what out_fd
    holds before is left alone, and size_bytes is the whole tar's. The hasher that sha256() returns must have taken
    those start_bytes bytes; direct_from_bytes counts what is written. That the rows below do lie there is the caller's
    word: nothing of the tar is read back.
    Every ctime_ns becomes 0. A SOURCE_PATH row's is 0 or its file's when that was walked: a small file that still has
    it is opened, read, looked at once and closed; others are looked at before and after. A changed size is
    SourceChanged, as is an mtime that changes meanwhile.
    With lanes (8 or 16, up to LANES), files that lie in a slot of the ring as a whole are hashed side by side, by
    BLAKE3 itself and without the GIL; blake3 hashes those that span slots and must be the same function.
    Reading, sha256, BLAKE3 and writing overlap on threads of their own, all ended when it returns or raises; each
    source byte is read once; the GIL is released around all but the hashers' calls. Memory: a ring of 16 MiB.
    Write-back is started early but not waited for: the caller's fsync makes it durable.
    Raises SourceChanged, OSError (filename is the bytes of the source's path, or the row's; none for out_fd), and
    ValueError, before the first byte is written, for a table that cannot be a tar.
    """
