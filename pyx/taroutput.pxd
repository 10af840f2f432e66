# cython: language_level=3
"""The ring's consumer that writes the tar to its file (inline-only)."""
from libc.errno cimport EINTR, EINVAL, EIO, errno
from libc.stdint cimport int64_t, uint64_t

from tarring cimport FAILED_OUTPUT, SLOT_BYTES, SLOTS, STAGE_WRITE, await_filled, job_t, stop

cdef extern from "<fcntl.h>" nogil:
    int fcntl(int, int, ...)
    int F_GETFL, F_SETFL
    int O_DIRECT
    int sync_file_range(int, int64_t, int64_t, unsigned int)
    unsigned int SYNC_FILE_RANGE_WRITE

cdef extern from "<unistd.h>" nogil:
    ssize_t pwrite(int, const void*, size_t, int64_t)

cdef enum:
    PAGE = 4096
    FLUSH_SLOTS = 16
    WRITE_SLOTS = 4           # at most so many per write

cdef inline void leave_direct(job_t* job) noexcept nogil:
    """Go back to the page cache: for a tail that is no whole page, and for file systems that refuse direct writes."""
    fcntl(job.out_fd, F_SETFL, fcntl(job.out_fd, F_GETFL) & ~O_DIRECT)
    job.direct = False

cdef inline void enter_direct(job_t* job) noexcept nogil:
    """Pass the page cache by, where the job asks for it and the file system can."""
    if job.direct and fcntl(job.out_fd, F_SETFL, fcntl(job.out_fd, F_GETFL) | O_DIRECT) < 0:
        job.direct = False

cdef inline void* write_stage(void* given) noexcept nogil:
    """Write the ring's slots to the output; a thread's whole life."""
    cdef job_t* job = <job_t*>given
    cdef uint64_t done = 0, filled, first
    cdef size_t at, length
    cdef ssize_t count
    while True:
        filled = await_filled(job, STAGE_WRITE, done)
        if filled == done:
            break
        first = done % SLOTS
        filled = min(filled - done, <uint64_t>WRITE_SLOTS, SLOTS - first)   # contiguous, and only the last can be short
        at = 0
        length = (filled - 1) * SLOT_BYTES + job.length[first + filled - 1]
        while at < length:
            if job.direct and length - at < PAGE:
                leave_direct(job)
            count = pwrite(
                job.out_fd, job.base + first * SLOT_BYTES + at,
                (length - at) & ~<size_t>(PAGE - 1) if job.direct else length - at,
                <int64_t>(done * SLOT_BYTES + at),
            )
            if count <= 0:
                if count < 0 and errno == EINTR:
                    continue
                if count < 0 and errno == EINVAL and job.direct:
                    leave_direct(job)
                    continue
                stop(job, FAILED_OUTPUT, errno if count < 0 else EIO, 0)
                return NULL
            at += <size_t>count
            if job.direct and at % PAGE:
                leave_direct(job)      # a short write: what follows is not aligned any more
        done += filled
        if not job.direct and done // FLUSH_SLOTS != (done - filled) // FLUSH_SLOTS:
            # A hint whose result does not matter: the disk starts early, so that the caller's fsync finds little left.
            at = FLUSH_SLOTS * SLOT_BYTES
            sync_file_range(
                job.out_fd, <int64_t>((done // FLUSH_SLOTS - 1) * at), <int64_t>at, SYNC_FILE_RANGE_WRITE
            )
    if job.direct:
        leave_direct(job)
    return NULL
