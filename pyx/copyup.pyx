# cython: autotestdict=False
"""Copy files and trees with everything that belongs to them.

A tree is copied directory by directory from a list of those found so far: two descriptors are open however deep
it is. Directories get their metadata at the end, deepest first, so that copying into them doesn't change it.
"""
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINVAL, ENAMETOOLONG, ENODATA, ENOMEM, EOPNOTSUPP, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset, strerror, strlen
from posix.unistd cimport close

from arena cimport arena_free, arena_t, arena_take
from beneath cimport O_CLOEXEC, O_DIRECTORY, O_NOFOLLOW, O_PATH, O_RDONLY, open_beneath, open_name, syscall
from entry cimport entry_t
from fileat cimport (
    AT_SYMLINK_NOFOLLOW, O_CREAT, O_EXCL, O_WRONLY, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, SYS_getdents64, fremovexattr,
    fstat, fstatat, ftruncate, linkat, mkdirat, mknodat, openat_mode, readlinkat, stat_t, symlinkat,
)
from filecopy cimport BY_CLONE, BY_HAND, BY_RANGE, copy_data
from growable cimport append, growable_t, release
from linkmap cimport link_find, linkmap_t, seen_t
from restore cimport finish_named, finish_open, restore_t
from spancopy cimport copier_t, copy_span
from xattr cimport xattr_read, xattr_scratch_t, xattr_start, xattr_stop

cdef enum:
    BUFFER_BYTES = 256 * 1024
    LISTING_BYTES = 32 * 1024
    NAME_OFFSET = 19           # of struct linux_dirent64: ino 8, off 8, reclen 2, type 1, name
    TARGET_BYTES = 4096        # PATH_MAX: no symlink is longer

cdef struct path_t:
    size_t length
    char text[1]               # and more

cdef struct directory_t:
    const path_t* path
    stat_t found               # before anything was read from it

cdef struct copy_t:
    int source_root
    int target_root
    int source_fd              # the directory being copied
    int target_fd
    uint64_t target_device     # the target itself, which must not lie within the source
    uint64_t target_inode
    uint64_t device            # of the last file: how it can be copied holds for its file system
    bint no_clone
    arena_t paths
    growable_t directories     # directory_t, parents first
    const path_t* failed       # the path that an error is about
    linkmap_t links            # their place is a path_t
    xattr_scratch_t xattrs
    restore_t restore
    copier_t copier
    uint64_t entries
    uint64_t data_bytes


cdef int start_copier(copier_t* copier) except -1:
    memset(copier, 0, sizeof(copier_t))
    copier.capacity = BUFFER_BYTES
    copier.buffer = <uint8_t*>malloc(BUFFER_BYTES)
    if copier.buffer == NULL:
        raise MemoryError
    return 0


def copy_file(int source_fd, int target_fd, size_bytes):
    """Copy the data of an open file: reflink, else copy_file_range, else a sparse-aware read/write loop.

    What the target holds is replaced. Returns the way taken: "reflink", "copy_file_range" or "read_write" (small
    files as well). Holes stay holes. The source's file offset may move. Releases the GIL.
    """
    cdef copier_t copier
    cdef bint no_clone = False
    cdef int64_t size = size_bytes
    cdef stat_t found
    cdef int failure = 0, way = BY_HAND
    if size < 0:
        raise ValueError("size_bytes is negative")
    start_copier(&copier)
    with nogil:
        if fstat(source_fd, &found) != 0 or ftruncate(target_fd, 0) != 0:
            failure = errno
        else:
            failure = copy_data(&copier, &no_clone, source_fd, target_fd, &found, size, &way)
    free(copier.buffer)
    if failure:
        raise OSError(failure, strerror(failure).decode())
    return {BY_CLONE: "reflink", BY_RANGE: "copy_file_range", BY_HAND: "read_write"}[way]


