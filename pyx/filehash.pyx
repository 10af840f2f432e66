# cython: language_level=3
"""Hash the files of a walked table.

A reader thread fills one buffer while the caller hashes the other. A buffer holds many small files, or a piece of a
large one; only the calls of the hasher itself need the GIL. Memory is two buffers and one segment array per buffer.
"""
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EINTR, ENOMEM, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset, strerror
from posix.unistd cimport close, read

from beneath cimport O_NONBLOCK, O_RDONLY, open_name, open_parent, parent_t
from entry cimport FLAG_HASHED, entry_t
from thread cimport (
    pthread_cond_broadcast, pthread_cond_destroy, pthread_cond_init, pthread_cond_t, pthread_cond_wait, pthread_create,
    pthread_join, pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t,
    pthread_mutex_unlock, pthread_t,
)

cdef extern from *:
    """
    #include <errno.h>
    #include <sys/stat.h>
    """
    enum:
        ESTALE
        S_IFMT
        S_IFREG
    struct stat_t "stat":
        uint32_t st_mode
        uint64_t st_size
    int fstat(int fd, stat_t* found) nogil

cdef enum:
    BATCH_BYTES = 1 << 20       # small enough to stay in the cache between reading and hashing
    SEGMENT_LIMIT = 1024        # files per batch
    ALONE_BYTES = 1 << 17       # less work than this is not worth a thread

cdef struct segment_t:
    uint32_t row
    bint first                  # the file begins with this segment
    bint last
    size_t offset
    size_t length

cdef struct batch_t:
    uint8_t* content            # BATCH_BYTES, of a bytearray, so that no view a hasher keeps can outlive it
    segment_t* segments         # SEGMENT_LIMIT
    size_t count
    int error                   # errno of reading, after the segments; stops the job
    uint32_t error_row
    bint end                    # nothing follows
    bint full                   # guarded by the lock: the hasher's turn

cdef struct job_t:
    batch_t batches[2]
    pthread_mutex_t lock
    pthread_cond_t wake
    bint stop                   # guarded by the lock
    int root_fd
    const entry_t* rows
    const char* heap
    const uint8_t* picked
    size_t count
    size_t at                   # of the reader: next index, the file that is open, and how much of it is read
    int fd
    uint64_t done_bytes
    parent_t parent


cdef int open_row(job_t* job, const entry_t* row) noexcept nogil:
    """Open a row's file into job.fd and check that it is the regular file of that size; 0 or an errno."""
    cdef stat_t found
    cdef int failure = open_parent(&job.parent, job.root_fd, job.heap + row.path_offset, row.path_length)
    if failure:
        return failure
    job.fd = open_name(job.parent.fd, job.parent.name, O_RDONLY | O_NONBLOCK)
    if job.fd < 0:
        return errno
    job.done_bytes = 0
    if fstat(job.fd, &found) != 0:
        return errno
    return 0 if found.st_mode & S_IFMT == S_IFREG and <uint64_t>found.st_size == row.size_bytes else ESTALE


cdef int read_piece(job_t* job, uint8_t* content, size_t length) noexcept nogil:
    """Read exactly `length` bytes of the open file; 0 or an errno (ESTALE at an early end)."""
    cdef ssize_t got
    while length:
        got = read(job.fd, content, length)
        if got == 0:
            return ESTALE
        if got < 0:
            if errno == EINTR:
                continue
            return errno
        content += got
        length -= <size_t>got
    return 0


