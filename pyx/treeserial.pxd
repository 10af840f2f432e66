# cython: language_level=3
"""Serialise directories for the tree digest (inline-only). The format: docs/internals/tree-digest.md.

One buffer is used as a stack: a directory's bytes lie above those of its unfinished parents, and when it ends they
give way to its digest, so memory is bounded by what is unfinished and nothing recurses.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from entry cimport FLAG_HARDLINK, FLAG_HASHED, FLAG_OPAQUE, FLAG_WHITEOUT, entry_t
from growable cimport append, growable_t, release
from pathsort cimport is_below
from rowtable cimport (
    NO_ROW, TYPE_BITS, TYPE_BLOCK, TYPE_CHARACTER, TYPE_DIRECTORY, TYPE_FILE, TYPE_SYMLINK, check_row, compare_rows,
    find_file, path_of, refusal_t, refuse, table_t,
)

cdef enum:                  # the first byte after a child's name
    MARK_PLAIN = 0
    MARK_LINK = 1           # a later name of an inode whose first name lies in the digested tree
    MARK_WHITEOUT = 2
    MARK_OPAQUE = 4

cdef enum:                  # what serialise stopped at
    TREE_FAILED = -1
    TREE_CLOSED = 1         # a directory's bytes are complete: [start, length) of the buffer
    TREE_DONE = 2

cdef struct open_t:
    uint32_t row
    size_t start            # of its bytes in the buffer

cdef struct serial_t:
    table_t table
    size_t top
    size_t at
    growable_t buffer
    growable_t stack        # open_t
    uint32_t* first         # by row: the first name below the top of an inode whose file row lies outside
    uint8_t empty[32]       # BLAKE3 of no bytes
    refusal_t refusal

cdef inline int put_number(serial_t* s, uint32_t value) noexcept nogil:
    return append(&s.buffer, &value, 4)

cdef inline int put_text(serial_t* s, const uint8_t* text, uint32_t length) noexcept nogil:
    """Append a length and the bytes."""
    if put_number(s, length) < 0:
        return -1
    return append(&s.buffer, text, length)

cdef inline int put_heap(serial_t* s, uint64_t offset, uint32_t length) noexcept nogil:
    """Append a length and bytes of the table's heap (an empty field's offset is not checked, so not used)."""
    return put_text(s, s.table.heap + offset if length else NULL, length)

cdef inline size_t relative_start(const serial_t* s) noexcept nogil:
    """How many bytes of a path below the top name the top and its slash."""
    cdef uint32_t length = s.table.rows[s.top].path_length
    return length + 1 if length else 0

cdef inline size_t first_name(serial_t* s, size_t at, size_t file) noexcept nogil:
    """Give the row of the first name below the top of the inode that row `at` names; NO_ROW without memory."""
    if file >= s.top or file == at:
        return file
    if s.first == NULL:
        s.first = <uint32_t*> malloc(s.table.count * 4)
        if s.first == NULL:
            return NO_ROW
        memset(s.first, 0xFF, s.table.count * 4)
    if s.first[file] == NO_ROW:
        s.first[file] = <uint32_t> at
    return s.first[file]

cdef inline int put_content(serial_t* s, size_t at, const entry_t* file) noexcept nogil:
    """Append what the type calls for; a directory's digest comes when it is closed."""
    cdef uint32_t kind = file.mode & TYPE_BITS
    cdef uint64_t size = file.size_bytes
    if kind == TYPE_FILE:
        if size and not file.flags & FLAG_HASHED:
            return refuse(&s.refusal, b"is a file with content but without its BLAKE3: hash the table first", at)
        if append(&s.buffer, &size, 8) < 0:
            return -1
        return append(&s.buffer, &file.blake3[0] if size else &s.empty[0], 32)
    if kind == TYPE_SYMLINK:
        return put_heap(s, file.link_offset, file.link_length)
    if kind == TYPE_CHARACTER or kind == TYPE_BLOCK:
        if put_number(s, file.rdev_major) < 0:
            return -1
        return put_number(s, file.rdev_minor)
    return 0