def copy_range(int source_fd, source_offset, int target_fd, target_offset, size_bytes):
    """Copy one range between open files within the kernel where it can."""
    cdef copier_t copier
    cdef int64_t from_offset = source_offset, to_offset = target_offset, size = size_bytes
    cdef int failure
    if from_offset < 0 or to_offset < 0 or size < 0:
        raise ValueError("offsets and sizes are not negative")
    start_copier(&copier)
    with nogil:
        failure = copy_span(&copier, source_fd, from_offset, target_fd, to_offset, size)
    free(copier.buffer)
    if failure:
        raise OSError(failure, strerror(failure).decode())


cdef path_t* join_path(copy_t* state, const path_t* parent, const char* name) noexcept nogil:
    """Hold the path of a directory's entry until the end; NULL when there is no memory."""
    cdef size_t name_length = strlen(name)
    cdef path_t* joined = <path_t*>arena_take(&state.paths, sizeof(path_t) + parent.length + 1 + name_length)
    if joined == NULL:
        return NULL
    joined.length = 0
    if parent.length:
        memcpy(joined.text, parent.text, parent.length)
        joined.text[parent.length] = c'/'
        joined.length = parent.length + 1
    memcpy(joined.text + joined.length, name, name_length + 1)
    joined.length += name_length
    return joined


cdef int link_first(copy_t* state, const path_t* first, const char* name) noexcept nogil:
    """Link a further name of an inode to its first one; 0 or an errno."""
    cdef size_t end = first.length
    cdef int fd, failure
    while end and first.text[end - 1] != c'/':
        end -= 1
    fd = open_beneath(state.target_root, first.text, end - 1 if end else 0, O_PATH | O_DIRECTORY)
    if fd < 0:
        return errno
    failure = 0 if linkat(fd, first.text + end, state.target_fd, name, 0) == 0 else errno
    close(fd)
    return failure


cdef int copy_attributes(copy_t* state, const stat_t* found, int source_fd, const char* name, int fd) noexcept nogil:
    """Give an entry of the target (fd, or the name in the current directory) its source's metadata; 0 or an errno."""
    cdef entry_t row
    cdef int failure = xattr_read(&state.xattrs, source_fd, name)
    if failure:
        return failure
    memset(&row, 0, sizeof(row))
    row.mode, row.uid, row.gid = found.st_mode, found.st_uid, found.st_gid
    row.mtime_ns = found.st_mtim.tv_sec * 1000000000 + found.st_mtim.tv_nsec
    row.xattr_length = <uint32_t>state.xattrs.size
    state.restore.heap = state.xattrs.encoded
    state.restore.atime = &found.st_atim
    if fd >= 0:
        return finish_open(&state.restore, &row, fd)
    return finish_named(&state.restore, &row, state.target_fd, name, False)


cdef int copy_regular(copy_t* state, const stat_t* found, const char* name) noexcept nogil:
    """Copy a regular file with its metadata; 0 or an errno."""
    cdef int source, target, failure = 0, way
    cdef stat_t now
    source = open_name(state.source_fd, name, O_RDONLY)
    if source < 0:
        return errno
    target = openat_mode(
        state.target_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, found.st_mode & 0o700
    )
    if target < 0 or fstat(source, &now) != 0:
        failure = errno
    elif now.st_mode & S_IFMT != S_IFREG:
        failure = EINVAL  # another thing has taken the name
    else:
        if now.st_dev != state.device:
            state.device = now.st_dev
            state.no_clone = state.copier.by_hand = False
        if now.st_size:
            failure = copy_data(&state.copier, &state.no_clone, source, target, &now, now.st_size, &way)
        state.data_bytes += <uint64_t>now.st_size
    if failure == 0:
        failure = copy_attributes(state, found, state.source_fd, name, target)
    close(source)
    if target >= 0 and close(target) != 0 and failure == 0:
        failure = errno
    return failure


