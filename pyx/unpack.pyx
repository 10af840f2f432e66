# cython: autotestdict=False
"""Create a layer's rows below a directory, straight from its table and its tar.

Rows come in component order, so a directory's row precedes everything in it and one open parent serves its
neighbours. Directories and whiteouts come first, then files by several threads, each of which takes the next few rows,
then hard links, whose targets are there by then. Directories get their metadata at the end, deepest first: later
entries would change their times, a default ACL would be inherited, a read-only mode would be in the way.
"""
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EEXIST, ENAMETOOLONG, ENOENT, ENOMEM, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset, strerror
from posix.unistd cimport close

from beneath cimport O_CLOEXEC, O_DIRECTORY, O_NOFOLLOW, O_PATH, O_RDONLY, open_beneath, open_name
from cleartree cimport clear_directory, remove_entry
from entry cimport FLAG_HARDLINK, FLAG_IMPLICIT, FLAG_OPAQUE, FLAG_SPARSE, FLAG_WHITEOUT, entry_t
from fileat cimport (
    AT_SYMLINK_NOFOLLOW, O_CREAT, O_EXCL, O_WRONLY, PROC_NAME_BYTES, S_IFBLK, S_IFCHR, S_IFDIR, S_IFLNK, S_IFMT,
    S_IFREG, fremovexattr, fsetxattr, fstat, fstatat, ftruncate, futimens, lgetxattr, makedev, mkdirat,
    mknodat, name_in_proc, openat_mode, stat_t, symlinkat, timespec,
)
from layercheck cimport check_table, table_t
from restore cimport XATTR_NAMES_BYTES, drop_xattrs, finish_named, finish_open, restore_t
from rowturn cimport NAME_BYTES, TURN_FILE, TURN_FIRST, TURN_LINK, find_end, link_beneath, turn_of
from tarwindow cimport copy_from_tar, start_window, stop_window, window_t
from thread cimport count_processors, count_up, load_int, pthread_join, pthread_t, start_quiet, store_int

WHITEOUT_APPLY = 0
WHITEOUT_OVERLAY = 1
WHITEOUT_USERXATTR = 2
NO_OWNER = 1
NO_DEVICES = 2

cdef enum:
    MODE_APPLY = 0
    MODE_OVERLAY = 1
    MODE_USERXATTR = 2
    SKIP_OWNER = 1
    SKIP_DEVICES = 2
    BATCH_ROWS = 256           # that a thread takes at once; between two looks at signals
    MOST_WORKERS = 4
    WORKER_ROWS = 1024         # for each thread at least
    # What is left to do with a row's directory at the end:
    DIRECTORY_DONE = 0
    DIRECTORY_NEW = 1
    DIRECTORY_MERGED = 2       # was there: xattrs that the row doesn't have go
    DIRECTORY_KEPT = 3         # was there, the row is IMPLICIT: its times come back

cdef struct state_t:
    table_t table
    int root_fd
    int tar_fd
    int mode
    int skip
    int parent_fd
    const uint8_t* parent      # in the heap
    uint32_t parent_length
    bint parent_has_acl        # new entries would inherit it
    char name[NAME_BYTES]
    uint8_t* to_do             # one per row
    timespec* kept_times       # two per KEPT directory, in row order
    size_t kept_count
    size_t kept_capacity
    window_t window
    uint64_t written_bytes
    restore_t restore

cdef struct share_t:           # of the files, taken batch by batch
    int begun                  # batches, atomic
    int stopped                # atomic
    int count

cdef struct worker_t:
    state_t state              # its own, but for the table, the root and what is the directories' alone
    share_t* share
    pthread_t thread
    Py_ssize_t failed          # row, or -1
    int failure


cdef int enter(state_t* state, const uint8_t* path, uint32_t length) noexcept nogil:
    """Make state.name the last component of path and state.parent_fd the directory that holds it."""
    cdef uint32_t end = length, size
    cdef char proc[PROC_NAME_BYTES]
    state.restore.doing = b"open the parent directory"
    while end and path[end - 1] != c'/':
        end -= 1
    size = length - end
    if size >= NAME_BYTES:
        return ENAMETOOLONG
    memcpy(state.name, path + end, size)
    state.name[size] = 0
    if end:
        end -= 1
    if state.parent_fd >= 0 and state.parent_length == end and memcmp(state.parent, path, end) == 0:
        return 0
    leave(state)
    state.parent_fd = open_beneath(state.root_fd, <const char*>path, end, O_PATH | O_DIRECTORY)
    if state.parent_fd < 0:
        return errno
    state.parent = path
    state.parent_length = end
    name_in_proc(proc, state.parent_fd, b".")
    state.parent_has_acl = lgetxattr(proc, b"system.posix_acl_default", NULL, 0) > 0
    return 0


