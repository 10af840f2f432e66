# cython: language_level=3
"""What one tar header says of its entry: name, type, owner, size, link, whiteout (inline-only)."""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memmove, memset

from entry cimport FLAG_HARDLINK, FLAG_OPAQUE, FLAG_SPARSE, FLAG_WHITEOUT, entry_t
from tarfield cimport (
    AT_GID, AT_LINK, AT_MAGIC, AT_MAJOR, AT_MINOR, AT_MODE, AT_MTIME, AT_NAME, AT_PREFIX, AT_SIZE, AT_STAR, AT_TYPE,
    AT_UID, PATH_LIMIT, PATH_LONG, PATH_NUL, PATH_PARENT, is_normal, normalise, parse_number, text_length,
)
from tarstate cimport (
    fail, keep, place_t, read_map_head, read_map_numbers, read_old_map, scan_t, settle_map, slice_t,
)

cdef enum:
    IFREG = 0o100000
    IFLNK = 0o120000
    IFCHR = 0o020000
    IFBLK = 0o060000
    IFDIR = 0o040000
    IFIFO = 0o010000

cdef inline int add_path(scan_t* scan, slice_t path, bint aside, place_t* place) noexcept nogil:
    """Normalise a path into the heap (or aside); place says where it went."""
    cdef int64_t kept
    cdef uint8_t buffer[PATH_LIMIT + 1]
    cdef const uint8_t* clean = buffer
    if path.length > 1 and path.length <= PATH_LIMIT and is_normal(
            path.data, path.length - (path.data[path.length - 1] == 47)):
        clean = path.data
        kept = <int64_t> (path.length - (path.data[path.length - 1] == 47))
    else:
        kept = normalise(path.data, path.length, buffer)
    if not aside:
        scan.listing.plain = clean != buffer
    if kept == PATH_PARENT:
        return fail(scan, scan.header, b"expected a path without '..' components")
    if kept == PATH_NUL:
        return fail(scan, scan.header, b"expected a path without NUL bytes")
    if kept == PATH_LONG:
        return fail(scan, scan.header, b"expected a path of at most 4095 bytes")
    place.offset = scan.aside.length if aside else scan.heap.length
    place.length = <uint32_t> kept
    return keep(scan, &scan.aside if aside else &scan.heap, clean, <size_t> kept)

cdef inline int name_entry(scan_t* scan, const uint8_t* block, entry_t* row) noexcept nogil:
    """Set the row's path: GNU long name, else PAX (a sparse name first), else prefix and name."""
    cdef uint8_t joined[257]
    cdef slice_t path
    cdef place_t place
    cdef size_t prefix = 0
    cdef size_t name
    if scan.long_name.data != NULL:
        path = scan.long_name
    elif scan.pax.sparse_name.data != NULL:
        path = scan.pax.sparse_name
    elif scan.pax.path.data != NULL:
        path = scan.pax.path
    else:
        # only POSIX headers have a prefix; GNU ones (magic "ustar  ") keep other things there
        if memcmp(block + AT_MAGIC, b"ustar\0", 6) == 0:
            prefix = text_length(block + AT_PREFIX, 131 if memcmp(block + AT_STAR, b"tar\0", 4) == 0 else 155)
        if prefix:
            memcpy(joined, block + AT_PREFIX, prefix)
            joined[prefix] = 47
            prefix += 1
        name = text_length(block + AT_NAME, 100)
        if name:
            memcpy(joined + prefix, block + AT_NAME, name)
        path.data = joined
        path.length = prefix + name
    if path.length == 0:
        return fail(scan, scan.at, b"expected a name")
    # a v7 directory is a plain file whose name ends with a slash
    if block[AT_TYPE] == 0 and path.data[path.length - 1] == 47:
        row.mode = row.mode & 0o7777 | IFDIR
    if add_path(scan, path, False, &place) < 0:
        return -1
    row.path_offset = place.offset
    row.path_length = place.length
    return 0

