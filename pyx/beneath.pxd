# cython: language_level=3
"""Open a path beneath a directory without following any symlink (inline-only)."""
from libc.errno cimport EINTR, EINVAL, ENAMETOOLONG, ENOMEM, ENOSYS, EPERM, EXDEV, errno
from libc.stdint cimport uint64_t
from libc.string cimport memcmp, memcpy, memset
from posix.unistd cimport close

from arena cimport grow

cdef extern from *:
    """
    #include <fcntl.h>
    #include <unistd.h>
    #include <sys/syscall.h>
    #include <linux/openat2.h>
    """
    enum:
        O_CLOEXEC
        O_DIRECTORY
        O_NOFOLLOW
        O_NONBLOCK
        O_PATH
        O_RDONLY
        RESOLVE_BENEATH
        RESOLVE_NO_MAGICLINKS
        RESOLVE_NO_SYMLINKS
        SYS_openat2
    struct open_how:
        uint64_t flags
        uint64_t resolve
    int openat(int fd, const char* path, int flags) nogil
    long syscall(long number, ...) nogil

cdef enum:
    PIECE_BYTES = 4095  # PATH_MAX less its NUL: longer paths are opened piece by piece

cdef inline int open_name(int fd, const char* name, int flags) noexcept nogil:
    """Open one component beneath fd; -1 and errno on failure."""
    cdef int opened
    while True:
        opened = openat(fd, name, flags | O_NOFOLLOW | O_CLOEXEC)
        if opened >= 0 or errno != EINTR:
            return opened

cdef inline int open_piece(int fd, const char* piece, int flags) noexcept nogil:
    """Open a relative path of at most PIECE_BYTES beneath fd with openat2; -1 and errno on failure."""
    cdef open_how how
    cdef int opened
    memset(&how, 0, sizeof(how))
    how.flags = <uint64_t>(flags | O_NOFOLLOW | O_CLOEXEC)
    how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
    while True:
        opened = <int>syscall(SYS_openat2, fd, piece, &how, sizeof(how))
        if opened >= 0 or errno != EINTR:
            return opened

cdef inline int step_beneath(
    int root_fd, const char* path, size_t length, int flags, bint by_component
) noexcept nogil:
    """Open path in pieces: as long as possible with openat2, or one component at a time with openat."""
    cdef char piece[PIECE_BYTES + 1]
    cdef int fd = root_fd, opened, failure
    cdef size_t at = 0, end, size
    while True:
        end = at
        if by_component or length - at > PIECE_BYTES:
            if not by_component:
                end = at + PIECE_BYTES
                while end > at and path[end] != c'/':
                    end -= 1
            else:
                while end < length and path[end] != c'/':
                    end += 1
        else:
            end = length
        size = end - at
        failure = 0
        opened = -1
        if size == 0 or size > PIECE_BYTES:
            failure = EINVAL if size == 0 else ENAMETOOLONG
        else:
            memcpy(piece, path + at, size)
            piece[size] = 0
            if not by_component:
                opened = open_piece(fd, piece, flags if end == length else O_PATH | O_DIRECTORY)
            elif size <= 2 and piece[0] == c'.' and (size == 1 or piece[1] == c'.'):
                failure = EXDEV
            else:
                opened = open_name(fd, piece, flags if end == length else O_PATH | O_DIRECTORY)
            if opened < 0 and failure == 0:
                failure = errno
        if fd != root_fd:
            close(fd)
        if failure:
            (&errno)[0] = failure
            return -1
        if end == length:
            return opened
        fd = opened
        at = end + 1

cdef inline int open_beneath(int root_fd, const char* path, size_t length, int flags) noexcept nogil:
    """Open a path of any length (no NUL needed after it) beneath root_fd; the empty path is the root itself.

    No symlink is followed, in no component; O_CLOEXEC and O_NOFOLLOW are implied. -1 and errno on failure.
    """
    cdef int opened
    if length == 0:
        return open_name(root_fd, b".", flags)
    opened = step_beneath(root_fd, path, length, flags, False)
    # Kernels before 5.6 lack openat2, and old seccomp profiles deny it with EPERM.
    if opened < 0 and (errno == ENOSYS or errno == EPERM):
        opened = step_beneath(root_fd, path, length, flags, True)
    return opened

cdef struct parent_t:   # the directory of the path opened last, kept open for its neighbours; start with fd -1, rest 0
    int fd
    char* path
    size_t length
    size_t capacity
    char name[PIECE_BYTES + 1]

cdef inline int open_parent(parent_t* parent, int root_fd, const char* path, size_t length) noexcept nogil:
    """Make parent.fd the directory that holds path (O_PATH) and parent.name its last component ("." for the root).

    Returns 0 or an errno. The caller closes parent.fd and frees parent.path.
    """
    cdef size_t end = length, start
    cdef void* moved
    while end and path[end - 1] != c'/':
        end -= 1
    start = end
    if end:
        end -= 1
    if length - start > PIECE_BYTES:
        return ENAMETOOLONG
    memcpy(parent.name, path + start, length - start)
    parent.name[length - start] = 0
    if length == 0:
        parent.name[0] = c'.'
        parent.name[1] = 0
    if parent.fd >= 0 and parent.length == end and memcmp(parent.path, path, end) == 0:
        return 0
    if parent.fd >= 0:
        close(parent.fd)
        parent.fd = -1
    moved = grow(parent.path, &parent.capacity, end + 1, 1)
    if moved == NULL:
        return ENOMEM
    parent.path = <char*>moved
    memcpy(parent.path, path, end)
    parent.length = end
    parent.fd = open_beneath(root_fd, path, end, O_PATH | O_DIRECTORY)
    return errno if parent.fd < 0 else 0
