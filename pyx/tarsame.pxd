# cython: language_level=3
"""Find how many leading rows of two tables stand for the same bytes of a canonical tar (inline-only)."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from entry cimport FLAG_HARDLINK, FLAG_HASHED, FLAG_IMPLICIT, FLAG_WHITEOUT, entry_t

cdef enum:
    TYPE_BITS = 0o170000
    TYPE_FILE = 0o100000

cdef struct side_t:
    const entry_t* rows
    const uint8_t* heap
    size_t count
    uint64_t heap_size

cdef inline bint same_field(
    const side_t* a, uint64_t a_offset, uint32_t a_length, const side_t* b, uint64_t b_offset, uint32_t b_length
) noexcept nogil:
    """Compare a heap field of both sides; one that lies outside its heap equals nothing."""
    if a_length != b_length:
        return False
    if a_offset > a.heap_size or a_length > a.heap_size - a_offset:
        return False
    if b_offset > b.heap_size or b_length > b.heap_size - b_offset:
        return False
    return a_length == 0 or memcmp(a.heap + a_offset, b.heap + b_offset, a_length) == 0

cdef inline bint has_content(const entry_t* row) noexcept nogil:
    return (row.mode & TYPE_BITS) == TYPE_FILE and not row.flags & (FLAG_HARDLINK | FLAG_WHITEOUT) and row.size_bytes

cdef inline bint same_row(const side_t* a, const side_t* b, size_t at) noexcept nogil:
    """Tell whether a row is the same in all that its headers, its data and its index record are made of."""
    cdef const entry_t* x = &a.rows[at]
    cdef const entry_t* y = &b.rows[at]
    if (
        (x.flags ^ y.flags) & ~<uint32_t> FLAG_HASHED or x.mode != y.mode or x.uid != y.uid or x.gid != y.gid
        or x.mtime_ns != y.mtime_ns or x.size_bytes != y.size_bytes
        or x.rdev_major != y.rdev_major or x.rdev_minor != y.rdev_minor
    ):
        return False
    if has_content(x) and not (x.flags & y.flags & FLAG_HASHED and memcmp(x.blake3, y.blake3, 32) == 0):
        return False
    return (
        same_field(a, x.path_offset, x.path_length, b, y.path_offset, y.path_length)
        and same_field(a, x.link_offset, x.link_length, b, y.link_offset, y.link_length)
        and same_field(a, x.xattr_offset, x.xattr_length, b, y.xattr_offset, y.xattr_length)
    )

cdef inline size_t count_same_rows(const side_t* fresh, const side_t* old, uint64_t limit_bytes) noexcept nogil:
    """Count the leading rows that are the same and whose headers begin below limit_bytes of the old tar.

    What follows the last of them begins with headers of its own, so that it can be told where.
    """
    cdef size_t count = 0
    cdef size_t most = min(fresh.count, old.count)
    while count < most and old.rows[count].header_offset < limit_bytes and same_row(fresh, old, count):
        count += 1
    while count and count < old.count and old.rows[count].flags & FLAG_IMPLICIT:
        count -= 1
    return count

cdef inline void take_place(entry_t* row, const entry_t* old) noexcept nogil:
    """Give a row the place in the tar, and the hash, of the same row of an earlier tar."""
    row.header_offset = old.header_offset
    row.data_offset = old.data_offset
    row.ctime_ns = 0   # the record describes an entry of the tar, which has none
    if old.flags & FLAG_HASHED:
        row.flags |= FLAG_HASHED
        memcpy(row.blake3, old.blake3, 32)