cdef inline int read_type(scan_t* scan, const uint8_t* block, entry_t* row) noexcept nogil:
    """Set the file type bits; device numbers for devices."""
    cdef uint8_t kind = block[AT_TYPE]
    cdef int64_t major = 0
    cdef int64_t minor = 0
    if kind == 0 or kind == 48 or kind == 55 or kind == 83:  # NUL, 0, 7 contiguous, S sparse
        row.mode |= IFREG
    elif kind == 49:
        row.mode |= IFREG
        row.flags = FLAG_HARDLINK
        scan.links += 1
    elif kind == 50:
        row.mode |= IFLNK
    elif kind == 51 or kind == 52:
        row.mode |= IFCHR if kind == 51 else IFBLK
        if (parse_number(block + AT_MAJOR, 8, &major) < 0 or parse_number(block + AT_MINOR, 8, &minor) < 0
                or not 0 <= major <= 0xFFFFFFFFLL or not 0 <= minor <= 0xFFFFFFFFLL):
            return fail(scan, scan.at + AT_MAJOR, b"expected device numbers")
        row.rdev_major = <uint32_t> major
        row.rdev_minor = <uint32_t> minor
    elif kind == 53 or kind == 68:  # 5, D a GNU dump directory
        row.mode |= IFDIR
    elif kind == 54:
        row.mode |= IFIFO
    else:
        return fail(scan, scan.at + AT_TYPE, b"expected a known entry type")
    return 0

cdef inline int read_owner(scan_t* scan, const uint8_t* block, entry_t* row) noexcept nogil:
    """Set mode, owner and mtime."""
    cdef int64_t mode, uid, gid, mtime
    if parse_number(block + AT_MODE, 8, &mode) < 0 or mode < 0:
        return fail(scan, scan.at + AT_MODE, b"expected an octal mode")
    if parse_number(block + AT_UID, 8, &uid) < 0 or parse_number(block + AT_GID, 8, &gid) < 0:
        return fail(scan, scan.at + AT_UID, b"expected numeric owners")
    uid = scan.pax.uid if scan.pax.uid >= 0 else uid
    gid = scan.pax.gid if scan.pax.gid >= 0 else gid
    if not 0 <= uid <= 0xFFFFFFFFLL or not 0 <= gid <= 0xFFFFFFFFLL:
        return fail(scan, scan.at + AT_UID, b"expected owners between 0 and 4294967295")
    if parse_number(block + AT_MTIME, 12, &mtime) < 0 or not -9223372035LL <= mtime <= 9223372035LL:
        return fail(scan, scan.at + AT_MTIME, b"expected an mtime between 1677 and 2262")
    row.mode = <uint32_t> (mode & 0o7777)
    row.uid = <uint32_t> uid
    row.gid = <uint32_t> gid
    row.mtime_ns = scan.pax.mtime_ns if scan.pax.has_mtime else mtime * 1000000000
    row.nlink = 1
    return 0

cdef inline int read_size(scan_t* scan, const uint8_t* block, int64_t* size) noexcept nogil:
    """Give the bytes stored after a header; a PAX size wins."""
    if parse_number(block + AT_SIZE, 12, size) < 0:
        return fail(scan, scan.at + AT_SIZE, b"expected an octal or base-256 size below 2^63")
    if scan.pax.size >= 0:
        size[0] = scan.pax.size
    if size[0] < 0:
        return fail(scan, scan.at + AT_SIZE, b"expected a size that is not negative")
    return 0

