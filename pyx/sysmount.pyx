# cython: autotestdict=False
"""Mount-related system calls, each checked; overlayfs through the mount API of Linux 5.2 and 6.7."""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.errno cimport E2BIG, EINVAL, ENOSYS, EPERM, errno
from libc.string cimport memchr, strerror
from posix.fcntl cimport O_CLOEXEC, O_DIRECTORY, O_RDONLY, open as c_open
from posix.unistd cimport close, read

cdef extern from "<sys/syscall.h>" nogil:
    # The C library's wrappers are too young (glibc 2.36); the numbers are the same on every architecture but alpha.
    """
    #ifndef SYS_open_tree
    #define SYS_open_tree 428
    #define SYS_move_mount 429
    #define SYS_fsopen 430
    #define SYS_fsconfig 431
    #define SYS_fsmount 432
    #endif
    """
    long SYS_open_tree, SYS_move_mount, SYS_fsopen, SYS_fsconfig, SYS_fsmount

cdef extern from * nogil:
    # In a process of its own where this one has a filter: it may kill whoever makes a call of another ABI (systemd's
    # SystemCallArchitectures=native), and then only the child dies.
    """
    #include <errno.h>
    #include <sys/prctl.h>
    #include <sys/syscall.h>
    #include <sys/wait.h>
    #include <unistd.h>
    static int answers_x32(void)
    {
    #if defined(__x86_64__) && defined(__LP64__)
        int status = 0;
        pid_t child;
        /* A child takes up to 2 ms, while the kernel's cgroup lock is being waited for. */
        if (prctl(PR_GET_SECCOMP, 0, 0, 0, 0) == 0)
            return syscall(0x40000000L + SYS_getpid) > 0;
        child = vfork();
        if (child == 0)
            _exit(syscall(0x40000000L + SYS_getpid) > 0 ? 0 : 1);
        if (child < 0)
            return 0;
        while (waitpid(child, &status, 0) < 0)
            if (errno != EINTR)
                return 0;
        return WIFEXITED(status) && WEXITSTATUS(status) == 0;
    #else
        return 0;
    #endif
    }
    """
    int answers_x32()

cdef extern from "<sys/prctl.h>" nogil:
    int c_prctl "prctl"(int option, unsigned long first)
    int PR_SET_CHILD_SUBREAPER

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)
    int getpagesize()
    int syncfs(int fd)

cdef extern from "<sched.h>" nogil:
    int c_unshare "unshare"(int flags)
    int c_setns "setns"(int fd, int flags)
    int c_clone_newns "CLONE_NEWNS"

cdef extern from "<sys/mount.h>" nogil:
    int c_mount "mount"(
        const char* source, const char* target, const char* fstype, unsigned long flags, const void* data
    )
    int c_umount2 "umount2"(const char* target, int flags)
    int c_rdonly "MS_RDONLY"
    int c_nosuid "MS_NOSUID"
    int c_nodev "MS_NODEV"
    int c_noexec "MS_NOEXEC"
    int c_remount "MS_REMOUNT"
    int c_bind "MS_BIND"
    int c_rec "MS_REC"
    int c_private "MS_PRIVATE"
    int c_slave "MS_SLAVE"
    int c_detach "MNT_DETACH"

cdef enum:
    FSOPEN_CLOEXEC_ = 1
    FSMOUNT_CLOEXEC_ = 1
    SET_FLAG_ = 0        # fsconfig commands
    SET_STRING_ = 1
    SET_FD_ = 5
    CREATE_ = 6
    ATTR_RDONLY_ = 1
    MOVE_F_EMPTY_PATH_ = 0x04
    MOVE_T_EMPTY_PATH_ = 0x40
    OPEN_TREE_CLONE_ = 1
    AT_FDCWD_ = -100
    AT_EMPTY_PATH_ = 0x1000
    AT_RECURSIVE_ = 0x8000
    FSCONFIG_STRING_BYTES = 256  # with the NUL

