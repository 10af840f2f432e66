# cython: language_level=3, autotestdict=False
"""Choose rows of a walked table: which carry an overlay's marks, and what a layer of the changed ones has to hold."""
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from entry cimport FLAG_HARDLINK, FLAG_IMPLICIT, FLAG_OPAQUE, FLAG_WHITEOUT, entry_t
from linkmap cimport link_find, linkmap_t, seen_t
from pathsort cimport is_below
from rowtable cimport NO_ROW, TYPE_BITS, TYPE_CHARACTER, TYPE_DIRECTORY, TYPE_FILE

cdef enum:
    TYPE_SOCKET = 0o140000
    SOURCE_NONE = 0
    SOURCE_PATH = 1
    NOT_KEPT = 1    # what the map of inodes holds as a place
    KEPT = 2

cdef packed struct source_t:
    int32_t fd
    uint32_t kind
    uint64_t offset
    uint64_t length


cdef class _Held:
    """A borrowed buffer, let go with this object."""

    cdef Py_buffer view
    cdef bint held

    def __cinit__(self, content, bint writable):
        PyObject_GetBuffer(content, &self.view, PyBUF_WRITABLE if writable else PyBUF_SIMPLE)
        self.held = True

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)


cdef size_t count_rows(_Held records) except? 0:
    if records.view.len % sizeof(entry_t):
        raise ValueError(f"records must be a multiple of {sizeof(entry_t)} bytes, not {records.view.len}")
    if records.view.len // sizeof(entry_t) >= NO_ROW:
        raise ValueError("a table holds at most 4294967294 rows")
    return records.view.len // sizeof(entry_t)


cdef inline bint is_marked(const entry_t* row) noexcept nogil:
    return row.xattr_length > 0 or (
        row.mode & TYPE_BITS == TYPE_CHARACTER and row.rdev_major == 0 and row.rdev_minor == 0)


def find_marked(records) -> bytes:
    """List the rows that may carry an overlay's mark: character devices 0:0, and what has xattrs."""
    return list_rows(records, 0)


def find_flagged(records, uint32_t flags) -> bytes:
    """List the rows that have one of these flags."""
    if not flags:
        raise ValueError("no flags")
    return list_rows(records, flags)


cdef bytes list_rows(records, uint32_t flags):
    """List the rows with one of the flags, or for none those that may carry a mark."""
    cdef _Held held = _Held(records, False)
    cdef size_t count = count_rows(held)
    cdef const entry_t* rows = <const entry_t*> held.view.buf
    cdef size_t at, found = 0
    cdef uint32_t* out
    with nogil:
        for at in range(count):
            found += rows[at].flags & flags != 0 if flags else is_marked(&rows[at])
    result = PyBytes_FromStringAndSize(NULL, found * sizeof(uint32_t))
    out = <uint32_t*> PyBytes_AS_STRING(result)
    with nogil:
        for at in range(count):
            if rows[at].flags & flags != 0 if flags else is_marked(&rows[at]):
                out[0] = <uint32_t> at
                out += 1
    return result


def keep_tree(records, keep, size_t begin, size_t end, bint hides) -> None:
    """Keep the rows of a tree below which nothing shines through: marks inside it hide nothing."""
    cdef _Held held = _Held(records, True)
    cdef _Held kept = _Held(keep, True)
    cdef size_t count = count_rows(held)
    cdef entry_t* rows = <entry_t*> held.view.buf
    cdef uint8_t* chosen = <uint8_t*> kept.view.buf
    cdef size_t at
    if <size_t> kept.view.len != count or not begin < end <= count:
        raise ValueError(f"rows {begin} to {end} of {count}, with {kept.view.len} marks")
    with nogil:
        for at in range(begin, end):
            chosen[at] = not rows[at].flags & FLAG_WHITEOUT
            rows[at].flags &= ~<uint32_t> FLAG_OPAQUE
        if hides:
            rows[begin].flags |= FLAG_OPAQUE


cdef inline bint is_linked(const entry_t* row) noexcept nogil:
    return row.nlink > 1 and row.mode & TYPE_BITS != TYPE_DIRECTORY and not row.flags & FLAG_WHITEOUT


