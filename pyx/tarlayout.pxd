# cython: language_level=3
"""The reader's stage: lay every row's headers and data into the ring (inline-only)."""
from libc.errno cimport EINTR, ELOOP, ENOTDIR, ENXIO, ESTALE, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from entry cimport FLAG_HARDLINK, FLAG_IMPLICIT, FLAG_OPAQUE, FLAG_SPARSE, FLAG_WHITEOUT, entry_t
from tarcheck cimport (
    S_IFBLK, S_IFCHR, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, SOURCE_HEAP, SOURCE_PATH, SOURCE_RANGE, source_t,
)
from pagecache cimport FORGET_BYTES, forget_pages, is_cached
from tarheader cimport BLOCK, encode_header, header_t
from tarclone cimport (
    CLONE_BLOCK, fstat, is_of_the_output, is_same, is_settled, is_untouched, may_clone, share, stat_t,
)
from tarring cimport (
    FAILED_CHANGED, FAILED_OUTPUT, FAILED_SOURCE, advance, job_t, keep_pages, pour_bytes, publish, reserve, stop,
)
from tarsource cimport close, close_folder, open_source

cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int, void*, size_t, int64_t)

cdef enum:
    UNTOUCHED_LIMIT = 65536   # smaller files are read before they are looked at

cdef inline int pour_file(
    job_t* job, uint64_t row, int fd, uint64_t offset, uint64_t length, bint kept
) noexcept nogil:
    """Append length bytes at offset of fd to the tar, which may have them (kept); -1 when stopped or failed."""
    cdef size_t space
    cdef ssize_t count
    cdef uint8_t* into
    cdef uint64_t start = offset, forgotten = offset
    cdef bint forgets = job.forgets and length >= FORGET_BYTES and not is_cached(fd, offset, length)
    while length:
        into = reserve(job, &space)
        if into == NULL:
            return -1
        if space > length:
            space = <size_t>length
        count = pread(fd, into, space, <int64_t>offset)
        if count <= 0:
            if count < 0 and errno == EINTR:
                continue
            stop(job, FAILED_SOURCE if count < 0 else FAILED_CHANGED, errno if count < 0 else ESTALE, row)
            return -1
        if kept:
            keep_pages(job, <size_t>count)
        advance(job, <size_t>count)
        offset += <uint64_t>count
        length -= <uint64_t>count
        if forgets and (offset - forgotten >= FORGET_BYTES or length == 0):
            forget_pages(fd, start, offset - start)   # from the start: what a range cuts in two stays until then
            forgotten = offset
    return 0

cdef inline int pour_shared(
    job_t* job, uint64_t row, int fd, uint64_t offset, uint64_t length, const stat_t* before
) noexcept nogil:
    """Append a file's data, its whole blocks by a clone where that can be; -1 when stopped or failed."""
    cdef uint64_t whole = length // CLONE_BLOCK * CLONE_BLOCK
    cdef bint settled
    cdef stat_t after
    cdef int failure
    if not may_clone(&job.cloner, before.st_dev, offset, length, job.position):
        return pour_file(job, row, fd, offset, length, False)
    settled = is_settled(&job.cloner, before)
    failure = share(&job.cloner, fd, before.st_dev, offset, whole, job.position)
    if failure > 0:
        stop(job, FAILED_OUTPUT if is_of_the_output(failure) else FAILED_SOURCE, failure, row)
        return -1
    if failure:
        return pour_file(job, row, fd, offset, length, False)
    if settled:
        failure = pour_file(job, row, fd, offset, whole, True)
    else:
        failure = pour_file(job, row, job.cloner.fd, job.position, whole, True)
    if failure or pour_file(job, row, fd, offset + whole, length - whole, False):
        return -1
    if fstat(fd, &after) != 0:
        stop(job, FAILED_SOURCE, errno, row)
        return -1
    if settled and not is_untouched(before, &after):   # what was hashed may not be what was cloned
        stop(job, FAILED_CHANGED, ESTALE, row)
        return -1
    return 0

