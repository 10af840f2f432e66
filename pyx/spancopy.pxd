# cython: language_level=3
"""Copy a span of bytes between open files, within the kernel where it can (inline-only)."""
from libc.errno cimport EDQUOT, EFBIG, EINTR, EIO, ENOMEM, ENOSPC, errno
from libc.stdint cimport int64_t, uint8_t, uint64_t
from posix.unistd cimport pread

cdef extern from *:
    """
    #include <unistd.h>
    """
    ssize_t copy_file_range(
        int in_fd, int64_t* in_offset, int out_fd, int64_t* out_offset, size_t size, unsigned int flags
    ) nogil
    ssize_t pwrite(int fd, const void* buffer, size_t size, int64_t offset) nogil

cdef enum:
    RANGE_BYTES = 1 << 30  # of one copy_file_range call, so that a signal is not kept waiting for ever

cdef struct copier_t:
    uint8_t* buffer
    size_t capacity
    bint by_hand           # copy_file_range was refused for this pair of file systems: don't ask again

cdef inline int write_all(int fd, const uint8_t* source, uint64_t size, int64_t offset) noexcept nogil:
    """Write all of a buffer at an offset; 0 or an errno."""
    cdef ssize_t done
    while size:
        done = pwrite(fd, source, size, offset)
        if done < 0:
            if errno == EINTR:
                continue
            return errno
        source += done
        offset += done
        size -= <uint64_t>done
    return 0

cdef inline int read_all(int fd, uint8_t* target, size_t size, int64_t offset) noexcept nogil:
    """Fill a buffer from an offset; 0 or an errno, EIO when the file ends early."""
    cdef ssize_t done
    while size:
        done = pread(fd, target, size, offset)
        if done < 0:
            if errno == EINTR:
                continue
            return errno
        if done == 0:
            return EIO
        target += done
        offset += done
        size -= <size_t>done
    return 0

cdef inline int copy_span(
    copier_t* copier, int in_fd, int64_t in_offset, int out_fd, int64_t out_offset, uint64_t size
) noexcept nogil:
    """Copy size bytes; 0 or an errno, EIO when the source ends early."""
    cdef ssize_t done
    cdef size_t part
    cdef int failure
    while size and not copier.by_hand:
        done = copy_file_range(in_fd, &in_offset, out_fd, &out_offset, size if size < RANGE_BYTES else RANGE_BYTES, 0)
        if done > 0:
            size -= <uint64_t>done
        elif done == 0:
            break  # the end, or a file system that only says so: reading will tell
        elif errno in (EIO, ENOSPC, EDQUOT, ENOMEM, EFBIG):
            return errno
        elif errno != EINTR:
            copier.by_hand = True
    while size:
        part = size if size < copier.capacity else copier.capacity
        failure = read_all(in_fd, copier.buffer, part, in_offset)
        if failure == 0:
            failure = write_all(out_fd, copier.buffer, part, out_offset)
        if failure:
            return failure
        in_offset += part
        out_offset += part
        size -= part
    return 0
