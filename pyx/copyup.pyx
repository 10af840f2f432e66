# cython: autotestdict=False
"""Copy files and trees with everything that belongs to them.

A file's data go the best way that both file systems have (filecopy.pxd); a tree is copied directory by directory
(treecopy.pxd), each entry with its metadata (copyentry.pxd).
"""
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINVAL, errno
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset, strerror
from posix.unistd cimport getegid, geteuid

from copyentry cimport GIVEN_UP, copy_t, path_t, worker_t
from fileat cimport fstat, ftruncate, stat_t
from filecopy cimport BY_CLONE, BY_HAND, BY_RANGE, copy_data
from spancopy cimport copier_t, copy_span
from thread cimport (
    count_processors, pthread_cond_broadcast, pthread_cond_destroy, pthread_cond_init, pthread_join,
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock, pthread_t, start_quiet,
    store_int, wait_for,
)
from treecopy cimport BUFFER_BYTES, run, start_worker, stop_worker

cdef enum:
    THREADS_UNASKED = 8        # at most; more than cores make it slower, and so does a file system's own lock
    THREAD_LIMIT = 64
    SIGNALS_MS = 100


cdef int start_copier(copier_t* copier) except -1:
    memset(copier, 0, sizeof(copier_t))
    copier.capacity = BUFFER_BYTES
    copier.buffer = <uint8_t*>malloc(BUFFER_BYTES)
    if copier.buffer == NULL:
        raise MemoryError
    return 0


def copy_file(int source_fd, int target_fd, size_bytes):
    """Copy the data of an open file: reflink, else copy_file_range, else a sparse-aware read/write loop.

    What the target holds is replaced. Returns the way taken: "reflink", "copy_file_range" or "read_write" (small
    files as well). Holes stay holes. The source's file offset may move. Releases the GIL.
    """
    cdef copier_t copier
    cdef bint no_clone = False
    cdef int64_t size = size_bytes
    cdef stat_t found
    cdef int failure = 0, way = BY_HAND
    if size < 0:
        raise ValueError("size_bytes is negative")
    start_copier(&copier)
    with nogil:
        if fstat(target_fd, &found) != 0:
            failure = errno
        # What ext4 sees cut to nothing it writes out when it is closed, even when there was nothing.
        elif found.st_size and ftruncate(target_fd, 0) != 0:
            failure = errno
        elif fstat(source_fd, &found) != 0:
            failure = errno
        else:
            failure = copy_data(&copier, &no_clone, source_fd, target_fd, &found, size, &way)
    free(copier.buffer)
    if failure:
        raise OSError(failure, strerror(failure).decode())
    return {BY_CLONE: "reflink", BY_RANGE: "copy_file_range", BY_HAND: "read_write"}[way]


def copy_range(int source_fd, source_offset, int target_fd, target_offset, size_bytes):
    """Copy one range between open files within the kernel where it can."""
    cdef copier_t copier
    cdef int64_t from_offset = source_offset, to_offset = target_offset, size = size_bytes
    cdef int failure
    if from_offset < 0 or to_offset < 0 or size < 0:
        raise ValueError("offsets and sizes are not negative")
    start_copier(&copier)
    with nogil:
        failure = copy_span(&copier, source_fd, from_offset, target_fd, to_offset, size)
    free(copier.buffer)
    if failure:
        raise OSError(failure, strerror(failure).decode())


cdef int start_copy(copy_t* copy, int source_fd, int target_fd, path_t* path) except -1:
    """Put the top directory on the stack."""
    cdef stat_t source, target
    copy.source_root, copy.target_root = source_fd, target_fd
    if fstat(source_fd, &source) != 0 or fstat(target_fd, &target) != 0:
        raise OSError(errno, strerror(errno).decode(), b"")
    if source.st_dev == target.st_dev and source.st_ino == target.st_ino:
        raise OSError(EINVAL, "the source and the target are one directory", b"")
    copy.target_device, copy.target_inode = target.st_dev, target.st_ino
    copy.uid, copy.gid = geteuid(), getegid()
    copy.top.path = path
    copy.top.waiting = 1
    copy.top.was_there = True
    copy.stack = &copy.top
    return 0