cdef inline int read_sparse(scan_t* scan, const uint8_t* block, uint64_t stored, entry_t* row) noexcept nogil:
    """Read whichever sparse map the file has; sets its real size, data and map."""
    cdef int64_t real = scan.pax.sparse_real
    cdef uint64_t data = row.data_offset
    cdef size_t start, end, after
    cdef bint sparse = False
    cdef place_t place
    if block[AT_TYPE] == 83:
        after = <size_t> data
        scan.map.length = 0
        if read_old_map(scan, scan.at, &after, &real) < 0:
            return -1
        data = after
        if stored > scan.length - data:
            return fail(scan, scan.at + AT_SIZE, b"expected a size within the tar: the data is cut off")
    elif scan.pax.sparse_major == 1 and scan.pax.sparse_minor == 0:
        scan.map.length = 0
        if read_map_head(scan, &data, &stored) < 0:
            return -1
    elif scan.pax.sparse_major > 0 or scan.pax.sparse_minor > 1:
        return fail(scan, scan.header, b"expected GNU sparse format 0.0, 0.1 or 1.0")
    elif scan.pax.sparse_map.data != NULL and scan.pax.sparse_count >= 0:
        scan.map.length = 0
        start = <size_t> (scan.pax.sparse_map.data - scan.tar)
        end = start + scan.pax.sparse_map.length
        if scan.pax.sparse_count > <int64_t> (scan.pax.sparse_map.length // 4 + 1):
            return fail(scan, start, b"expected as many pairs in GNU.sparse.map as numblocks says")
        if read_map_numbers(scan, start, end, 44, scan.pax.sparse_count * 2, &after) < 0:
            return -1
        if scan.pax.sparse_count and after != end + 1:
            return fail(scan, start, b"expected as many pairs in GNU.sparse.map as numblocks says")
    elif scan.map.length % 16 or scan.pax.sparse_count != <int64_t> (scan.map.length // 16):
        return fail(scan, scan.header, b"expected as many sparse pairs as GNU.sparse.numblocks says")
    if real < 0:
        return fail(scan, scan.header, b"expected GNU.sparse.size or realsize with a sparse map")
    row.data_offset = data
    row.size_bytes = <uint64_t> real
    if settle_map(scan, row.size_bytes, stored, &place, &sparse) < 0:
        return -1
    row.link_offset = place.offset
    row.link_length = place.length
    if sparse:
        row.flags |= FLAG_SPARSE
    return 0

cdef inline int read_link(scan_t* scan, const uint8_t* block, entry_t* row) noexcept nogil:
    """Set a symlink's target verbatim, or a hard link's as a path of this tar."""
    cdef slice_t link
    cdef place_t place
    link.data = block + AT_LINK
    link.length = text_length(block + AT_LINK, 100)
    if scan.long_link.data != NULL:
        link = scan.long_link
    elif scan.pax.link.data != NULL:
        link = scan.pax.link
    if link.length == 0 or link.length > PATH_LIMIT:
        return fail(scan, scan.at + AT_LINK, b"expected a link target of 1 to 4095 bytes")
    place.offset = scan.heap.length
    place.length = <uint32_t> link.length
    if row.flags & FLAG_HARDLINK:
        if add_path(scan, link, True, &place) < 0:
            return -1
    elif keep(scan, &scan.heap, link.data, link.length) < 0:
        return -1
    row.link_offset = place.offset
    row.link_length = place.length
    return 0

cdef inline int read_whiteout(scan_t* scan, entry_t* row, bint* skipped) noexcept nogil:
    """Turn .wh.NAME into a mark on NAME, .wh..wh..opq into one on its directory; skip what else aufs leaves.

    '.wh.' above the last component is refused, except in aufs' own .wh..wh.* directories, which are skipped.
    """
    cdef const uint8_t* path = scan.heap.data + row.path_offset
    cdef size_t at
    cdef size_t part = 0
    cdef size_t length = row.path_length
    cdef bint reserved = False
    cdef uint8_t* name
    cdef entry_t kept
    skipped[0] = False
    if scan.listing.plain:
        return 0
    for at in range(length):
        if at == 0 or path[at - 1] == 47:
            part = at
            if length - at >= 8 and memcmp(path + at, b".wh..wh.", 8) == 0:
                skipped[0] = not (length - at == 12 and memcmp(path + at, b".wh..wh..opq", 12) == 0)
                if skipped[0]:
                    return 0
        elif path[at] == 47 and at - part >= 4 and memcmp(path + part, b".wh.", 4) == 0:
            reserved = True  # unless aufs' own name follows
    if reserved:
        return fail(scan, scan.header, b"expected no entry below a whiteout: '.wh.' names are reserved")
    if length - part < 4 or memcmp(path + part, b".wh.", 4) != 0:
        return 0
    if row.flags & FLAG_HARDLINK:  # a whiteout has no content, whatever it links to
        scan.links -= 1
    kept = row[0]
    memset(row, 0, sizeof(entry_t))
    row.path_offset = kept.path_offset
    row.header_offset = kept.header_offset
    row.nlink = 1
    name = scan.heap.data + kept.path_offset + part
    length -= part
    if length == 12 and memcmp(name, b".wh..wh..opq", 12) == 0:
        row.path_length = <uint32_t> (part - 1 if part else 0)
        row.mode = IFDIR
        row.flags = FLAG_OPAQUE
        return 0
    if length == 4 or (name[4] == 46 and (length == 5 or (length == 6 and name[5] == 46))):
        return fail(scan, scan.header, b"expected a name after '.wh.'")
    memmove(name, name + 4, length - 4)
    row.path_length = <uint32_t> (part + length - 4)
    row.flags = FLAG_WHITEOUT
    return 0