cdef void leave(state_t* state) noexcept nogil:
    if state.parent_fd >= 0:
        close(state.parent_fd)
    state.parent_fd = -1


cdef int put_span(state_t* state, int fd, uint64_t from_offset, uint64_t to_offset, uint64_t size) noexcept nogil:
    state.written_bytes += size
    return copy_from_tar(&state.window, fd, from_offset, to_offset, size)


cdef int put_data(state_t* state, const entry_t* row, int fd) noexcept nogil:
    cdef const uint8_t* ranges = state.table.heap + row.link_offset
    cdef uint64_t offset, length, packed = row.data_offset
    cdef uint32_t at = 0
    cdef int failure
    state.restore.doing = b"write"
    if not row.flags & FLAG_SPARSE:
        return put_span(state, fd, row.data_offset, 0, row.size_bytes) if row.size_bytes else 0
    if ftruncate(fd, row.size_bytes) != 0:
        return errno
    while at < row.link_length:
        memcpy(&offset, ranges + at, 8)
        memcpy(&length, ranges + at + 8, 8)
        if length:
            failure = put_span(state, fd, packed, offset, length)
            if failure:
                return failure
        packed += length
        at += 16
    return 0


cdef int make_node(state_t* state, const entry_t* row) noexcept nogil:
    """Create one entry that must not exist, empty and without metadata; 0, a descriptor + 1, or -errno."""
    cdef uint32_t kind = row.mode & S_IFMT
    cdef char* target
    cdef int result
    state.restore.doing = b"create"
    if row.flags & FLAG_WHITEOUT:
        result = mknodat(state.parent_fd, state.name, S_IFCHR, 0)
    elif row.flags & FLAG_HARDLINK:
        state.restore.doing = b"link"
        target = <char*>state.table.heap + row.link_offset
        return -link_beneath(state.root_fd, target, row.link_length, state.parent_fd, state.name)
    elif kind == S_IFREG:
        result = openat_mode(
            state.parent_fd, state.name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, row.mode & 0o777
        )
        return result + 1 if result >= 0 else -errno
    elif kind == S_IFDIR:
        result = mkdirat(state.parent_fd, state.name, 0o700)
    elif kind == S_IFLNK:
        target = <char*>malloc(<size_t>row.link_length + 1)
        if target == NULL:
            return -ENOMEM
        memcpy(target, state.table.heap + row.link_offset, row.link_length)
        target[row.link_length] = 0
        result = symlinkat(target, state.parent_fd, state.name)
        result = 0 if result == 0 else -errno
        free(target)
        return result
    else:
        result = mknodat(
            state.parent_fd, state.name, row.mode & (S_IFMT | 0o777), makedev(row.rdev_major, row.rdev_minor)
        )
    return 0 if result == 0 else -errno


cdef int meet_directory(state_t* state, Py_ssize_t index, const stat_t* found) noexcept nogil:
    """Note what a directory's row means for the directory that is there already; 0 or an errno."""
    cdef const entry_t* row = &state.table.rows[index]
    cdef int failure
    cdef void* moved
    if row.flags & FLAG_OPAQUE:
        state.restore.doing = b"clear the opaque directory"
        if row.path_length:
            failure = clear_directory(state.parent_fd, state.name)
        else:
            failure = clear_directory(state.root_fd, b".")
        if failure:
            return failure
    if not row.flags & FLAG_IMPLICIT:
        state.to_do[index] = DIRECTORY_MERGED
        return 0
    if state.kept_count == state.kept_capacity:
        moved = realloc(state.kept_times, (state.kept_capacity * 2 + 64) * 2 * sizeof(timespec))
        if moved == NULL:
            return ENOMEM
        state.kept_times = <timespec*>moved
        state.kept_capacity = state.kept_capacity * 2 + 64
    state.kept_times[state.kept_count * 2] = found.st_atim
    state.kept_times[state.kept_count * 2 + 1] = found.st_mtim
    state.kept_count += 1
    state.to_do[index] = DIRECTORY_KEPT
    return 0