MS_RDONLY = c_rdonly
MS_NOSUID = c_nosuid
MS_NODEV = c_nodev
MS_NOEXEC = c_noexec
MS_REMOUNT = c_remount
MS_BIND = c_bind
MS_REC = c_rec
MS_PRIVATE = c_private
MS_SLAVE = c_slave
MNT_DETACH = c_detach
CLONE_NEWNS = c_clone_newns

cdef enum:
    UNKNOWN = 0
    APPENDS = 1    # the kernel takes lowerdir+
    ONE_STRING = 2

cdef int lower_support = UNKNOWN  # guarded by the GIL; a race only probes twice


cdef const char* c_string(bytes text) except NULL:
    """Borrow the C string of bytes that must not hold a NUL."""
    if memchr(PyBytes_AS_STRING(text), 0, PyBytes_GET_SIZE(text)) != NULL:
        raise ValueError("embedded null byte")
    return PyBytes_AS_STRING(text)


cdef object os_error(int code, bytes filename, str doing="", str said=""):
    """Build the OSError of a failed call, with what was being done and what the kernel said about it."""
    text = strerror(code).decode()
    if doing:
        text = f"{doing}: {text}"
    if said:
        text = f"{text} ({said})"
    return OSError(code, text, filename)


def mount(
    bytes source not None, bytes target not None, bytes fstype not None, unsigned long flags=0,
    bytes options not None=b"",
):
    """Call mount(2). Raises OSError with the target as filename."""
    cdef const char* c_source = c_string(source)
    cdef const char* c_target = c_string(target)
    cdef const char* c_type = c_string(fstype)
    cdef const char* c_options = c_string(options)
    cdef int result
    # The kernel reads one page and cuts what is beyond it without a word.
    if PyBytes_GET_SIZE(options) >= getpagesize():
        raise os_error(E2BIG, target, f"mount options of {len(options)} bytes")
    with nogil:
        result = c_mount(c_source, c_target, c_type, flags, c_options if c_options[0] else NULL)
    if result != 0:
        raise os_error(errno, target)


def unmount(bytes target not None, int flags=0):
    """Call umount2(2)."""
    cdef const char* c_target = c_string(target)
    cdef int result
    with nogil:
        result = c_umount2(c_target, flags)
    if result != 0:
        raise os_error(errno, target)


def unshare(int flags):
    """Call unshare(2)."""
    cdef int result
    with nogil:
        result = c_unshare(flags)
    if result != 0:
        raise OSError(errno, strerror(errno).decode())


def setns(int fd, int flags=0):
    """Call setns(2)."""
    cdef int result
    with nogil:
        result = c_setns(fd, flags)
    if result != 0:
        raise OSError(errno, strerror(errno).decode())


def open_tree(int directory_fd, bytes path not None, bint clone=False, bint recursive=False):
    """Call open_tree(2); the caller closes the returned descriptor."""
    cdef const char* c_path = c_string(path)
    cdef unsigned int flags = O_CLOEXEC
    cdef long result
    if clone:
        flags |= OPEN_TREE_CLONE_
    if recursive:
        flags |= AT_RECURSIVE_
    if not path:
        flags |= AT_EMPTY_PATH_
    with nogil:
        result = syscall(SYS_open_tree, directory_fd, c_path, flags)
    if result < 0:
        raise os_error(errno, path)
    return result


def move_mount(int mount_fd, int directory_fd, bytes path not None):
    """Attach a detached mount at path."""
    attach(mount_fd, directory_fd, path, "")


cdef int attach(int mount_fd, int directory_fd, bytes path, str doing) except -1:
    cdef const char* c_path = c_string(path)
    cdef unsigned int flags = MOVE_F_EMPTY_PATH_
    cdef long result
    if not path:
        flags |= MOVE_T_EMPTY_PATH_
    with nogil:
        result = syscall(SYS_move_mount, mount_fd, b"", directory_fd, c_path, flags)
    if result < 0:
        raise os_error(errno, path, doing)
    return 0


cdef str read_log(int context):
    """Read every message the kernel left in a file system context."""
    cdef char line[4096]
    cdef Py_ssize_t count
    messages = []
    while True:
        count = read(context, line, sizeof(line))
        if count <= 0:  # ENODATA: no more
            return "; ".join(messages)
        text = line[:count].decode("utf-8", "backslashreplace").strip()
        messages.append(text[2:] if text[1:2] == " " else text)  # "e overlay: ..." has its severity in front


