# cython: language_level=3
"""Share a source's blocks with the tar instead of writing them (inline-only).

The tar then holds what the source held at the moment of the clone. What is hashed must be those bytes, so they are
read from the source only where its ctime can tell that nothing was written since: on file systems that stamp every
write, a memory map's too (a clone leaves no page of the source writable without a new stamp), and when the stamp is
older than a clock's tick. Otherwise they are read back from the tar.
"""
from libc.errno cimport EDQUOT, EFBIG, EINTR, EINVAL, ENOSPC, ENOTTY, EOPNOTSUPP, EPERM, ETXTBSY, EXDEV, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memset

cdef extern from *:
    """
    #include <fcntl.h>
    #include <linux/fs.h>
    #include <linux/magic.h>
    #include <sys/ioctl.h>
    #include <sys/vfs.h>
    #include <time.h>
    #ifndef XFS_SUPER_MAGIC
    #define XFS_SUPER_MAGIC 0x58465342
    #endif
    static int clone_blocks(int from, uint64_t at, uint64_t size, int to, uint64_t target)
    {
        struct file_clone_range range = {from, at, size, target};
        return ioctl(to, FICLONERANGE, &range);
    }
    static int stamps_writes(int fd)
    {
        struct statfs found;
        return fstatfs(fd, &found) == 0
            && ((unsigned long)found.f_type == BTRFS_SUPER_MAGIC || (unsigned long)found.f_type == XFS_SUPER_MAGIC);
    }
    static int64_t tell_time_ns(void)
    {
        struct timespec now;
        return clock_gettime(CLOCK_REALTIME, &now) ? INT64_MIN : now.tv_sec * 1000000000LL + now.tv_nsec;
    }
    """
    int clone_blocks(int source_fd, uint64_t offset, uint64_t size, int fd, uint64_t target) nogil
    bint stamps_writes(int fd) nogil
    int64_t tell_time_ns() nogil

cdef extern from "<fcntl.h>" nogil:
    int open(const char*, int, ...)
    int O_RDWR, O_CLOEXEC

cdef extern from "<unistd.h>" nogil:
    int close(int)

cdef extern from "<sys/stat.h>" nogil:
    ctypedef struct timespec:
        int64_t tv_sec
        long tv_nsec
    ctypedef struct stat_t "struct stat":
        uint64_t st_dev
        uint32_t st_mode
        int64_t st_size
        timespec st_mtim
        timespec st_ctim
    int fstat(int, stat_t*)

cdef enum:
    CLONE_BLOCK = 4096        # what clones are aligned to; a file system with larger blocks refuses, and is copied
    DEVICES = 8               # so many that refused are remembered
    RACY_NS = 1000000000      # many ticks of any clock that files are stamped by

cdef struct cloner_t:
    int fd                    # the tar's, by a description of its own that is never direct; -1: nothing is cloned
    bint stamps               # its file system's ctimes tell of every write
    uint64_t from_bytes
    uint64_t refused[DEVICES]
    uint32_t refusals

cdef inline void start_cloner(cloner_t* cloner, int out_fd, uint64_t from_bytes) noexcept nogil:
    """Open the output anew, which takes /proc; without it, or where it can't be opened again, no block is cloned."""
    cdef char name[40]
    memset(cloner, 0, sizeof(cloner_t))
    cloner.from_bytes = from_bytes
    snprintf(name, sizeof(name), b"/proc/self/fd/%d", out_fd)
    cloner.fd = open(name, O_RDWR | O_CLOEXEC)
    cloner.stamps = cloner.fd >= 0 and stamps_writes(cloner.fd)

cdef inline void stop_cloner(cloner_t* cloner) noexcept nogil:
    if cloner.fd >= 0:
        close(cloner.fd)
    cloner.fd = -1

cdef inline bint may_clone(
    const cloner_t* cloner, uint64_t device, uint64_t offset, uint64_t length, uint64_t position
) noexcept nogil:
    cdef uint32_t index
    if cloner.fd < 0 or length < cloner.from_bytes or offset % CLONE_BLOCK or position % CLONE_BLOCK:
        return False
    for index in range(min(cloner.refusals, <uint32_t>DEVICES)):
        if cloner.refused[index] == device:
            return False
    return True

cdef inline bint is_settled(const cloner_t* cloner, const stat_t* found) noexcept nogil:
    """Tell whether a write from now on would change the file's ctime."""
    return cloner.stamps and (
        found.st_ctim.tv_sec * <int64_t>1000000000 + found.st_ctim.tv_nsec < tell_time_ns() - RACY_NS
    )

cdef inline bint is_same(const stat_t* before, const stat_t* after) noexcept nogil:
    return (
        after.st_size == before.st_size
        and after.st_mtim.tv_sec == before.st_mtim.tv_sec and after.st_mtim.tv_nsec == before.st_mtim.tv_nsec
    )

cdef inline bint is_untouched(const stat_t* before, const stat_t* after) noexcept nogil:
    """Tell the same of the ctime too, which nobody can set back."""
    return (
        is_same(before, after)
        and after.st_ctim.tv_sec == before.st_ctim.tv_sec and after.st_ctim.tv_nsec == before.st_ctim.tv_nsec
    )

cdef inline int share(
    cloner_t* cloner, int fd, uint64_t device, uint64_t offset, uint64_t length, uint64_t position
) noexcept nogil:
    """Clone whole blocks into the tar; 0, an errno, or -1 where they have to be copied."""
    while clone_blocks(fd, offset, length, cloner.fd, position) != 0:
        if errno == EXDEV or errno == EOPNOTSUPP or errno == ENOTTY:
            cloner.refused[cloner.refusals % DEVICES] = device
            cloner.refusals += 1
            return -1
        # Of this file alone: no checksums beside checksums, a swap file, a file that is shorter by now.
        if errno == EINVAL or errno == ETXTBSY or errno == EPERM:
            return -1
        if errno != EINTR:
            return errno
    return 0

cdef inline bint is_of_the_output(int code) noexcept nogil:
    return code == ENOSPC or code == EDQUOT or code == EFBIG