cdef int put_row(state_t* state, Py_ssize_t index) noexcept nogil:
    """Make one row, replacing what is in the way; 0 or an errno."""
    cdef const entry_t* row = &state.table.rows[index]
    cdef bint whiteout = row.flags & FLAG_WHITEOUT
    cdef bint directory = not whiteout and row.mode & S_IFMT == S_IFDIR
    cdef stat_t found
    cdef int made = -EEXIST, attempt = 0, failure
    if not row.path_length:
        state.restore.doing = b"stat"
        return errno if fstat(state.root_fd, &found) != 0 else meet_directory(state, index, &found)
    failure = enter(state, state.table.heap + row.path_offset, row.path_length)
    if failure:
        return failure
    if whiteout and state.mode == MODE_APPLY:
        state.restore.doing = b"remove"
        return remove_entry(state.parent_fd, state.name)
    if state.skip & SKIP_DEVICES and not whiteout and (row.mode & S_IFMT) in (S_IFCHR, S_IFBLK):
        state.restore.doing = b"remove"
        return remove_entry(state.parent_fd, state.name)
    while True:
        made = make_node(state, row)
        if made != -EEXIST or attempt == 3:  # someone else keeps making it again
            break
        attempt += 1
        state.restore.doing = b"replace"
        if fstatat(state.parent_fd, state.name, &found, AT_SYMLINK_NOFOLLOW) != 0:
            if errno == ENOENT:
                continue
            return errno
        if directory and found.st_mode & S_IFMT == S_IFDIR:
            return meet_directory(state, index, &found)
        failure = remove_entry(state.parent_fd, state.name)
        if failure:
            return failure
    if made < 0:
        return -made
    if directory:
        state.to_do[index] = DIRECTORY_MERGED if state.parent_has_acl else DIRECTORY_NEW
        return 0
    if whiteout or row.flags & FLAG_HARDLINK:
        return 0
    if row.mode & S_IFMT == S_IFREG:
        return fill_file(state, row, made - 1)
    return finish_named(&state.restore, row, state.parent_fd, state.name, state.parent_has_acl)


cdef int fill_file(state_t* state, const entry_t* row, int fd) noexcept nogil:
    """Write a new file's data and metadata and close it; 0 or an errno."""
    cdef int failure = put_data(state, row, fd)
    if failure == 0:
        if state.parent_has_acl:
            fremovexattr(fd, b"system.posix_acl_access")  # that there is none is no error
        failure = finish_open(&state.restore, row, fd)
    if close(fd) != 0 and failure == 0:
        state.restore.doing = b"close"
        failure = errno
    return failure


cdef int finish_directory(state_t* state, Py_ssize_t index) noexcept nogil:
    """Do what is left to do with a row's directory; 0 or an errno."""
    cdef const entry_t* row = &state.table.rows[index]
    cdef const char* path = <const char*>state.table.heap + row.path_offset
    cdef char mark[32]
    cdef int fd, failure = 0
    state.restore.doing = b"open the directory again"
    fd = open_beneath(state.root_fd, path, row.path_length, O_RDONLY | O_DIRECTORY)
    if fd < 0:
        return errno
    if state.mode != MODE_APPLY and row.flags & FLAG_OPAQUE:
        state.restore.doing = b"mark the directory opaque"
        snprintf(mark, sizeof(mark), "%sopaque", state.restore.own_prefix)
        if fsetxattr(fd, mark, b"y", 1, 0) != 0:
            failure = errno
    if failure == 0 and state.to_do[index] == DIRECTORY_MERGED:
        failure = drop_xattrs(&state.restore, row, fd)
    if failure == 0 and state.to_do[index] != DIRECTORY_KEPT:
        failure = finish_open(&state.restore, row, fd)
    elif failure == 0:
        state.kept_count -= 1
        state.restore.doing = b"set the times"
        if futimens(fd, &state.kept_times[state.kept_count * 2]) != 0:
            failure = errno
    close(fd)
    return failure


