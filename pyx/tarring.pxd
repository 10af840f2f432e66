# cython: language_level=3
"""The ring that carries the tar from its one reader to its three consumers (inline-only).

Slots in order are the tar's bytes from start_bytes on, each but the last of them full. Everything under the lock is
counters; no function here is called with the GIL held.
"""
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy, memset

from tarcheck cimport table_t
from tarclone cimport cloner_t
from tarsource cimport folder_t
from thread cimport (
    pthread_cond_broadcast, pthread_cond_t, pthread_cond_wait, pthread_mutex_lock, pthread_mutex_t,
    pthread_mutex_unlock,
)

cdef enum:
    SLOT_BYTES = 1048576
    SLOTS = 16
    PAGE = 4096
    SLOT_PAGES = 256
    STAGES = 3                # that consume: each must be past a slot before it is filled again
    STAGE_WRITE = 0
    STAGE_SHA256 = 1
    STAGE_BLAKE3 = 2

cdef enum:
    FAILED_SOURCE = 1
    FAILED_CHANGED = 2
    FAILED_OUTPUT = 3
    FAILED_PYTHON = 4         # the exception is in the _Pipeline

cdef struct job_t:
    table_t table
    uint64_t start_bytes      # where the first slot lies in the tar; whole pages
    const uint8_t* lead       # what lies between there and the first row's headers
    size_t lead_length
    int out_fd
    bint direct               # the writer's own: large writes pass the page cache by
    bint is_direct            # the writer's own: the descriptor does now
    cloner_t cloner           # the reader's own
    bint forgets              # the reader's own: large files that were not in the page cache do not stay there
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
    uint8_t kept[SLOTS * SLOT_PAGES]   # pages that the tar has already, by a clone
    uint64_t rows[SLOTS]      # rows laid out when the slot was full: all that begin in it are among them
    bint finished
    bint stopped
    int failed
    int failed_errno
    uint64_t failed_row

cdef inline void stop(job_t* job, int failed, int error, uint64_t row) noexcept nogil:
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

cdef inline uint64_t await_filled(job_t* job, int stage, uint64_t done) noexcept nogil:
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

cdef inline uint8_t* reserve(job_t* job, size_t* space) noexcept nogil:
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
        memset(&job.kept[(job.filled % SLOTS) * SLOT_PAGES], 0, SLOT_PAGES)
    space[0] = SLOT_BYTES - job.at
    return job.base + (job.filled % SLOTS) * SLOT_BYTES + job.at

cdef inline void publish(job_t* job, bint finished) noexcept nogil:
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

cdef inline void keep_pages(job_t* job, size_t count) noexcept nogil:
    """Mark the pages of the next count bytes: the tar has them."""
    cdef size_t first = job.at // PAGE
    memset(
        &job.kept[(job.filled % SLOTS) * SLOT_PAGES + first], 1, (job.at + count + PAGE - 1) // PAGE - first
    )

cdef inline void advance(job_t* job, size_t count) noexcept nogil:
    job.at += count
    job.position += count
    if job.at == SLOT_BYTES:
        publish(job, False)

cdef inline int pour_bytes(job_t* job, const uint8_t* bytes, uint64_t length) noexcept nogil:
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
