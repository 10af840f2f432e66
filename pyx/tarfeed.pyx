# cython: language_level=3
"""Make a tar's entry table, with the hash of every file, while the tar passes in pieces.

The headers of an entry are read where they lie in a piece; those that a piece's end cuts are held until they are whole.
Offsets count from the tar's start throughout: scan.tar points as far before a piece, or before the held headers, as
they lie in the tar.
"""
cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_FromStringAndSize
from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset

from entry cimport FLAG_HARDLINK, FLAG_HASHED, entry_t
from growable cimport append, growable_t, release, reserve
from tarblock cimport add_entry, begin_entry, is_sparse, is_special, read_special
from tarentry cimport IFREG
from tarfield cimport AT_SIZE, AT_TYPE, BLOCK, checksum_matches, is_zero, parse_number
from tarresolve cimport release_resolve, resolve_t
from tarrow cimport make_records, settle_rows
from tarstate cimport SPECIAL_LIMIT, clear_pax, scan_t

cdef enum:
    HELD_LIMIT = 4 << 20        # headers of one entry
    TURN_SPANS = 64             # files hashed before others may have the GIL
    HEAP_BASE = 64 << 20        # as tarscan bounds the heap: this and eight times the tar
    GLOBAL = 103                # type g

cdef enum:                      # of a feed
    OPEN
    MARKED                      # one block of zeros has passed
    ENDED                       # two: whatever follows is ignored
    DECLINED
    FINISHED

cdef enum:                      # of a header
    NEEDS_MORE
    IS_SPECIAL
    IS_ENTRY
    IS_ZERO
    REFUSED

cdef struct span_t:             # of a file's data, in a piece
    uint64_t offset
    uint64_t length
    uint32_t row
    bint first
    bint last

cdef struct feed_t:
    scan_t scan
    int state
    uint64_t taken              # bytes of the tar before the piece
    uint64_t at                 # the tar's byte that comes next
    uint64_t wanted             # up to where the next header has to be there
    growable_t held             # an entry's headers that a piece's end cut
    uint64_t held_at
    uint64_t data_end           # of the file that is passing
    uint32_t row
    bint begun                  # a part of that file has passed
    growable_t spans


cdef int add_span(feed_t* feed, uint64_t piece_end) noexcept nogil:
    """Note what of the passing file lies in the piece, and step over it."""
    cdef span_t span
    cdef uint64_t end = feed.data_end if feed.data_end < piece_end else piece_end
    span.offset = feed.at - feed.taken
    span.length = end - feed.at
    span.row = feed.row
    span.first = not feed.begun
    span.last = end == feed.data_end
    feed.begun = True
    feed.at = end
    return append(&feed.spans, &span, sizeof(span_t))


cdef int read_header(feed_t* feed, uint64_t limit) noexcept nogil:
    """Read the header at scan.at, of which the bytes before limit are there; tells what it is, or -1 (memory)."""
    cdef scan_t* scan = &feed.scan
    cdef const uint8_t* block = scan.tar + scan.at
    cdef int64_t size
    cdef bint special
    feed.wanted = scan.at + BLOCK
    if feed.wanted - scan.header > HELD_LIMIT:
        return REFUSED
    if feed.wanted > limit:
        return NEEDS_MORE
    if is_zero(block):
        return REFUSED if scan.pending else IS_ZERO
    if feed.state == MARKED or not checksum_matches(block):
        return REFUSED
    if is_special(block[AT_TYPE]):
        if (block[AT_TYPE] == GLOBAL or parse_number(block + AT_SIZE, 12, &size) < 0
                or not 0 <= size <= SPECIAL_LIMIT):
            return REFUSED
        feed.wanted += (<uint64_t> size + BLOCK - 1) // BLOCK * BLOCK
        if feed.wanted - scan.header > HELD_LIMIT:
            return REFUSED
        if feed.wanted > limit:
            return NEEDS_MORE
        if read_special(scan, block, &special) < 0:
            return REFUSED if scan.fault != NULL else -1
        return IS_SPECIAL
    if is_sparse(scan, block):
        return REFUSED
    if add_entry(scan, block) < 0:
        return REFUSED if scan.fault != NULL else -1
    scan.pending = False
    return IS_ENTRY