cdef inline int put_row(serial_t* s, size_t at, bint metadata) noexcept nogil:
    """Append everything about a row but its name."""
    cdef const entry_t* row = &s.table.rows[at]
    cdef const entry_t* file
    cdef const entry_t* first
    cdef uint8_t mark = MARK_PLAIN
    cdef size_t found, name
    if row.flags & FLAG_WHITEOUT:
        mark = MARK_WHITEOUT
        return append(&s.buffer, &mark, 1)
    found = find_file(&s.table, at, &s.refusal)
    if found == NO_ROW:
        return -1
    file = &s.table.rows[found]
    if not check_row(&s.table, file):
        return refuse(&s.refusal, b"points outside the heap", found)
    name = first_name(s, at, found)
    if name == NO_ROW:
        return -1
    if row.flags & FLAG_OPAQUE:
        mark = MARK_OPAQUE
    elif name != at:
        mark = MARK_LINK
    if (append(&s.buffer, &mark, 1) < 0 or put_number(s, file.mode & (TYPE_BITS | (0o7777 if metadata else 0))) < 0
            or put_number(s, file.uid if metadata else 0) < 0 or put_number(s, file.gid if metadata else 0) < 0
            or put_heap(s, file.xattr_offset, file.xattr_length if metadata else 0) < 0):
        return -1
    if mark == MARK_LINK:
        first = &s.table.rows[name]
        if put_text(s, path_of(&s.table, first) + relative_start(s), first.path_length - relative_start(s)) < 0:
            return -1
    return put_content(s, at, file)

cdef inline int open_directory(serial_t* s, size_t at) noexcept nogil:
    """Start a directory's own bytes on top of the buffer."""
    cdef open_t opened
    opened.row = <uint32_t> at
    opened.start = s.buffer.length
    if append(&s.stack, &opened, sizeof(open_t)) < 0:
        return -1
    return append(&s.buffer, b"pylayers directory\0\1", 20)

cdef inline int put_child(serial_t* s, size_t at, const entry_t* parent) noexcept nogil:
    """Append one child of the open directory: its name, then the rest."""
    cdef const entry_t* row = &s.table.rows[at]
    cdef const uint8_t* path = path_of(&s.table, row)
    cdef size_t start = parent.path_length + 1 if parent.path_length else 0
    cdef size_t mark
    for mark in range(start, row.path_length):
        if path[mark] == 47:
            return refuse(&s.refusal, b"has no row for the directory it lies in", at)
    if put_text(s, path + start, <uint32_t> (row.path_length - start)) < 0 or put_row(s, at, True) < 0:
        return -1
    if row.mode & TYPE_BITS == TYPE_DIRECTORY and not row.flags & FLAG_WHITEOUT:
        return open_directory(s, at)
    return 0

cdef inline int start_tree(serial_t* s, bint metadata) noexcept nogil:
    """Begin with the top: the bytes of the final digest lie at the bottom of the buffer."""
    cdef const entry_t* top = &s.table.rows[s.top]
    cdef uint8_t with_metadata = metadata
    s.buffer.limit = s.stack.limit = <size_t> -1
    if not check_row(&s.table, top):
        return refuse(&s.refusal, b"points outside the heap", s.top)
    if (append(&s.buffer, b"pylayers tree\0\1", 15) < 0 or append(&s.buffer, &with_metadata, 1) < 0
            or put_row(s, s.top, metadata) < 0):
        return -1
    s.at = s.top + 1
    if top.mode & TYPE_BITS == TYPE_DIRECTORY and not top.flags & FLAG_WHITEOUT:
        return open_directory(s, s.top)
    return 0

cdef inline int serialise(serial_t* s) noexcept nogil:
    """Go on until a directory is complete (TREE_CLOSED), all is (TREE_DONE) or a row is refused (TREE_FAILED)."""
    cdef const open_t* opened
    cdef const entry_t* parent
    cdef const entry_t* row
    while s.stack.length:
        opened = &(<const open_t*> s.stack.data)[s.stack.length // sizeof(open_t) - 1]
        parent = &s.table.rows[opened.row]
        if s.at == s.table.count:
            return TREE_CLOSED
        row = &s.table.rows[s.at]
        if not check_row(&s.table, row):
            return refuse(&s.refusal, b"points outside the heap", s.at)
        if compare_rows(&s.table, row - 1, &s.table, row) >= 0:
            return refuse(&s.refusal, b"is not after the row before it in component order", s.at)
        if not is_below(path_of(&s.table, row), row.path_length, path_of(&s.table, parent), parent.path_length):
            return TREE_CLOSED
        if put_child(s, s.at, parent) < 0:
            return TREE_FAILED
        s.at += 1
    return TREE_DONE

cdef inline int close_directory(serial_t* s, const uint8_t* digest) noexcept nogil:
    """Put the digest in the place of the finished directory's bytes."""
    cdef const open_t* opened = &(<const open_t*> s.stack.data)[s.stack.length // sizeof(open_t) - 1]
    s.buffer.length = opened.start
    s.stack.length -= sizeof(open_t)
    return append(&s.buffer, digest, 32)

cdef inline size_t closed_start(const serial_t* s) noexcept nogil:
    return (<const open_t*> s.stack.data)[s.stack.length // sizeof(open_t) - 1].start

cdef inline void release_serial(serial_t* s) noexcept nogil:
    free(s.first)
    release(&s.buffer)
    release(&s.stack)
