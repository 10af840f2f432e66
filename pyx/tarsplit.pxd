# cython: language_level=3
"""A second thread that reads a tar's later entries while the first reads the earlier ones (inline-only).

A scan goes from header to header, each of which says where the next lies: it waits for memory once an entry, and
another thread can only begin where it guesses that an entry begins. The helper does so piece by piece, from the tar's
end towards its start: it looks for a block that is a header by its magic and checksum, steps over that one's entry,
and reads from there to where its piece before began. What it finds counts only if the first thread's own way, at the
end of an entry and with no global records in force, leads to the very byte where a piece begins. From there the
first would read what the helper has read, so that the piece's rows follow its own. A guess that is wrong (a tar
within the tar) is never arrived at so, or else was right. What is not plain (a malformed header, global records, the
end mark, a limit) ends a piece before it and is the first thread's to read.
"""
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcmp, memcpy, memset

from entry cimport FLAG_HARDLINK, entry_t
from growable cimport append, release, reserve
from tarblock cimport add_entry, begin_entry, grow_table, read_special
from tarfield cimport AT_MAGIC, AT_SIZE, AT_TYPE, BLOCK, checksum_matches, is_zero, parse_number, prefetch_header
from tarorder cimport advise_large, follows
from tarstate cimport clear_pax, scan_t
from thread cimport count_processors, pthread_join, pthread_t, start_quiet

cdef extern from *:
    """
    #include <stddef.h>
    /* What goes between the threads before they are joined are only positions; nothing else is read by them. */
    static inline void tell(size_t *place, size_t value) { __atomic_store_n(place, value, __ATOMIC_RELAXED); }
    static inline size_t ask(const size_t *place) { return __atomic_load_n(place, __ATOMIC_RELAXED); }
    """
    void tell(size_t* place, size_t value) noexcept nogil
    size_t ask(const size_t* place) noexcept nogil

cdef enum:
    PIECES = 32
    SEARCH_BYTES = 256 << 10  # looked through for a header; beyond lies a large file
    HEAP_SHARE = 256          # of a tar's bytes one is reserved for paths; what isn't used is never touched
    GLOBAL = 103              # type g

cdef struct mark_t:           # how far the helper's own table has come
    size_t rows
    size_t heap
    size_t aside
    uint64_t links

cdef struct piece_t:
    size_t start              # of the tar: entries begin and end there
    size_t end
    mark_t first
    mark_t last
    bint ordered              # each row but the first follows the one before

cdef struct split_t:
    scan_t scan               # the helper's own
    size_t lowest             # where the piece that was begun last begins
    size_t count              # the helper's until it is joined; then those that are not dealt with
    piece_t pieces[PIECES]    # from the tar's end on
    size_t reached            # by the first thread, as last told; the length: it needs nothing more
    pthread_t thread
    bint running
    bint started              # it has run, or still does
    size_t taken              # rows of the scan that are the helper's

cdef inline void ask_ahead(const scan_t* scan, const uint8_t* block) noexcept nogil:
    """Have the next header fetched while this one is read, if its size field is where it will be."""
    cdef int64_t size
    cdef uint64_t left = scan.length - scan.at
    if parse_number(block + AT_SIZE, 12, &size) == 0 and size >= 0 and left >= 2 * BLOCK and (
            <uint64_t> size < left - 2 * BLOCK):
        prefetch_header(block + BLOCK + ((<uint64_t> size + BLOCK - 1) & ~<uint64_t> (BLOCK - 1)))

cdef inline void note(const scan_t* scan, mark_t* mark) noexcept nogil:
    mark.rows = scan.listing.count
    mark.heap = scan.heap.length
    mark.aside = scan.aside.length
    mark.links = scan.links

cdef inline void take_back(scan_t* scan, const mark_t* mark) noexcept nogil:
    """Forget what was read after a mark."""
    scan.listing.count = mark.rows
    scan.heap.length = mark.heap
    scan.aside.length = mark.aside
    scan.links = mark.links
    scan.pending = False
    scan.fault = NULL

cdef inline bint read_plain(scan_t* scan) noexcept nogil:
    """Read the entry at scan.at, its extended headers first, or a label; False when it is not plain."""
    cdef const uint8_t* block
    cdef bint special
    begin_entry(scan)
    while True:
        if scan.length - scan.at < BLOCK:
            return False
        block = scan.tar + scan.at
        ask_ahead(scan, block)
        if is_zero(block) or not checksum_matches(block) or block[AT_TYPE] == GLOBAL:
            return False
        if read_special(scan, block, &special) < 0:
            return False
        if not special:
            scan.pending = False
            return add_entry(scan, block) == 0
        if not scan.pending:
            return True

cdef inline bint find_entry(scan_t* scan, size_t start, size_t end) noexcept nogil:
    """Guess where an entry begins from `start` on: after the first that a block looks like a header of."""
    cdef mark_t mark
    cdef bint found
    cdef size_t at = start
    end = end if end - start < SEARCH_BYTES else start + SEARCH_BYTES
    while end - at >= BLOCK and not (
            memcmp(scan.tar + at + AT_MAGIC, b"ustar", 5) == 0 and checksum_matches(scan.tar + at)):
        at += BLOCK
    if end - at < BLOCK:
        return False
    note(scan, &mark)
    scan.at = at
    found = read_plain(scan)
    take_back(scan, &mark)
    return found

