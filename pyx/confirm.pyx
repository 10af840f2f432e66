# cython: language_level=3
"""Confirm a remembered walk: one statx per row, nothing listed, opened or allocated.

A directory whose inode, mtime and ctime are as they were holds the names it held, so that its listing is known;
statting those names is all that is left of a walk. A plain file that was written to leaves the tree its shape: a few of
those are noted, and the rest is confirmed all the same. Rows are shared out in blocks to any number of threads.
"""
cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset, strerror

from entry cimport FLAG_HARDLINK, entry_t
from gather cimport AT_EMPTY_PATH, item_t, stat_item
from remember cimport S_IFMT, S_IFREG, table_ok
from thread cimport count_up, load_int, pthread_create, pthread_join, pthread_t

cdef extern from "<sys/vfs.h>":
    struct statfs_t "statfs":
        long f_type
    int fstatfs(int fd, statfs_t* found) nogil

cdef enum:
    THREAD_LIMIT = 64
    BLOCK_ROWS = 256
    PATH_BYTES = 4096  # the kernel's limit, the final NUL included
    CHANGED_LIMIT = 256

cdef enum:
    HOLDS = 0
    CHANGED = 1              # a plain file, as it was one, with another stat
    DIFFERS = 2

cdef struct confirm_t:
    int root_fd
    const entry_t* rows
    const char* heap
    size_t count
    int64_t trusted_before_ns
    int taken                # blocks
    int differs
    int changes              # how many rows of `changed` are, or more than there is room for
    uint32_t changed[CHANGED_LIMIT]


cdef bint is_plain(uint32_t mode, uint32_t nlink) noexcept nogil:
    """Tell a regular file of one name: what is written to it is in no other row."""
    return mode & S_IFMT == S_IFREG and nlink == 1


cdef int compare_row(const confirm_t* state, const entry_t* row) noexcept nogil:
    """Compare a row's path with the stat it had; times from the trusted one on are as good as others."""
    cdef char path[PATH_BYTES]
    cdef item_t item
    memset(&item, 0, sizeof(item))
    if row.path_length >= PATH_BYTES or row.device != state.rows[0].device:
        return DIFFERS
    if row.path_length:
        memcpy(path, state.heap + row.path_offset, row.path_length)
    path[row.path_length] = 0
    if stat_item(&item, state.root_fd, path, 0 if row.path_length else AT_EMPTY_PATH) != 0:
        return DIFFERS
    if (
        row.mtime_ns < state.trusted_before_ns and row.ctime_ns < state.trusted_before_ns
        and item.ctime_ns == row.ctime_ns and item.mtime_ns == row.mtime_ns and item.inode == row.inode
        and item.device == row.device and item.size_bytes == row.size_bytes and item.mode == row.mode
        and item.uid == row.uid and item.gid == row.gid and item.nlink == row.nlink
        and item.rdev_major == row.rdev_major and item.rdev_minor == row.rdev_minor
    ):
        return HOLDS
    if (
        is_plain(row.mode, row.nlink) and is_plain(item.mode, item.nlink) and not row.flags & FLAG_HARDLINK
        and item.device == row.device
    ):
        return CHANGED
    return DIFFERS


cdef void* run(void* given) noexcept nogil:
    """Confirm blocks of rows until none is left or one differs; a thread's whole life."""
    cdef confirm_t* state = <confirm_t*>given
    cdef size_t at, end
    cdef int found, place
    while not load_int(&state.differs):
        at = <size_t>(count_up(&state.taken) - 1) * BLOCK_ROWS
        if at >= state.count:
            break
        end = at + BLOCK_ROWS if state.count - at > BLOCK_ROWS else state.count
        while at < end:
            found = compare_row(state, state.rows + at)
            if found == CHANGED:
                place = count_up(&state.changes) - 1
                if place < CHANGED_LIMIT:
                    state.changed[place] = <uint32_t>at
                else:
                    found = DIFFERS
            if found == DIFFERS:
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
        if self.state.count >= <size_t>1 << 32:  # what is changed is told in 32 bits
            self.state.differs = 1

    def run(self):
        """Work until nothing is left to begin with, and tell whether the tree has its shape as far as it was seen."""
        with nogil:
            run(&self.state)
        return load_int(&self.state.differs) == 0

    @property
    def changed(self):
        """The rows of plain files that have another stat, in no order; None where more than that differs."""
        if load_int(&self.state.differs):
            return None
        return PyBytes_FromStringAndSize(
            <const char*>self.state.changed, <Py_ssize_t>(self.state.changes * sizeof(uint32_t))
        )


def confirm(
    int root_fd, const uint8_t[::1] records not None, const uint8_t[::1] heap not None, int64_t trusted_before_ns,
    int threads=1,
):
    """Tell what a walk of root_fd would find changed in this table, by one statx per row. See confirm.pyi."""
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
    return work.changed


def read_filesystem_type(int fd):
    """Return the f_type of statfs(2) for what fd is open on."""
    cdef statfs_t found
    cdef int failure
    with nogil:
        failure = errno if fstatfs(fd, &found) != 0 else 0
    if failure:
        raise OSError(failure, strerror(failure).decode())
    return found.f_type & 0xFFFFFFFF
