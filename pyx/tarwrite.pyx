# cython: language_level=3
"""Write the canonical tar of an entry table, each source byte read once and hashed on the way.

Four stages share a ring of slots that together form the tar's bytes in order: a reader lays out headers and file
data, a writer stores the slots, BLAKE3 hashes each file, and the calling thread takes the tar's sha256.
A slot is free again when all three consumers are past it. No stage ever waits while it holds the GIL.
"""
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINTR, EIO, ELOOP, ENOTDIR, ENXIO, ESTALE, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset, strerror

from entry cimport FLAG_HARDLINK, FLAG_HASHED, FLAG_IMPLICIT, FLAG_OPAQUE, FLAG_SPARSE, FLAG_WHITEOUT, entry_t
from tarcheck cimport (
    S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, SOURCE_HEAP, SOURCE_PATH, SOURCE_RANGE,
    find_fault, find_target, in_heap, is_data, source_t, table_t,
)
from tarheader cimport BLOCK, PAX_LIMIT, encode_header, header_t
from tarsource cimport close, close_folder, folder_t, open_source

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_t:
        pass
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    int pthread_create(pthread_t*, void*, void* (*)(void*) noexcept nogil, void*)
    int pthread_join(pthread_t, void**)
    int pthread_mutex_init(pthread_mutex_t*, void*)
    int pthread_mutex_destroy(pthread_mutex_t*)
    int pthread_mutex_lock(pthread_mutex_t*)
    int pthread_mutex_unlock(pthread_mutex_t*)
    int pthread_cond_init(pthread_cond_t*, void*)
    int pthread_cond_destroy(pthread_cond_t*)
    int pthread_cond_wait(pthread_cond_t*, pthread_mutex_t*)
    int pthread_cond_broadcast(pthread_cond_t*)

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    int sigfillset(sigset_t*)
    int pthread_sigmask(int, const sigset_t*, sigset_t*)
    int SIG_SETMASK

cdef extern from "<sys/stat.h>" nogil:
    ctypedef struct timespec:
        int64_t tv_sec
        long tv_nsec
    ctypedef struct stat_t "struct stat":
        uint32_t st_mode
        int64_t st_size
        timespec st_mtim
    int fstat(int, stat_t*)

cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int, void*, size_t, int64_t)
    ssize_t pwrite(int, const void*, size_t, int64_t)

cdef enum:
    SLOT_BYTES = 1048576
    SLOTS = 16
    PAGE = 4096
    STAGES = 3
    STAGE_WRITE = 0
    STAGE_SHA256 = 1
    STAGE_BLAKE3 = 2
    SHA256_SLOTS = 4          # at most so many per update: fewer trips through the GIL, but space comes back soon
    ALIGN_LIMIT = 65536

cdef enum:
    FAILED_SOURCE = 1
    FAILED_CHANGED = 2
    FAILED_OUTPUT = 3
    FAILED_PYTHON = 4         # the exception is in the Pipeline

class SourceChanged(OSError):
    """A source file's size is not the record's any more; filename names it."""


cdef struct job_t:
    table_t table
    int out_fd
    uint8_t* base             # SLOTS * SLOT_BYTES
    uint8_t* headers          # scratch for one entry's header blocks
    uint8_t* name             # scratch for one entry's name
    folder_t folder
    # the reader's own
    uint64_t position         # of the tar
    size_t at                 # in the slot being filled
    bint held                 # that slot is known to be free
    uint64_t laid_rows
    # under the lock
    pthread_mutex_t lock
    pthread_cond_t filled_more
    pthread_cond_t drained_more
    uint64_t filled
    uint64_t drained[STAGES]
    size_t length[SLOTS]
    uint64_t rows[SLOTS]      # rows laid out when the slot was full: all that begin in it are among them
    bint finished
    bint stopped
    int failed
    int failed_errno
    uint64_t failed_row

cdef void stop(job_t* job, int failed, int error, uint64_t row) noexcept nogil:
    """End every stage; the first failure is the one that is raised."""
    pthread_mutex_lock(&job.lock)
    if not job.stopped:
        job.stopped = True
        job.failed = failed
        job.failed_errno = error
        job.failed_row = row
    pthread_cond_broadcast(&job.filled_more)
    pthread_cond_broadcast(&job.drained_more)
    pthread_mutex_unlock(&job.lock)

