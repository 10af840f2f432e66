# cython: language_level=3
"""The ring's consumer that writes the tar to its file (inline-only)."""
from libc.errno cimport EINTR, EINVAL, EIO, errno
from libc.stdint cimport int64_t, uint8_t, uint64_t

from tarring cimport FAILED_OUTPUT, PAGE, SLOT_BYTES, SLOT_PAGES, SLOTS, STAGE_WRITE, await_filled, job_t, stop

cdef extern from "<fcntl.h>" nogil:
    int fcntl(int, int, ...)
    int F_GETFL, F_SETFL
    int O_DIRECT
    int sync_file_range(int, int64_t, int64_t, unsigned int)
    unsigned int SYNC_FILE_RANGE_WRITE

cdef extern from "<unistd.h>" nogil:
    ssize_t pwrite(int, const void*, size_t, int64_t)

cdef enum:
    FLUSH_SLOTS = 16
    WRITE_SLOTS = 4           # at most so many per write
    DIRECT_BYTES = 65536      # less, between cloned blocks, is left to the page cache: each would wait for the disk

cdef inline void leave_direct(job_t* job) noexcept nogil:
    """Go back to the page cache."""
    if job.is_direct:
        fcntl(job.out_fd, F_SETFL, fcntl(job.out_fd, F_GETFL) & ~O_DIRECT)
    job.is_direct = False

cdef inline void enter_direct(job_t* job) noexcept nogil:
    """Pass the page cache by, where the job asks for it and the file system can."""
    if job.direct and not job.is_direct:
        job.is_direct = job.direct = fcntl(job.out_fd, F_SETFL, fcntl(job.out_fd, F_GETFL) | O_DIRECT) >= 0

cdef inline size_t measure_run(const job_t* job, uint64_t slot, size_t at, size_t length, bint* kept) noexcept nogil:
    """Return how many bytes from `at` of the slot on are all in the tar, or all not (up to length)."""
    cdef const uint8_t* pages = &job.kept[slot * SLOT_PAGES]
    cdef size_t end = at // PAGE
    kept[0] = pages[end]
    while end * PAGE < length and pages[end] == pages[at // PAGE]:
        end += 1
    return min(end * PAGE, length) - at

cdef inline int write_run(job_t* job, const uint8_t* bytes, size_t length, int64_t offset) noexcept nogil:
    """Write bytes that begin at a page of the tar; 0, or -1 when it has failed."""
    cdef ssize_t count
    if length >= DIRECT_BYTES:
        enter_direct(job)
    else:
        leave_direct(job)
    while length:
        if job.is_direct and length < PAGE:
            leave_direct(job)          # a tail that is no whole page
        count = pwrite(job.out_fd, bytes, length & ~<size_t>(PAGE - 1) if job.is_direct else length, offset)
        if count <= 0:
            if count < 0 and errno == EINTR:
                continue
            if count < 0 and errno == EINVAL and job.is_direct:
                job.direct = False     # the file system refuses direct writes
                leave_direct(job)
                continue
            stop(job, FAILED_OUTPUT, errno if count < 0 else EIO, 0)
            return -1
        bytes += count
        offset += count
        length -= <size_t>count
        if job.is_direct and count % PAGE:
            leave_direct(job)          # a short write: what follows is not aligned any more
    return 0

cdef inline void* write_stage(void* given) noexcept nogil:
    """Write the ring's slots to the output, but for what a clone has put there; a thread's whole life."""
    cdef job_t* job = <job_t*>given
    cdef uint64_t done = 0, filled, first
    cdef size_t at, length, run
    cdef bint kept
    while True:
        filled = await_filled(job, STAGE_WRITE, done)
        if filled == done:
            break
        first = done % SLOTS
        filled = min(filled - done, <uint64_t>WRITE_SLOTS, SLOTS - first)   # contiguous, and only the last can be short
        at = 0
        length = (filled - 1) * SLOT_BYTES + job.length[first + filled - 1]
        while at < length:
            run = measure_run(job, first, at, length, &kept)
            if not kept and write_run(
                job, job.base + first * SLOT_BYTES + at, run, <int64_t>(job.start_bytes + done * SLOT_BYTES + at)
            ):
                return NULL
            at += run
        done += filled
        if done // FLUSH_SLOTS != (done - filled) // FLUSH_SLOTS:
            # A hint whose result does not matter: the disk starts early, so that the caller's fsync finds little left.
            at = FLUSH_SLOTS * SLOT_BYTES
            sync_file_range(
                job.out_fd, <int64_t>(job.start_bytes + (done // FLUSH_SLOTS - 1) * at), <int64_t>at,
                SYNC_FILE_RANGE_WRITE,
            )
    leave_direct(job)
    return NULL