cdef Py_ssize_t put_rows(state_t* state, Py_ssize_t first, Py_ssize_t end, int turn, int* failure) noexcept nogil:
    """Make those of the rows first to end whose turn it is; give the index of the one that failed, or -1."""
    cdef Py_ssize_t index
    for index in range(first, end):
        if turn_of(&state.table.rows[index]) == turn:
            failure[0] = put_row(state, index)
            if failure[0]:
                return index
    return -1


cdef bint put_batch(worker_t* worker) noexcept nogil:
    """Make the files of the next batch; tell whether there was one, and no thread has failed."""
    cdef state_t* state = &worker.state
    cdef Py_ssize_t first, end
    if load_int(&worker.share.stopped):
        return False
    first = count_up(&worker.share.begun) - 1
    if first >= worker.share.count:
        return False
    first *= BATCH_ROWS
    end = min(first + BATCH_ROWS, state.table.count)
    state.window.end = find_end(&state.table, first, end)  # what is behind it another thread reads
    worker.failed = put_rows(state, first, end, TURN_FILE, &worker.failure)
    if worker.failed >= 0:
        store_int(&worker.share.stopped, 1)
    return worker.failed < 0


cdef void* run_worker(void* given) noexcept nogil:
    cdef worker_t* worker = <worker_t*>given
    while put_batch(worker):
        pass
    return NULL


cdef Py_ssize_t finish_directories(state_t* state, int* failure) noexcept nogil:
    """Finish the directories, last first; give the index of the one that failed, or -1."""
    cdef Py_ssize_t index = state.table.count
    while index > 0:
        index -= 1
        if state.to_do[index] != DIRECTORY_DONE:
            failure[0] = finish_directory(state, index)
            if failure[0]:
                return index
    return -1


cdef object row_error(state_t* state, Py_ssize_t index, int failure):
    cdef const entry_t* row = &state.table.rows[index]
    path = (<const char*>state.table.heap + row.path_offset)[:row.path_length]
    return OSError(failure, f"{state.restore.doing.decode()}: {strerror(failure).decode()}", path)


cdef int start(state_t* state) except -1:
    """Open the root for good, size the tar, check the table and take the memory."""
    cdef stat_t tar
    cdef Py_ssize_t bad
    cdef const char* wrong = NULL
    state.root_fd = open_name(state.root_fd, b".", O_RDONLY | O_DIRECTORY)
    if state.root_fd < 0:
        raise OSError(errno, strerror(errno).decode(), b"")
    if state.tar_fd >= 0:
        if fstat(state.tar_fd, &tar) != 0:
            raise OSError(errno, "the layer's tar: " + strerror(errno).decode())
        state.table.tar_bytes = <uint64_t>tar.st_size
    with nogil:
        bad = check_table(&state.table, &wrong)
    if bad >= 0:
        raise ValueError(f"row {bad}: {wrong.decode()}")
    state.to_do = <uint8_t*>calloc(state.table.count + 1, 1)
    state.restore.xattr_names = <char*>malloc(XATTR_NAMES_BYTES)
    if state.to_do == NULL or state.restore.xattr_names == NULL:
        raise MemoryError
    return 0


cdef Py_ssize_t put_in_order(state_t* state, int turn, int* failure) except? -2:
    """Make the rows of a turn one after the other; give the index of the one that failed, or -1."""
    cdef Py_ssize_t at = 0, end, failed
    while at < state.table.count:
        end = min(at + BATCH_ROWS, state.table.count)
        with nogil:
            failed = put_rows(state, at, end, turn, failure)
        PyErr_CheckSignals()
        if failed >= 0:
            return failed
        at = end
    return -1


