# cython: language_level=3, autotestdict=False
"""Merge, search, digest and compare sorted entry tables.

The loops are in tablemerge.pxd, treeserial.pxd and tabledelta.pxd, over the tables of rowtable.pxd; here they get
their buffers and hand back Python objects.
"""
cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize, PyByteArray_Resize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from entry cimport entry_t
from growable cimport release
from rowtable cimport NO_ROW, check_row, end_of_tree, find_row, refusal_t, table_t
from tabledelta cimport compare_tables, delta_t
from tablemerge cimport fill_merged, merge_t, merge_tables, pick_t, release_merge
from treeserial cimport (
    TREE_CLOSED, TREE_FAILED, close_directory, closed_start, release_serial, serial_t, serialise, start_tree,
)


@cython.internal
@cython.auto_pickle(False)
cdef class _Borrowed:
    """The buffers of one table, held until this object goes."""

    cdef Py_buffer views[2]
    cdef int held
    cdef table_t table

    def __cinit__(self, records, heap):
        PyObject_GetBuffer(records, &self.views[0], PyBUF_SIMPLE)
        self.held = 1
        PyObject_GetBuffer(heap, &self.views[1], PyBUF_SIMPLE)
        self.held = 2
        if self.views[0].len % sizeof(entry_t):
            raise ValueError(f"records must be a multiple of {sizeof(entry_t)} bytes, not {self.views[0].len}")
        self.table.rows = <const entry_t*> self.views[0].buf
        self.table.count = self.views[0].len // sizeof(entry_t)
        self.table.heap = <const uint8_t*> self.views[1].buf
        self.table.heap_length = self.views[1].len
        if self.table.count >= NO_ROW:
            raise ValueError("a table holds at most 4294967294 rows")

    def __dealloc__(self):
        while self.held:
            self.held -= 1
            PyBuffer_Release(&self.views[self.held])


cdef object refused(const refusal_t* refusal, str what):
    """Give the exception for a failed loop."""
    if refusal.reason == NULL:
        return MemoryError()
    return ValueError(f"{what}: row {refusal.row} {refusal.reason.decode()}")


cdef size_t checked_index(_Borrowed borrowed, index) except? 0:
    if not 0 <= index < borrowed.table.count:
        raise IndexError(f"row {index} of a table of {borrowed.table.count}")
    return index


def merge(tables) -> tuple:
    """Apply layer tables from lowest to highest and return the merged table: no whiteouts, no OPAQUE."""
    cdef list held = [_Borrowed(records, heap) for records, heap in tables]
    cdef merge_t state
    cdef int status
    cdef size_t layer
    cdef uint64_t used
    cdef entry_t* out
    cdef uint8_t* bytes_out
    memset(&state, 0, sizeof(merge_t))
    cdef refusal_t refusal
    memset(&refusal, 0, sizeof(refusal_t))
    state.refusal = &refusal
    state.layers = len(held)
    state.tables = <table_t*> calloc(state.layers + 1, sizeof(table_t))
    if state.tables == NULL:
        raise MemoryError
    try:
        for layer in range(state.layers):
            state.tables[layer] = (<_Borrowed> held[layer]).table
        with nogil:
            status = merge_tables(&state)
        if status < 0:
            raise refused(&refusal, f"layer table {refusal.layer}")
        records = PyByteArray_FromStringAndSize(NULL, state.picks.length // sizeof(pick_t) * sizeof(entry_t))
        heap = PyByteArray_FromStringAndSize(NULL, state.heap_length)
        out = <entry_t*> PyByteArray_AS_STRING(records)
        bytes_out = <uint8_t*> PyByteArray_AS_STRING(heap)
        with nogil:
            used = fill_merged(&state, out, bytes_out)
        PyByteArray_Resize(heap, used)  # later names of an inode share the first one's path
        return records, heap
    finally:
        release_merge(&state)
        free(state.tables)


def find(records, heap, path: bytes) -> int:
    """Return the row of path by binary search, or -1."""
    cdef _Borrowed borrowed = _Borrowed(records, heap)
    cdef bint broken = False
    cdef size_t found = find_row(&borrowed.table, <const uint8_t*> PyBytes_AS_STRING(path), len(path), &broken)
    if broken:
        raise ValueError("a row points outside the heap")
    return -1 if found == NO_ROW else found


def subtree(records, heap, index: int) -> int:
    """Return the end (exclusive) of the run of rows below and including row index."""
    cdef _Borrowed borrowed = _Borrowed(records, heap)
    cdef size_t top = checked_index(borrowed, index)
    cdef bint broken = not check_row(&borrowed.table, &borrowed.table.rows[top])
    cdef size_t end = 0
    if not broken:
        end = end_of_tree(&borrowed.table, top, &broken)
    if broken:
        raise ValueError("a row points outside the heap")
    return end


cdef bytes digest_of(blake3, const uint8_t* data, size_t length):
    digest = blake3(PyBytes_FromStringAndSize(<const char*> data, length)).digest()
    if type(digest) is not bytes or len(digest) != 32:
        raise ValueError("blake3 must give objects whose digest() is 32 bytes")
    return digest


def tree_digest(records, heap, blake3, index: int = 0, top_metadata: bool = True) -> bytes:
    """Return the BLAKE3 Merkle root (32 bytes) of the tree at row index."""
    cdef _Borrowed borrowed = _Borrowed(records, heap)
    cdef serial_t state
    cdef int status
    cdef bint metadata = top_metadata
    cdef bytes digest
    memset(&state, 0, sizeof(serial_t))
    state.table = borrowed.table
    state.top = checked_index(borrowed, index)
    memcpy(state.empty, PyBytes_AS_STRING(digest_of(blake3, NULL, 0)), 32)
    try:
        status = start_tree(&state, metadata)
        if status == 0:
            status = TREE_CLOSED
            while status == TREE_CLOSED:
                with nogil:
                    status = serialise(&state)
                if status == TREE_CLOSED:
                    digest = digest_of(
                        blake3, state.buffer.data + closed_start(&state), state.buffer.length - closed_start(&state))
                    if close_directory(&state, <const uint8_t*> PyBytes_AS_STRING(digest)) < 0:
                        raise MemoryError
        if status == TREE_FAILED:
            raise refused(&state.refusal, "table")
        return digest_of(blake3, state.buffer.data, state.buffer.length)
    finally:
        release_serial(&state)


def diff(old_records, old_heap, new_records, new_heap, times: bool = True) -> bytes:
    """Compare two merged tables and return packed change records (kind u32, old_row u32, new_row u32)."""
    cdef _Borrowed old_table = _Borrowed(old_records, old_heap)
    cdef _Borrowed new_table = _Borrowed(new_records, new_heap)
    cdef delta_t state
    cdef int status
    memset(&state, 0, sizeof(delta_t))
    state.old_table = old_table.table
    state.new_table = new_table.table
    state.times = times
    try:
        with nogil:
            status = compare_tables(&state)
        if status < 0:
            raise refused(&state.refusal, "new table" if state.refusal.layer else "old table")
        return PyBytes_FromStringAndSize(<char*> state.changes.data, state.changes.length)
    finally:
        release(&state.changes)
