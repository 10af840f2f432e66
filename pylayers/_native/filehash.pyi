from collections.abc import Callable

_Buffer = bytes | bytearray | memoryview

def hash_files(
    root_fd: int, records: bytearray, heap: _Buffer, indexes: _Buffer, blake3: Callable[..., object]
) -> None:
    """Hash the regular files among the rows named by indexes (native uint32) and set blake3 and FLAG_HASHED.

    Opens each path beneath root_fd without following symlinks. blake3 is the constructor from the blake3 package.
    A file whose size is no longer the record's raises OSError(ESTALE) with its filename. Reading releases the GIL;
    memory is bounded (small files are batched, large ones streamed). Hard-link rows are hashed too.
    """