cdef int copy_symlink(copy_t* state, const char* name) noexcept nogil:
    cdef char target[TARGET_BYTES]
    cdef ssize_t length = readlinkat(state.source_fd, name, target, TARGET_BYTES)
    if length < 0:
        return errno
    if length == TARGET_BYTES:
        return ENAMETOOLONG
    target[length] = 0
    return 0 if symlinkat(target, state.target_fd, name) == 0 else errno


cdef int meet_directory(copy_t* state, const path_t* parent, const stat_t* found, const char* name) noexcept nogil:
    """Make a directory, unless it is there, and put it on the list; 0 or an errno."""
    cdef directory_t directory
    cdef stat_t there
    cdef int failure
    if found.st_dev == state.target_device and found.st_ino == state.target_inode:
        return EINVAL  # the target lies within the source
    if mkdirat(state.target_fd, name, 0o700) != 0:
        failure = errno
        if fstatat(state.target_fd, name, &there, AT_SYMLINK_NOFOLLOW) != 0 or there.st_mode & S_IFMT != S_IFDIR:
            return failure
    directory.found = found[0]
    directory.path = join_path(state, parent, name)
    if directory.path == NULL or append(&state.directories, &directory, sizeof(directory)) != 0:
        return ENOMEM
    return 0


cdef int copy_entry(copy_t* state, const path_t* parent, const char* name) noexcept nogil:
    """Copy one entry of the current directory; 0 or an errno."""
    cdef stat_t found
    cdef seen_t* seen
    cdef path_t* path
    cdef int failure
    cdef uint32_t kind
    if fstatat(state.source_fd, name, &found, AT_SYMLINK_NOFOLLOW) != 0:
        return errno
    state.entries += 1
    kind = found.st_mode & S_IFMT
    if kind == S_IFDIR:
        return meet_directory(state, parent, &found, name)
    if found.st_nlink > 1:
        seen = link_find(&state.links, found.st_dev, found.st_ino)
        if seen == NULL:
            return ENOMEM
        if seen.place:
            return link_first(state, <const path_t*>seen.place, name)
        path = join_path(state, parent, name)
        if path == NULL:
            return ENOMEM
        seen.device, seen.inode, seen.place = found.st_dev, found.st_ino, <size_t>path
        state.links.taken += 1
    if kind == S_IFREG:
        return copy_regular(state, &found, name)
    if kind == S_IFLNK:
        failure = copy_symlink(state, name)
    else:
        failure = 0 if mknodat(state.target_fd, name, found.st_mode & (S_IFMT | 0o700), found.st_rdev) == 0 else errno
    if failure == 0:
        failure = copy_attributes(state, &found, state.source_fd, name, -1)
    return failure


cdef int copy_listing(copy_t* state, const path_t* path) noexcept nogil:
    """Copy what the current directory lists; 0 or an errno, with the path that it is about."""
    cdef uint8_t listing[LISTING_BYTES]
    cdef long size, at
    cdef uint16_t record_bytes
    cdef const char* name
    cdef int failure
    while True:
        size = syscall(SYS_getdents64, state.source_fd, listing, <size_t>LISTING_BYTES)
        if size <= 0:
            return 0 if size == 0 else errno
        at = 0
        while at < size:
            memcpy(&record_bytes, &listing[at + 16], 2)
            name = <const char*>&listing[at + NAME_OFFSET]
            at += record_bytes
            if name[0] == c'.' and (name[1] == 0 or (name[1] == c'.' and name[2] == 0)):
                continue
            failure = copy_entry(state, path, name)
            if failure:
                state.failed = join_path(state, path, name)
                return failure


cdef int open_both(copy_t* state, const path_t* path) noexcept nogil:
    """Make a directory the current one on both sides; 0 or an errno. close_both follows either way."""
    state.failed = path
    state.source_fd = open_beneath(state.source_root, path.text, path.length, O_RDONLY | O_DIRECTORY)
    if state.source_fd < 0:
        return errno
    state.target_fd = open_beneath(state.target_root, path.text, path.length, O_RDONLY | O_DIRECTORY)
    return errno if state.target_fd < 0 else 0


