# cython: language_level=3
"""A window onto a tar that is read in order, and large files written from it past the page cache (inline-only).

What the page cache holds is taken from there; all else is read past it: a layer is read once, and pages that are
filled for that alone cost more than the reading (docs/decisions/0006).
"""
from libc.errno cimport EINTR, EINVAL, EIO, ENOTTY, EOPNOTSUPP, EXDEV, errno
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free
from libc.string cimport memmove
from posix.unistd cimport close, pread

from spancopy cimport read_all, write_all

cdef extern from *:
    """
    #include <fcntl.h>
    #include <linux/fs.h>
    #include <stdlib.h>
    #include <string.h>
    #include <sys/ioctl.h>
    #include <sys/uio.h>
    static int share_blocks(int from, uint64_t at, uint64_t size, int to, uint64_t target)
    {
        struct file_clone_range range = {from, at, size, target};
        return ioctl(to, FICLONERANGE, &range);
    }
    static ssize_t read_cached(int fd, void *target, size_t size, off_t offset)
    {
        struct iovec part = {target, size};
        return preadv2(fd, &part, 1, offset, RWF_NOWAIT);
    }
    static int set_direct(int fd, int direct)
    {
        return fcntl(fd, F_SETFL, direct ? O_DIRECT : 0);
    }
    static int open_direct(const char *name)
    {
        return open(name, O_RDONLY | O_DIRECT | O_CLOEXEC);
    }
    """
    int share_blocks(int source, uint64_t offset, uint64_t size, int target, uint64_t target_offset) nogil
    ssize_t read_cached(int fd, void* target, size_t size, int64_t offset) nogil
    int set_direct(int fd, bint direct) nogil
    int open_direct(const char* name) nogil
    int posix_memalign(void** made, size_t alignment, size_t size) nogil

cdef enum:
    WINDOW_BYTES = 1 << 22     # read at a time
    BLOCK_BYTES = 4096         # that direct transfers and shared blocks are aligned to
    SHARED_BYTES = 64 * 1024   # from here on a canonical tar aligns data
    DIRECT_BYTES = 256 * 1024  # smaller files are left to the page cache
    NO_DIRECT = -1
    UNTRIED = -2

cdef struct window_t:
    int fd                     # the tar
    int direct_fd              # the same, to read past the page cache
    uint64_t tar_bytes
    uint8_t* buffer            # aligned, WINDOW_BYTES
    uint64_t offset
    uint64_t length
    uint64_t end               # nothing behind it is read ahead
    bint no_sharing            # the file systems don't share blocks: don't ask again
    bint no_direct             # nor write past the page cache

cdef inline int start_window(window_t* window, int fd, uint64_t tar_bytes) noexcept nogil:
    """Take the memory; 0 or ENOMEM. The rest of window must be 0."""
    window.fd = fd
    window.direct_fd = UNTRIED
    window.tar_bytes = window.end = tar_bytes
    return posix_memalign(<void**>&window.buffer, BLOCK_BYTES, WINDOW_BYTES)

cdef inline void stop_window(window_t* window) noexcept nogil:
    if window.buffer != NULL and window.direct_fd >= 0:
        close(window.direct_fd)
    free(window.buffer)
    window.buffer = NULL

cdef inline int read_past(window_t* window, uint8_t* target, size_t size, uint64_t offset) noexcept nogil:
    """Read an aligned range past the page cache where the file system can, else through it; 0 or an errno."""
    cdef char name[32]
    cdef ssize_t done
    if window.direct_fd == UNTRIED:
        snprintf(name, sizeof(name), "/proc/self/fd/%d", window.fd)
        window.direct_fd = open_direct(name)
        if window.direct_fd < 0:
            window.direct_fd = NO_DIRECT
    while size and window.direct_fd >= 0:
        # Whole blocks, of which the tar's end cuts the last.
        done = pread(window.direct_fd, target, (size + BLOCK_BYTES - 1) & ~<size_t>(BLOCK_BYTES - 1), offset)
        if done < 0 and errno == EINTR:
            continue
        if done < 0 and errno != EINVAL:
            return errno
        if done <= 0 or (<size_t>done < size and done % BLOCK_BYTES):  # another alignment is wanted: never mind
            close(window.direct_fd)
            window.direct_fd = NO_DIRECT
            break
        if <size_t>done >= size:
            return 0
        target += done
        offset += done
        size -= <size_t>done
    return read_all(window.fd, target, size, offset)

