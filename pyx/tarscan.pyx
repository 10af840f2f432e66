# cython: language_level=3, autotestdict=False
"""Read a mapped tar's headers into an entry table.

tarblock.pxd takes in one header, tarentry.pxd its fields, tarstate.pxd PAX records and sparse maps, tarresolve.pxd
turns entries in tar order into rows, tarorder.pxd tells where that isn't needed, tarsplit.pxd has a second thread
read later entries meanwhile; here is the walk over the blocks.
"""
from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_FromStringAndSize
from libc.stdint cimport uint8_t
from libc.string cimport memset

from growable cimport release, reserve
from tarblock cimport add_entry, begin_entry, read_special
from tarfield cimport BLOCK, checksum_matches, is_zero
from tarresolve cimport release_resolve, resolve_t
from tarrow cimport make_records, settle_rows
from tarsplit cimport HEAP_SHARE, ask, ask_ahead, call_back, meet, release_split, split_t, start_split, tell
from tarstate cimport clear_pax, fail, scan_t

cdef enum:
    TELL_ENTRIES = 64        # after so many a helper hears where the scan is
    SPLIT_BYTES = 8 << 20    # a smaller tar is read before a thread has begun


class TarFormatError(ValueError):
    """The tar is malformed; `offset` is the byte at which."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(f"{message} (at byte {offset} of the tar)")
        self.offset = offset


cdef int read_headers(scan_t* scan, split_t* split) noexcept nogil:
    """Read all entries up to the end mark, or the end of the buffer at a block boundary."""
    cdef const uint8_t* block
    cdef bint special
    while True:
        if not scan.pending:
            if scan.at >= ask(&split.lowest) and meet(split, scan) < 0:
                return -1
            begin_entry(scan)
        if scan.at == scan.length or (scan.length - scan.at >= BLOCK and is_zero(scan.tar + scan.at)):
            break
        if scan.length - scan.at < BLOCK:
            return fail(scan, scan.at, b"expected a header of 512 bytes: the tar is cut off")
        block = scan.tar + scan.at
        ask_ahead(scan, block)
        if not checksum_matches(block):
            return fail(scan, scan.at, b"expected a tar header: the checksum does not match")
        if read_special(scan, block, &special) < 0:
            return -1
        if not special:
            if add_entry(scan, block) < 0:
                return -1
            scan.pending = False
            if scan.listing.count % TELL_ENTRIES == 0:
                tell(&split.reached, scan.at)
    if scan.pending:
        return fail(scan, scan.at, b"expected the entry that an extended header or long name belongs to")
    if scan.at < scan.length and scan.at + BLOCK < scan.length and (
            scan.length - scan.at < 2 * BLOCK or not is_zero(scan.tar + scan.at + BLOCK)):
        return fail(scan, scan.at + BLOCK, b"expected a second block of zeros at the end")
    return 0


cdef tuple read_table(tar, max_entries, bint first, int* threads, size_t* taken):
    """Read a tar's headers; tell by how many threads, and how many rows are the helper's."""
    cdef scan_t state
    cdef split_t split
    cdef resolve_t resolved
    cdef Py_buffer view
    cdef int status
    cdef bytearray table = bytearray()
    memset(&state, 0, sizeof(scan_t))
    memset(&split, 0, sizeof(split_t))
    split.lowest = <size_t> -1
    memset(&resolved, 0, sizeof(resolve_t))
    if not 1 <= max_entries < 0xFFFFFFFFLL:
        raise ValueError("max_entries must be between 1 and 4294967294")
    state.max_entries = max_entries
    state.listing.table = <void*> table
    state.listing.ordered = True
    PyObject_GetBuffer(tar, &view, PyBUF_SIMPLE)
    try:
        state.tar = <const uint8_t*> view.buf
        state.length = view.len
        state.attributes.limit = state.sorted.limit = state.map.limit = <size_t> -1
        state.heap.limit = state.aside.limit = 8 * <size_t> view.len + (64 << 20)
        resolved.scan = &state
        with nogil:
            clear_pax(&state.shared)
            status = reserve(&state.heap, 1 + min(state.length // HEAP_SHARE, <size_t> 1 << 23))
            if status == 0:
                if state.length >= SPLIT_BYTES or first:
                    start_split(&split, &state, first)
                status = read_headers(&state, &split)
                call_back(&split)
                threads[0] = 1 + split.started
                taken[0] = split.taken
            if status == 0:
                status = settle_rows(&resolved)
        if status < 0:
            if state.fault == NULL:
                raise MemoryError
            raise TarFormatError(state.fault.decode(), state.fault_offset)
        heap = PyByteArray_FromStringAndSize(<char*> state.heap.data, state.heap.length)
        return make_records(&resolved, table), heap
    finally:
        release_split(&split)
        PyBuffer_Release(&view)
        release_resolve(&resolved)
        release(&state.attributes)
        release(&state.sorted)
        release(&state.map)
        release(&state.heap)
        release(&state.aside)


def scan(tar, max_entries: int = 10_000_000) -> tuple:
    """Read every header of a mapped tar and return (records, heap) in component order."""
    cdef int threads
    cdef size_t taken
    return read_table(tar, max_entries, False, &threads, &taken)


def scan_split(tar, max_entries: int = 10_000_000, helper_first: bool = False) -> tuple:
    """Scan, and tell how: return (records, heap, threads, rows that the second one read)."""
    cdef int threads = 1
    cdef size_t taken = 0
    return (*read_table(tar, max_entries, helper_first, &threads, &taken), threads, taken)
