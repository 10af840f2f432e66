# cython: language_level=3
"""Read the extended attributes of an entry in the heap's encoding (inline-only)."""
from libc.errno cimport ENODATA, ENOMEM, ENOSYS, EOPNOTSUPP, EOVERFLOW, EPERM, ERANGE, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc, qsort
from libc.string cimport memcpy, strcmp, strlen, strncmp

from arena cimport grow

cdef extern from "<sys/xattr.h>" nogil:
    ssize_t llistxattr(const char* path, char* names, size_t size)
    ssize_t lgetxattr(const char* path, const char* name, void* value, size_t size)
    ssize_t flistxattr(int fd, char* names, size_t size)
    ssize_t fgetxattr(int fd, const char* name, void* value, size_t size)

cdef extern from "<fcntl.h>" nogil:
    int AT_SYMLINK_NOFOLLOW

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)
    int access(const char* path, int mode)

cdef enum:
    XATTR_LIMIT_BYTES = 65536  # the kernel's limit for a list of names and for one value
    XATTR_FEW_BYTES = 256
    PROC_BYTES = 320           # "/proc/self/fd/N/" and a name
    LISTXATTRAT = 465          # Linux 6.13; one number on every architecture but alpha, whose +110 gives ENOSYS

cdef inline void name_in_proc(char* path, int directory_fd, const char* name) noexcept nogil:
    """Fill in PROC_BYTES: the entry's path for calls that take no directory."""
    snprintf(path, PROC_BYTES, "/proc/self/fd/%d/%s", directory_fd, name)

cdef struct xattr_scratch_t:
    char* names            # XATTR_LIMIT_BYTES
    char** order           # one pointer per name
    size_t order_capacity
    uint8_t* encoded       # the result, `size` bytes
    size_t capacity
    size_t size
    bint no_listxattrat    # an older kernel, or a sandbox that does not know the call

cdef inline ssize_t list_into(
    xattr_scratch_t* scratch, int directory_fd, const char* name, size_t size
) noexcept nogil:
    """List the names of one entry: directly where the kernel can, else through /proc, which costs twice the time."""
    cdef char path[PROC_BYTES]
    cdef long listed
    if not scratch.no_listxattrat:
        listed = syscall(LISTXATTRAT, directory_fd, name, AT_SYMLINK_NOFOLLOW, scratch.names, size)
        if listed >= 0 or (errno != ENOSYS and errno != EPERM):
            return listed
        scratch.no_listxattrat = True
    name_in_proc(path, directory_fd, name)
    return llistxattr(path, scratch.names, size)

cdef inline ssize_t list_xattrs(xattr_scratch_t* scratch, int directory_fd, const char* name) noexcept nogil:
    """List the names of one entry, first into little: the kernel takes as much memory of its own for each call."""
    cdef ssize_t listed = list_into(scratch, directory_fd, name, XATTR_FEW_BYTES)
    if listed < 0 and errno == ERANGE:
        listed = list_into(scratch, directory_fd, name, XATTR_LIMIT_BYTES)
    return listed

cdef inline int compare_names(const void* a, const void* b) noexcept nogil:
    return strcmp((<char**>a)[0], (<char**>b)[0])

cdef inline int xattr_start(xattr_scratch_t* scratch) noexcept nogil:
    """Take the scratch memory of a zeroed structure; -1 when there is none."""
    scratch.names = <char*>malloc(XATTR_LIMIT_BYTES)
    return 0 if scratch.names != NULL else -1

cdef inline void xattr_stop(xattr_scratch_t* scratch) noexcept nogil:
    free(scratch.names)
    free(scratch.order)
    free(scratch.encoded)

cdef inline int xattr_encode(xattr_scratch_t* scratch, size_t listed, int fd, const char* path) noexcept nogil:
    """Encode the xattrs that were listed, read from fd or, when that is -1, from path; 0 or an errno."""
    cdef size_t count = 0, at = 0, name_length
    cdef ssize_t got
    cdef uint16_t name_size
    cdef uint32_t value_size
    cdef uint8_t* value
    cdef void* moved
    while at < listed:
        # xfs shows an ACL a second time under its own name, which would be a strange attribute anywhere else.
        if strncmp(scratch.names + at, b"trusted.SGI_ACL_", 16) == 0:
            at += strlen(scratch.names + at) + 1
            continue
        moved = grow(scratch.order, &scratch.order_capacity, count + 1, sizeof(char*))
        if moved == NULL:
            return ENOMEM
        scratch.order = <char**>moved
        scratch.order[count] = scratch.names + at
        count += 1
        at += strlen(scratch.names + at) + 1
    if count > 1:
        qsort(scratch.order, count, sizeof(char*), compare_names)
    for at in range(count):
        name_length = strlen(scratch.order[at])
        moved = grow(scratch.encoded, &scratch.capacity, scratch.size + 6 + name_length + XATTR_LIMIT_BYTES, 1)
        if moved == NULL:
            return ENOMEM
        scratch.encoded = <uint8_t*>moved
        value = scratch.encoded + scratch.size + 6 + name_length
        if fd >= 0:
            got = fgetxattr(fd, scratch.order[at], value, XATTR_LIMIT_BYTES)
        else:
            got = lgetxattr(path, scratch.order[at], value, XATTR_LIMIT_BYTES)
        if got < 0:
            if errno == ENODATA or errno == EOPNOTSUPP:  # removed since it was listed
                continue
            return errno
        name_size = <uint16_t>name_length
        value_size = <uint32_t>got
        memcpy(scratch.encoded + scratch.size, &name_size, 2)
        memcpy(scratch.encoded + scratch.size + 2, &value_size, 4)
        memcpy(scratch.encoded + scratch.size + 6, scratch.order[at], name_length)
        scratch.size += 6 + name_length + <size_t>got
    return 0 if scratch.size <= <size_t>0xFFFFFFFF else EOVERFLOW

cdef inline int xattr_read(xattr_scratch_t* scratch, int directory_fd, const char* name) noexcept nogil:
    """Encode the xattrs of one directory entry (name "." for the directory itself), sorted by name.

    The symlink itself is meant, never its target. Returns 0 or an errno; ENOENT means that the entry vanished.
    Needs /proc; see proc_missing.
    """
    cdef char path[PROC_BYTES]
    cdef ssize_t listed
    scratch.size = 0
    listed = list_xattrs(scratch, directory_fd, name)
    if listed < 0:
        return 0 if errno == EOPNOTSUPP else errno
    if listed == 0:
        return 0
    name_in_proc(path, directory_fd, name)
    return xattr_encode(scratch, <size_t>listed, -1, path)

cdef inline int xattr_read_open(xattr_scratch_t* scratch, int fd) noexcept nogil:
    """The same for an open file or directory; no /proc is needed. 0 or an errno."""
    cdef ssize_t listed = flistxattr(fd, scratch.names, XATTR_FEW_BYTES)
    if listed < 0 and errno == ERANGE:
        listed = flistxattr(fd, scratch.names, XATTR_LIMIT_BYTES)
    scratch.size = 0
    if listed < 0:
        return 0 if errno == EOPNOTSUPP else errno
    return xattr_encode(scratch, <size_t>listed, fd, NULL)

cdef inline bint proc_missing(int fd) noexcept nogil:
    """Tell whether /proc is not mounted, so that its ENOENT is not taken for a vanished entry."""
    cdef char path[PROC_BYTES]
    snprintf(path, PROC_BYTES, "/proc/self/fd/%d", fd)
    return access(path, 0) != 0