cdef inline void read_piece(split_t* split, piece_t* piece, size_t end) noexcept nogil:
    """Read entries up to the byte `end`, if they come by it, or until the first thread comes by."""
    cdef scan_t* scan = &split.scan
    note(scan, &piece.first)
    note(scan, &piece.last)
    scan.listing.ordered = True
    piece.ordered = True
    while True:
        piece.end = scan.at
        if scan.at >= end or ask(&split.reached) >= piece.start or not read_plain(scan):
            break
        if scan.listing.count == piece.first.rows + 1 and piece.last.rows == piece.first.rows:
            scan.listing.ordered = True  # the row before the first is not known yet
        piece.ordered = scan.listing.ordered
        note(scan, &piece.last)
    take_back(scan, &piece.last)

cdef inline void* help_out(void* given) noexcept nogil:
    """Read the tar's pieces, the last first, until the first thread is there."""
    cdef split_t* split = <split_t*> given
    cdef scan_t* scan = &split.scan
    cdef size_t size = scan.length // (PIECES * BLOCK) * BLOCK
    cdef size_t end = scan.length
    cdef size_t number = PIECES
    cdef size_t start
    cdef piece_t* piece
    while number > 1:
        number -= 1
        start = number * size
        if ask(&split.reached) >= start:
            break
        if not find_entry(scan, start, end) or scan.at >= end:
            continue
        piece = &split.pieces[split.count]
        piece.start = scan.at
        tell(&split.lowest, piece.start)
        read_piece(split, piece, end)
        split.count += 1
        end = piece.start
    return NULL

cdef inline void start_split(split_t* split, const scan_t* scan, bint first) noexcept nogil:
    """Start the helper where there is a processor for it, or let it go first; without one only time is lost."""
    cdef scan_t* own = &split.scan
    memset(split, 0, sizeof(split_t))
    split.lowest = <size_t> -1
    own.tar = scan.tar
    own.length = scan.length
    own.max_entries = scan.max_entries
    own.attributes.limit = own.sorted.limit = own.map.limit = <size_t> -1
    own.heap.limit = scan.heap.limit
    own.aside.limit = scan.aside.limit
    clear_pax(&own.shared)
    if count_processors() < 2 and not first:
        return
    if reserve(&own.heap, 1 + min(scan.length // HEAP_SHARE, <size_t> 1 << 23)) < 0:
        return
    advise_large(own.heap.data, own.heap.capacity)
    # so that an offset of 0 is one that was not set
    if append(&own.heap, b"", 1) < 0 or append(&own.aside, b"", 1) < 0:
        return
    if first:
        help_out(split)
    else:
        split.started = split.running = start_quiet(&split.thread, help_out, split) == 0

cdef inline void call_back(split_t* split) noexcept nogil:
    """Have the helper end, and wait for it: what it has read is the first thread's now."""
    if split.running:
        tell(&split.reached, split.scan.length)
        pthread_join(split.thread, NULL)
        split.running = False

cdef inline bint may_take(const scan_t* scan, const piece_t* piece) noexcept nogil:
    """Tell whether this scan, where it is, would read what is in a piece and meet no limit."""
    return (piece.start == scan.at and not scan.has_shared and not scan.pending
            and scan.listing.count + (piece.last.rows - piece.first.rows) <= scan.max_entries
            # half: a sparse map that is not kept is in the heap for a moment, and may meet the limit there
            and scan.heap.length + (piece.last.heap - piece.first.heap) <= scan.heap.limit // 2
            and piece.last.aside - piece.first.aside <= scan.aside.limit - scan.aside.length)

cdef inline int take_piece(scan_t* scan, const scan_t* helper, const piece_t* piece) noexcept nogil:
    """Let a piece's rows follow the scan's own; 0, or -1 when there is no memory."""
    cdef size_t rows = piece.last.rows - piece.first.rows
    cdef size_t heap = scan.heap.length - piece.first.heap  # may wrap: it is added
    cdef size_t aside = scan.aside.length - piece.first.aside
    cdef size_t at
    cdef entry_t* row
    cdef const entry_t* before
    while scan.listing.room - scan.listing.count < rows:
        if grow_table(scan) < 0:
            return -1
    if (append(&scan.heap, helper.heap.data + piece.first.heap, piece.last.heap - piece.first.heap) < 0
            or append(&scan.aside, helper.aside.data + piece.first.aside, piece.last.aside - piece.first.aside) < 0):
        return -1
    scan.at = piece.end
    if rows == 0:
        return 0
    row = scan.listing.rows + scan.listing.count
    memcpy(row, helper.listing.rows + piece.first.rows, rows * sizeof(entry_t))
    for at in range(rows):
        row[at].path_offset += heap
        if row[at].xattr_offset:
            row[at].xattr_offset += heap
        if row[at].link_offset:
            row[at].link_offset += aside if row[at].flags & FLAG_HARDLINK else heap
    before = row - 1 if scan.listing.count else NULL
    scan.listing.ordered = scan.listing.ordered and piece.ordered and follows(scan.heap.data, before, row)
    scan.listing.count += rows
    scan.links += piece.last.links - piece.first.links
    return 0

cdef inline int meet(split_t* split, scan_t* scan) noexcept nogil:
    """At the end of an entry, by a piece's start: take the pieces that begin just here, drop those passed; 0 or -1."""
    cdef const piece_t* piece
    call_back(split)
    while split.count:
        piece = &split.pieces[split.count - 1]
        if piece.start > scan.at:
            break
        if may_take(scan, piece):
            if take_piece(scan, &split.scan, piece) < 0:
                return -1
            split.taken += piece.last.rows - piece.first.rows
        split.count -= 1
    split.lowest = split.pieces[split.count - 1].start if split.count else <size_t> -1
    return 0

cdef inline void release_split(split_t* split) noexcept nogil:
    """Free what the helper has, once it is back."""
    call_back(split)
    free(split.scan.listing.rows)
    release(&split.scan.attributes)
    release(&split.scan.sorted)
    release(&split.scan.map)
    release(&split.scan.heap)
    release(&split.scan.aside)
