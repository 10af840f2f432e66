# cython: language_level=3
"""Check a layer's table before anything is made from it (inline-only)."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy

from entry cimport FLAG_HARDLINK, FLAG_SPARSE, FLAG_WHITEOUT, compare_path, entry_t
from fileat cimport S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK

cdef struct table_t:
    const entry_t* rows
    Py_ssize_t count
    const uint8_t* heap
    uint64_t heap_bytes
    uint64_t tar_bytes

cdef inline bint inside(uint64_t offset, uint64_t length, uint64_t whole) noexcept nogil:
    return offset <= whole and length <= whole - offset

cdef inline bint is_path(const uint8_t* path, size_t length) noexcept nogil:
    """Tell whether a path is relative, normalised and without '.' and '..'; the empty path is the root."""
    cdef size_t start = 0, end = 0
    if length == 0:
        return True
    if memchr(path, 0, length) != NULL:
        return False
    while True:
        while end < length and path[end] != c'/':
            end += 1
        if end == start or (path[start] == c'.' and (
            end - start == 1 or (end - start == 2 and path[start + 1] == c'.')
        )):
            return False
        if end == length:
            return True
        end += 1
        start = end

cdef inline bint is_xattr_list(const uint8_t* encoded, uint32_t length) noexcept nogil:
    cdef uint32_t at = 0, value_length
    cdef uint16_t name_length
    while at < length:
        if length - at < 6:
            return False
        memcpy(&name_length, encoded + at, 2)
        memcpy(&value_length, encoded + at + 2, 4)
        at += 6
        if name_length == 0 or name_length > length - at or value_length > length - at - name_length:
            return False
        if memchr(encoded + at, 0, name_length) != NULL:
            return False
        at += name_length + value_length
    return True

cdef inline const char* check_data(const table_t* table, const entry_t* row) noexcept nogil:
    """Name what is wrong with a regular file's data, or give NULL."""
    cdef const uint8_t* ranges = table.heap + row.link_offset
    cdef uint64_t range_offset, range_length, end = 0, packed = 0
    cdef uint32_t at = 0
    if row.size_bytes > <uint64_t>0x7FFFFFFFFFFFFFFF:
        return b"the size is out of range"
    if not row.flags & FLAG_SPARSE:
        if not inside(row.data_offset, row.size_bytes, table.tar_bytes):
            return b"the data is outside the tar"
        return NULL
    if row.link_length % 16:
        return b"the sparse map has a broken length"
    while at < row.link_length:
        memcpy(&range_offset, ranges + at, 8)
        memcpy(&range_length, ranges + at + 8, 8)
        if range_offset < end or not inside(range_offset, range_length, row.size_bytes):
            return b"the sparse map is out of order or beyond the size"
        end = range_offset + range_length
        packed += range_length  # never more than size_bytes: the ranges don't overlap
        at += 16
    if not inside(row.data_offset, packed, table.tar_bytes):
        return b"the data is outside the tar"
    return NULL

cdef inline const char* check_row(const table_t* table, Py_ssize_t index) noexcept nogil:
    """Name what is wrong with a row, or give NULL."""
    cdef const entry_t* row = &table.rows[index]
    cdef const entry_t* before
    cdef const uint8_t* path = table.heap + row.path_offset
    cdef uint32_t kind = row.mode & S_IFMT
    if not (inside(row.path_offset, row.path_length, table.heap_bytes)
            and inside(row.link_offset, row.link_length, table.heap_bytes)
            and inside(row.xattr_offset, row.xattr_length, table.heap_bytes)):
        return b"an offset is outside the heap"
    if not is_path(path, row.path_length):
        return b"the path is not a normalised relative path"
    if index:
        before = &table.rows[index - 1]
        if compare_path(table.heap + before.path_offset, before.path_length, path, row.path_length) >= 0:
            return b"the rows are not in component order"
    if row.flags & FLAG_WHITEOUT:
        if not row.path_length:
            return b"the root is a whiteout"
        return NULL
    if row.path_length == 0 and kind != S_IFDIR:
        return b"the root is not a directory"
    if row.uid == <uint32_t>0xFFFFFFFF or row.gid == <uint32_t>0xFFFFFFFF:
        return b"an owner of -1"
    if row.flags & FLAG_HARDLINK:
        if kind == S_IFDIR or not row.link_length or not is_path(table.heap + row.link_offset, row.link_length):
            return b"the hard link has no proper target"
        if compare_path(table.heap + row.link_offset, row.link_length, path, row.path_length) >= 0:
            return b"the hard link comes before its target"
        return NULL
    if not is_xattr_list(table.heap + row.xattr_offset, row.xattr_length):
        return b"the xattr list is broken"
    if kind == S_IFREG:
        return check_data(table, row)
    if kind == S_IFLNK:
        if not row.link_length or memchr(table.heap + row.link_offset, 0, row.link_length) != NULL:
            return b"the symlink has no proper target"
        return NULL
    if kind in (S_IFDIR, S_IFCHR, S_IFBLK, S_IFIFO, S_IFSOCK):
        return NULL
    return b"the file type is unknown"

cdef inline Py_ssize_t check_table(const table_t* table, const char** wrong) noexcept nogil:
    """Check every row; give the index of the first bad one and what is wrong with it, or -1."""
    cdef Py_ssize_t index
    for index in range(table.count):
        wrong[0] = check_row(table, index)
        if wrong[0] != NULL:
            return index
    return -1

cdef inline const uint8_t* find_xattr(
    const uint8_t* encoded, uint32_t length, const char* name, size_t name_length
) noexcept nogil:
    """Find a name in a checked xattr list, or give NULL."""
    cdef uint32_t at = 0, value_bytes
    cdef uint16_t name_bytes
    while at < length:
        memcpy(&name_bytes, encoded + at, 2)
        memcpy(&value_bytes, encoded + at + 2, 4)
        if name_bytes == name_length and memcmp(encoded + at + 6, name, name_length) == 0:
            return encoded + at
        at += 6 + name_bytes + value_bytes
    return NULL