cdef int configure(int context, int command, bytes key, bytes value, int aux, bytes target) except -1:
    """Call fsconfig(2); a failure carries the context's log."""
    cdef const char* c_key = c_string(key) if key is not None else NULL
    cdef const char* c_value = c_string(value) if value is not None else NULL
    cdef long result
    cdef int code
    with nogil:
        result = syscall(SYS_fsconfig, context, command, c_key, c_value, aux)
    if result == 0:
        return 0
    code = errno
    doing = "create the overlay" if key is None else key.decode("utf-8", "backslashreplace")
    if value is not None:
        doing = f"{doing}={value.decode('utf-8', 'backslashreplace')}"
    raise os_error(code, target, doing, read_log(context))


cdef int set_path(int context, bytes key, bytes path, bytes target) except -1:
    """Give a directory to the context, as a descriptor (or its /proc name) where a string would not do.

    A string is limited in length, and the kernel takes backslashes out of some keys' values and not of others'.
    """
    cdef const char* c_path = c_string(path)
    cdef int fd, code
    if PyBytes_GET_SIZE(path) < FSCONFIG_STRING_BYTES and b"\\" not in path:
        return configure(context, SET_STRING_, key, path, 0, target)
    with nogil:
        fd = c_open(c_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    if fd < 0:
        code = errno
        raise os_error(code, path, key.decode())
    try:
        if syscall(SYS_fsconfig, context, SET_FD_, c_string(key), NULL, fd) != 0:
            code = errno
            if code != EINVAL:
                raise os_error(code, target, key.decode(), read_log(context))
            configure(context, SET_STRING_, key, b"/proc/self/fd/%d" % fd, 0, target)  # before Linux 6.13
    finally:
        close(fd)
    return 0


cdef int probe_lowers() except -1:
    """Find out whether the kernel takes lowerdir+ (6.7 on): a context that knows it and refuses what it doesn't know.

    Before 6.5 overlayfs had no parser for single parameters: the context takes any word and fails only in the end.
    """
    global lower_support
    cdef int context = <int> syscall(SYS_fsopen, b"overlay", FSOPEN_CLOEXEC_)
    cdef bint parses, appends
    if context < 0:
        if errno in (ENOSYS, EPERM):  # EPERM: a seccomp filter of an older container runtime; mount(2) will tell
            return ONE_STRING
        raise OSError(errno, strerror(errno).decode(), b"overlay")
    parses = syscall(SYS_fsconfig, context, SET_STRING_, b"pylayers-probe", b"x", 0) != 0
    appends = syscall(SYS_fsconfig, context, SET_STRING_, b"lowerdir+", b"/", 0) == 0 or errno != EINVAL
    close(context)
    lower_support = APPENDS if parses and appends else ONE_STRING
    return lower_support


cdef bytes escape(bytes path):
    return path.replace(b"\\", b"\\\\").replace(b":", b"\\:").replace(b",", b"\\,")


cdef object mount_in_one_string(list lowers, bytes upper, bytes work, bytes target, list options, bint readonly):
    parts = [b"lowerdir=" + b":".join([escape(path) for path in lowers])]
    if upper:
        parts += [b"upperdir=" + escape(upper), b"workdir=" + escape(work)]
    mount(b"overlay", target, b"overlay", c_rdonly if readonly else 0, b",".join(parts + options))


cdef int create(int context, list options, bint readonly, bytes target) except -1:
    """Set the last options, make the file system and return a descriptor of its detached mount."""
    cdef int mount_fd, code
    for option in options:
        key, separator, value = option.partition(b"=")
        if separator:
            configure(context, SET_STRING_, key, value, 0, target)
        else:
            configure(context, SET_FLAG_, key, None, 0, target)
    if readonly:
        configure(context, SET_FLAG_, b"ro", None, 0, target)
    configure(context, CREATE_, None, None, 0, target)
    with nogil:
        mount_fd = <int> syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC_, ATTR_RDONLY_ if readonly else 0)
    if mount_fd < 0:
        code = errno
        raise os_error(code, target, "fsmount", read_log(context))
    return mount_fd


