# cython: language_level=3
"""Check that a table can be a tar before the first byte is written (inline-only)."""
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy

from entry cimport (
    FLAG_HARDLINK, FLAG_HASHED, FLAG_IMPLICIT, FLAG_OPAQUE, FLAG_SPARSE, FLAG_WHITEOUT, compare_path, entry_t,
)
from tarheader cimport PAX_LIMIT, SMALL_LIMIT

cdef extern from "<sys/stat.h>" nogil:
    int S_IFMT, S_IFREG, S_IFDIR, S_IFLNK, S_IFCHR, S_IFBLK, S_IFIFO, S_IFSOCK

cdef enum:
    SOURCE_NONE = 0
    SOURCE_PATH = 1
    SOURCE_RANGE = 2
    SOURCE_HEAP = 3
    HEADER_SLACK = 2048       # every PAX key and number, and rounding to blocks

cdef packed struct source_t:
    int32_t fd
    uint32_t kind
    uint64_t offset
    uint64_t length

cdef struct table_t:
    entry_t* records
    const source_t* sources
    uint64_t count
    uint64_t first_row        # rows below it lie in the tar already: their sources and sizes are not looked at
    const uint8_t* heap
    uint64_t heap_length
    uint64_t align_bytes
    uint64_t align_from_bytes

cdef inline bint is_data(const entry_t* record) noexcept nogil:
    """Tell whether the row is a regular file whose data the tar holds."""
    return not (record.flags & (FLAG_HARDLINK | FLAG_WHITEOUT)) and (record.mode & S_IFMT) == S_IFREG

cdef inline bint in_heap(const table_t* table, uint64_t offset, uint64_t length) noexcept nogil:
    return offset <= table.heap_length and length <= table.heap_length - offset

cdef inline bint is_relative(const uint8_t* path, size_t length, bint marks) noexcept nogil:
    """Tell whether path is names joined by single slashes: no NUL, '.', '..', nor (unless marks) a '.wh.' name."""
    cdef size_t start = 0, end, size
    if length == 0 or memchr(path, 0, length) != NULL:
        return False
    while True:
        end = start
        while end < length and path[end] != 47:
            end += 1
        size = end - start
        if size == 0 or (path[start] == 46 and (size == 1 or (size == 2 and path[start + 1] == 46))):
            return False
        if not marks and size >= 4 and memcmp(path + start, b".wh.", 4) == 0:
            return False
        if end == length:
            return True
        start = end + 1

cdef inline uint64_t find_target(const table_t* table, uint64_t row) noexcept nogil:
    """Return the row that a hard-link row names, or the row itself when there is none before it."""
    cdef const entry_t* record = &table.records[row]
    cdef const uint8_t* link = table.heap + record.link_offset
    cdef const entry_t* other
    cdef uint64_t low = 0, high = row, middle
    cdef int order
    while low < high:
        middle = low + (high - low) // 2
        other = &table.records[middle]
        order = compare_path(table.heap + other.path_offset, other.path_length, link, record.link_length)
        if order == 0:
            return middle
        if order < 0:
            low = middle + 1
        else:
            high = middle
    return row

cdef inline void finish_rows(table_t* table) noexcept nogil:
    """Give each hard-link row that was written its target's data offset and hash, and none a ctime: tars have none."""
    cdef uint64_t row
    cdef entry_t* record
    cdef const entry_t* target
    for row in range(table.first_row, table.count):
        record = &table.records[row]
        record.ctime_ns = 0
        if record.flags & FLAG_WHITEOUT or not record.flags & FLAG_HARDLINK:
            continue
        target = &table.records[find_target(table, row)]
        record.data_offset = target.data_offset
        record.flags &= ~<uint32_t>(FLAG_HASHED | FLAG_SPARSE)
        record.flags |= target.flags & FLAG_HASHED
        memcpy(record.blake3, target.blake3, 32)

cdef inline const char* find_xattr_fault(const table_t* table, const entry_t* record) noexcept nogil:
    """Check the xattr encoding, and that everything PAX may have to say of the entry fits one PAX header."""
    cdef const uint8_t* at
    cdef const uint8_t* end
    cdef const uint8_t* last = NULL
    cdef uint16_t name_length, last_length = 0
    cdef uint32_t value_length
    cdef uint64_t text = <uint64_t>record.path_length + HEADER_SLACK
    cdef int order
    if not in_heap(table, record.xattr_offset, record.xattr_length):
        return b"its xattrs lie outside the heap"
    if record.flags & FLAG_HARDLINK or (record.mode & S_IFMT) == S_IFLNK:
        text += record.link_length
    at = table.heap + record.xattr_offset
    end = at + record.xattr_length
    while at < end:
        if end - at < 6:
            return b"its xattr encoding is cut short"
        memcpy(&name_length, at, 2)
        memcpy(&value_length, at + 2, 4)
        at += 6
        if <uint64_t>(end - at) < <uint64_t>name_length + value_length:
            return b"its xattr encoding is cut short"
        if name_length == 0 or memchr(at, 61, name_length) != NULL or memchr(at, 0, name_length) != NULL:
            return b"an xattr name is empty or holds '=' or NUL, which PAX cannot say"
        if last != NULL:
            order = memcmp(last, at, last_length if last_length < name_length else name_length)
            if order > 0 or (order == 0 and last_length >= name_length):
                return b"its xattrs are not sorted by name"
        last = at
        last_length = name_length
        text += <uint64_t>name_length + value_length + 26
        at += name_length + value_length
    if text + table.align_bytes > PAX_LIMIT:
        return b"its path, link and xattrs are larger than a PAX header may be"
    return NULL

