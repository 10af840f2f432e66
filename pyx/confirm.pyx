# cython: language_level=3
"""Confirm a remembered walk: one statx per row, nothing listed, opened or allocated.

A directory whose inode, mtime and ctime are as they were holds the names it held, so that its listing is known;
statting those names is all that is left of a walk. Rows are shared out in blocks to any number of threads.
"""
cimport cython
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, strerror

from entry cimport entry_t
from gather cimport AT_EMPTY_PATH, item_t, stat_item
from remember cimport table_ok
from thread cimport count_up, pthread_create, pthread_join, pthread_t

cdef extern from "<sys/vfs.h>":
    struct statfs_t "statfs":
        long f_type
    int fstatfs(int fd, statfs_t* found) nogil

cdef enum:
    THREAD_LIMIT = 64
    BLOCK_ROWS = 256
    PATH_BYTES = 4096  # the kernel's limit, the final NUL included

cdef struct confirm_t:
    int root_fd
    const entry_t* rows
    const char* heap
    size_t count
    int64_t trusted_before_ns
    int taken                # blocks
    int differs


cdef bint row_holds(const confirm_t* state, const entry_t* row) noexcept nogil:
    """Tell whether a row's path has the stat it had, all times before the trusted one."""
    cdef char path[PATH_BYTES]
    cdef item_t item
    if row.mtime_ns >= state.trusted_before_ns or row.ctime_ns >= state.trusted_before_ns:
        return False
    if row.path_length >= PATH_BYTES or row.device != state.rows[0].device:
        return False
    if row.path_length:
        memcpy(path, state.heap + row.path_offset, row.path_length)
    path[row.path_length] = 0
    if stat_item(&item, state.root_fd, path, 0 if row.path_length else AT_EMPTY_PATH) != 0:
        return False
    return (
        item.ctime_ns == row.ctime_ns and item.mtime_ns == row.mtime_ns and item.inode == row.inode
        and item.device == row.device and item.size_bytes == row.size_bytes and item.mode == row.mode
        and item.uid == row.uid and item.gid == row.gid and item.nlink == row.nlink
        and item.rdev_major == row.rdev_major and item.rdev_minor == row.rdev_minor
    )


cdef void* run(void* given) noexcept nogil:
    """Confirm blocks of rows until none is left or one differs; a thread's whole life."""
    cdef confirm_t* state = <confirm_t*>given
    cdef size_t at, end
    while not state.differs:
        at = <size_t>(count_up(&state.taken) - 1) * BLOCK_ROWS
        if at >= state.count:
            break
        end = at + BLOCK_ROWS if state.count - at > BLOCK_ROWS else state.count
        while at < end:
            if not row_holds(state, state.rows + at):
                count_up(&state.differs)
                return NULL
            at += 1
    return NULL


@cython.final
cdef class Confirmation:
    """One confirmation, worked on by every thread that calls run(). See confirm.pyi."""
    cdef confirm_t state
    cdef const uint8_t[::1] records
    cdef const uint8_t[::1] heap

    def __cinit__(
        self, int root_fd, const uint8_t[::1] records not None, const uint8_t[::1] heap not None,
        int64_t trusted_before_ns,
    ):
        cdef bint ok
        self.records = records
        self.heap = heap
        self.state.root_fd = root_fd
        self.state.trusted_before_ns = trusted_before_ns
        if records.shape[0] == 0:
            self.state.differs = 1
            return
        with nogil:
            ok = table_ok(records, heap)
        if not ok:
            raise ValueError("a record reaches beyond its heap, or the records are not whole")
        self.state.rows = <const entry_t*>&records[0]
        self.state.heap = <const char*>&heap[0]
        self.state.count = <size_t>records.shape[0] // sizeof(entry_t)
        if self.state.count > <size_t>1 << 38:  # the blocks are counted in an int
            self.state.differs = 1

    def run(self):
        """Work until nothing is left to begin with, and tell whether all that was looked at holds."""
        with nogil:
            run(&self.state)
        return self.state.differs == 0


def confirm(
    int root_fd, const uint8_t[::1] records not None, const uint8_t[::1] heap not None, int64_t trusted_before_ns,
    int threads=1,
):
    """Tell whether a walk of root_fd would give this table again, by one statx per row. See confirm.pyi."""
    cdef Confirmation work = Confirmation(root_fd, records, heap, trusted_before_ns)
    cdef pthread_t* ids
    cdef int started = 1
    if threads < 1:
        raise ValueError("threads must be at least 1")
    threads = min(threads, THREAD_LIMIT)
    ids = <pthread_t*>calloc(threads, sizeof(pthread_t))
    if ids == NULL:
        raise MemoryError
    with nogil:
        while started < threads and pthread_create(&ids[started], NULL, &run, &work.state) == 0:
            started += 1
        run(&work.state)
        while started > 1:
            started -= 1
            pthread_join(ids[started], NULL)
    free(ids)
    return work.state.differs == 0


def read_filesystem_type(int fd):
    """Return the f_type of statfs(2) for what fd is open on."""
    cdef statfs_t found
    cdef int failure
    with nogil:
        failure = errno if fstatfs(fd, &found) != 0 else 0
    if failure:
        raise OSError(failure, strerror(failure).decode())
    return found.f_type & 0xFFFFFFFF
