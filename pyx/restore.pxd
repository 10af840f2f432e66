# cython: language_level=3
"""Give an entry the owner, mode, xattrs and time of its row (inline-only)."""
from libc.errno cimport ENODATA, EOPNOTSUPP, ERANGE, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.stdio cimport snprintf
from libc.string cimport memcmp, memcpy, strlen
from posix.unistd cimport close

from beneath cimport O_PATH, open_name
from entry cimport entry_t
from fileat cimport (
    AT_SYMLINK_NOFOLLOW, PROC_NAME_BYTES, S_IFLNK, S_IFMT, chmod, fchmod, fchown, fchownat, flistxattr,
    fremovexattr, fsetxattr, fstat, fstatat, futimens, lremovexattr, lsetxattr, name_in_proc, stat_t, timespec,
    to_timespec, utimensat,
)
from layercheck cimport find_xattr

cdef enum:
    XATTR_NAME_BYTES = 256
    XATTR_NAMES_BYTES = 65536

cdef struct restore_t:
    const uint8_t* heap
    char* xattr_names          # XATTR_NAMES_BYTES
    const char* own_prefix     # of the names that overlayfs would take for its own marks; empty: none
    bint keeps_owner           # files stay whose they are
    bint drops_foreign         # what belongs to another kind of file system is left out, else it is an error
    const timespec* atime      # NULL: the same as the row's mtime
    const char* doing          # what failed, for the error's text

cdef inline bint starts_with(const char* name, size_t length, const char* prefix) noexcept nogil:
    cdef size_t prefix_length = strlen(prefix)
    return length >= prefix_length and memcmp(name, prefix, prefix_length) == 0

cdef inline bint is_file_systems_own(const char* name) noexcept nogil:
    """Tell whether a name is of none of the kernel's namespaces but one file system's: btrfs.*, xfs's ACLs."""
    cdef size_t length = strlen(name)
    return starts_with(name, length, b"trusted.SGI_ACL_") or not (
        starts_with(name, length, b"user.") or starts_with(name, length, b"trusted.")
        or starts_with(name, length, b"security.") or starts_with(name, length, b"system.posix_acl_")
    )

cdef inline int put_xattrs(restore_t* state, const entry_t* row, int fd, const char* path) noexcept nogil:
    """Set a row's xattrs, on fd or, when that is -1, on path itself.

    In an overlay upper, names that would steer the mount are escaped as overlayfs does it for nested mounts.
    """
    cdef const uint8_t* encoded = state.heap + row.xattr_offset
    cdef size_t prefix_length = strlen(state.own_prefix), size
    cdef uint32_t at = 0, value_length
    cdef uint16_t name_length
    cdef char name[XATTR_NAME_BYTES + 16]
    cdef inline int result
    state.doing = b"set an extended attribute"
    while at < row.xattr_length:
        memcpy(&name_length, encoded + at, 2)
        memcpy(&value_length, encoded + at + 2, 4)
        at += 6
        if name_length >= XATTR_NAME_BYTES:
            return ERANGE
        size = 0
        if prefix_length and starts_with(<const char*>encoded + at, name_length, state.own_prefix):
            memcpy(name, state.own_prefix, prefix_length)
            memcpy(name + prefix_length, b"overlay.", 8)
            size = prefix_length + 8
            memcpy(name + size, encoded + at + prefix_length, name_length - prefix_length)
            size += name_length - prefix_length
        else:
            memcpy(name, encoded + at, name_length)
            size = name_length
        name[size] = 0
        at += name_length
        if fd >= 0:
            result = fsetxattr(fd, name, encoded + at, value_length, 0)
        else:
            result = lsetxattr(path, name, encoded + at, value_length, 0)
        if result != 0 and not (state.drops_foreign and errno == EOPNOTSUPP and is_file_systems_own(name)):
            return errno
        at += value_length
    return 0

