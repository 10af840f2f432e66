# cython: language_level=3
"""Open a source file beneath a directory without following symlinks (inline-only)."""
from libc.errno cimport EAGAIN, EINTR, ENAMETOOLONG, ENOSYS, EPERM, errno
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

cdef extern from "<fcntl.h>" nogil:
    int openat(int, const char*, int, ...)
    int O_RDONLY, O_PATH, O_DIRECTORY, O_NOFOLLOW, O_NONBLOCK, O_CLOEXEC, O_NOCTTY

cdef extern from "<unistd.h>" nogil:
    int close(int)
    long syscall(long, ...)

cdef extern from "<sys/syscall.h>" nogil:
    long SYS_openat2

cdef extern from "<linux/openat2.h>" nogil:
    cdef struct open_how:
        uint64_t flags
        uint64_t mode
        uint64_t resolve
    uint64_t RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS

cdef enum:
    FOLDER_LIMIT = 4000       # under PATH_MAX; longer ones are opened component by component
    COMPONENT_LIMIT = 255

cdef struct folder_t:
    int fd                    # of the last file's directory, or -1
    int root_fd
    const uint8_t* path       # in the heap
    size_t length
    bint no_openat2

cdef inline int open_retry(int parent_fd, const char* name, int flags) noexcept nogil:
    cdef int fd = openat(parent_fd, name, flags)
    while fd < 0 and errno == EINTR:
        fd = openat(parent_fd, name, flags)
    return fd if fd >= 0 else -errno

cdef inline int open_component(int parent_fd, const uint8_t* name, size_t length, int flags) noexcept nogil:
    """Open one name below parent_fd; returns the descriptor or -errno."""
    cdef char text[COMPONENT_LIMIT + 1]
    if length > COMPONENT_LIMIT:
        return -ENAMETOOLONG
    memcpy(text, name, length)
    text[length] = 0
    return open_retry(parent_fd, text, flags | O_NOFOLLOW | O_CLOEXEC)

cdef inline int walk_folder(int root_fd, const uint8_t* path, size_t length) noexcept nogil:
    """Open a directory one component at a time: for kernels (or sandboxes) without openat2."""
    cdef int fd = root_fd, found
    cdef size_t start = 0, end
    while start < length:
        end = start
        while end < length and path[end] != 47:
            end += 1
        found = open_component(fd, path + start, end - start, O_PATH | O_DIRECTORY)
        if fd != root_fd:
            close(fd)
        if found < 0:
            return found
        fd = found
        start = end + 1
    return fd

cdef inline int open_folder(folder_t* folder, int root_fd, const uint8_t* path, size_t length) noexcept nogil:
    """Open a directory beneath root_fd; returns the descriptor or -errno."""
    cdef char text[FOLDER_LIMIT + 1]
    cdef open_how how
    cdef long fd
    if length <= FOLDER_LIMIT and not folder.no_openat2:
        memcpy(text, path, length)
        text[length] = 0
        memset(&how, 0, sizeof(how))
        how.flags = <uint64_t>(O_PATH | O_DIRECTORY | O_CLOEXEC)
        how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
        fd = syscall(SYS_openat2, root_fd, text, &how, sizeof(how))
        while fd < 0 and (errno == EINTR or errno == EAGAIN):
            fd = syscall(SYS_openat2, root_fd, text, &how, sizeof(how))
        if fd >= 0:
            return <int>fd
        if errno != ENOSYS and errno != EPERM:   # EPERM: an old seccomp filter that does not know the call
            return -errno
        folder.no_openat2 = True
    return walk_folder(root_fd, path, length)

cdef inline void close_folder(folder_t* folder) noexcept nogil:
    if folder.fd >= 0:
        close(folder.fd)
    folder.fd = -1

cdef inline int open_source(folder_t* folder, int root_fd, const uint8_t* path, size_t length) noexcept nogil:
    """Open the file for reading, keeping its directory open for the next one; returns the descriptor or -errno.

    path is non-empty, relative and free of '.' and '..'; it must stay valid until the folder is closed.
    """
    cdef size_t cut = length
    cdef int parent_fd = root_fd
    while cut and path[cut - 1] != 47:
        cut -= 1
    if cut:
        if (
            folder.fd < 0 or folder.root_fd != root_fd or folder.length != cut - 1
            or memcmp(folder.path, path, cut - 1) != 0
        ):
            close_folder(folder)
            parent_fd = open_folder(folder, root_fd, path, cut - 1)
            if parent_fd < 0:
                return parent_fd
            folder.fd = parent_fd
            folder.root_fd = root_fd
            folder.path = path
            folder.length = cut - 1
        parent_fd = folder.fd
    # O_NONBLOCK: a FIFO put there meanwhile must not stall us.
    return open_component(parent_fd, path + cut, length - cut, O_RDONLY | O_NONBLOCK | O_NOCTTY)