cdef int keep_groups(const entry_t* rows, size_t count, uint8_t* keep) noexcept nogil:
    """Keep all names of an inode of which one is kept; -1 for no memory."""
    cdef linkmap_t known
    cdef seen_t* seen
    cdef size_t at
    known.slots = NULL
    known.slot_count = known.taken = 0
    for at in range(count):
        if not is_linked(&rows[at]):
            continue
        seen = link_find(&known, rows[at].device, rows[at].inode)
        if seen == NULL:
            free(known.slots)
            return -1
        if not seen.place:
            seen.device = rows[at].device
            seen.inode = rows[at].inode
            seen.place = NOT_KEPT
            known.taken += 1
        if keep[at]:
            seen.place = KEPT
    if known.taken:
        for at in range(count):
            if is_linked(&rows[at]):
                seen = link_find(&known, rows[at].device, rows[at].inode)
                if seen == NULL:
                    free(known.slots)
                    return -1
                if seen.place == KEPT:
                    keep[at] = 1
    free(known.slots)
    return 0


cdef inline bint within(uint64_t heap_length, const entry_t* row) noexcept nogil:
    return row.path_length <= heap_length and row.path_offset <= heap_length - row.path_length


cdef int keep_parents(const entry_t* rows, size_t count, const uint8_t* heap, uint8_t* keep) noexcept nogil:
    """Keep the directories that lead to kept rows; -1 for no memory. Every path was found within the heap."""
    cdef uint32_t* above = <uint32_t*> calloc(count + 1, sizeof(uint32_t))  # each row's nearest row that holds it
    cdef size_t at
    cdef uint32_t top
    if above == NULL:
        return -1
    for at in range(1, count):
        top = <uint32_t> (at - 1)
        while top and not is_below(
                heap + rows[at].path_offset, rows[at].path_length, heap + rows[top].path_offset, rows[top].path_length):
            top = above[top]
        above[at] = top
    for at in range(count - 1, 0, -1):
        if keep[at]:
            keep[above[at]] = 1
    free(above)
    return 0


def pack(records, heap, keep, bint root_changed) -> bytearray:
    """Return the kept rows with what they need: whole groups of hard links, the directories above, the root."""
    cdef _Held held = _Held(records, False)
    cdef _Held bytes_held = _Held(heap, False)
    cdef _Held kept = _Held(keep, True)
    cdef size_t count = count_rows(held)
    cdef const entry_t* rows = <const entry_t*> held.view.buf
    cdef const uint8_t* paths = <const uint8_t*> bytes_held.view.buf
    cdef uint64_t heap_length = bytes_held.view.len
    cdef uint8_t* chosen = <uint8_t*> kept.view.buf
    cdef size_t at, broken = 0, found = 0
    cdef int status = 0
    cdef entry_t* first
    cdef entry_t* out
    if <size_t> kept.view.len != count or count == 0:
        raise ValueError(f"{count} rows, with {kept.view.len} marks")
    with nogil:
        for at in range(count):
            if not within(heap_length, &rows[at]):
                broken = at + 1
                break
            if rows[at].mode & TYPE_BITS == TYPE_SOCKET:
                chosen[at] = 0
        if not broken:
            status = keep_groups(rows, count, chosen)
            if status == 0:
                status = keep_parents(rows, count, paths, chosen)
            chosen[0] = 1
            for at in range(count):
                found += chosen[at] != 0
    if broken:
        raise ValueError(f"row {broken - 1} points outside the heap")
    if status < 0:
        raise MemoryError
    result = PyByteArray_FromStringAndSize(NULL, found * sizeof(entry_t))
    first = out = <entry_t*> PyByteArray_AS_STRING(result)
    with nogil:
        for at in range(count):
            if chosen[at]:
                memcpy(out, &rows[at], sizeof(entry_t))
                out.ctime_ns = 0
                out.device = 0
                out.inode = 0
                out += 1
        if not root_changed:
            first.flags |= FLAG_IMPLICIT
    return result


def list_sources(records, int descriptor) -> bytes:
    """Return a source record for each row: a regular file's own path below descriptor, nothing for all else."""
    cdef _Held held = _Held(records, False)
    cdef size_t count = count_rows(held)
    cdef const entry_t* rows = <const entry_t*> held.view.buf
    cdef size_t at
    cdef bint own
    result = PyBytes_FromStringAndSize(NULL, count * sizeof(source_t))
    cdef source_t* out = <source_t*> PyBytes_AS_STRING(result)
    with nogil:
        for at in range(count):
            own = rows[at].mode & TYPE_BITS == TYPE_FILE and not rows[at].flags & (FLAG_HARDLINK | FLAG_WHITEOUT)
            out[at].fd = descriptor if own else -1
            out[at].kind = SOURCE_PATH if own else SOURCE_NONE
            out[at].offset = rows[at].path_offset if own else 0
            out[at].length = rows[at].path_length if own else 0
    return result