cdef inline int drop_xattrs(restore_t* state, const entry_t* row, int fd) noexcept nogil:
    """Remove the xattrs that a row does not have; labels and overlayfs's own marks stay."""
    cdef ssize_t size, at = 0
    cdef size_t length
    cdef const char* name
    state.doing = b"remove an extended attribute"
    size = flistxattr(fd, state.xattr_names, XATTR_NAMES_BYTES)
    if size < 0:
        return 0 if errno == EOPNOTSUPP else errno
    while at < size:
        name = state.xattr_names + at
        length = strlen(name)
        at += length + 1
        if starts_with(name, length, b"security.selinux") or starts_with(name, length, b"trusted.overlay."):
            continue
        if state.own_prefix[0] and starts_with(name, length, state.own_prefix):
            continue
        if find_xattr(state.heap + row.xattr_offset, row.xattr_length, name, length) != NULL:
            continue
        if fremovexattr(fd, name) != 0 and errno != ENODATA:
            return errno
    return 0

cdef inline int finish_open(restore_t* state, const entry_t* row, int fd) noexcept nogil:
    """Give an open file or directory its owner, mode, xattrs and time, in the order in which none undoes another."""
    cdef stat_t now
    cdef timespec times[2]
    cdef bint owner_changes
    cdef inline int failure
    state.doing = b"stat"
    if fstat(fd, &now) != 0:
        return errno
    owner_changes = not state.keeps_owner and (now.st_uid != row.uid or now.st_gid != row.gid)
    state.doing = b"chown"
    if owner_changes and fchown(fd, row.uid, row.gid) != 0:
        return errno
    state.doing = b"chmod"
    if (now.st_mode ^ row.mode) & 0o7777 or (owner_changes and row.mode & 0o6000):
        if fchmod(fd, row.mode & 0o7777) != 0:
            return errno
    if row.xattr_length:
        failure = put_xattrs(state, row, fd, NULL)
        if failure:
            return failure
    times[1] = to_timespec(row.mtime_ns)
    times[0] = state.atime[0] if state.atime != NULL else times[1]
    state.doing = b"set the times"
    return 0 if futimens(fd, times) == 0 else errno

cdef inline int finish_named(
    restore_t* state, const entry_t* row, int directory_fd, const char* name, bint has_inherited_acl
) noexcept nogil:
    """The same for an entry that cannot be opened: a symlink, a device, a fifo, a socket."""
    cdef char path[PROC_NAME_BYTES]
    cdef char itself[32]
    cdef stat_t now
    cdef timespec times[2]
    cdef bint owner_changes
    cdef inline int failure, fd
    name_in_proc(path, directory_fd, name)
    if has_inherited_acl and row.mode & S_IFMT != S_IFLNK:
        lremovexattr(path, b"system.posix_acl_access")
    state.doing = b"stat"
    if fstatat(directory_fd, name, &now, AT_SYMLINK_NOFOLLOW) != 0:
        return errno
    owner_changes = not state.keeps_owner and (now.st_uid != row.uid or now.st_gid != row.gid)
    state.doing = b"chown"
    if owner_changes and fchownat(directory_fd, name, row.uid, row.gid, AT_SYMLINK_NOFOLLOW) != 0:
        return errno
    if row.mode & S_IFMT != S_IFLNK and ((now.st_mode ^ row.mode) & 0o7777 or (owner_changes and row.mode & 0o6000)):
        state.doing = b"chmod"
        fd = open_name(directory_fd, name, O_PATH)
        if fd < 0:
            return errno
        snprintf(itself, sizeof(itself), "/proc/self/fd/%d", fd)
        failure = errno if chmod(itself, row.mode & 0o7777) != 0 else 0
        close(fd)
        if failure:
            return failure
    if row.xattr_length:
        failure = put_xattrs(state, row, -1, path)
        if failure:
            return failure
    times[1] = to_timespec(row.mtime_ns)
    times[0] = state.atime[0] if state.atime != NULL else times[1]
    state.doing = b"set the times"
    return 0 if utimensat(directory_fd, name, times, AT_SYMLINK_NOFOLLOW) == 0 else errno