cdef inline const char* find_sparse_fault(const table_t* table, const entry_t* record) noexcept nogil:
    cdef uint64_t pair[2]
    cdef uint64_t at = 0
    cdef uint32_t index
    if not in_heap(table, record.link_offset, record.link_length) or record.link_length % 16:
        return b"its sparse map is cut short or outside the heap"
    for index in range(record.link_length // 16):
        memcpy(pair, table.heap + record.link_offset + index * <uint64_t>16, 16)
        if pair[0] < at or pair[0] > record.size_bytes or pair[1] > record.size_bytes - pair[0]:
            return b"its sparse map overlaps itself or leaves the file"
        at = pair[0] + pair[1]
    return NULL

cdef inline const char* find_data_fault(const table_t* table, uint64_t row) noexcept nogil:
    cdef const entry_t* record = &table.records[row]
    cdef const source_t* source = &table.sources[row]
    if record.size_bytes >> 60:
        return b"its size is absurd"
    if record.flags & FLAG_SPARSE:
        if source.kind != SOURCE_RANGE:
            return b"a sparse row needs a source range of packed data"
        if find_sparse_fault(table, record) != NULL:
            return find_sparse_fault(table, record)
    if source.kind == SOURCE_PATH:
        if not in_heap(table, source.offset, source.length):
            return b"its source path lies outside the heap"
        if not is_relative(table.heap + source.offset, source.length, True):
            return b"its source path is not a plain relative path"
    elif source.kind == SOURCE_HEAP:
        if not in_heap(table, source.offset, record.size_bytes):
            return b"its source data lies outside the heap"
    elif source.kind == SOURCE_RANGE:
        if source.offset >> 62:
            return b"its source range is absurd"
    elif source.kind != SOURCE_NONE or record.size_bytes:
        return b"a regular file has no source"
    return NULL

cdef inline const char* find_link_fault(const table_t* table, uint64_t row) noexcept nogil:
    cdef const entry_t* record = &table.records[row]
    cdef const entry_t* target
    cdef uint64_t found
    if record.flags & FLAG_HARDLINK:
        found = find_target(table, row)
        target = &table.records[found]
        if found == row or target.flags & (FLAG_HARDLINK | FLAG_WHITEOUT) or (target.mode & S_IFMT) == S_IFDIR:
            return b"its hard-link target is not a file before it in the table"
    elif record.link_length == 0 or memchr(table.heap + record.link_offset, 0, record.link_length) != NULL:
        return b"its symlink target is empty or holds NUL"
    return NULL

cdef inline const char* find_fault(const table_t* table, uint64_t row) noexcept nogil:
    """Say why this row cannot be in a tar, or NULL. Rows before it have been checked; its path is in the heap."""
    cdef const entry_t* record = &table.records[row]
    cdef const uint8_t* path = table.heap + record.path_offset
    cdef const entry_t* previous
    cdef int kind = record.mode & S_IFMT
    if record.path_length == 0:
        if row or kind != S_IFDIR or record.flags & (FLAG_WHITEOUT | FLAG_HARDLINK):
            return b"the empty path is the root directory, first in the table"
    elif not is_relative(path, record.path_length, False):
        return b"its path is not plain and relative, or looks like a whiteout (.wh.)"
    if row:
        previous = &table.records[row - 1]
        if compare_path(table.heap + previous.path_offset, previous.path_length, path, record.path_length) >= 0:
            return b"the table is not sorted, or a path is in it twice"
    if record.flags & FLAG_WHITEOUT:
        if <uint64_t>record.path_length + HEADER_SLACK > PAX_LIMIT:
            return b"its path is larger than a PAX header may be"
        return NULL
    if record.flags & FLAG_HARDLINK or kind == S_IFLNK:
        if not in_heap(table, record.link_offset, record.link_length):
            return b"its link lies outside the heap"
        if find_link_fault(table, row) != NULL:
            return find_link_fault(table, row)
    if record.flags & (FLAG_OPAQUE | FLAG_IMPLICIT) and (kind != S_IFDIR or record.flags & FLAG_HARDLINK):
        return b"only a directory can be opaque or implicit"
    if kind == S_IFSOCK:
        return b"a socket cannot be in a tar"
    if kind == S_IFCHR or kind == S_IFBLK:
        if record.rdev_major > SMALL_LIMIT or record.rdev_minor > SMALL_LIMIT:
            return b"its device number is larger than ustar can say"
    elif kind == S_IFREG:
        if row >= table.first_row and is_data(record) and find_data_fault(table, row) != NULL:
            return find_data_fault(table, row)
    elif kind != S_IFDIR and kind != S_IFLNK and kind != S_IFIFO:
        return b"its file type is unknown"
    return find_xattr_fault(table, record)
