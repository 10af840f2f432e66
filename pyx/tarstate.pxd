# cython: language_level=3
"""What the tar scanner knows while it reads, PAX records and sparse maps (inline-only).

Bounds: a PAX header or GNU long name holds at most 1 MiB (Go's archive/tar, so docker, has the same), a path 4095
bytes, an xattr name 255; the heap at most eight times the tar and 64 MiB, which stops a small global header
from being repeated into a large table.
Source: POSIX.1-2017 pax, GNU tar manual "Storing Sparse Files".
"""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport qsort
from libc.string cimport memchr, memcmp, memcpy, memset

from growable cimport GROW_LIMIT, append, growable_t
from tarfield cimport AT_EXTENDED, AT_REAL_SIZE, AT_SPARSE, BLOCK, parse_decimal, parse_number, parse_time
from tarorder cimport listing_t

cdef enum:
    SPECIAL_LIMIT = 1 << 20
    XATTR_NAME_LIMIT = 255

cdef struct slice_t:
    const uint8_t* data      # NULL: not given
    size_t length

cdef struct place_t:         # in the heap
    uint64_t offset
    uint32_t length

cdef struct attribute_t:
    slice_t name
    slice_t value
    uint64_t order           # of two with one name the later wins

cdef struct pax_t:
    slice_t path
    slice_t link
    slice_t sparse_name
    slice_t sparse_map       # 0.1
    int64_t size             # these are -1 when not given
    int64_t uid
    int64_t gid
    int64_t sparse_major
    int64_t sparse_minor
    int64_t sparse_real      # GNU.sparse.realsize (1.0) or GNU.sparse.size (0.x)
    int64_t sparse_count
    int64_t mtime_ns
    bint has_mtime

cdef struct scan_t:
    const uint8_t* tar
    size_t length
    size_t at
    uint64_t header          # where the current entry's headers start
    bint pending             # an extended header waits for its entry
    pax_t shared             # global PAX records
    pax_t pax
    slice_t long_name
    slice_t long_link
    growable_t attributes    # attribute_t: the global ones, then the entry's own
    growable_t sorted        # attribute_t, scratch
    growable_t map           # u64 pairs: the entry's sparse map
    listing_t listing        # the entries in tar order
    growable_t heap
    growable_t aside         # hard-link targets: they need no place in the table's heap
    uint64_t shared_attributes
    place_t shared_xattrs
    bint shared_xattr_known, has_shared  # there were global records
    uint64_t links, max_entries
    uint64_t fault_offset
    const char* fault        # NULL and -1 returned: out of memory

cdef inline int fail(scan_t* scan, uint64_t offset, const char* message) noexcept nogil:
    """Note what was expected and where; always -1."""
    scan.fault = message
    scan.fault_offset = offset
    return -1

cdef inline int keep(scan_t* scan, growable_t* buffer, const void* source, size_t length) noexcept nogil:
    """Append, turning a met bound into a fault."""
    cdef int status = append(buffer, source, length)
    if status == GROW_LIMIT:
        return fail(scan, scan.header, b"expected a table within eight times the tar's size: "
                    b"global records repeat too much")
    return status

cdef inline void clear_pax(pax_t* pax) noexcept nogil:
    memset(pax, 0, sizeof(pax_t))
    pax.size = pax.uid = pax.gid = -1
    pax.sparse_major = pax.sparse_minor = pax.sparse_real = pax.sparse_count = -1

cdef inline bint equals(slice_t key, const char* name, size_t length) noexcept nogil:
    return key.length == length and memcmp(key.data, name, length) == 0

cdef inline int take_number(scan_t* scan, slice_t value, int64_t* target) noexcept nogil:
    """Set a numeric record; an empty value takes it back."""
    if value.length == 0:
        target[0] = -1
        return 0
    if parse_decimal(value.data, value.length, target) < 0:
        return fail(scan, <uint64_t> (value.data - scan.tar), b"expected a non-negative decimal number in a PAX record")
    return 0

