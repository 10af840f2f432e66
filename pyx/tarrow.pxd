# cython: language_level=3
"""The rows of a tar's table, from its entries in tar order (inline-only)."""
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize, PyByteArray_Resize
from libc.stdint cimport uint32_t

from entry cimport FLAG_IMPLICIT, entry_t
from tarorder cimport advise_large, fill_folder
from tarresolve cimport fill_row, out_t, resolve_entries, resolve_t
from tarstate cimport scan_t

cdef inline int settle_rows(resolve_t* resolved) noexcept nogil:
    """Resolve the entries unless they are in a table's order already; 0 or -1."""
    cdef scan_t* scan = resolved.scan
    # no row but the missing root is to be added, if that fits the limit
    scan.listing.ordered = scan.listing.ordered and 0 < scan.listing.count < scan.max_entries
    return 0 if scan.listing.ordered else resolve_entries(resolved)

cdef inline object make_records(resolve_t* resolved, bytearray table):
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
