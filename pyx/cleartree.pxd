# cython: language_level=3
"""Remove what a directory holds, by descriptor, never following a symlink (inline-only)."""
from libc.errno cimport EEXIST, EISDIR, ENOENT, ENOMEM, ENOTDIR, ENOTEMPTY, EPERM, ESTALE, errno
from libc.stdint cimport uint8_t, uint16_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy
from posix.unistd cimport close

from beneath cimport O_DIRECTORY, O_RDONLY, open_name, openat, O_CLOEXEC, O_NOFOLLOW, syscall
from fileat cimport AT_REMOVEDIR, DT_DIR, SYS_getdents64, fstat, stat_t, unlinkat

cdef enum:
    LISTING_BYTES = 8192  # small on purpose: a listing is thrown away at every descent
    NAME_OFFSET = 19      # of struct linux_dirent64: ino 8, off 8, reclen 2, type 1, name

cdef struct level_t:      # a directory above the current one, to be known again on the way up
    uint64_t device
    uint64_t inode

cdef struct clearing_t:
    int fd
    level_t* levels
    size_t depth
    size_t capacity

cdef inline int descend(clearing_t* state, const char* name) noexcept nogil:
    """Go down one directory, keeping only one descriptor open however deep the tree is; 0 or an errno."""
    cdef stat_t here
    cdef void* moved
    cdef int child
    if fstat(state.fd, &here) != 0:
        return errno
    if state.depth == state.capacity:
        moved = realloc(state.levels, (state.capacity * 2 + 16) * sizeof(level_t))
        if moved == NULL:
            return ENOMEM
        state.levels = <level_t*>moved
        state.capacity = state.capacity * 2 + 16
    child = open_name(state.fd, name, O_RDONLY | O_DIRECTORY)
    if child < 0:
        return errno
    state.levels[state.depth].device = here.st_dev
    state.levels[state.depth].inode = here.st_ino
    state.depth += 1
    close(state.fd)
    state.fd = child
    return 0

cdef inline int ascend(clearing_t* state) noexcept nogil:
    """Go up to the directory that descend came from, or ESTALE when '..' is another one by now; 0 or an errno."""
    cdef stat_t here
    cdef int above = openat(state.fd, b"..", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
    if above < 0:
        return errno
    close(state.fd)
    state.fd = above
    if fstat(above, &here) != 0:
        return errno
    state.depth -= 1
    if here.st_dev != state.levels[state.depth].device or here.st_ino != state.levels[state.depth].inode:
        return ESTALE
    return 0

cdef inline int clear_entry(clearing_t* state, const char* name, bint directory) noexcept nogil:
    """Remove one entry, or descend into it; 0 or an errno, -1 after a descent."""
    cdef int failure
    if not directory:
        if unlinkat(state.fd, name, 0) == 0 or errno == ENOENT:
            return 0
        if errno != EISDIR and errno != EPERM:  # EPERM is POSIX's word for EISDIR
            return errno
    if unlinkat(state.fd, name, AT_REMOVEDIR) == 0 or errno == ENOENT:
        return 0
    if errno == ENOTDIR and not directory:
        return EPERM
    if errno != ENOTEMPTY and errno != EEXIST:
        return errno
    failure = descend(state, name)
    return failure if failure else -1

cdef inline int clear_all(clearing_t* state) noexcept nogil:
    cdef uint8_t listing[LISTING_BYTES]
    cdef long size, at
    cdef size_t seen = 0
    cdef uint16_t record_bytes
    cdef const char* name
    cdef int status
    while True:
        size = syscall(SYS_getdents64, state.fd, listing, <size_t>LISTING_BYTES)
        if size < 0:
            return errno
        if size == 0:
            if state.depth == 0:
                return 0
            if seen == 0:
                return ENOTEMPTY  # rmdir says not empty, and yet nothing is listed: never loop
            status = ascend(state)
            if status:
                return status
            seen = 0
            continue
        at = 0
        while at < size:
            memcpy(&record_bytes, &listing[at + 16], 2)
            name = <const char*>&listing[at + NAME_OFFSET]
            if not (name[0] == c'.' and (name[1] == 0 or (name[1] == c'.' and name[2] == 0))):
                seen += 1
                status = clear_entry(state, name, listing[at + 18] == DT_DIR)
                if status > 0:
                    return status
                if status < 0:  # another directory now; this one is listed anew on the way up
                    seen = 0
                    break
            at += record_bytes

cdef inline int clear_directory(int directory_fd, const char* name) noexcept nogil:
    """Remove everything below a directory entry that must be a directory (name "." for the directory itself).

    Returns 0 or an errno. One descriptor, and memory only for the depth.
    """
    cdef clearing_t state
    cdef int failure
    state.levels = NULL
    state.depth = state.capacity = 0
    state.fd = open_name(directory_fd, name, O_RDONLY | O_DIRECTORY)
    if state.fd < 0:
        return errno
    failure = clear_all(&state)
    close(state.fd)
    free(state.levels)
    return failure

cdef inline int remove_entry(int directory_fd, const char* name) noexcept nogil:
    """Remove one entry, with all that is below it; what is not there is no error. Returns 0 or an errno."""
    cdef int failure
    if unlinkat(directory_fd, name, 0) == 0 or errno == ENOENT:
        return 0
    if errno != EISDIR and errno != EPERM:
        return errno
    if unlinkat(directory_fd, name, AT_REMOVEDIR) == 0 or errno == ENOENT:
        return 0
    if errno == ENOTDIR:
        return EPERM
    if errno != ENOTEMPTY and errno != EEXIST:
        return errno
    failure = clear_directory(directory_fd, name)
    if failure:
        return failure
    return 0 if unlinkat(directory_fd, name, AT_REMOVEDIR) == 0 else errno