cdef uint64_t await_filled(job_t* job, int stage, uint64_t done) noexcept nogil:
    """Report that stage is past `done` slots; wait for more. Returns the slots filled, or done when none come."""
    cdef uint64_t filled
    pthread_mutex_lock(&job.lock)
    if job.drained[stage] != done:
        job.drained[stage] = done
        pthread_cond_broadcast(&job.drained_more)
    while job.filled == done and not job.finished and not job.stopped:
        pthread_cond_wait(&job.filled_more, &job.lock)
    filled = done if job.stopped else job.filled
    pthread_mutex_unlock(&job.lock)
    return filled

cdef uint8_t* reserve(job_t* job, size_t* space) noexcept nogil:
    """Return where the tar goes on and how much fits there; NULL when another stage has failed."""
    cdef int stage
    cdef uint64_t drained
    while not job.held:
        pthread_mutex_lock(&job.lock)
        while not job.stopped:
            drained = job.drained[0]
            for stage in range(1, STAGES):
                if job.drained[stage] < drained:
                    drained = job.drained[stage]
            if job.filled - drained < SLOTS:
                break
            pthread_cond_wait(&job.drained_more, &job.lock)
        job.held = not job.stopped
        pthread_mutex_unlock(&job.lock)
        if not job.held:
            return NULL
    space[0] = SLOT_BYTES - job.at
    return job.base + (job.filled % SLOTS) * SLOT_BYTES + job.at

cdef void publish(job_t* job, bint finished) noexcept nogil:
    pthread_mutex_lock(&job.lock)
    if job.at:
        job.length[job.filled % SLOTS] = job.at
        job.rows[job.filled % SLOTS] = job.laid_rows
        job.filled += 1
    job.finished = finished
    pthread_cond_broadcast(&job.filled_more)
    pthread_mutex_unlock(&job.lock)
    job.at = 0
    job.held = False

cdef void advance(job_t* job, size_t count) noexcept nogil:
    job.at += count
    job.position += count
    if job.at == SLOT_BYTES:
        publish(job, False)

cdef int pour_bytes(job_t* job, const uint8_t* bytes, uint64_t length) noexcept nogil:
    """Append bytes (zeros for NULL) to the tar; -1 when stopped."""
    cdef size_t space
    cdef uint8_t* into
    while length:
        into = reserve(job, &space)
        if into == NULL:
            return -1
        if space > length:
            space = <size_t>length
        if bytes == NULL:
            memset(into, 0, space)
        else:
            memcpy(into, bytes, space)
            bytes += space
        advance(job, space)
        length -= space
    return 0

cdef int pour_file(job_t* job, uint64_t row, int fd, uint64_t offset, uint64_t length) noexcept nogil:
    """Append length bytes at offset of fd to the tar; -1 when stopped or failed."""
    cdef size_t space
    cdef ssize_t count
    cdef uint8_t* into
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
        advance(job, <size_t>count)
        offset += <uint64_t>count
        length -= <uint64_t>count
    return 0

cdef int pour_path(job_t* job, uint64_t row) noexcept nogil:
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
    if fstat(fd, &before) != 0:
        stop(job, FAILED_SOURCE, errno, row)
    elif (before.st_mode & <uint32_t>S_IFMT) != <uint32_t>S_IFREG or <uint64_t>before.st_size != size_bytes:
        stop(job, FAILED_CHANGED, ESTALE, row)
    elif pour_file(job, row, fd, 0, size_bytes) == 0:
        if fstat(fd, &after) != 0:
            stop(job, FAILED_SOURCE, errno, row)
        elif (
            after.st_size != before.st_size or after.st_mtim.tv_sec != before.st_mtim.tv_sec
            or after.st_mtim.tv_nsec != before.st_mtim.tv_nsec
        ):
            stop(job, FAILED_CHANGED, ESTALE, row)
        else:
            result = 0
    close(fd)
    return result