cdef object mount_by_context(
    int context, list lowers, bytes upper, bytes work, bytes target, list options, bint readonly
):
    cdef int mount_fd, code
    configure(context, SET_STRING_, b"source", b"overlay", 0, target)
    for lower in lowers:
        if not isinstance(lower, int):
            set_path(context, b"lowerdir+", lower, target)
        elif syscall(SYS_fsconfig, context, SET_FD_, b"lowerdir+", NULL, <int> lower) != 0:
            code = errno
            raise os_error(code, target, "lowerdir+ by descriptor", read_log(context))
    if upper:
        set_path(context, b"upperdir", upper, target)
        set_path(context, b"workdir", work, target)
    mount_fd = create(context, options, readonly, target)
    try:
        attach(mount_fd, AT_FDCWD_, target, "attach the overlay")
    finally:
        close(mount_fd)


def fsmount(bytes fstype not None, bytes source not None, options=(), bint readonly=False):
    """Make a file system and return a descriptor of its detached mount, which ends with it unless attached."""
    cdef const char* c_type = c_string(fstype)
    cdef list words = list(options)
    cdef int context
    with nogil:
        context = <int> syscall(SYS_fsopen, c_type, FSOPEN_CLOEXEC_)
    if context < 0:
        raise os_error(errno, source, f"fsopen {fstype.decode()}")
    try:
        configure(context, SET_STRING_, b"source", source, 0, source)
        return create(context, words, readonly, source)
    finally:
        close(context)


def mount_overlay(
    lowers, bytes upper not None, bytes work not None, bytes target not None, options=(), bint readonly=False
):
    """Mount overlayfs through fsopen/fsconfig (lowerdir+ where the kernel has it, Linux 6.7), else through mount(2).

    lowers is topmost first, each a path or (Linux 6.13) a descriptor of a directory, from Linux 6.15 of a detached
    mount too; an older kernel's refusal is EINVAL. upper and work empty make a read-only mount. Paths with ',' or ':'
    work. options are `key=value` or `flag`. With many lowers on an old kernel the page-size limit of mount(2) is an
    OSError(E2BIG). The kernel's own words from the fs context log are in the OSError's text.
    """
    cdef int context
    cdef list paths = list(lowers)
    cdef list words = list(options)
    if not paths or not all(paths):
        raise ValueError("an overlay needs at least one lower directory, and no empty path")
    if bool(upper) != bool(work):
        raise ValueError("upper and work go together")
    if not target:
        raise ValueError("the target is empty")
    if (lower_support or probe_lowers()) == ONE_STRING:
        if any(isinstance(lower, int) for lower in paths):
            raise os_error(EINVAL, target, "lowers by descriptor")
        mount_in_one_string(paths, upper, work, target, words, readonly)
        return
    with nogil:
        context = <int> syscall(SYS_fsopen, b"overlay", FSOPEN_CLOEXEC_)
    if context < 0:
        raise os_error(errno, target, "fsopen overlay")
    try:
        mount_by_context(context, paths, upper, work, target, words, readonly)
    finally:
        close(context)


def become_subreaper():
    """Make this process the parent of its orphaned descendants (prctl)."""
    if c_prctl(PR_SET_CHILD_SUBREAPER, 1) != 0:
        raise OSError(errno, strerror(errno).decode(), "prctl(PR_SET_CHILD_SUBREAPER)")


def sync_file_system(int descriptor):
    """Write all of a descriptor's file system to the disk (syncfs). Releases the GIL. Raises OSError."""
    cdef int failed
    with nogil:
        failed = syncfs(descriptor)
    if failed != 0:
        raise OSError(errno, strerror(errno).decode(), "syncfs")


def has_x32():
    """Tell whether the kernel runs programs of the x32 ABI, by one of its harmless calls."""
    cdef bint answers
    with nogil:
        answers = answers_x32()
    return bool(answers)