cdef inline int take_path(scan_t* scan, slice_t value, slice_t* target) noexcept nogil:
    """Set a path record; an empty value takes it back."""
    target[0] = value
    if value.length == 0:
        target.data = NULL
        return 0
    if memchr(value.data, 0, value.length) != NULL:
        return fail(scan, <uint64_t> (value.data - scan.tar), b"expected a PAX path without NUL bytes")
    return 0

cdef inline int take_xattr(scan_t* scan, slice_t name, slice_t value) noexcept nogil:
    cdef attribute_t attribute
    if name.length == 0 or name.length > XATTR_NAME_LIMIT or memchr(name.data, 0, name.length) != NULL:
        return fail(scan, <uint64_t> (name.data - scan.tar), b"expected an xattr name of 1 to 255 bytes without NUL")
    attribute.name = name
    attribute.value = value
    attribute.order = scan.attributes.length
    return keep(scan, &scan.attributes, &attribute, sizeof(attribute_t))

cdef inline int take_sparse(scan_t* scan, pax_t* pax, slice_t key, slice_t value) noexcept nogil:
    """Set a GNU.sparse.* record; key is what follows that prefix."""
    cdef int64_t number
    cdef uint64_t word
    if pax == &scan.shared:
        return fail(scan, <uint64_t> (key.data - scan.tar), b"expected no sparse records in a global PAX header")
    if equals(key, b"name", 4):
        return take_path(scan, value, &pax.sparse_name)
    if equals(key, b"map", 3):
        pax.sparse_map = value
        return 0
    if equals(key, b"major", 5):
        return take_number(scan, value, &pax.sparse_major)
    if equals(key, b"minor", 5):
        return take_number(scan, value, &pax.sparse_minor)
    if equals(key, b"size", 4) or equals(key, b"realsize", 8):
        return take_number(scan, value, &pax.sparse_real)
    if equals(key, b"numblocks", 9):
        return take_number(scan, value, &pax.sparse_count)
    if equals(key, b"offset", 6) or equals(key, b"numbytes", 8):
        number = -1
        if take_number(scan, value, &number) < 0:
            return -1
        # offset and numbytes take turns: an odd place is a number of bytes
        if number < 0 or (scan.map.length // 8 % 2 == 1) != (key.length == 8):
            return fail(scan, <uint64_t> (key.data - scan.tar), b"expected GNU.sparse.offset and numbytes in turn")
        word = <uint64_t> number
        return keep(scan, &scan.map, &word, 8)
    return 0

cdef inline int take_record(scan_t* scan, pax_t* pax, slice_t key, slice_t value) noexcept nogil:
    """Set one PAX record; unknown keys are ignored, as POSIX asks."""
    cdef slice_t rest
    if key.length > 13 and memcmp(key.data, b"SCHILY.xattr.", 13) == 0:
        rest.data = key.data + 13
        rest.length = key.length - 13
        return take_xattr(scan, rest, value)
    if key.length > 11 and memcmp(key.data, b"GNU.sparse.", 11) == 0:
        rest.data = key.data + 11
        rest.length = key.length - 11
        return take_sparse(scan, pax, rest, value)
    if equals(key, b"path", 4):
        return take_path(scan, value, &pax.path)
    if equals(key, b"linkpath", 8):
        return take_path(scan, value, &pax.link)
    if equals(key, b"size", 4):
        return take_number(scan, value, &pax.size)
    if equals(key, b"uid", 3):
        return take_number(scan, value, &pax.uid)
    if equals(key, b"gid", 3):
        return take_number(scan, value, &pax.gid)
    if equals(key, b"mtime", 5):
        pax.has_mtime = value.length > 0
        if pax.has_mtime and parse_time(value.data, value.length, &pax.mtime_ns) < 0:
            return fail(scan, <uint64_t> (value.data - scan.tar),
                        b"expected a PAX mtime in decimal seconds before 2262")
    return 0

cdef inline int read_pax(scan_t* scan, pax_t* pax, size_t at, size_t end) noexcept nogil:
    """Read the records between at and end: "LENGTH KEY=VALUE\\n", LENGTH counting itself."""
    cdef slice_t key, value
    cdef const void* mark
    cdef int64_t length
    cdef size_t text
    while at < end:
        mark = memchr(scan.tar + at, 32, end - at)
        text = 0 if mark == NULL else <size_t> (<const uint8_t*> mark - scan.tar)
        if mark == NULL or parse_decimal(scan.tar + at, text - at, &length) < 0:
            return fail(scan, at, b"expected the decimal length of a PAX record and a space")
        if <uint64_t> length > end - at or <size_t> length < text - at + 3 or scan.tar[at + length - 1] != 10:
            return fail(scan, at, b"expected a PAX record that ends with a newline where its length says")
        key.data = scan.tar + text + 1
        mark = memchr(key.data, 61, at + length - 1 - (text + 1))
        if mark == NULL or mark == key.data:
            return fail(scan, text + 1, b"expected KEY=VALUE in a PAX record")
        key.length = <size_t> (<const uint8_t*> mark - key.data)
        value.data = key.data + key.length + 1
        value.length = <size_t> (scan.tar + at + length - 1 - value.data)
        if take_record(scan, pax, key, value) < 0:
            return -1
        at += <size_t> length
    return 0

cdef inline int compare_attributes(const void* a, const void* b) noexcept nogil:
    cdef const attribute_t* left = <const attribute_t*> a
    cdef const attribute_t* right = <const attribute_t*> b
    cdef size_t shared = left.name.length if left.name.length < right.name.length else right.name.length
    cdef int order = memcmp(left.name.data, right.name.data, shared)
    if order == 0:
        order = (left.name.length > right.name.length) - (left.name.length < right.name.length)
    if order == 0:
        order = (left.order > right.order) - (left.order < right.order)
    return order

cdef inline int encode_xattrs(scan_t* scan, place_t* place) noexcept nogil:
    """Write the entry's xattrs, sorted by name, to the heap; entries with only global ones share them."""
    cdef size_t count = scan.attributes.length // sizeof(attribute_t)
    cdef attribute_t* sorted_attributes
    cdef size_t at
    cdef uint16_t name_length
    cdef uint32_t value_length
    cdef bint shared = scan.attributes.length == scan.shared_attributes
    place.offset = 0
    place.length = 0
    if count == 0:
        return 0
    if shared and scan.shared_xattr_known:
        place[0] = scan.shared_xattrs
        return 0
    scan.sorted.length = 0
    if keep(scan, &scan.sorted, scan.attributes.data, scan.attributes.length) < 0:
        return -1
    sorted_attributes = <attribute_t*> scan.sorted.data
    qsort(sorted_attributes, count, sizeof(attribute_t), compare_attributes)
    place.offset = scan.heap.length
    for at in range(count):
        if at + 1 < count and sorted_attributes[at].name.length == sorted_attributes[at + 1].name.length and memcmp(
                sorted_attributes[at].name.data, sorted_attributes[at + 1].name.data,
                sorted_attributes[at].name.length) == 0:
            continue
        name_length = <uint16_t> sorted_attributes[at].name.length
        value_length = <uint32_t> sorted_attributes[at].value.length
        if (keep(scan, &scan.heap, &name_length, 2) < 0 or keep(scan, &scan.heap, &value_length, 4) < 0
                or keep(scan, &scan.heap, sorted_attributes[at].name.data, name_length) < 0
                or keep(scan, &scan.heap, sorted_attributes[at].value.data, value_length) < 0):
            return -1
    if scan.heap.length - place.offset > 0xFFFFFFFFLL:
        return fail(scan, scan.header, b"expected xattrs below 4 GiB")
    place.length = <uint32_t> (scan.heap.length - place.offset)
    if shared:
        scan.shared_xattr_known = True
        scan.shared_xattrs = place[0]
    return 0

cdef inline int read_map_numbers(
    scan_t* scan, size_t at, size_t end, uint8_t separator, int64_t wanted, size_t* stop
) noexcept nogil:
    """Append `wanted` decimal numbers, each closed by the separator or the end, to the map; stop: after the last."""
    cdef const void* mark
    cdef size_t close
    cdef int64_t number
    while wanted > 0:
        mark = memchr(scan.tar + at, separator, end - at) if at < end else NULL
        close = end if mark == NULL else <size_t> (<const uint8_t*> mark - scan.tar)
        if (mark == NULL and separator == 10) or parse_decimal(scan.tar + at, close - at, &number) < 0:
            return fail(scan, at, b"expected a decimal number in a sparse map")
        if keep(scan, &scan.map, &number, 8) < 0:
            return -1
        at = close + 1
        wanted -= 1
    stop[0] = at
    return 0

cdef inline int read_map_head(scan_t* scan, uint64_t* data, uint64_t* stored) noexcept nogil:
    """Read the map that a 1.0 sparse file's data starts with; data and stored then describe what follows."""
    cdef size_t at = <size_t> data[0]
    cdef size_t end = at + <size_t> stored[0]
    cdef size_t used
    cdef uint64_t count
    if read_map_numbers(scan, at, end, 10, 1, &at) < 0:
        return -1
    memcpy(&count, scan.map.data, 8)
    scan.map.length = 0
    if count > (end - at) // 4:  # a pair takes four bytes or more
        return fail(scan, data[0], b"expected a sparse map that fits in its file's data")
    if read_map_numbers(scan, at, end, 10, <int64_t> count * 2, &at) < 0:
        return -1
    used = (at - <size_t> data[0] + BLOCK - 1) // BLOCK * BLOCK
    if used > stored[0]:
        return fail(scan, data[0], b"expected a sparse map padded to 512 bytes")
    data[0] += used
    stored[0] -= used
    return 0

cdef inline int read_old_map(scan_t* scan, size_t header, size_t* after, int64_t* real) noexcept nogil:
    """Read an old GNU map: 4 pairs in the header, 21 in each of the extension blocks that follow it."""
    cdef size_t pairs = header + AT_SPARSE
    cdef size_t room = 4
    cdef size_t pair
    cdef int64_t number[2]
    cdef bint extended = scan.tar[header + AT_EXTENDED] != 0
    if parse_number(scan.tar + header + AT_REAL_SIZE, 12, real) < 0 or real[0] < 0:
        return fail(scan, header + AT_REAL_SIZE, b"expected the real size of a sparse file")
    while True:
        for pair in range(room):
            if scan.tar[pairs + pair * 24 + 12] == 0:
                break
            if (parse_number(scan.tar + pairs + pair * 24, 12, &number[0]) < 0 or number[0] < 0
                    or parse_number(scan.tar + pairs + pair * 24 + 12, 12, &number[1]) < 0 or number[1] < 0):
                return fail(scan, pairs + pair * 24, b"expected an offset and a size in a sparse map")
            if keep(scan, &scan.map, number, 16) < 0:
                return -1
        if not extended:
            return 0
        if scan.length - after[0] < BLOCK:
            return fail(scan, after[0], b"expected a further block of a sparse map, not the end of the tar")
        pairs = after[0]
        after[0] += BLOCK
        room = 21
        extended = scan.tar[pairs + 504] != 0

cdef inline int settle_map(
    scan_t* scan, uint64_t real, uint64_t stored, place_t* place, bint* sparse
) noexcept nogil:
    """Check the map and write it, without empty ranges, to the heap; one range over everything is not sparse."""
    cdef uint64_t pair[2]
    cdef uint64_t reached = 0
    cdef uint64_t total = 0
    cdef size_t at = 0
    place.offset = scan.heap.length
    while at < scan.map.length:
        memcpy(pair, scan.map.data + at, 16)
        at += 16
        if pair[0] < reached or pair[0] > real or pair[1] > real - pair[0]:
            return fail(scan, scan.header, b"expected a sparse map in order, without overlaps, within the file's size")
        reached = pair[0] + pair[1]
        total += pair[1]
        if pair[1] and keep(scan, &scan.heap, pair, 16) < 0:
            return -1
    if total != stored:
        return fail(scan, scan.header, b"expected a sparse map that covers just the data stored in the tar")
    if scan.heap.length - place.offset > 0xFFFFFFFFLL:
        return fail(scan, scan.header, b"expected a sparse map below 4 GiB")
    place.length = <uint32_t> (scan.heap.length - place.offset)
    sparse[0] = total != real
    if not sparse[0]:
        scan.heap.length = place.offset
        place.length = 0
    return 0
