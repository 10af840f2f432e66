# cython: language_level=3, autotestdict=False
"""Read a mapped tar's headers into an entry table.

tarentry.pxd reads one entry's header, tarstate.pxd PAX records and sparse maps, tarresolve.pxd turns entries in tar
order into rows, tarorder.pxd tells where that isn't needed; here is the walk over the blocks.
"""
from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize, PyByteArray_Resize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from entry cimport FLAG_HARDLINK, FLAG_IMPLICIT, entry_t
from growable cimport release, reserve
from tarentry cimport (
    IFDIR, IFLNK, IFREG, name_entry, read_link, read_owner, read_size, read_sparse, read_type, read_whiteout,
)
from tarfield cimport (
    AT_SIZE, AT_TYPE, BLOCK, checksum_matches, is_zero, parse_number, prefetch_header, text_length,
)
from tarorder cimport advise_large, fill_folder, follows
from tarresolve cimport fill_row, out_t, release_resolve, resolve_entries, resolve_t
from tarstate cimport SPECIAL_LIMIT, clear_pax, encode_xattrs, fail, place_t, read_pax, scan_t, slice_t

cdef enum:
    BYTES_PER_ENTRY = 16384  # of a tar, guessed
    HEAP_SHARE = 256         # of a tar's bytes one is reserved for paths; what isn't used is never touched


class TarFormatError(ValueError):
    """The tar is malformed; `offset` is the byte at which."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(f"{message} (at byte {offset} of the tar)")
        self.offset = offset


cdef int grow_table(scan_t* scan) noexcept with gil:
    """Make room for more rows; pages that are never written cost nothing."""
    cdef size_t room = scan.listing.room + scan.listing.room // 2
    if room == 0:
        room = min(scan.length // BYTES_PER_ENTRY, 1 << 17) + 64
    try:
        PyByteArray_Resize(<object> scan.listing.table, <Py_ssize_t> ((room + 1) * sizeof(entry_t)))
    except MemoryError:
        return -1
    scan.listing.rows = <entry_t*> PyByteArray_AS_STRING(<object> scan.listing.table) + 1
    scan.listing.room = room
    advise_large(scan.listing.rows, room * sizeof(entry_t))
    return 0


cdef int add_entry(scan_t* scan, const uint8_t* block) noexcept nogil:
    """Read one entry's header, step over its data and keep its row."""
    cdef entry_t row
    cdef place_t xattrs
    cdef int64_t stored
    cdef bint skipped = False
    cdef uint64_t end
    memset(&row, 0, sizeof(entry_t))
    row.header_offset = scan.header
    row.data_offset = scan.at + BLOCK
    if (read_owner(scan, block, &row) < 0 or read_size(scan, block, &stored) < 0 or read_type(scan, block, &row) < 0
            or name_entry(scan, block, &row) < 0):
        return -1
    if row.path_length == 0 and (row.mode & 0o170000 != IFDIR or row.flags & FLAG_HARDLINK):
        return fail(scan, scan.header, b"expected the root to be a directory")
    if block[AT_TYPE] != 68 and (row.mode & 0o170000 != IFREG or row.flags & FLAG_HARDLINK):
        stored = 0  # only files have data, whatever the size field says (as GNU tar and docker read it)
    if <uint64_t> stored > scan.length - row.data_offset:
        return fail(scan, scan.at + AT_SIZE, b"expected a size within the tar: the data is cut off")
    end = row.data_offset + <uint64_t> stored
    if row.mode & 0o170000 == IFREG and not row.flags & FLAG_HARDLINK:
        row.size_bytes = <uint64_t> stored
        if (block[AT_TYPE] == 83 or scan.pax.sparse_major >= 0 or scan.pax.sparse_real >= 0
                or scan.pax.sparse_count >= 0):
            if read_sparse(scan, block, <uint64_t> stored, &row) < 0:
                return -1
            if block[AT_TYPE] == 83:
                end = row.data_offset + <uint64_t> stored
    elif row.flags & FLAG_HARDLINK or row.mode & 0o170000 == IFLNK:
        if read_link(scan, block, &row) < 0:
            return -1
    if scan.length - end < (BLOCK - end % BLOCK) % BLOCK:
        return fail(scan, end, b"expected the data padded to 512 bytes: the tar is cut off")
    if encode_xattrs(scan, &xattrs) < 0:
        return -1
    row.xattr_offset = xattrs.offset
    row.xattr_length = xattrs.length
    if read_whiteout(scan, &row, &skipped) < 0:
        return -1
    scan.at = <size_t> (end + (BLOCK - end % BLOCK) % BLOCK)
    if skipped:
        scan.links -= row.flags & FLAG_HARDLINK
        return 0
    if scan.listing.count >= scan.max_entries:
        return fail(scan, scan.header, b"expected fewer entries: the table would pass the limit")
    if scan.listing.count == scan.listing.room and grow_table(scan) < 0:
        return -1
    scan.listing.ordered = scan.listing.ordered and follows(
        scan.heap.data, &scan.listing.rows[scan.listing.count - 1] if scan.listing.count else NULL, &row)
    scan.listing.rows[scan.listing.count] = row
    scan.listing.count += 1
    return 0


