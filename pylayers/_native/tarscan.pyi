Buffer = bytes | bytearray | memoryview

class TarFormatError(ValueError):
    """The tar is malformed; `offset` is the byte at which."""

    offset: int

def scan(tar: Buffer, max_entries: int = 10_000_000) -> tuple[bytearray, bytearray]:
    """Read every header of a mapped tar and return (records, heap) in component order.

    ustar, PAX (global and per file, SCHILY.xattr.*, GNU.sparse.* 0.0, 0.1 and 1.0), GNU long names and links,
    base-256 numbers, old GNU sparse, contiguous and v7 headers. Paths are normalised: leading '/' and './',
    doubled and trailing slashes go; a '..' component is a TarFormatError. `.wh.NAME` becomes a WHITEOUT row of NAME,
    `.wh..wh..opq` sets OPAQUE on its directory. Missing parents are added as IMPLICIT directories (mode 0755), the
    root as well. Of several entries of one path the last wins (a later directory keeps its children). Hard-link rows repeat their target's fields.
    Never reads outside the buffer. Releases the GIL.
    """