cdef inline bint pour_untouched(job_t* job, uint64_t row, int fd) noexcept nogil:
    """Append a small file by one read and one look at it, if its ctime still is what the walk saw; False: nothing was.

    Nobody sets a ctime back, so that the same one afterwards tells that nothing was written since the walk.
    """
    cdef entry_t* record = &job.table.records[row]
    cdef size_t space
    cdef stat_t after
    cdef uint8_t* into
    if record.ctime_ns == 0 or not 0 < record.size_bytes < UNTOUCHED_LIMIT:
        return False
    if job.cloner.fd >= 0 and record.size_bytes >= job.cloner.from_bytes:
        return False
    into = reserve(job, &space)
    if (
        into == NULL or space < record.size_bytes
        or pread(fd, into, <size_t>record.size_bytes, 0) != <ssize_t>record.size_bytes
        or fstat(fd, &after) != 0 or (after.st_mode & <uint32_t>S_IFMT) != <uint32_t>S_IFREG
        or <uint64_t>after.st_size != record.size_bytes
        or after.st_ctim.tv_sec * <int64_t>1000000000 + after.st_ctim.tv_nsec != record.ctime_ns
    ):
        return False
    advance(job, <size_t>record.size_bytes)
    return True

cdef inline int pour_path(job_t* job, uint64_t row) noexcept nogil:
    """Append the file at the row's source path, which must have the record's size before and after."""
    cdef const source_t* source = &job.table.sources[row]
    cdef uint64_t size_bytes = job.table.records[row].size_bytes
    cdef stat_t before, after
    cdef int result = -1
    cdef int fd = open_source(&job.folder, source.fd, job.table.heap + source.offset, source.length)
    if fd < 0:
        # A link, a socket or another type where a file or directory was: it changed; anything else is its own error.
        if fd == -ELOOP or fd == -ENOTDIR or fd == -ENXIO:
            stop(job, FAILED_CHANGED, ESTALE, row)
        else:
            stop(job, FAILED_SOURCE, -fd, row)
        return -1
    if pour_untouched(job, row, fd):
        result = 0
    elif fstat(fd, &before) != 0:
        stop(job, FAILED_SOURCE, errno, row)
    elif (before.st_mode & <uint32_t>S_IFMT) != <uint32_t>S_IFREG or <uint64_t>before.st_size != size_bytes:
        stop(job, FAILED_CHANGED, ESTALE, row)
    elif pour_shared(job, row, fd, 0, size_bytes, &before) == 0:
        if fstat(fd, &after) != 0:
            stop(job, FAILED_SOURCE, errno, row)
        elif not is_same(&before, &after):
            stop(job, FAILED_CHANGED, ESTALE, row)
        else:
            result = 0
    close(fd)
    return result

cdef inline int pour_range(job_t* job, uint64_t row) noexcept nogil:
    """Append a range of an open file."""
    cdef const source_t* source = &job.table.sources[row]
    cdef uint64_t size_bytes = job.table.records[row].size_bytes
    cdef stat_t before
    if job.cloner.fd < 0 or size_bytes < job.cloner.from_bytes:
        return pour_file(job, row, source.fd, source.offset, size_bytes, False)
    if fstat(source.fd, &before) != 0:
        stop(job, FAILED_SOURCE, errno, row)
        return -1
    return pour_shared(job, row, source.fd, source.offset, size_bytes, &before)