cdef Py_ssize_t put_files(state_t* state, int* failure) except? -2:
    """Make the files by several threads, of which the caller is one; give the first row that failed, or -1.

    The threads end with this. Where none can be had the caller does it all.
    """
    cdef worker_t workers[MOST_WORKERS]
    cdef share_t share
    cdef int begun = 1, at
    cdef int wanted = <int>min(count_processors(), MOST_WORKERS, state.table.count // WORKER_ROWS + 1)
    cdef bint more = True
    cdef Py_ssize_t failed = -1
    memset(workers, 0, sizeof(workers))
    memset(&share, 0, sizeof(share))
    share.count = <int>((state.table.count + BATCH_ROWS - 1) // BATCH_ROWS)
    for at in range(MOST_WORKERS):
        workers[at].state = state[0]
        workers[at].state.parent_fd = -1
        workers[at].share = &share
        workers[at].failed = -1
    try:
        for at in range(wanted):
            if start_window(&workers[at].state.window, state.tar_fd, state.table.tar_bytes) != 0:
                raise MemoryError
        for at in range(1, wanted):
            if start_quiet(&workers[at].thread, run_worker, &workers[at]) != 0:
                break
            begun += 1
        while more:
            with nogil:
                more = put_batch(&workers[0])
            PyErr_CheckSignals()
    finally:
        if more:
            store_int(&share.stopped, 1)  # an exception
        with nogil:
            for at in range(1, begun):
                pthread_join(workers[at].thread, NULL)
        for at in range(wanted):
            leave(&workers[at].state)
            stop_window(&workers[at].state.window)
            state.written_bytes += workers[at].state.written_bytes
    for at in range(begun):
        if workers[at].failed >= 0 and (failed < 0 or workers[at].failed < failed):
            failed = workers[at].failed
            failure[0] = workers[at].failure
            state.restore.doing = workers[at].state.restore.doing
    return failed


def unpack(int root_fd, int tar_fd, const uint8_t[::1] records, const uint8_t[::1] heap, int whiteouts=0, int flags=0):
    """Create a layer's rows below root_fd from its tar and return the bytes of file data written.

    Every path is resolved beneath root_fd without following symlinks (openat2 RESOLVE_BENEATH|NO_SYMLINKS, or
    component by component on older kernels). Replaces what is in the way (a directory over a directory keeps its
    content and takes the new metadata, IMPLICIT rows change nothing of a directory that exists). Sets owner, mode,
    xattrs, capabilities, then times (directories last). Hard links are linked, devices made, sparse files keep their
    holes. Large files share the tar's blocks where the file system can, else their data is written past the page cache,
    where it can (docs/decisions/0009). Files are written by up to four threads, all joined before it returns or raises.
    In an overlay upper, overlayfs's own xattr names are escaped. flags: NO_OWNER,
    NO_DEVICES. Releases the GIL. Raises OSError with filename (what was made so far stays), ValueError for a table that
    is not a layer's. Needs /proc for xattrs of what cannot be opened.
    """
    cdef state_t state
    cdef Py_ssize_t failed
    cdef int failure = 0
    if records.shape[0] % sizeof(entry_t):
        raise ValueError("records is not a whole number of records")
    if whiteouts not in (MODE_APPLY, MODE_OVERLAY, MODE_USERXATTR) or flags & ~(SKIP_OWNER | SKIP_DEVICES):
        raise ValueError("unknown whiteouts or flags")
    memset(&state, 0, sizeof(state))
    state.parent_fd = -1
    state.root_fd, state.tar_fd, state.mode, state.skip = root_fd, tar_fd, whiteouts, flags
    state.table.count = records.shape[0] // sizeof(entry_t)
    state.table.rows = <const entry_t*>&records[0] if state.table.count else NULL
    state.table.heap = &heap[0] if heap.shape[0] else NULL
    state.table.heap_bytes = heap.shape[0]
    state.restore.heap = state.table.heap
    state.restore.keeps_owner = flags & SKIP_OWNER
    if whiteouts == MODE_APPLY:
        state.restore.own_prefix = b""
    else:
        state.restore.own_prefix = b"trusted.overlay." if whiteouts == MODE_OVERLAY else b"user.overlay."
    try:
        start(&state)
        failed = put_in_order(&state, TURN_FIRST, &failure)
        if failed < 0:
            failed = put_files(&state, &failure)
        if failed < 0:
            failed = put_in_order(&state, TURN_LINK, &failure)
        if failed < 0:
            with nogil:
                leave(&state)
                failed = finish_directories(&state, &failure)
        if failed >= 0:
            raise row_error(&state, failed, failure)
        return state.written_bytes
    finally:
        leave(&state)
        if state.root_fd >= 0:
            close(state.root_fd)
        free(state.to_do)
        free(state.kept_times)
        free(state.restore.xattr_names)