cdef int begin_file(feed_t* feed, size_t rows, uint64_t piece_end) noexcept nogil:
    """If an entry came after so many rows, and is a file, let its data pass through the hasher."""
    cdef const entry_t* row
    feed.data_end = feed.at
    if feed.scan.listing.count == rows:
        return 0
    row = &feed.scan.listing.rows[rows]
    if row.mode & 0o170000 != IFREG or row.flags & FLAG_HARDLINK:
        return 0
    feed.row = <uint32_t> rows
    feed.data_end = row.data_offset + row.size_bytes
    feed.begun = False
    return add_span(feed, piece_end) if row.size_bytes == 0 else 0


cdef int hold_headers(feed_t* feed, const uint8_t* piece, uint64_t piece_end) noexcept nogil:
    """Keep the piece's last bytes, from the current entry's first header on; it is read again when it is whole."""
    cdef scan_t* scan = &feed.scan
    cdef int status = reserve(&feed.held, HELD_LIMIT)  # at once: what points into it stays where it is
    if status < 0:
        return status
    feed.held_at = scan.header
    feed.at = piece_end
    scan.at = scan.header
    scan.pending = False
    return append(&feed.held, piece + (scan.header - feed.taken), piece_end - scan.header)


cdef int take_header(feed_t* feed, const uint8_t* piece, uint64_t piece_end) noexcept nogil:
    """Read one header, from the piece or, as far as one is held, from what is held; 0 or -1."""
    cdef scan_t* scan = &feed.scan
    cdef uint64_t limit, more
    cdef size_t rows = scan.listing.count
    cdef bint held = feed.held.length > 0
    cdef int found
    if held:
        if feed.wanted > feed.at:
            more = (feed.wanted if feed.wanted < piece_end else piece_end) - feed.at
            if append(&feed.held, piece + (feed.at - feed.taken), more) < 0:
                return -1
            feed.at += more
        limit = feed.at
        scan.tar = <const uint8_t*> (<uintptr_t> feed.held.data - feed.held_at)
    else:
        limit = piece_end
        scan.tar = <const uint8_t*> (<uintptr_t> piece - feed.taken)
    if not scan.pending:
        begin_entry(scan)
    found = read_header(feed, limit)
    if found < 0:
        return -1
    if found == NEEDS_MORE:
        return 0 if held else hold_headers(feed, piece, piece_end)
    if found == REFUSED:
        feed.state = DECLINED
        return 0
    if not held:
        feed.at = feed.wanted
    if found == IS_ZERO:
        feed.state = ENDED if feed.state == MARKED else MARKED
        scan.at += BLOCK
    if not scan.pending:
        feed.held.length = 0
    return begin_file(feed, rows, piece_end) if found == IS_ENTRY else 0


cdef bint is_spent(const feed_t* feed, uint64_t piece_end) noexcept nogil:
    """Tell whether nothing can be done before the next piece. What points into this one is held by then."""
    if feed.at < piece_end:
        return False
    if feed.held.length:
        return feed.wanted > feed.at
    return not feed.scan.pending


cdef int take_piece(feed_t* feed, const uint8_t* piece, uint64_t size) noexcept nogil:
    """Read a piece's headers and note what of it is files' data; 0 or -1 (memory)."""
    cdef uint64_t end = feed.taken + size
    cdef int status = 0
    feed.scan.heap.limit = feed.scan.aside.limit = 8 * end + HEAP_BASE
    while status == 0 and (feed.state == OPEN or feed.state == MARKED) and not is_spent(feed, end):
        if feed.at < feed.data_end:
            status = add_span(feed, end)
        elif feed.held.length == 0 and feed.at < feed.scan.at:  # padding, or data that nobody asks for
            feed.at = feed.scan.at if feed.scan.at < end else end
        else:
            status = take_header(feed, piece, end)
    feed.taken = end
    return status