cdef void fill_batch(job_t* job, batch_t* batch) noexcept nogil:
    """Read the next files, or the next piece of the open one, into a batch."""
    cdef size_t used = 0
    cdef uint64_t left
    cdef uint32_t index
    cdef const entry_t* row
    cdef segment_t* segment
    batch.count = 0
    batch.error = 0
    batch.end = False
    while batch.count < SEGMENT_LIMIT:
        if job.at == job.count:
            batch.end = True
            return
        memcpy(&index, job.picked + job.at * 4, 4)
        row = job.rows + index
        if row.mode & S_IFMT != S_IFREG:
            job.at += 1
            continue
        # A file that fits a batch is not split: it waits for the next one.
        if job.fd < 0 and used and row.size_bytes > BATCH_BYTES - used:
            return
        segment = &batch.segments[batch.count]
        segment.first = job.fd < 0
        if segment.first:
            batch.error = open_row(job, row)
        if not batch.error:
            left = row.size_bytes - job.done_bytes
            segment.row = index
            segment.offset = used
            segment.length = <size_t>left if left < BATCH_BYTES - used else BATCH_BYTES - used
            segment.last = segment.length == left
            batch.error = read_piece(job, batch.content + used, segment.length)
        if batch.error:
            batch.error_row = index
            return
        used += segment.length
        job.done_bytes += segment.length
        batch.count += 1
        if not segment.last:
            return
        close(job.fd)
        job.fd = -1
        job.at += 1


cdef void* run_reader(void* given) noexcept nogil:
    """Fill the two batches in turn until the end, an error or a stop; the reader thread's whole life."""
    cdef job_t* job = <job_t*>given
    cdef batch_t* batch
    cdef int turn = 0
    cdef bint stop = False
    while not stop:
        batch = &job.batches[turn]
        turn ^= 1
        pthread_mutex_lock(&job.lock)
        while batch.full and not job.stop:
            pthread_cond_wait(&job.wake, &job.lock)
        stop = job.stop
        pthread_mutex_unlock(&job.lock)
        if not stop:
            fill_batch(job, batch)
            stop = batch.end or batch.error
            pthread_mutex_lock(&job.lock)
            batch.full = True
            pthread_cond_broadcast(&job.wake)
            pthread_mutex_unlock(&job.lock)
    return NULL


cdef void await_batch(job_t* job, batch_t* batch) noexcept nogil:
    pthread_mutex_lock(&job.lock)
    while not batch.full:
        pthread_cond_wait(&job.wake, &job.lock)
    pthread_mutex_unlock(&job.lock)


cdef void return_batch(job_t* job, batch_t* batch, bint stop) noexcept nogil:
    """Give a batch back to the reader, or (batch NULL) tell it to stop."""
    pthread_mutex_lock(&job.lock)
    if batch != NULL:
        batch.full = False
    job.stop = job.stop or stop
    pthread_cond_broadcast(&job.wake)
    pthread_mutex_unlock(&job.lock)


cdef object hash_batch(batch_t* batch, object content, entry_t* rows, object blake3, object hasher):
    """Hash a batch's segments and set the finished rows; returns the hasher of a file that goes on."""
    cdef size_t index
    cdef segment_t* segment
    cdef bytes digest
    for index in range(batch.count):
        segment = &batch.segments[index]
        piece = content[segment.offset:segment.offset + segment.length]
        if segment.first:
            hasher = blake3(piece)
        else:
            hasher.update(piece)
        if segment.last:
            digest = hasher.digest()
            if len(digest) != 32:
                raise ValueError(f"a digest of {len(digest)} bytes is not BLAKE3's")
            memcpy(rows[segment.row].blake3, PyBytes_AS_STRING(digest), 32)
            rows[segment.row].flags |= FLAG_HASHED
            hasher = None
    return hasher


cdef int hash_all(job_t* job, tuple contents, entry_t* rows, object blake3, bint threaded) except -1:
    """Hash batch after batch, in turn filled by the reader thread or (not threaded) right here."""
    cdef batch_t* batch
    cdef int turn = 0
    hasher = None
    while True:
        batch = &job.batches[turn]
        with nogil:
            if threaded:
                await_batch(job, batch)
            else:
                fill_batch(job, batch)
        hasher = hash_batch(batch, contents[turn], rows, blake3, hasher)
        if batch.error == ENOMEM:
            raise MemoryError
        if batch.error:
            path = PyBytes_FromStringAndSize(
                job.heap + rows[batch.error_row].path_offset, rows[batch.error_row].path_length
            )
            raise OSError(batch.error, strerror(batch.error).decode(), path)
        if batch.end:
            return 0
        if threaded:
            return_batch(job, batch, False)
            turn ^= 1