cdef int run_workers(copy_t* copy, worker_t* workers, int threads) except -1:
    """Let the threads copy, and look for signals meanwhile."""
    cdef pthread_t ids[THREAD_LIMIT]
    cdef int index, started = 0, failure = 0
    with nogil:
        pthread_mutex_lock(&copy.lock)
        while started < threads and failure == 0:
            failure = start_quiet(&ids[started], &run, &workers[started])
            if failure == 0:
                started += 1
        copy.running = started
        pthread_mutex_unlock(&copy.lock)
    try:
        if started == 0:
            raise OSError(failure, "cannot start a thread: " + strerror(failure).decode(), b"")
        while True:
            with nogil:
                pthread_mutex_lock(&copy.lock)
                if copy.running:
                    wait_for(&copy.wake, &copy.lock, SIGNALS_MS)
                index = copy.running
                pthread_mutex_unlock(&copy.lock)
            if index == 0:
                break
            PyErr_CheckSignals()
    finally:
        with nogil:
            pthread_mutex_lock(&copy.lock)
            if copy.running and copy.error == 0:
                store_int(&copy.error, GIVEN_UP)
            pthread_cond_broadcast(&copy.wake)
            pthread_cond_broadcast(&copy.linked)
            pthread_mutex_unlock(&copy.lock)
            for index in range(started):
                pthread_join(ids[index], NULL)
    return 0


def copy_tree(
    int source_fd, int target_fd, int threads=0, owner=None, bint replace=False, bint top_metadata=True
):
    """Copy everything below one directory into another, existing one; return (entries, bytes of data).

    Keeps owner, mode, times, xattrs (ACLs and capabilities with them), hard links inside the tree, holes, devices,
    fifos, sockets, symlinks; with top_metadata, the top directory's own as well. Directories that are there already
    are merged, anything else in the way is a FileExistsError. Never follows symlinks. threads=0: one a core, at most
    8. owner=(uid, gid): everything becomes theirs. replace=True: what is in the way of anything but a directory goes,
    unless it is a directory itself. Some four descriptors a thread; memory for the directories' paths. Releases the
    GIL. Raises OSError with filename; what was copied so far stays, but no entry that isn't whole: only directories
    may lack entries and metadata. An xattr of a namespace that is one file system's own (btrfs.*) is left out where
    the target has no such thing. Needs /proc for xattrs of what is neither a file nor a directory.
    """
    cdef copy_t copy
    cdef path_t top
    cdef worker_t* workers
    cdef int index
    if threads < 0:
        raise ValueError("threads must not be negative")
    threads = min(threads, THREAD_LIMIT) if threads else min(count_processors(), THREADS_UNASKED)
    memset(&copy, 0, sizeof(copy))
    memset(&top, 0, sizeof(top))
    start_copy(&copy, source_fd, target_fd, &top)
    copy.replaces = replace
    copy.leaves_top = not top_metadata
    if owner is not None:
        copy.owns = True
        copy.owner_uid, copy.owner_gid = owner
    workers = <worker_t*>calloc(threads, sizeof(worker_t))
    if workers == NULL:
        raise MemoryError
    pthread_mutex_init(&copy.lock, NULL)
    pthread_cond_init(&copy.wake, NULL)
    pthread_cond_init(&copy.linked, NULL)
    try:
        for index in range(threads):
            if start_worker(&workers[index], &copy) != 0:
                raise MemoryError
        run_workers(&copy, workers, threads)
        if copy.error:
            path = b"" if copy.failed == NULL else copy.failed.text[:copy.failed.length]
            raise OSError(copy.error, strerror(copy.error).decode(), path)
        entries = data_bytes = 0
        for index in range(threads):
            entries += workers[index].entries
            data_bytes += workers[index].data_bytes
        return entries, data_bytes
    finally:
        for index in range(threads):
            stop_worker(&workers[index])
        free(workers)
        free(copy.links.slots)
        pthread_cond_destroy(&copy.linked)
        pthread_cond_destroy(&copy.wake)
        pthread_mutex_destroy(&copy.lock)
