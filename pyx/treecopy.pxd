# cython: language_level=3
"""Copy a tree's directories by several threads (inline-only).

Workers take directories from a shared stack, last in, first out. A directory gets its metadata when its own entries
and all directories below it are done, by whoever did the last of them: copying into it would change it again.
"""
from libc.errno cimport EINTR, EINVAL, ENOMEM, errno
from libc.stdint cimport uint8_t, uint16_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy
from posix.unistd cimport close

from arena cimport arena_free
from beneath cimport syscall
from copyentry cimport (
    GIVEN_UP, close_both, copy_entry, copy_t, directory_t, drop_default_acl, fail, finish_directory, join_path,
    open_both, path_t, worker_t,
)
from fileat cimport DT_REG, SYS_getdents64, fstat
from thread cimport (
    CLONE_FS, count_down, load_int, pthread_cond_broadcast, pthread_cond_signal, pthread_cond_wait, pthread_mutex_lock,
    pthread_mutex_unlock, umask, unshare,
)
from xattr cimport xattr_start, xattr_stop

cdef enum:
    BUFFER_BYTES = 256 * 1024
    LISTING_BYTES = 32 * 1024
    NAME_OFFSET = 19           # of struct linux_dirent64: ino 8, off 8, reclen 2, type 1, name


cdef inline int copy_listing(worker_t* worker, directory_t** made) noexcept nogil:
    """Copy what the current directory lists; 0 or an error that is noted."""
    cdef uint8_t listing[LISTING_BYTES]
    cdef long size, at
    cdef uint16_t record_bytes
    cdef const char* name
    cdef const path_t* path
    cdef bint is_regular
    cdef int failure
    while True:
        size = syscall(SYS_getdents64, worker.source_fd, listing, <size_t>LISTING_BYTES)
        if size == 0:
            return 0
        if size < 0:
            if errno == EINTR:
                continue
            return fail(worker, worker.directory.path, errno)
        at = 0
        while at < size:
            memcpy(&record_bytes, &listing[at + 16], 2)
            is_regular = listing[at + 18] == DT_REG
            name = <const char*>&listing[at + NAME_OFFSET]
            at += record_bytes
            if name[0] == c'.' and (name[1] == 0 or (name[1] == c'.' and name[2] == 0)):
                continue
            if load_int(&worker.copy.error):  # without the lock: seen a little later at worst
                return GIVEN_UP
            failure = copy_entry(worker, name, is_regular, made)
            if failure == GIVEN_UP:
                return failure
            if failure:
                path = join_path(worker, worker.directory.path, name)
                return fail(worker, path if path != NULL else worker.directory.path, failure)


cdef inline int visit(worker_t* worker, directory_t* directory, directory_t** made) noexcept nogil:
    """Copy one directory's entries and, when nothing below waits, its metadata; 0 or an error that is noted."""
    cdef directory_t* child
    cdef int failure = open_both(worker, directory)
    if failure == 0 and fstat(worker.source_fd, &directory.found) != 0:
        failure = errno
    if failure == 0 and directory.was_there:
        failure = drop_default_acl(worker)
    if failure:
        fail(worker, directory.path, failure)
    else:
        failure = copy_listing(worker, made)
    if failure == 0:
        child = made[0]
        while child != NULL:
            directory.waiting += 1  # nobody else counts yet
            child = child.next
        if made[0] == NULL:
            directory.waiting = 0
            failure = finish_directory(worker)
            if failure:
                fail(worker, directory.path, failure)
    close_both(worker)
    return failure


cdef inline int finish_above(worker_t* worker, directory_t* directory) noexcept nogil:
    """Finish the directories for which this one was the last they waited for; 0 or an error that is noted."""
    cdef int failure
    if load_int(&directory.waiting):
        directory = directory if count_down(&directory.waiting) == 0 else NULL
    else:
        directory = directory.parent
        if directory != NULL and count_down(&directory.waiting) != 0:
            directory = NULL
    while directory != NULL:
        failure = open_both(worker, directory)
        if failure == 0:
            failure = finish_directory(worker)
        close_both(worker)
        if failure:
            return fail(worker, directory.path, failure)
        directory = directory.parent
        if directory != NULL and count_down(&directory.waiting) != 0:
            return 0
    return 0


cdef inline void* run(void* given) noexcept nogil:
    """Copy directories from the shared stack until none is left or one has failed; a thread's whole life."""
    cdef worker_t* worker = <worker_t*>given
    cdef copy_t* copy = worker.copy
    cdef directory_t* directory
    cdef directory_t* made
    cdef directory_t* last
    # The mask becomes this thread's own, so that files can be made with the mode they keep. Where a sandbox refuses it,
    # a chmod follows.
    if unshare(CLONE_FS) == 0:
        umask(0)
    pthread_mutex_lock(&copy.lock)
    while True:
        while copy.stack == NULL and copy.busy and not copy.error:
            copy.idle += 1
            pthread_cond_wait(&copy.wake, &copy.lock)
            copy.idle -= 1
        if copy.stack == NULL or copy.error:
            break
        directory = copy.stack
        copy.stack = directory.next
        copy.busy += 1
        pthread_mutex_unlock(&copy.lock)
        made = NULL
        if visit(worker, directory, &made) == 0:
            if made != NULL:
                last = made
                while last.next != NULL:
                    last = last.next
                pthread_mutex_lock(&copy.lock)
                last.next = copy.stack
                copy.stack = made
                if copy.idle:
                    pthread_cond_broadcast(&copy.wake)
                pthread_mutex_unlock(&copy.lock)
            finish_above(worker, directory)
        pthread_mutex_lock(&copy.lock)
        copy.busy -= 1
    copy.running -= 1
    pthread_cond_broadcast(&copy.wake)
    pthread_mutex_unlock(&copy.lock)
    return NULL


cdef inline int start_worker(worker_t* worker, copy_t* copy) noexcept nogil:
    """Take the memory of a zeroed worker; -1 when there is none."""
    worker.copy = copy
    worker.source_fd = worker.target_fd = -1
    worker.restore.own_prefix = worker.restore.doing = b""
    worker.restore.drops_foreign = True
    worker.copier.capacity = BUFFER_BYTES
    worker.copier.buffer = <uint8_t*>malloc(BUFFER_BYTES)
    return 0 if worker.copier.buffer != NULL and xattr_start(&worker.xattrs) == 0 else -1


cdef inline void stop_worker(worker_t* worker) noexcept nogil:
    """Free what the worker took, its directories and paths too."""
    free(worker.copier.buffer)
    xattr_stop(&worker.xattrs)
    arena_free(&worker.paths)