@cython.final
cdef class TableFeed:
    """One table in the making. See tarfeed.pyi."""
    cdef feed_t feed
    cdef object blake3
    cdef object hasher
    cdef bytearray table

    def __cinit__(self, blake3, max_entries: int = 10_000_000):
        cdef scan_t* scan = &self.feed.scan
        if not 1 <= max_entries < 0xFFFFFFFFLL:
            raise ValueError("max_entries must be between 1 and 4294967294")
        self.blake3 = blake3
        self.table = bytearray()
        scan.listing.table = <void*> self.table
        scan.listing.ordered = True
        scan.max_entries = max_entries
        scan.length = <size_t> 1 << 62  # not known before the end, where finish() looks
        scan.attributes.limit = scan.sorted.limit = scan.map.limit = <size_t> -1
        self.feed.held.limit = HELD_LIMIT
        self.feed.spans.limit = <size_t> -1
        scan.heap.limit = scan.aside.limit = HEAP_BASE
        clear_pax(&scan.shared)
        if reserve(&scan.heap, 1) < 0:
            raise MemoryError

    def __dealloc__(self):
        cdef scan_t* scan = &self.feed.scan
        release(&self.feed.held)
        release(&self.feed.spans)
        release(&scan.attributes)
        release(&scan.sorted)
        release(&scan.map)
        release(&scan.heap)
        release(&scan.aside)

    def take(self, piece) -> bool:
        """Take in the tar's next bytes, which are not kept; False: it has declined, further pieces are of no use."""
        cdef Py_buffer view
        cdef int status
        if self.feed.state == FINISHED:
            raise ValueError("the table is finished")
        PyObject_GetBuffer(piece, &view, PyBUF_SIMPLE)
        try:
            if view.len and self.feed.state != DECLINED:
                self.feed.spans.length = 0
                with nogil:
                    status = take_piece(&self.feed, <const uint8_t*> view.buf, <uint64_t> view.len)
                if status < 0:
                    raise MemoryError
                self.hash_spans(memoryview(piece).cast("B"))
        except BaseException:
            self.feed.state = DECLINED  # some file has no hash
            raise
        finally:
            PyBuffer_Release(&view)
        return self.feed.state != DECLINED

    cdef int hash_spans(self, content) except -1:
        cdef const span_t* spans = <const span_t*> self.feed.spans.data
        cdef size_t at
        cdef entry_t* row
        for at in range(self.feed.spans.length // sizeof(span_t)):
            if at % TURN_SPANS == TURN_SPANS - 1:
                with nogil:
                    pass
            piece = content[spans[at].offset:spans[at].offset + spans[at].length]
            if spans[at].first:
                self.hasher = self.blake3(piece)
            else:
                self.hasher.update(piece)
            if spans[at].last:
                digest = self.hasher.digest()
                if not isinstance(digest, bytes) or len(digest) != 32:
                    raise ValueError("blake3 gave a digest that is not 32 bytes")
                row = &self.feed.scan.listing.rows[spans[at].row]
                memcpy(row.blake3, PyBytes_AS_STRING(digest), 32)
                row.flags |= FLAG_HASHED
                self.hasher = None
        return 0

    def finish(self):
        """Return (records, heap) of the tar that has passed, or None. Once only: ValueError afterwards."""
        cdef feed_t* feed = &self.feed
        cdef resolve_t resolved
        cdef int status
        if feed.state == FINISHED:
            raise ValueError("the table is finished")
        whole = feed.state == ENDED or (
            feed.state != DECLINED and feed.held.length == 0 and feed.at == feed.scan.at and not feed.scan.pending)
        feed.state = FINISHED
        if not whole:
            return None
        memset(&resolved, 0, sizeof(resolve_t))
        resolved.scan = &feed.scan
        try:
            with nogil:
                status = settle_rows(&resolved)
            if status < 0:
                if feed.scan.fault == NULL:
                    raise MemoryError
                return None
            heap = PyByteArray_FromStringAndSize(<char*> feed.scan.heap.data, feed.scan.heap.length)
            return make_records(&resolved, self.table), heap
        finally:
            release_resolve(&resolved)
