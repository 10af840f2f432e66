# cython: language_level=3
"""The system calls that make, name and mark files relative to a directory (declarations and small inline parts)."""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf

cdef extern from *:
    """
    #include <dirent.h>
    #include <fcntl.h>
    #include <stdio.h>
    #include <sys/stat.h>
    #include <sys/syscall.h>
    #include <sys/sysmacros.h>
    #include <sys/xattr.h>
    #include <unistd.h>
    """
    struct timespec:
        int64_t tv_sec
        long tv_nsec
    struct stat_t "stat":
        uint64_t st_dev
        uint64_t st_ino
        uint64_t st_nlink
        uint32_t st_mode
        uint32_t st_uid
        uint32_t st_gid
        uint64_t st_rdev
        int64_t st_size
        int64_t st_blocks
        timespec st_atim
        timespec st_mtim
    enum:
        AT_REMOVEDIR
        AT_SYMLINK_NOFOLLOW
        DT_DIR
        DT_REG
        O_CREAT
        O_EXCL
        O_RDWR
        O_WRONLY
        S_IFBLK
        S_IFCHR
        S_IFDIR
        S_IFIFO
        S_IFLNK
        S_IFMT
        S_IFREG
        S_IFSOCK
        SYS_getdents64
    int openat_mode "openat"(int fd, const char* name, int flags, uint32_t mode) nogil
    int mkdirat(int fd, const char* name, uint32_t mode) nogil
    int mknodat(int fd, const char* name, uint32_t mode, uint64_t device) nogil
    int symlinkat(const char* target, int fd, const char* name) nogil
    int linkat(int old_fd, const char* old_name, int new_fd, const char* new_name, int flags) nogil
    int unlinkat(int fd, const char* name, int flags) nogil
    ssize_t readlinkat(int fd, const char* name, char* target, size_t size) nogil
    int fstat(int fd, stat_t* found) nogil
    int fstatat(int fd, const char* name, stat_t* found, int flags) nogil
    int fchown(int fd, uint32_t uid, uint32_t gid) nogil
    int fchownat(int fd, const char* name, uint32_t uid, uint32_t gid, int flags) nogil
    int fchmod(int fd, uint32_t mode) nogil
    int chmod(const char* path, uint32_t mode) nogil
    int futimens(int fd, const timespec* times) nogil
    int utimensat(int fd, const char* name, const timespec* times, int flags) nogil
    int ftruncate(int fd, int64_t size) nogil
    ssize_t flistxattr(int fd, char* names, size_t size) nogil
    ssize_t fgetxattr(int fd, const char* name, void* value, size_t size) nogil
    ssize_t lgetxattr(const char* path, const char* name, void* value, size_t size) nogil
    ssize_t llistxattr(const char* path, char* names, size_t size) nogil
    int fsetxattr(int fd, const char* name, const void* value, size_t size, int flags) nogil
    int lsetxattr(const char* path, const char* name, const void* value, size_t size, int flags) nogil
    int fremovexattr(int fd, const char* name) nogil
    int lremovexattr(const char* path, const char* name) nogil
    uint64_t makedev(uint32_t major, uint32_t minor) nogil

cdef enum:
    PROC_NAME_BYTES = 320  # "/proc/self/fd/N/" and a name

cdef inline void name_in_proc(char* path, int directory_fd, const char* name) noexcept nogil:
    """Give a directory entry a path without symlinks before its last component (PROC_NAME_BYTES)."""
    snprintf(path, PROC_NAME_BYTES, "/proc/self/fd/%d/%s", directory_fd, name)

cdef inline timespec to_timespec(int64_t time_ns) noexcept nogil:
    """Split nanoseconds; the fraction counts forward, before 1970 too."""
    cdef timespec split
    split.tv_sec = time_ns // 1000000000
    split.tv_nsec = time_ns - split.tv_sec * 1000000000
    if split.tv_nsec < 0:
        split.tv_sec -= 1
        split.tv_nsec += 1000000000
    return split
