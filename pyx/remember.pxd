# cython: language_level=3
"""Compare walked tables with remembered ones (inline-only); the tables' spans are checked by table_ok first."""
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcmp, memcpy

from entry cimport FLAG_HASHED, compare_path, entry_t

cdef extern from "<sys/stat.h>":
    enum:
        S_IFMT
        S_IFREG

cdef inline bint table_ok(const uint8_t[::1] records, const uint8_t[::1] heap) noexcept nogil:
    """Tell whether the records are whole and every path, link and xattr lies inside the heap."""
    cdef const entry_t* row = <const entry_t*>&records[0]
    cdef size_t count = <size_t>records.shape[0] // sizeof(entry_t)
    cdef size_t size = <size_t>heap.shape[0], _
    if <size_t>records.shape[0] != count * sizeof(entry_t):
        return False
    for _ in range(count):
        if (
            row.path_offset > size or size - row.path_offset < row.path_length
            or row.link_offset > size or size - row.link_offset < row.link_length
            or row.xattr_offset > size or size - row.xattr_offset < row.xattr_length
        ):
            return False
        row += 1
    return True

cdef inline bint stat_same(const entry_t* row, const entry_t* known, int64_t trusted_before_ns) noexcept nogil:
    """Tell whether two records hold one stat that is not racy (git's rule)."""
    return (
        row.mtime_ns < trusted_before_ns and row.ctime_ns < trusted_before_ns
        and row.size_bytes == known.size_bytes and row.mtime_ns == known.mtime_ns and row.ctime_ns == known.ctime_ns
        and row.inode == known.inode and row.device == known.device
        and row.mode == known.mode and row.uid == known.uid and row.gid == known.gid
    )

cdef inline bint tables_same(
    const entry_t* row, const char* heap, const entry_t* known, const char* known_heap, size_t count,
    int64_t trusted_before_ns,
) noexcept nogil:
    """Compare two tables of `count` rows; what is not compared is listed at walk.same."""
    cdef size_t _
    for _ in range(count):
        if (
            not stat_same(row, known, trusted_before_ns)
            or row.path_length != known.path_length or row.link_length != known.link_length
            or row.rdev_major != known.rdev_major or row.rdev_minor != known.rdev_minor or row.nlink != known.nlink
            or (row.flags ^ known.flags) & ~<uint32_t>FLAG_HASHED
            or memcmp(heap + row.path_offset, known_heap + known.path_offset, row.path_length) != 0
            or memcmp(heap + row.link_offset, known_heap + known.link_offset, row.link_length) != 0
        ):
            return False
        row += 1
        known += 1
    return True

cdef inline size_t match_rows(
    const uint8_t[::1] records, const uint8_t[::1] heap, const uint8_t[::1] known_records,
    const uint8_t[::1] known_heap, int64_t trusted_before_ns, const entry_t** matches, size_t* xattr_bytes,
) noexcept nogil:
    """Merge-join two tables: matches[i] becomes the known record of row i or NULL; the number of NULLs."""
    cdef const entry_t* row = <const entry_t*>&records[0]
    cdef const entry_t* known = <const entry_t*>&known_records[0]
    cdef const entry_t* known_end = known + <size_t>known_records.shape[0] // sizeof(entry_t)
    cdef size_t count = <size_t>records.shape[0] // sizeof(entry_t), index, missing = 0
    cdef int order
    xattr_bytes[0] = 0
    for index in range(count):
        matches[index] = NULL
        order = 1
        while known < known_end:
            order = compare_path(
                &known_heap[0] + known.path_offset, known.path_length, &heap[0] + row.path_offset, row.path_length
            )
            if order >= 0:
                break
            known += 1
        if (
            known < known_end and order == 0 and stat_same(row, known, trusted_before_ns)
            and (known.flags & FLAG_HASHED or known.mode & S_IFMT != S_IFREG)
        ):
            matches[index] = known
            xattr_bytes[0] += known.xattr_length
        else:
            missing += 1
        row += 1
    return missing

cdef inline void copy_known(
    uint8_t[::1] records, uint8_t* heap, size_t at, const uint8_t[::1] known_heap, const entry_t** matches,
    uint32_t* missing,
) noexcept nogil:
    """Fill the matched rows from their known ones, their xattrs from heap offset `at`, and list the others."""
    cdef entry_t* row = <entry_t*>&records[0]
    cdef size_t index
    for index in range(<size_t>records.shape[0] // sizeof(entry_t)):
        if matches[index] == NULL:
            missing[0] = <uint32_t>index
            missing += 1
        else:
            row.flags |= matches[index].flags & FLAG_HASHED
            memcpy(row.blake3, matches[index].blake3, 32)
            row.xattr_offset = at
            row.xattr_length = matches[index].xattr_length
            if row.xattr_length:
                memcpy(heap + at, &known_heap[0] + matches[index].xattr_offset, row.xattr_length)
                at += row.xattr_length
        row += 1