cdef int read_special(scan_t* scan, const uint8_t* block, bint* special) noexcept nogil:
    """Take in a header that describes others: x, X, g, L, K, or V (a label); special: whether it was one."""
    cdef uint8_t kind = block[AT_TYPE]
    cdef int64_t size
    cdef size_t data = scan.at + BLOCK
    cdef size_t end
    cdef slice_t* text
    cdef int status = 0
    special[0] = kind == 120 or kind == 88 or kind == 103 or kind == 76 or kind == 75 or kind == 86
    if not special[0]:
        return 0
    if scan.pending and (kind == 103 or kind == 86):
        return fail(scan, scan.at, b"expected the entry of the extended header before")
    if parse_number(block + AT_SIZE, 12, &size) < 0 or size < 0:
        return fail(scan, scan.at + AT_SIZE, b"expected a size that is not negative")
    if size > SPECIAL_LIMIT:
        return fail(scan, scan.at + AT_SIZE, b"expected an extended header of at most 1 MiB")
    if (<size_t> size + BLOCK - 1) // BLOCK * BLOCK > scan.length - data:
        return fail(scan, scan.at + AT_SIZE, b"expected a size within the tar: the extended header is cut off")
    end = data + <size_t> size
    if kind == 76 or kind == 75:
        text = &scan.long_name if kind == 76 else &scan.long_link
        text.data = scan.tar + data
        text.length = text_length(text.data, <size_t> size)
    elif kind == 103:
        scan.attributes.length = scan.shared_attributes
        status = read_pax(scan, &scan.shared, data, end)
        scan.shared_attributes = scan.attributes.length
        scan.shared_xattr_known = False
    elif kind != 86:
        status = read_pax(scan, &scan.pax, data, end)
    scan.pending = kind != 103 and kind != 86
    scan.at = (end + BLOCK - 1) // BLOCK * BLOCK
    return status


cdef inline void ask_ahead(const scan_t* scan, const uint8_t* block) noexcept nogil:
    """Have the next header fetched while this one is read, if its size field is where it will be."""
    cdef int64_t size
    cdef uint64_t left = scan.length - scan.at
    if parse_number(block + AT_SIZE, 12, &size) == 0 and size >= 0 and left >= 2 * BLOCK and (
            <uint64_t> size < left - 2 * BLOCK):
        prefetch_header(block + BLOCK + ((<uint64_t> size + BLOCK - 1) & ~<uint64_t> (BLOCK - 1)))


cdef int read_headers(scan_t* scan) noexcept nogil:
    """Read all entries up to the end mark, or the end of the buffer at a block boundary."""
    cdef const uint8_t* block
    cdef bint special
    while True:
        if not scan.pending:
            scan.header = scan.at
            scan.pax = scan.shared
            scan.long_name.data = scan.long_link.data = NULL
            scan.attributes.length = scan.shared_attributes
            scan.map.length = 0
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
    if scan.pending:
        return fail(scan, scan.at, b"expected the entry that an extended header or long name belongs to")
    if scan.at < scan.length and scan.at + BLOCK < scan.length and (
            scan.length - scan.at < 2 * BLOCK or not is_zero(scan.tar + scan.at + BLOCK)):
        return fail(scan, scan.at + BLOCK, b"expected a second block of zeros at the end")
    return 0


cdef object make_records(resolve_t* resolved, bytearray table):
    """Return the rows in component order: the table itself, made short, if the tar had them so."""
    cdef scan_t* state = resolved.scan
    cdef uint32_t at, count
    cdef entry_t* rows
    if state.listing.ordered:
        fill_folder(state.listing.rows - 1, FLAG_IMPLICIT)
        state.listing.rows = NULL
        PyByteArray_Resize(table, <Py_ssize_t> ((state.listing.count + 1) * sizeof(entry_t)))
        return table
    count = <uint32_t> (resolved.outs.length // sizeof(out_t))
    records = PyByteArray_FromStringAndSize(NULL, count * sizeof(entry_t))
    rows = <entry_t*> PyByteArray_AS_STRING(records)
    advise_large(rows, count * sizeof(entry_t))
    with nogil:
        for at in range(count):
            fill_row(resolved, at, &rows[at])
    return records


def scan(tar, max_entries: int = 10_000_000) -> tuple:
    """Read every header of a mapped tar and return (records, heap) in component order."""
    cdef scan_t state
    cdef resolve_t resolved
    cdef Py_buffer view
    cdef int status
    cdef bytearray table = bytearray()
    memset(&state, 0, sizeof(scan_t))
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
                status = read_headers(&state)
            # no row but the missing root is to be added, if that fits the limit
            state.listing.ordered = state.listing.ordered and 0 < state.listing.count < state.max_entries
            if status == 0 and not state.listing.ordered:
                status = resolve_entries(&resolved)
        if status < 0:
            if state.fault == NULL:
                raise MemoryError
            raise TarFormatError(state.fault.decode(), state.fault_offset)
        heap = PyByteArray_FromStringAndSize(<char*> state.heap.data, state.heap.length)
        return make_records(&resolved, table), heap
    finally:
        PyBuffer_Release(&view)
        release_resolve(&resolved)
        release(&state.attributes)
        release(&state.sorted)
        release(&state.map)
        release(&state.heap)
        release(&state.aside)