cdef inline int pour_sparse(job_t* job, uint64_t row) noexcept nogil:
    """Append a sparse row in full: the packed ranges at its source, zeros between them."""
    cdef entry_t* record = &job.table.records[row]
    cdef const source_t* source = &job.table.sources[row]
    cdef uint64_t pair[2]
    cdef uint64_t at = 0, packed = source.offset
    cdef uint32_t index
    for index in range(record.link_length // 16):
        memcpy(pair, job.table.heap + record.link_offset + index * <uint64_t>16, 16)
        if pour_bytes(job, NULL, pair[0] - at) or pour_file(job, row, source.fd, packed, pair[1], False):
            return -1
        packed += pair[1]
        at = pair[0] + pair[1]
    return pour_bytes(job, NULL, record.size_bytes - at)

cdef inline int pour_data(job_t* job, uint64_t row) noexcept nogil:
    cdef entry_t* record = &job.table.records[row]
    cdef const source_t* source = &job.table.sources[row]
    cdef int result = 0
    if record.flags & FLAG_SPARSE:
        result = pour_sparse(job, row)
        record.flags &= ~<uint32_t>FLAG_SPARSE   # the record describes this tar, which holds the file in full
        record.link_length = 0
    elif source.kind == SOURCE_PATH:
        result = pour_path(job, row)
    elif source.kind == SOURCE_RANGE:
        result = pour_range(job, row)
    elif source.kind == SOURCE_HEAP:
        result = pour_bytes(job, job.table.heap + source.offset, record.size_bytes)
    if result:
        return result
    return pour_bytes(job, NULL, (BLOCK - record.size_bytes % BLOCK) % BLOCK)

cdef inline int pour_mark(job_t* job, const uint8_t* path, size_t length, bint opaque) noexcept nogil:
    """Append an empty `.wh.NAME`, or `.wh..wh..opq` inside the directory path. Every other field is zero."""
    cdef header_t header
    cdef size_t cut = length
    if opaque:
        memcpy(job.name, path, length)
        if length:
            job.name[length] = 47
            length += 1
        memcpy(job.name + length, b".wh..wh..opq", 12)
        length += 12
    else:
        while cut and path[cut - 1] != 47:
            cut -= 1
        memcpy(job.name, path, cut)
        memcpy(job.name + cut, b".wh.", 4)
        memcpy(job.name + cut + 4, path + cut, length - cut)
        length += 4
    memset(&header, 0, sizeof(header))
    header.name = job.name
    header.name_length = length
    header.typeflag = 48
    return pour_bytes(job, job.headers, encode_header(&header, job.headers, job.position, 0))

cdef inline uint8_t typeflag_of(const entry_t* record) noexcept nogil:
    cdef int kind = record.mode & S_IFMT
    if record.flags & FLAG_HARDLINK:
        return 49
    if kind == S_IFREG:
        return 48
    if kind == S_IFLNK:
        return 50
    if kind == S_IFCHR:
        return 51
    if kind == S_IFBLK:
        return 52
    return 53 if kind == S_IFDIR else 54

cdef inline int pour_entry(job_t* job, uint64_t row) noexcept nogil:
    """Append the headers and data of one row that is neither implicit nor a whiteout, and set its offsets."""
    cdef entry_t* record = &job.table.records[row]
    cdef const uint8_t* path = job.table.heap + record.path_offset
    cdef header_t header
    cdef size_t length
    memset(&header, 0, sizeof(header))
    header.typeflag = typeflag_of(record)
    header.name = path
    header.name_length = record.path_length
    if header.typeflag == 53:
        memcpy(job.name, path, record.path_length)
        memcpy(job.name + record.path_length, b"/", 1)
        header.name = job.name
        header.name_length = record.path_length + 1
        if record.path_length == 0:
            header.name = <const uint8_t*>b"./"
            header.name_length = 2
    elif header.typeflag == 51 or header.typeflag == 52:
        header.rdev_major = record.rdev_major
        header.rdev_minor = record.rdev_minor
    elif header.typeflag == 49 or header.typeflag == 50:
        header.link = job.table.heap + record.link_offset
        header.link_length = record.link_length
    if header.typeflag != 49:
        header.xattr = job.table.heap + record.xattr_offset
        header.xattr_length = record.xattr_length
    header.mode = record.mode & 0o7777
    header.uid = record.uid
    header.gid = record.gid
    header.mtime_s = record.mtime_ns // 1000000000
    if record.mtime_ns < header.mtime_s * 1000000000:   # C rounds towards zero
        header.mtime_s -= 1
    if header.typeflag == 48:
        header.size_bytes = record.size_bytes
    length = encode_header(
        &header, job.headers, job.position,
        job.table.align_bytes if 0 < header.size_bytes >= job.table.align_from_bytes else 0,
    )
    record.header_offset = job.position
    record.data_offset = job.position + length
    job.laid_rows = row + 1
    if pour_bytes(job, job.headers, length):
        return -1
    return pour_data(job, row) if header.typeflag == 48 else 0

cdef inline int pour_row(job_t* job, uint64_t row) noexcept nogil:
    cdef entry_t* record = &job.table.records[row]
    cdef const uint8_t* path = job.table.heap + record.path_offset
    if record.flags & FLAG_WHITEOUT or record.flags & FLAG_IMPLICIT:
        record.header_offset = 0
        record.data_offset = 0
    if record.flags & FLAG_WHITEOUT:
        record.header_offset = job.position
        if pour_mark(job, path, record.path_length, False):
            return -1
        record.data_offset = job.position
        return 0
    if not record.flags & FLAG_IMPLICIT and pour_entry(job, row):
        return -1
    if record.flags & FLAG_OPAQUE:
        return pour_mark(job, path, record.path_length, True)
    return 0

cdef inline void* read_stage(void* given) noexcept nogil:
    cdef job_t* job = <job_t*>given
    cdef uint64_t row
    if pour_bytes(job, job.lead, job.lead_length):
        return NULL
    for row in range(job.table.first_row, job.table.count):
        if pour_row(job, row):
            break
    else:
        job.laid_rows = job.table.count
        if pour_bytes(job, NULL, 2 * BLOCK) == 0:
            publish(job, True)
    close_folder(&job.folder)
    return NULL
