from collections.abc import Callable
from typing import Self, final

_Buffer = bytes | bytearray | memoryview

@final
class TableFeed:
    """Make a tar's entry table, every file's BLAKE3 in it, while the tar passes in pieces of any length.

    What comes out is what tarscan.scan makes of the whole, with blake3 and HASHED set of every regular file and hard
    link to one. It declines (finish() gives None) where that is not certain: malformed tars, sparse files and global
    PAX headers, which need bytes that have passed, more than 4 MiB of headers for one entry. Ask tarscan then.
    Memory: the table as it grows, the headers of at most one entry, 40 bytes for each file in a piece.
    blake3 is the constructor from the blake3 package. Headers are read without the GIL, and others get it between
    hashes. One object belongs to one thread at a time.
    """

    def __new__(cls, blake3: Callable[..., object], max_entries: int = 10_000_000) -> Self: ...
    def take(self, piece: _Buffer) -> bool:
        """Take in the tar's next bytes, which are not kept; False: it has declined, further pieces are of no use."""

    def finish(self) -> tuple[bytearray, bytearray] | None:
        """Return (records, heap) of the tar that has passed, or None. Once only: ValueError afterwards."""
