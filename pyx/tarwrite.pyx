# cython: language_level=3
"""Write the canonical tar of an entry table, each source byte read once and hashed on the way.

Four stages share a ring of slots that together form the tar's bytes in order: a reader lays out headers and file
data, a writer stores the slots, BLAKE3 hashes each file (small ones side by side), and the calling thread takes the
tar's sha256. A slot is free again when all three consumers are past it. No stage ever waits while it holds the GIL.
"""
cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_FromStringAndSize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport ESTALE, errno
from libc.stdint cimport uint8_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset, strerror

from blakelane cimport add_input, batch_t, blake_choose, blake_lanes, run_batch
from entry cimport FLAG_HASHED, entry_t
from tarcheck cimport SOURCE_PATH, find_fault, finish_rows, in_heap, is_data, source_t, table_t
from tarheader cimport BLOCK, PAX_LIMIT
from tarlayout cimport read_stage
from tarclone cimport start_cloner, stop_cloner
from taroutput cimport write_stage
from tarring cimport (
    FAILED_CHANGED, FAILED_OUTPUT, FAILED_PYTHON, PAGE, SLOT_BYTES, SLOTS, STAGE_BLAKE3, STAGE_SHA256, STAGES,
    await_filled, job_t, stop,
)
from thread cimport (
    pthread_cond_destroy, pthread_cond_init, pthread_join, pthread_mutex_destroy, pthread_mutex_init, pthread_t,
    start_quiet,
)

cdef extern from "<sys/mman.h>" nogil:
    int madvise(void*, size_t, int)
    int MADV_HUGEPAGE

cdef enum:
    SHA256_SLOTS = 4          # at most so many per update: fewer trips through the GIL, but space comes back soon
    ALIGN_LIMIT = 65536
    HUGE_PAGE = 2097152


DIRECT_NEVER = CLONE_NEVER = FORGET_NEVER = (1 << 63) - 1
LANES = blake_lanes()


class SourceChanged(OSError):
    """A source file's size is not the record's any more; filename names it."""


cdef void* blake3_stage(void* given) noexcept with gil:
    cdef _Pipeline pipeline = <_Pipeline>given
    try:
        with nogil:
            pipeline.hash_files()
    except BaseException as error:
        pipeline.failure = error
        with nogil:
            stop(&pipeline.job, FAILED_PYTHON, 0, 0)
    return NULL


