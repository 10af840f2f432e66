# cython: language_level=3
"""A borrowed entry table: checks and lookups (inline-only).

Tables come from mapped files, so nothing in them is believed: every row a loop reads has passed check_row.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from entry cimport FLAG_HARDLINK, FLAG_WHITEOUT, entry_t
from pathsort cimport compare_bytes, is_below

cdef enum:
    TYPE_BITS = 0o170000
    TYPE_DIRECTORY = 0o040000
    TYPE_FILE = 0o100000
    TYPE_SYMLINK = 0o120000
    TYPE_CHARACTER = 0o020000
    TYPE_BLOCK = 0o060000

cdef enum:
    NO_ROW = 0xFFFFFFFF

cdef struct table_t:
    const entry_t* rows
    size_t count
    const uint8_t* heap
    uint64_t heap_length

cdef struct refusal_t:      # why a table was refused; reason NULL and -1 returned: out of memory
    const char* reason
    size_t row
    size_t layer

cdef inline int refuse(refusal_t* refusal, const char* reason, size_t row) noexcept nogil:
    refusal.reason = reason
    refusal.row = row
    return -1

cdef inline bint is_within(const table_t* table, uint64_t offset, uint32_t length) noexcept nogil:
    return length <= table.heap_length and offset <= table.heap_length - length

cdef inline const uint8_t* path_of(const table_t* table, const entry_t* row) noexcept nogil:
    return table.heap + row.path_offset

cdef inline bint is_folder(const entry_t* row) noexcept nogil:
    return row.mode & TYPE_BITS == TYPE_DIRECTORY

cdef inline int compare_rows(
    const table_t* a, const entry_t* left, const table_t* b, const entry_t* right
) noexcept nogil:
    """Order two rows by path."""
    return compare_bytes(path_of(a, left), left.path_length, path_of(b, right), right.path_length)

cdef inline int check_row(const table_t* table, const entry_t* row) noexcept nogil:
    """Tell whether everything the row points to lies in the heap."""
    return (is_within(table, row.path_offset, row.path_length)
            and (row.link_length == 0 or is_within(table, row.link_offset, row.link_length))
            and (row.xattr_length == 0 or is_within(table, row.xattr_offset, row.xattr_length)))

cdef inline int check_table(const table_t* table, refusal_t* refusal) noexcept nogil:
    """Check all rows: heap bounds, strictly ascending paths, nothing below what is no directory."""
    cdef size_t at
    cdef const entry_t* before
    cdef const entry_t* row
    if table.count >= NO_ROW:
        return refuse(refusal, b"too many rows", 0)
    for at in range(table.count):
        row = &table.rows[at]
        if not check_row(table, row):
            return refuse(refusal, b"points outside the heap", at)
        if at == 0:
            continue
        before = row - 1
        if compare_rows(table, before, table, row) >= 0:
            return refuse(refusal, b"is not after the row before it in component order", at)
        # what lies below a row follows it at once, so looking one row back finds every misplaced subtree
        if (before.flags & FLAG_WHITEOUT or not is_folder(before)) and is_below(
                path_of(table, row), row.path_length, path_of(table, before), before.path_length):
            return refuse(refusal, b"lies below a row that is no directory", at)
    if table.count and table.rows[0].path_length == 0 and (
            table.rows[0].flags & FLAG_WHITEOUT or not is_folder(&table.rows[0])):
        return refuse(refusal, b"is the root but no directory", 0)
    return 0

cdef inline size_t find_row(const table_t* table, const uint8_t* path, size_t length, bint* broken) noexcept nogil:
    """Binary search for a path; NO_ROW when absent, broken when a row points outside the heap."""
    cdef size_t low = 0
    cdef size_t high = table.count
    cdef size_t middle
    cdef const entry_t* row
    cdef int order
    while low < high:
        middle = (low + high) // 2
        row = &table.rows[middle]
        if not is_within(table, row.path_offset, row.path_length):
            broken[0] = True
            return NO_ROW
        order = compare_bytes(path_of(table, row), row.path_length, path, length)
        if order == 0:
            return middle
        if order < 0:
            low = middle + 1
        else:
            high = middle
    return NO_ROW

cdef inline size_t find_file(const table_t* table, size_t at, refusal_t* refusal) noexcept nogil:
    """Give the row that holds the inode of row `at` (itself, or what its hard link names); NO_ROW refuses."""
    cdef const entry_t* row = &table.rows[at]
    cdef size_t found
    cdef bint broken = False
    if not row.flags & FLAG_HARDLINK:
        return at
    if row.link_length == 0:
        refuse(refusal, b"is a hard link without a target", at)
        return NO_ROW
    found = find_row(table, table.heap + row.link_offset, row.link_length, &broken)
    if (found == NO_ROW or found >= at or table.rows[found].flags & FLAG_HARDLINK or is_folder(&table.rows[found])
            or (table.rows[found].mode ^ row.mode) & TYPE_BITS):
        refuse(refusal, b"is a hard link, but names no earlier row with a file of its type", at)
        return NO_ROW
    return found

cdef inline size_t end_of_tree(const table_t* table, size_t top, bint* broken) noexcept nogil:
    """Find the end of the run of rows at and below top: by strides that double, then by halves."""
    cdef const entry_t* root = &table.rows[top]
    cdef const entry_t* row
    cdef size_t low = top + 1      # everything before is below top
    cdef size_t high = table.count  # from here on nothing is
    cdef size_t stride = 1
    cdef size_t at
    while low < high:
        at = low + stride - 1
        if at >= high:
            at = (low + high) // 2
            stride = 1
        row = &table.rows[at]
        if not is_within(table, row.path_offset, row.path_length):
            broken[0] = True
            return top + 1
        if is_below(path_of(table, row), row.path_length, path_of(table, root), root.path_length):
            low = at + 1
            stride *= 2
        else:
            high = at
            stride = 1
    return low
