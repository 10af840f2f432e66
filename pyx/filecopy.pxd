# cython: language_level=3
"""Copy a whole file's data: clone, copy ranges in the kernel, or by hand; holes stay holes (inline-only)."""
from libc.errno cimport EDQUOT, EINVAL, EIO, ENOMEM, ENOSPC, ENXIO, EPERM, ETXTBSY, errno
from libc.stdint cimport int64_t

from fileat cimport ftruncate, stat_t
from spancopy cimport copier_t, copy_span

cdef extern from *:
    """
    #include <sys/ioctl.h>
    #include <fcntl.h>
    #include <linux/falloc.h>
    #include <linux/fs.h>
    #include <linux/magic.h>
    #include <sys/vfs.h>
    #include <unistd.h>
    """
    struct statfs_t "statfs":
        long f_type
    int fstatfs(int fd, statfs_t* found) nogil
    int fallocate(int fd, int mode, int64_t offset, int64_t size) nogil
    enum:
        EXT4_SUPER_MAGIC
        FALLOC_FL_KEEP_SIZE
    unsigned long FICLONE
    int SEEK_DATA, SEEK_HOLE
    int ioctl(int fd, unsigned long request, ...) nogil
    int64_t lseek(int fd, int64_t offset, int whence) nogil

cdef enum:
    SMALL_BYTES = 64 * 1024    # up to here two plain calls beat asking for a range copy
    BLOCK_BYTES = 4096         # no hole is smaller
    ASIDE_BYTES = 512 * 1024   # from here on setting the blocks aside costs less than it saves
    BY_CLONE = 1
    BY_RANGE = 2
    BY_HAND = 3

cdef inline bint is_final(int code) noexcept nogil:
    """Tell whether an error would meet every other way of copying as well."""
    return code in (EIO, ENOSPC, EDQUOT, ENOMEM)

cdef inline bint is_of_the_file(int code) noexcept nogil:
    """Tell whether a clone was refused for this file alone, and not for the whole file system."""
    return code in (EINVAL, ETXTBSY, EPERM)

cdef inline int set_aside(int target_fd, int64_t size) noexcept nogil:
    """Have ext4 set a file's blocks aside before they are written; 0 or an errno that ends the copy.

    Else it puts every block by itself on its list of those to be found later: more than half of a warm copy's time.
    xfs, tmpfs and others gain nothing. The size stays, so that what is not copied yet can't be read as zeros.
    """
    cdef statfs_t system
    if size < ASIDE_BYTES or fstatfs(target_fd, &system) != 0 or system.f_type != EXT4_SUPER_MAGIC:
        return 0
    if fallocate(target_fd, FALLOC_FL_KEEP_SIZE, 0, size) != 0 and is_final(errno):
        return errno
    return 0

cdef inline int copy_extents(copier_t* copier, int source_fd, int target_fd, int64_t size) noexcept nogil:
    """Copy the data ranges and leave the holes out; 0 or an errno."""
    cdef int64_t start = 0, end
    cdef int failure
    while start < size:
        end = size
        start = lseek(source_fd, start, SEEK_DATA)
        if start < 0:
            if errno == ENXIO:
                return 0  # only a hole is left
            if errno != EINVAL:
                return errno
            return copy_span(copier, source_fd, 0, target_fd, 0, size)  # no such thing on this file system
        if start >= size:
            return 0
        end = lseek(source_fd, start, SEEK_HOLE)
        if end < 0:
            return errno
        if end > size:
            end = size
        failure = copy_span(copier, source_fd, start, target_fd, start, end - start)
        if failure:
            return failure
        start = end
    return 0

cdef inline int copy_data(
    copier_t* copier, bint* no_clone, int source_fd, int target_fd, const stat_t* found, int64_t size, int* way
) noexcept nogil:
    """Copy a file's data into an empty file in the best way; 0 or an errno, EIO when the source is shorter."""
    cdef bint by_hand = copier.by_hand
    cdef bint has_holes
    cdef int failure
    if size > found.st_size:
        return EIO  # a hole is not distinguished from the end further down
    way[0] = BY_CLONE
    if not no_clone[0] and size == found.st_size:
        if ioctl(target_fd, FICLONE, source_fd) == 0:
            return 0
        if is_final(errno):
            return errno
        if not is_of_the_file(errno):
            no_clone[0] = True
    way[0] = BY_RANGE
    if size <= SMALL_BYTES:
        copier.by_hand = True
    # Blocks that are set aside (beyond the end, or not written yet) hide holes in their number.
    has_holes = found.st_blocks * 512 < size or (size > BLOCK_BYTES and 0 <= lseek(source_fd, 0, SEEK_HOLE) < size)
    if has_holes:
        failure = copy_extents(copier, source_fd, target_fd, size)
        if failure == 0 and ftruncate(target_fd, size) != 0:
            failure = errno
    else:
        failure = set_aside(target_fd, size)
        if failure == 0:
            failure = copy_span(copier, source_fd, 0, target_fd, 0, size)
    if copier.by_hand:
        way[0] = BY_HAND
    if size <= SMALL_BYTES:
        copier.by_hand = by_hand
    return failure