cdef void close_both(copy_t* state) noexcept nogil:
    if state.source_fd >= 0:
        close(state.source_fd)
    if state.target_fd >= 0:
        close(state.target_fd)
    state.source_fd = state.target_fd = -1


cdef int copy_directory(copy_t* state, size_t index, bint finishing) noexcept nogil:
    """Copy a listed directory's entries or, at the end, its metadata; 0 or an errno."""
    # By value: the list may move while it grows.
    cdef directory_t directory = (<directory_t*>state.directories.data)[index]
    cdef int failure = open_both(state, directory.path)
    if failure == 0 and finishing:
        failure = copy_attributes(state, &directory.found, state.source_fd, b".", state.target_fd)
    elif failure == 0:
        # A default ACL of a directory that was there would be inherited; the source's own comes back at the end.
        if fremovexattr(state.target_fd, b"system.posix_acl_default") != 0 and errno not in (ENODATA, EOPNOTSUPP):
            failure = errno
        if failure == 0:
            failure = copy_listing(state, directory.path)
    close_both(state)
    return failure


cdef int start_copy(copy_t* state, int source_fd, int target_fd) except -1:
    """Take the memory and put the top directory on the list."""
    cdef directory_t top
    cdef stat_t target
    state.source_root, state.target_root = source_fd, target_fd
    state.directories.limit = <size_t>1 << 40
    start_copier(&state.copier)
    top.path = <path_t*>arena_take(&state.paths, sizeof(path_t))
    if top.path == NULL or xattr_start(&state.xattrs) != 0:
        raise MemoryError
    memset(<void*>top.path, 0, sizeof(path_t))
    if fstat(source_fd, &top.found) != 0 or fstat(target_fd, &target) != 0:
        raise OSError(errno, strerror(errno).decode(), b"")
    if top.found.st_dev == target.st_dev and top.found.st_ino == target.st_ino:
        raise OSError(EINVAL, "the source and the target are one directory", b"")
    state.target_device, state.target_inode = target.st_dev, target.st_ino
    if append(&state.directories, &top, sizeof(top)) != 0:
        raise MemoryError
    return 0


def copy_tree(int source_fd, int target_fd):
    """Copy everything below one directory into another, existing one; return (entries, bytes of data).

    Keeps owner, mode, times, xattrs (ACLs and capabilities with them), hard links inside the tree, holes, devices,
    fifos, sockets, symlinks; the top directory's own metadata is applied to the target as well. Directories that
    are there already are merged, anything else in the way is a FileExistsError. Never follows symlinks. Two
    descriptors at a time; memory for the directories' paths. Releases the GIL. Raises OSError with filename; what
    was copied so far stays. Needs /proc for xattrs.
    """
    cdef copy_t state
    cdef size_t index = 0
    cdef int failure = 0
    memset(&state, 0, sizeof(state))
    state.source_fd = state.target_fd = -1
    state.restore.own_prefix = state.restore.doing = b""
    try:
        start_copy(&state, source_fd, target_fd)
        while failure == 0 and index < state.directories.length // sizeof(directory_t):
            with nogil:
                failure = copy_directory(&state, index, False)
            PyErr_CheckSignals()
            index += 1
        while failure == 0 and index:
            index -= 1
            with nogil:
                failure = copy_directory(&state, index, True)
        if failure:
            path = b"" if state.failed == NULL else state.failed.text[:state.failed.length]
            raise OSError(failure, strerror(failure).decode(), path)
        return state.entries, state.data_bytes
    finally:
        free(state.copier.buffer)
        free(state.links.slots)
        release(&state.directories)
        xattr_stop(&state.xattrs)
        arena_free(&state.paths)