@cython.auto_pickle(False)
cdef class _Pipeline:
    """One call's buffers, ring and stages. Every thread is joined before it goes away."""
    cdef job_t job
    cdef batch_t* batch         # NULL: every file is hashed by the given hasher
    cdef Py_buffer records, heap, sources
    cdef bint locks
    cdef object sha256, blake3, ring, view, failure, hasher

    def __cinit__(self, bytearray records not None, heap, sources, sha256, blake3):
        cdef uintptr_t start
        memset(&self.job, 0, sizeof(job_t))
        self.job.folder.fd = self.job.cloner.fd = -1
        self.sha256 = sha256
        self.blake3 = blake3
        PyObject_GetBuffer(records, &self.records, PyBUF_WRITABLE)
        PyObject_GetBuffer(heap, &self.heap, PyBUF_SIMPLE)
        PyObject_GetBuffer(sources, &self.sources, PyBUF_SIMPLE)
        # Not bytearray(n), which touches every page: 4 ms for a layer of one file.
        self.ring = PyByteArray_FromStringAndSize(NULL, SLOTS * SLOT_BYTES + HUGE_PAGE)
        start = <uintptr_t><char*>(<bytearray>self.ring)
        start = (start + HUGE_PAGE - 1) & ~<uintptr_t>(HUGE_PAGE - 1)
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
        stop_cloner(&self.job.cloner)
        if self.locks:
            pthread_cond_destroy(&self.job.drained_more)
            pthread_cond_destroy(&self.job.filled_more)
            pthread_mutex_destroy(&self.job.lock)
        free(self.batch)
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

    cdef int check(
        self, uint64_t align_bytes, uint64_t align_from_bytes, uint64_t direct_from_bytes, uint64_t forget_from_bytes
    ) except -1:
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
                if row >= table.first_row and is_data(&table.records[row]):
                    total += table.records[row].size_bytes
                if fault != NULL or total >> 61:
                    break
            else:
                row = table.count
        if row == table.count:
            self.job.direct = total >= direct_from_bytes
            self.job.forgets = total >= forget_from_bytes
            if total >= HUGE_PAGE:
                # A hint whose result does not matter: faulted in, and pinned for direct writes, by 512 pages at once.
                madvise(self.job.base, SLOTS * SLOT_BYTES, MADV_HUGEPAGE)
            return 0
        if not in_heap(table, table.records[row].path_offset, table.records[row].path_length):
            raise ValueError(f"row {row}: its path lies outside the heap")
        raise ValueError(f"{self.path_of(row, False)!r}: {(fault if fault != NULL else b'too much data').decode()}")

    cdef int set_start(self, first_row, start_bytes, bytes lead) except -1:
        """Begin at a row, whose headers come after `lead`, which begins at start_bytes of the tar."""
        cdef job_t* job = &self.job
        if not 0 <= start_bytes < 1 << 61 or start_bytes % PAGE:
            raise ValueError(f"start_bytes must be a multiple of {PAGE}")
        if not 0 <= first_row <= self.records.len // <Py_ssize_t>sizeof(entry_t):
            raise ValueError("first_row lies beyond the table")
        if len(lead) >= PAGE or len(lead) % BLOCK:
            raise ValueError(f"lead must be whole blocks of {BLOCK} bytes, less than {PAGE} in all")
        job.table.first_row = job.laid_rows = first_row
        job.start_bytes = job.position = start_bytes
        job.lead = <const uint8_t*>PyBytes_AS_STRING(lead)
        job.lead_length = <size_t>PyBytes_GET_SIZE(lead)
        return 0

    cdef int start_lanes(self, int lanes) except -1:
        if lanes > LANES or blake_choose(lanes) == NULL:
            raise ValueError(f"{lanes} lanes are not to be had here")
        self.batch = <batch_t*>calloc(1, sizeof(batch_t))
        if self.batch == NULL:
            raise MemoryError
        self.batch.run = blake_choose(lanes)
        return 0

    cdef int hash_tar(self, object digest) except -1:
        """Feed the tar to digest, slot by slot, until the reader is done or a stage has stopped."""
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

    cdef int hash_spanning(self, uint64_t row, uint64_t begin, uint64_t end, uint64_t shift) except -1:
        """Hash what lies in begin..end of a file; one that spans slots keeps its hasher between them."""
        cdef entry_t* record = &self.job.table.records[row]
        cdef uint64_t start = record.data_offset, stop_at = start + record.size_bytes
        if record.size_bytes == 0 or start >= begin:
            self.hasher = self.blake3()
        if record.size_bytes:
            self.hasher.update(self.view[max(start, begin) - shift:min(stop_at, end) - shift])
        if record.size_bytes == 0 or stop_at <= end:
            self.keep_hash(record, self.hasher)
        return 0

    cdef bint add_small(self, uint64_t row, uint64_t begin, uint64_t end, uint64_t shift) noexcept nogil:
        """Put a file that lies in begin..end as a whole into the batch, if there is one."""
        cdef entry_t* record = &self.job.table.records[row]
        cdef const uint8_t* bytes
        if self.batch == NULL:
            return False
        if record.size_bytes and (record.data_offset < begin or record.data_offset + record.size_bytes > end):
            return False
        bytes = self.job.base + (record.data_offset - shift)   # the tar has zeros up to the next block
        if not add_input(self.batch, bytes, record.size_bytes, record.blake3):
            run_batch(self.batch)
            add_input(self.batch, bytes, record.size_bytes, record.blake3)
        record.flags |= FLAG_HASHED
        return True

    cdef int hash_files(self) except -1 nogil:
        """Hash the files that lie in each slot: small ones side by side, others by the hasher that was given."""
        cdef uint64_t done = 0, row = self.job.table.first_row, begin, end, shift
        cdef entry_t* record
        while True:
            end = await_filled(&self.job, STAGE_BLAKE3, done)
            if end == done:
                return 0
            begin = self.job.start_bytes + done * SLOT_BYTES
            end = begin + self.job.length[done % SLOTS]
            shift = begin - (done % SLOTS) * SLOT_BYTES
            while row < self.job.rows[done % SLOTS]:
                record = &self.job.table.records[row]
                if is_data(record) and not record.flags & FLAG_HASHED:
                    if record.size_bytes and record.data_offset >= end:
                        break
                    if not self.add_small(row, begin, end, shift):
                        with gil:
                            self.hash_spanning(row, begin, end, shift)
                        if record.size_bytes and record.data_offset + record.size_bytes > end:
                            break
                row += 1
            if self.batch != NULL:
                run_batch(self.batch)
            done += 1

    cdef int run(self, object digest) except -1:
        """Run the stages to their end, whatever happens, and raise the first failure."""
        cdef pthread_t threads[STAGES]
        cdef int started = 0, error = 0, index
        try:
            error = start_quiet(&threads[0], read_stage, &self.job)
            if error == 0:
                started = 1
                error = start_quiet(&threads[1], write_stage, &self.job)
            if error == 0:
                started = 2
                error = start_quiet(&threads[2], <void* (*)(void*) noexcept nogil>blake3_stage, <void*>self)
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
    direct_from_bytes=DIRECT_NEVER,
    clone_from_bytes=CLONE_NEVER,
    forget_from_bytes=FORGET_NEVER,
    first_row=0,
    start_bytes=0,
    bytes lead not None=b"",
    int lanes=0,
):
    """Write the canonical tar of a sorted table to out_fd; return (size_bytes, sha256 digest).

    From first_row on: the rows before it are in the tar, of which out_fd gets what begins at start_bytes, `lead` first.

    heap, sources and records are borrowed for the call; records gets header_offset, data_offset, blake3 and
    FLAG_HASHED, and its contents are undefined after an error. From direct_from_bytes of data on, the tar is written
    past the page cache where the file system can (O_DIRECT, which out_fd does not have afterwards); from
    forget_from_bytes on, large sources do not stay in the page cache. Memory: a ring of 16 MiB. Starts three threads,
    all joined before it returns or raises; the GIL is released around everything but the hashers' calls. With lanes,
    small files are hashed without the one that was given.
    """
    cdef _Pipeline pipeline = _Pipeline(records, heap, sources, sha256, blake3)
    if not 512 <= align_bytes <= ALIGN_LIMIT or align_bytes % 512 or not 0 <= align_from_bytes < 1 << 63:
        raise ValueError("align_bytes must be a multiple of 512 up to 65536, align_from_bytes not negative")
    if lanes:
        pipeline.start_lanes(lanes)
    pipeline.set_start(first_row, start_bytes, lead)
    pipeline.check(align_bytes, align_from_bytes, direct_from_bytes, forget_from_bytes)
    pipeline.job.out_fd = out_fd
    if clone_from_bytes != CLONE_NEVER:
        start_cloner(&pipeline.job.cloner, out_fd, max(clone_from_bytes, PAGE))
    digest = sha256()
    pipeline.run(digest)
    with nogil:
        finish_rows(&pipeline.job.table)
    return pipeline.job.position, digest.digest()
