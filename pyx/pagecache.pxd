# cython: language_level=3
"""Give back the page cache's memory for what was read of a file (inline-only)."""
from libc.stdint cimport int64_t, uint64_t

cdef extern from *:
    """
    #include <fcntl.h>
    #include <unistd.h>
    #include <sys/syscall.h>
    #ifndef SYS_cachestat
    #define SYS_cachestat 451   /* on every architecture; the headers of systems older than Linux 6.5 lack it */
    #endif
    struct cached_range { uint64_t offset, length; };
    struct cached_pages { uint64_t cached, dirty, written_back, evicted, recently_evicted; };
    static int64_t count_cached(int fd, uint64_t offset, uint64_t length)
    {
        struct cached_range range = {offset, length};
        struct cached_pages found = {0};
        return syscall(SYS_cachestat, fd, &range, &found, 0) == 0 ? (int64_t)found.cached : -1;
    }
    """
    int64_t count_cached(int fd, uint64_t offset, uint64_t length) nogil
    int posix_fadvise(int fd, int64_t offset, int64_t length, int advice) nogil
    int POSIX_FADV_DONTNEED

cdef enum:
    FORGET_BYTES = 8388608    # given back by so much at once; smaller files are left alone

cdef inline bint is_cached(int fd, uint64_t offset, uint64_t length) noexcept nogil:
    """Tell whether most of a range is in the page cache; where the kernel can't tell (before 6.5), it counts as not."""
    return count_cached(fd, offset, length) > <int64_t>(length // 8192)

cdef inline void forget_pages(int fd, uint64_t offset, uint64_t length) noexcept nogil:
    """Drop a range's clean pages. A hint whose result does not matter."""
    posix_fadvise(fd, <int64_t>offset, <int64_t>length, POSIX_FADV_DONTNEED)