cdef int pour_sparse(job_t* job, uint64_t row) noexcept nogil:
    """Append a sparse row in full: the packed ranges at its source, zeros between them."""
    cdef entry_t* record = &job.table.records[row]
    cdef const source_t* source = &job.table.sources[row]
    cdef uint64_t pair[2]
    cdef uint64_t at = 0, packed = source.offset
    cdef uint32_t index
    for index in range(record.link_length // 16):
        memcpy(pair, job.table.heap + record.link_offset + index * <uint64_t>16, 16)
        if pour_bytes(job, NULL, pair[0] - at) or pour_file(job, row, source.fd, packed, pair[1]):
            return -1
        packed += pair[1]
        at = pair[0] + pair[1]
    return pour_bytes(job, NULL, record.size_bytes - at)

cdef int pour_data(job_t* job, uint64_t row) noexcept nogil:
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
        result = pour_file(job, row, source.fd, source.offset, record.size_bytes)
    elif source.kind == SOURCE_HEAP:
        result = pour_bytes(job, job.table.heap + source.offset, record.size_bytes)
    if result:
        return result
    return pour_bytes(job, NULL, (BLOCK - record.size_bytes % BLOCK) % BLOCK)

cdef int pour_mark(job_t* job, const uint8_t* path, size_t length, bint opaque) noexcept nogil:
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

cdef uint8_t typeflag_of(const entry_t* record) noexcept nogil:
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

cdef int pour_entry(job_t* job, uint64_t row) noexcept nogil:
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

cdef int pour_row(job_t* job, uint64_t row) noexcept nogil:
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

cdef void* read_stage(void* given) noexcept nogil:
    cdef job_t* job = <job_t*>given
    cdef uint64_t row
    for row in range(job.table.count):
        if pour_row(job, row):
            break
    else:
        job.laid_rows = job.table.count
        if pour_bytes(job, NULL, 2 * BLOCK) == 0:
            publish(job, True)
    close_folder(&job.folder)
    return NULL

cdef void* write_stage(void* given) noexcept nogil:
    cdef job_t* job = <job_t*>given
    cdef uint64_t done = 0
    cdef size_t at, length
    cdef ssize_t count
    while await_filled(job, STAGE_WRITE, done) > done:
        at = 0
        length = job.length[done % SLOTS]
        while at < length:
            count = pwrite(
                job.out_fd, job.base + (done % SLOTS) * SLOT_BYTES + at, length - at, <int64_t>(done * SLOT_BYTES + at)
            )
            if count <= 0:
                if count < 0 and errno == EINTR:
                    continue
                stop(job, FAILED_OUTPUT, errno if count < 0 else EIO, 0)
                return NULL
            at += <size_t>count
        done += 1
    return NULL

cdef void* blake3_stage(void* given) noexcept with gil:
    cdef Pipeline pipeline = <Pipeline>given
    try:
        pipeline.hash_files()
    except BaseException as error:
        pipeline.failure = error
        with nogil:
            stop(&pipeline.job, FAILED_PYTHON, 0, 0)
    return NULL

cdef void start_thread(pthread_t* thread, void* (*stage)(void*) noexcept nogil, void* given, int* error) noexcept nogil:
    """Start a stage with every signal blocked: they are the callers' threads' to handle."""
    cdef sigset_t every, before
    sigfillset(&every)
    pthread_sigmask(SIG_SETMASK, &every, &before)
    error[0] = pthread_create(thread, NULL, stage, given)
    pthread_sigmask(SIG_SETMASK, &before, NULL)

cdef void finish_links(table_t* table) noexcept nogil:
    """Give each hard-link row its target's data offset and hash."""
    cdef uint64_t row
    cdef entry_t* record
    cdef const entry_t* target
    for row in range(table.count):
        record = &table.records[row]
        if record.flags & FLAG_WHITEOUT or not record.flags & FLAG_HARDLINK:
            continue
        target = &table.records[find_target(table, row)]
        record.data_offset = target.data_offset
        record.flags &= ~<uint32_t>(FLAG_HASHED | FLAG_SPARSE)
        record.flags |= target.flags & FLAG_HASHED
        memcpy(record.blake3, target.blake3, 32)


cdef class Pipeline:
    """One call's buffers, ring and stages. Every thread is joined before it goes away."""
    cdef job_t job
    cdef Py_buffer records, heap, sources
    cdef bint locks
    cdef object sha256, blake3, ring, view, failure

    def __cinit__(self, bytearray records not None, heap, sources, sha256, blake3):
        cdef uintptr_t start
        memset(&self.job, 0, sizeof(job_t))
        self.job.folder.fd = -1
        self.sha256 = sha256
        self.blake3 = blake3
        PyObject_GetBuffer(records, &self.records, PyBUF_WRITABLE)
        PyObject_GetBuffer(heap, &self.heap, PyBUF_SIMPLE)
        PyObject_GetBuffer(sources, &self.sources, PyBUF_SIMPLE)
        self.ring = bytearray(SLOTS * SLOT_BYTES + PAGE)
        start = <uintptr_t><char*>(<bytearray>self.ring)
        start = (start + PAGE - 1) & ~<uintptr_t>(PAGE - 1)
        self.job.base = <uint8_t*>start
        start -= <uintptr_t><char*>(<bytearray>self.ring)
        self.view = memoryview(self.ring)[start:start + SLOTS * SLOT_BYTES]
        self.job.headers = <uint8_t*>malloc(PAX_LIMIT + 4 * BLOCK)
        self.job.name = <uint8_t*>malloc(PAX_LIMIT)
        if self.job.headers == NULL or self.job.name == NULL:
            raise MemoryError
        if (
            pthread_mutex_init(&self.job.lock, NULL) or pthread_cond_init(&self.job.filled_more, NULL)
            or pthread_cond_init(&self.job.drained_more, NULL)
        ):
            raise OSError(errno, "cannot make a lock")
        self.locks = True

    def __dealloc__(self):
        if self.locks:
            pthread_cond_destroy(&self.job.drained_more)
            pthread_cond_destroy(&self.job.filled_more)
            pthread_mutex_destroy(&self.job.lock)
        free(self.job.name)
        free(self.job.headers)
        PyBuffer_Release(&self.sources)
        PyBuffer_Release(&self.heap)
        PyBuffer_Release(&self.records)

    cdef bytes path_of(self, uint64_t row, bint of_source):
        cdef const table_t* table = &self.job.table
        cdef const entry_t* record = &table.records[row]
        if of_source and is_data(record) and table.sources[row].kind == SOURCE_PATH:
            return PyBytes_FromStringAndSize(
                <const char*>table.heap + table.sources[row].offset, <Py_ssize_t>table.sources[row].length
            )
        return PyBytes_FromStringAndSize(<const char*>table.heap + record.path_offset, record.path_length)

    cdef int check(self, uint64_t align_bytes, uint64_t align_from_bytes) except -1:
        """Fill in the table; raise ValueError, naming the path, when it cannot be a tar."""
        cdef table_t* table = &self.job.table
        cdef const char* fault = NULL
        cdef uint64_t row = 0, total = 0
        if self.records.len % sizeof(entry_t) or self.sources.len % sizeof(source_t):
            raise ValueError("records or sources are not a whole number of records")
        table.records = <entry_t*>self.records.buf
        table.sources = <const source_t*>self.sources.buf
        table.heap = <const uint8_t*>self.heap.buf
        table.count = <uint64_t>self.records.len // sizeof(entry_t)
        table.heap_length = <uint64_t>self.heap.len
        table.align_bytes = align_bytes
        table.align_from_bytes = align_from_bytes
        if <uint64_t>self.sources.len // sizeof(source_t) != table.count:
            raise ValueError("there must be one source per record")
        with nogil:
            for row in range(table.count):
                if not in_heap(table, table.records[row].path_offset, table.records[row].path_length):
                    break
                fault = find_fault(table, row)
                total += table.records[row].size_bytes if is_data(&table.records[row]) else 0
                if fault != NULL or total >> 61:
                    break
            else:
                row = table.count
        if row == table.count:
            return 0
        if not in_heap(table, table.records[row].path_offset, table.records[row].path_length):
            raise ValueError(f"row {row}: its path lies outside the heap")
        raise ValueError(f"{self.path_of(row, False)!r}: {(fault if fault != NULL else b'too much data').decode()}")

    cdef int hash_tar(self, object digest) except -1:
        """Feed the whole tar to digest, slot by slot, until the reader is done or a stage has stopped."""
        cdef uint64_t done = 0, filled, first, upto
        update = digest.update
        while True:
            with nogil:
                filled = await_filled(&self.job, STAGE_SHA256, done)
            PyErr_CheckSignals()
            if filled == done:
                return 0
            first = done % SLOTS
            upto = first + filled - done
            upto = min(upto, first + SHA256_SLOTS, <uint64_t>SLOTS)   # contiguous, and only the last can be short
            done += upto - first
            update(self.view[first * SLOT_BYTES:(upto - 1) * SLOT_BYTES + self.job.length[upto - 1]])

    cdef int keep_hash(self, entry_t* record, object hasher) except -1:
        digest = hasher.digest()
        if not isinstance(digest, bytes) or PyBytes_GET_SIZE(digest) != 32:
            raise ValueError("a blake3 digest must be 32 bytes")
        memcpy(record.blake3, PyBytes_AS_STRING(digest), 32)
        record.flags |= FLAG_HASHED
        return 0

    cdef int hash_files(self) except -1:
        """Hash the files that lie in each slot; one that spans slots keeps its hasher between them."""
        cdef uint64_t done = 0, row = 0, begin, end, start, stop_at, shift
        cdef entry_t* record
        hasher = None
        while True:
            with nogil:
                end = await_filled(&self.job, STAGE_BLAKE3, done)
            if end == done:
                return 0
            begin = done * SLOT_BYTES
            end = begin + self.job.length[done % SLOTS]
            shift = begin - (done % SLOTS) * SLOT_BYTES
            while row < self.job.rows[done % SLOTS]:
                record = &self.job.table.records[row]
                if is_data(record) and not record.flags & FLAG_HASHED:
                    start = record.data_offset
                    stop_at = start + record.size_bytes
                    if record.size_bytes == 0:
                        hasher = self.blake3()
                    elif start >= end:
                        break
                    elif start >= begin and stop_at <= end:
                        hasher = self.blake3(self.view[start - shift:stop_at - shift])
                    else:
                        if start >= begin:
                            hasher = self.blake3()
                        hasher.update(self.view[max(start, begin) - shift:min(stop_at, end) - shift])
                        if stop_at > end:
                            break
                    self.keep_hash(record, hasher)
                row += 1
            done += 1

    cdef int run(self, object digest) except -1:
        """Run the stages to their end, whatever happens, and raise the first failure."""
        cdef pthread_t threads[STAGES]
        cdef int started = 0, error = 0, index
        try:
            start_thread(&threads[0], read_stage, &self.job, &error)
            if error == 0:
                started = 1
                start_thread(&threads[1], write_stage, &self.job, &error)
            if error == 0:
                started = 2
                start_thread(&threads[2], <void* (*)(void*) noexcept nogil>blake3_stage, <void*>self, &error)
            if error:
                raise OSError(error, "cannot start a thread")
            started = 3
            self.hash_tar(digest)
        except BaseException:
            with nogil:
                stop(&self.job, FAILED_PYTHON, 0, 0)
            raise
        finally:
            with nogil:
                for index in range(started):
                    pthread_join(threads[index], NULL)
        if not self.job.stopped:
            return 0
        if self.job.failed == FAILED_PYTHON:
            raise self.failure
        text = strerror(self.job.failed_errno).decode(errors="replace")
        if self.job.failed == FAILED_OUTPUT:
            raise OSError(self.job.failed_errno, text)
        if self.job.failed == FAILED_CHANGED:
            raise SourceChanged(
                ESTALE, "the file changed while it was being copied", self.path_of(self.job.failed_row, True)
            )
        raise OSError(self.job.failed_errno, text, self.path_of(self.job.failed_row, True))


def write(
    int out_fd,
    bytearray records not None,
    heap,
    sources,
    sha256,
    blake3,
    align_bytes=4096,
    align_from_bytes=65536,
):
    """Write the canonical tar of a sorted table to out_fd, from its offset 0; return (size_bytes, sha256 digest).

    heap, sources and records are borrowed for the call; records gets header_offset, data_offset, blake3 and
    FLAG_HASHED, and its contents are undefined after an error. Memory: a ring of 16 MiB. Starts three threads,
    all joined before it returns or raises; the GIL is released around everything but the calls of the hashers.
    """
    cdef Pipeline pipeline = Pipeline(records, heap, sources, sha256, blake3)
    if not 512 <= align_bytes <= ALIGN_LIMIT or align_bytes % 512 or not 0 <= align_from_bytes < 1 << 63:
        raise ValueError("align_bytes must be a multiple of 512 up to 65536, align_from_bytes not negative")
    pipeline.check(align_bytes, align_from_bytes)
    pipeline.job.out_fd = out_fd
    digest = sha256()
    pipeline.run(digest)
    with nogil:
        finish_links(&pipeline.job.table)
    return pipeline.job.position, digest.digest()
