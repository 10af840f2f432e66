from collections.abc import Callable

_Buffer = bytes | bytearray | memoryview

def boundaries(buffer: _Buffer, min_bytes: int, average_bytes: int, max_bytes: int, kernel: str = "auto") -> bytearray:
    """Cut a buffer into content-defined chunks and return the chunk ends as native uint64.

    128 <= min_bytes <= average_bytes <= max_bytes; average_bytes is a power of two, at most 2**22. `kernel` names an
    implementation ("reference" is the slow one); all give the same cuts. Releases the GIL; one pass, whose cost does
    not depend on the content. Golden cut-points hold the result for ever.
    """

def kernels() -> tuple[str, ...]:
    """Name the implementations that run on this machine, fastest first."""

def manifest(
    buffer: _Buffer,
    min_bytes: int,
    average_bytes: int,
    max_bytes: int,
    blake3: Callable[..., object],
    start: int = 0,
) -> bytearray:
    """Cut a buffer and hash each chunk: packed (offset u64, size u32, reserved u32, blake3 32 bytes) records.

    Some chunks are cut, then hashed while they lie in the processor's cache. `start` is added to the offsets.
    """