cdef int start_job(
    job_t* job, const uint8_t[::1] records, const uint8_t[::1] heap, const uint8_t[::1] indexes, uint64_t* total_bytes
) except -1:
    """Point the job at its input after checking every index and path; total_bytes becomes the work's size."""
    cdef size_t limit = <size_t>records.shape[0] // sizeof(entry_t), size = <size_t>heap.shape[0], at
    cdef uint32_t index
    cdef const entry_t* row
    job.rows = <const entry_t*>&records[0]
    job.heap = <const char*>&heap[0]
    job.picked = &indexes[0]
    job.count = <size_t>indexes.shape[0] // 4
    total_bytes[0] = 0
    if <size_t>records.shape[0] != limit * sizeof(entry_t) or <size_t>indexes.shape[0] != job.count * 4:
        raise ValueError("records or indexes are not whole")
    for at in range(job.count):
        memcpy(&index, job.picked + at * 4, 4)
        if index >= limit:
            raise ValueError(f"index {index} is beyond the last row")
        row = job.rows + index
        if row.path_offset > size or size - row.path_offset < row.path_length:
            raise ValueError(f"the path of row {index} reaches beyond the heap")
        if row.mode & S_IFMT == S_IFREG:
            total_bytes[0] += row.size_bytes + 4096  # opening costs, too
    return 0


def hash_files(
    int root_fd, bytearray records not None, const uint8_t[::1] heap not None, const uint8_t[::1] indexes not None,
    blake3,
):
    """Hash the regular files among the rows named by indexes (native uint32) and set blake3 and FLAG_HASHED.

    Opens beneath root_fd without following symlinks. Reading releases the GIL. OSError with the filename as bytes
    on the first failure, ESTALE when a file is no longer one of the record's size; rows before it are set by then.
    """
    cdef uint8_t[::1] view = records  # held: records cannot be resized meanwhile
    cdef job_t job
    cdef pthread_t reader
    cdef uint64_t total_bytes
    cdef bint threaded = False
    cdef int turn
    memset(&job, 0, sizeof(job))
    job.root_fd = root_fd
    job.fd = -1
    job.parent.fd = -1
    start_job(&job, view, heap, indexes, &total_bytes)
    if total_bytes == 0:
        return
    first = PyByteArray_FromStringAndSize(NULL, BATCH_BYTES)
    second = PyByteArray_FromStringAndSize(NULL, BATCH_BYTES)
    job.batches[0].content = <uint8_t*>PyByteArray_AS_STRING(first)
    job.batches[1].content = <uint8_t*>PyByteArray_AS_STRING(second)
    pthread_mutex_init(&job.lock, NULL)
    pthread_cond_init(&job.wake, NULL)
    try:
        for turn in range(2):
            job.batches[turn].segments = <segment_t*>malloc(SEGMENT_LIMIT * sizeof(segment_t))
            if job.batches[turn].segments == NULL:
                raise MemoryError
        # Where no thread can be had, reading and hashing take turns.
        threaded = total_bytes > ALONE_BYTES and pthread_create(&reader, NULL, &run_reader, &job) == 0
        hash_all(&job, (memoryview(first), memoryview(second)), <entry_t*>&view[0], blake3, threaded)
    finally:
        if threaded:
            with nogil:
                return_batch(&job, NULL, True)
                pthread_join(reader, NULL)
        pthread_cond_destroy(&job.wake)
        pthread_mutex_destroy(&job.lock)
        for turn in range(2):
            free(job.batches[turn].segments)
        if job.fd >= 0:
            close(job.fd)
        if job.parent.fd >= 0:
            close(job.parent.fd)
        free(job.parent.path)
