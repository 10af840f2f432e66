# cython: language_level=3
"""Notice a tar that lists its entries as a table does, so that nothing is left to resolve (inline-only).

Such a tar has every path once, in component order, each below directories that it lists before (but for the root, which
may be missing), and neither hard links nor whiteouts. Canonical tars without hard links are like that.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memchr, memcpy, memset

from entry cimport FLAG_HARDLINK, FLAG_OPAQUE, FLAG_WHITEOUT, entry_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <sys/mman.h>
    /* Ask for large pages in a block that is about to be written: a fault for 2 MiB instead of one for 4 KiB. */
    static inline void advise_large(void *block, size_t size) {
        const uintptr_t large = (uintptr_t)2 << 20;
        uintptr_t from = ((uintptr_t)block + large - 1) & ~(large - 1), to = ((uintptr_t)block + size) & ~(large - 1);
        if (from < to) (void)madvise((void *)from, to - from, MADV_HUGEPAGE);  /* where refused, nothing is lost */
    }
    """
    void advise_large(void* block, size_t size) noexcept nogil
    int __builtin_ctzll(unsigned long long value) noexcept nogil

cdef struct listing_t:
    void* table      # the bytearray that holds the rows; NULL: they are malloc's, with no place before them
    entry_t* rows    # in tar order; one place, for the root, lies before them
    size_t count
    size_t room
    bint ordered     # so far
    bint plain       # no name of the last entry's path starts with a dot

cdef inline void fill_folder(entry_t* row, uint32_t flags) noexcept nogil:
    """Write the row of a directory that has no entry of its own."""
    memset(row, 0, sizeof(entry_t))
    row.mode = 0o040755
    row.nlink = 1
    row.flags = flags

cdef inline size_t count_shared(const uint8_t* a, const uint8_t* b, size_t length) noexcept nogil:
    """Count the equal bytes at the start."""
    cdef size_t at = 0
    cdef uint64_t x, y
    while at + 8 <= length:
        memcpy(&x, a + at, 8)
        memcpy(&y, b + at, 8)
        if x != y:
            return at + (__builtin_ctzll(x ^ y) >> 3)
        at += 8
    while at < length and a[at] == b[at]:
        at += 1
    return at

cdef inline bint follows(const uint8_t* heap, const entry_t* before, const entry_t* row) noexcept nogil:
    """Tell whether a row comes after `before` (NULL: the root) in component order, in a directory that was listed."""
    cdef const uint8_t* path = heap + row.path_offset
    cdef const uint8_t* last
    cdef size_t shared = 0
    cdef size_t length = row.path_length
    if row.flags & (FLAG_HARDLINK | FLAG_WHITEOUT | FLAG_OPAQUE):
        return False
    if before != NULL:
        last = heap + before.path_offset
        shared = count_shared(last, path, length if length < before.path_length else before.path_length)
        if shared < before.path_length:
            # '/' is the smallest byte: after it, path goes on beside a directory above `before` or `before` itself
            if shared == length or path[shared] == 47 or (last[shared] != 47 and last[shared] > path[shared]):
                return False
        elif shared < length and path[shared] == 47:
            if before.mode & 0o170000 != 0o040000:
                return False
            shared += 1
    # whatever is above the last name is shared with `before`, so it was listed
    return shared < length and memchr(path + shared, 47, length - shared) == NULL