cdef inline int look_at(window_t* window, uint64_t offset, uint64_t size) noexcept nogil:
    """Have a range of at most WINDOW_BYTES - BLOCK_BYTES in the window, with what follows it; 0 or an errno."""
    cdef uint64_t aligned = offset & ~<uint64_t>(BLOCK_BYTES - 1)
    cdef uint64_t want, done = 0
    cdef ssize_t part
    cdef int failure
    if offset >= window.offset and offset + size <= window.offset + window.length:
        return 0
    if offset + size > window.tar_bytes:
        return EIO
    want = max(min(window.end, window.tar_bytes), offset + size) - aligned
    if want > WINDOW_BYTES:
        want = WINDOW_BYTES
    window.length = 0
    while done < want:
        part = read_cached(window.fd, window.buffer + done, want - done, aligned + done)
        if part <= 0:
            if part < 0 and errno == EINTR:
                continue
            break
        done += <uint64_t>part
    if done < want:
        done &= ~<uint64_t>(BLOCK_BYTES - 1)
        failure = read_past(window, window.buffer + done, want - done, aligned + done)
        if failure:
            return failure
    window.offset = aligned
    window.length = want
    return 0

cdef inline int write_past(window_t* window, int fd, uint64_t offset, uint64_t* target, uint64_t* size) noexcept nogil:
    """Write a range's whole blocks past the page cache, moving target and size on; 0 or an errno.

    Stops early, for the caller to write the rest, where the file system can't.
    """
    cdef uint64_t part, skew
    cdef int failure = 0
    if target[0] % BLOCK_BYTES or set_direct(fd, True) != 0:
        window.no_direct = window.no_direct or target[0] % BLOCK_BYTES == 0
        return 0
    while size[0] >= BLOCK_BYTES:
        part = min(size[0], <uint64_t>(WINDOW_BYTES - BLOCK_BYTES)) & ~<uint64_t>(BLOCK_BYTES - 1)
        failure = look_at(window, offset, part)
        if failure:
            break
        skew = offset - window.offset
        if skew % BLOCK_BYTES:
            memmove(window.buffer, window.buffer + skew, window.length - skew)
            window.offset = offset
            window.length -= skew
            skew = 0
        failure = write_all(fd, window.buffer + skew, part, <int64_t>target[0])
        if failure == EINVAL:
            window.no_direct = True
            failure = 0
            break
        if failure:
            break
        offset += part
        target[0] += part
        size[0] -= part
    if set_direct(fd, False) != 0 and failure == 0:
        failure = errno
    return failure

cdef inline int copy_from_tar(window_t* window, int fd, uint64_t offset, uint64_t target, uint64_t size) noexcept nogil:
    """Bring a span of the tar into a file: shared blocks, else past the page cache, else through it; 0 or an errno."""
    cdef uint64_t shared, left, part
    cdef int failure
    if size >= SHARED_BYTES and not window.no_sharing and (offset | target) % BLOCK_BYTES == 0:
        shared = size & ~<uint64_t>(BLOCK_BYTES - 1)
        if share_blocks(window.fd, offset, shared, fd, target) == 0:
            offset, target, size = offset + shared, target + shared, size - shared
        elif errno in (EOPNOTSUPP, EXDEV, ENOTTY):
            window.no_sharing = True
        elif errno != EINVAL:
            return errno
    if size >= DIRECT_BYTES and not window.no_direct:
        left = size
        failure = write_past(window, fd, offset, &target, &left)
        if failure:
            return failure
        offset += size - left
        size = left
    while size:
        part = min(size, <uint64_t>(WINDOW_BYTES - BLOCK_BYTES))
        failure = look_at(window, offset, part)
        if failure == 0:
            failure = write_all(fd, window.buffer + (offset - window.offset), part, <int64_t>target)
        if failure:
            return failure
        offset, target, size = offset + part, target + part, size - part
    return 0
