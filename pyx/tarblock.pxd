# cython: language_level=3
"""One entry of a tar, its headers first: what tarscan and tarfeed do at each of them (inline-only)."""
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_Resize
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport realloc
from libc.string cimport memset

from entry cimport FLAG_HARDLINK, entry_t
from tarentry cimport (
    IFDIR, IFLNK, IFREG, name_entry, read_link, read_owner, read_size, read_sparse, read_type, read_whiteout,
)
from tarfield cimport AT_SIZE, AT_TYPE, BLOCK, parse_number, text_length
from tarorder cimport advise_large, follows
from tarstate cimport SPECIAL_LIMIT, encode_xattrs, fail, place_t, read_pax, scan_t, slice_t

cdef enum:
    BYTES_PER_ENTRY = 16384  # of a tar, guessed

cdef inline bint is_special(uint8_t kind) noexcept nogil:
    """Tell whether a header describes others: x, X, g, L, K, or V (a label)."""
    return kind == 120 or kind == 88 or kind == 103 or kind == 76 or kind == 75 or kind == 86

cdef inline bint is_sparse(const scan_t* scan, const uint8_t* block) noexcept nogil:
    """Tell whether a file's header, or the PAX records before it, speak of a sparse map."""
    return (block[AT_TYPE] == 83 or scan.pax.sparse_major >= 0 or scan.pax.sparse_real >= 0
            or scan.pax.sparse_count >= 0)

cdef inline void begin_entry(scan_t* scan) noexcept nogil:
    """Forget the entry before: the next one's headers start here."""
    scan.header = scan.at
    scan.pax = scan.shared
    scan.long_name.data = scan.long_link.data = NULL
    scan.attributes.length = scan.shared_attributes
    scan.map.length = 0

cdef inline int resize_table(scan_t* scan, size_t room) noexcept with gil:
    """Make the table's bytearray hold so many rows and one place before them."""
    try:
        PyByteArray_Resize(<object> scan.listing.table, <Py_ssize_t> ((room + 1) * sizeof(entry_t)))
    except MemoryError:
        return -1
    scan.listing.rows = <entry_t*> PyByteArray_AS_STRING(<object> scan.listing.table) + 1
    return 0

cdef inline int grow_table(scan_t* scan) noexcept nogil:
    """Make room for more rows; pages that are never written cost nothing. Without a bytearray they are malloc's."""
    cdef void* moved
    cdef size_t room = scan.listing.room + scan.listing.room // 2
    if room == 0:
        room = min(scan.length // BYTES_PER_ENTRY, 1 << 17) + 64
    if scan.listing.table != NULL:
        if resize_table(scan, room) < 0:
            return -1
    else:
        moved = realloc(scan.listing.rows, room * sizeof(entry_t))
        if moved == NULL:
            return -1
        scan.listing.rows = <entry_t*> moved
    scan.listing.room = room
    advise_large(scan.listing.rows, room * sizeof(entry_t))
    return 0

cdef inline int add_entry(scan_t* scan, const uint8_t* block) noexcept nogil:
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
        if is_sparse(scan, block):
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

cdef inline int read_special(scan_t* scan, const uint8_t* block, bint* special) noexcept nogil:
    """Take in a header that describes others; special: whether it was one."""
    cdef uint8_t kind = block[AT_TYPE]
    cdef int64_t size
    cdef size_t data = scan.at + BLOCK
    cdef size_t end
    cdef slice_t* text
    cdef int status = 0
    special[0] = is_special(kind)
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
        scan.has_shared = True
        scan.attributes.length = scan.shared_attributes
        status = read_pax(scan, &scan.shared, data, end)
        scan.shared_attributes = scan.attributes.length
        scan.shared_xattr_known = False
    elif kind != 86:
        status = read_pax(scan, &scan.pax, data, end)
    scan.pending = kind != 103 and kind != 86
    scan.at = (end + BLOCK - 1) // BLOCK * BLOCK
    return status
