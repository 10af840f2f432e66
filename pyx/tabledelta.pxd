# cython: language_level=3
"""Compare two merged tables row by row (inline-only): a linear merge join."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp

from entry cimport FLAG_HARDLINK, FLAG_HASHED, FLAG_OPAQUE, FLAG_WHITEOUT, entry_t
from growable cimport append, growable_t
from pathsort cimport is_below
from rowtable cimport (
    NO_ROW, TYPE_BITS, TYPE_BLOCK, TYPE_CHARACTER, TYPE_FILE, TYPE_SYMLINK, check_table, compare_rows, find_file,
    is_folder, path_of, refusal_t, table_t,
)

cdef enum:
    CHANGE_ADD = 0
    CHANGE_MODIFY = 1
    CHANGE_DELETE = 2

cdef struct delta_t:
    table_t old_table
    table_t new_table
    bint times
    growable_t changes       # u32 kind, old row, new row
    refusal_t refusal        # layer: 0 the old table, 1 the new one

cdef inline int put_change(delta_t* d, uint32_t kind, size_t old_row, size_t new_row) noexcept nogil:
    cdef uint32_t change[3]
    change[0] = kind
    change[1] = <uint32_t> old_row
    change[2] = <uint32_t> new_row
    return append(&d.changes, change, 12)

cdef inline bint same_bytes(
    const delta_t* d, uint64_t old_offset, uint32_t old_length, uint64_t new_offset, uint32_t new_length
) noexcept nogil:
    """Compare a heap field of both tables."""
    if old_length != new_length:
        return False
    return old_length == 0 or memcmp(
        d.old_table.heap + old_offset, d.new_table.heap + new_offset, old_length) == 0

cdef inline bint same_content(const delta_t* d, const entry_t* a, const entry_t* b) noexcept nogil:
    """Compare two inodes of one type: data by BLAKE3 where both have it, otherwise by mtime."""
    cdef uint32_t kind = a.mode & TYPE_BITS
    if kind == TYPE_FILE:
        if a.size_bytes != b.size_bytes:
            return False
        if a.size_bytes == 0:
            return True
        if a.flags & b.flags & FLAG_HASHED:
            return memcmp(a.blake3, b.blake3, 32) == 0
        return a.mtime_ns == b.mtime_ns
    if kind == TYPE_SYMLINK:
        return same_bytes(d, a.link_offset, a.link_length, b.link_offset, b.link_length)
    if kind == TYPE_CHARACTER or kind == TYPE_BLOCK:
        return a.rdev_major == b.rdev_major and a.rdev_minor == b.rdev_minor
    return True

cdef inline int is_same(delta_t* d, size_t old_row, size_t new_row) noexcept nogil:
    """Compare two rows of one path: 1 same, 0 modified, -1 refused."""
    cdef const entry_t* a = &d.old_table.rows[old_row]
    cdef const entry_t* b = &d.new_table.rows[new_row]
    cdef size_t old_file = old_row
    cdef size_t new_file = new_row
    if (a.flags ^ b.flags) & (FLAG_HARDLINK | FLAG_WHITEOUT | FLAG_OPAQUE):
        return 0
    if a.mode != b.mode or a.uid != b.uid or a.gid != b.gid or (d.times and a.mtime_ns != b.mtime_ns):
        return 0
    if not same_bytes(d, a.xattr_offset, a.xattr_length, b.xattr_offset, b.xattr_length):
        return 0
    if a.flags & FLAG_HARDLINK:
        if not same_bytes(d, a.link_offset, a.link_length, b.link_offset, b.link_length):
            return 0
        # link holds a path here, so a linked symlink's target or a linked file's data is asked of the named row
        d.refusal.layer = 0
        old_file = find_file(&d.old_table, old_row, &d.refusal)
        if old_file == NO_ROW:
            return -1
        d.refusal.layer = 1
        new_file = find_file(&d.new_table, new_row, &d.refusal)
        if new_file == NO_ROW:
            return -1
    return same_content(d, &d.old_table.rows[old_file], &d.new_table.rows[new_file])

cdef inline size_t step_over(const table_t* table, size_t at) noexcept nogil:
    """Give the first row after the subtree of row `at`."""
    cdef const entry_t* top = &table.rows[at]
    at += 1
    while at < table.count and is_below(
            path_of(table, &table.rows[at]), table.rows[at].path_length, path_of(table, top), top.path_length):
        at += 1
    return at

cdef inline int compare_tables(delta_t* d) noexcept nogil:
    """Write the change records."""
    cdef size_t old_row = 0
    cdef size_t new_row = 0
    cdef int order, same
    d.changes.limit = <size_t> -1
    d.refusal.layer = 0
    if check_table(&d.old_table, &d.refusal) < 0:
        return -1
    d.refusal.layer = 1
    if check_table(&d.new_table, &d.refusal) < 0:
        return -1
    while old_row < d.old_table.count or new_row < d.new_table.count:
        if old_row == d.old_table.count:
            order = 1
        elif new_row == d.new_table.count:
            order = -1
        else:
            order = compare_rows(
                &d.old_table, &d.old_table.rows[old_row], &d.new_table, &d.new_table.rows[new_row])
        if order > 0:
            if put_change(d, CHANGE_ADD, NO_ROW, new_row) < 0:
                return -1
            new_row += 1
        elif order < 0:
            if put_change(d, CHANGE_DELETE, old_row, NO_ROW) < 0:
                return -1
            old_row = step_over(&d.old_table, old_row)
        else:
            same = is_same(d, old_row, new_row)
            if same < 0 or (same == 0 and put_change(d, CHANGE_MODIFY, old_row, new_row) < 0):
                return -1
            if is_folder(&d.old_table.rows[old_row]) and not is_folder(&d.new_table.rows[new_row]):
                old_row = step_over(&d.old_table, old_row)  # what replaced the directory took its content along
            else:
                old_row += 1
            new_row += 1
    return 0
