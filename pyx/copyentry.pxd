# cython: language_level=3
"""Copy one entry of a directory, of any kind, with everything that belongs to it (inline-only).

Data and metadata of a regular file come through one descriptor, so that nobody can change the file under its name in
between. What could not be finished is removed again.
"""
from libc.errno cimport EEXIST, EINVAL, ENAMETOOLONG, ENODATA, ENOENT, ENOMEM, EOPNOTSUPP, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset, strlen
from posix.unistd cimport close

from arena cimport arena_t, arena_take
from beneath cimport O_CLOEXEC, O_DIRECTORY, O_NOFOLLOW, O_NONBLOCK, O_PATH, O_RDONLY, open_beneath, open_name
from entry cimport entry_t
from fileat cimport (
    AT_SYMLINK_NOFOLLOW, O_CREAT, O_EXCL, O_WRONLY, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, fremovexattr, fstat, fstatat,
    linkat, mkdirat, mknodat, openat_mode, readlinkat, stat_t, symlinkat, unlinkat,
)
from filecopy cimport copy_data
from linkmap cimport link_find, linkmap_t, seen_t
from restore cimport finish_named, finish_open, restore_t
from spancopy cimport copier_t
from thread cimport (
    pthread_cond_broadcast, pthread_cond_t, pthread_cond_wait, pthread_mutex_lock, pthread_mutex_t,
    pthread_mutex_unlock, store_int,
)
from xattr cimport xattr_read, xattr_read_open, xattr_scratch_t

cdef enum:
    TARGET_BYTES = 4096        # PATH_MAX: no symlink is longer
    GIVEN_UP = -1              # not an errno: another worker has failed

cdef struct path_t:
    size_t length
    bint made                  # of a hard link's first name: it can be linked to
    char text[1]               # and more

cdef struct directory_t:
    directory_t* parent
    directory_t* next          # in the stack
    const path_t* path
    stat_t found               # before anything was read from it
    int waiting                # for its own entries and for its subdirectories
    bint was_there             # not made by this copy

cdef struct copy_t:
    pthread_mutex_t lock       # of everything that changes below
    pthread_cond_t wake        # there is work, or none any more
    pthread_cond_t linked      # the first name of an inode is made
    int source_root
    int target_root
    uint64_t target_device     # the target itself, which must not lie within the source
    uint64_t target_inode
    uint32_t uid               # of what this process makes
    uint32_t gid
    bint owns                  # everything copied becomes the owner's below, not its source's
    uint32_t owner_uid
    uint32_t owner_gid
    bint leaves_top            # the target's own metadata are not touched
    bint replaces              # what is in the way of anything but a directory is removed
    directory_t top
    directory_t* stack
    int idle
    int busy
    int running                # workers
    int error                  # an errno, or GIVEN_UP on a signal
    const path_t* failed       # what the error is about
    linkmap_t links            # their place is a path_t

cdef struct worker_t:
    copy_t* copy
    directory_t* directory     # the current one
    int source_fd
    int target_fd
    uint64_t device            # of the last file: how it can be copied holds for its file system
    bint no_clone
    arena_t paths
    xattr_scratch_t xattrs
    restore_t restore
    copier_t copier
    uint64_t entries
    uint64_t data_bytes

cdef inline path_t* join_path(worker_t* worker, const path_t* parent, const char* name) noexcept nogil:
    """Hold the path of a directory's entry until the end; NULL when there is no memory."""
    cdef size_t name_length = strlen(name)
    cdef path_t* joined = <path_t*>arena_take(&worker.paths, sizeof(path_t) + parent.length + 1 + name_length)
    if joined == NULL:
        return NULL
    joined.length = 0
    joined.made = False
    if parent.length:
        memcpy(joined.text, parent.text, parent.length)
        joined.text[parent.length] = c'/'
        joined.length = parent.length + 1
    memcpy(joined.text + joined.length, name, name_length + 1)
    joined.length += name_length
    return joined

cdef inline int fail(worker_t* worker, const path_t* path, int failure) noexcept nogil:
    """Note the copy's first failure and let the others stop; returns it."""
    cdef copy_t* copy = worker.copy
    pthread_mutex_lock(&copy.lock)
    if copy.error == 0:
        store_int(&copy.error, failure)
        copy.failed = path
    pthread_cond_broadcast(&copy.wake)
    pthread_cond_broadcast(&copy.linked)
    pthread_mutex_unlock(&copy.lock)
    return failure

cdef inline int put_attributes(worker_t* worker, const stat_t* found, const char* name, int fd) noexcept nogil:
    """Give an entry of the target (fd, or the name in the current directory) the metadata that was read."""
    cdef entry_t row
    memset(&row, 0, sizeof(row))
    row.mode, row.uid, row.gid = found.st_mode, found.st_uid, found.st_gid
    if worker.copy.owns:
        row.uid, row.gid = worker.copy.owner_uid, worker.copy.owner_gid
    row.mtime_ns = found.st_mtim.tv_sec * 1000000000 + found.st_mtim.tv_nsec
    row.xattr_length = <uint32_t>worker.xattrs.size
    worker.restore.heap = worker.xattrs.encoded
    worker.restore.atime = &found.st_atim
    if fd >= 0:
        return finish_open(&worker.restore, &row, fd)
    return finish_named(&worker.restore, &row, worker.target_fd, name, False)

cdef inline int link_further(worker_t* worker, const path_t* first, const char* name) noexcept nogil:
    """Link a further name of an inode to its first one; 0 or an errno."""
    cdef size_t end = first.length
    cdef int fd, failure
    while end and first.text[end - 1] != c'/':
        end -= 1
    fd = open_beneath(worker.copy.target_root, first.text, end - 1 if end else 0, O_PATH | O_DIRECTORY)
    if fd < 0:
        return errno
    failure = 0 if linkat(fd, first.text + end, worker.target_fd, name, 0) == 0 else errno
    close(fd)
    return failure

cdef inline int meet_link(worker_t* worker, const stat_t* found, const char* name, path_t** first) noexcept nogil:
    """Link an entry of several names to the first one met, waiting until that is made; 0, GIVEN_UP or an errno.

    When this is the first one, its path comes back: the caller makes the entry, then calls tell_linked.
    """
    cdef copy_t* copy = worker.copy
    cdef seen_t* seen
    cdef path_t* known = NULL
    cdef int failure = 0
    first[0] = NULL
    pthread_mutex_lock(&copy.lock)
    seen = link_find(&copy.links, found.st_dev, found.st_ino)
    if seen == NULL:
        failure = ENOMEM
    elif seen.place:
        known = <path_t*>seen.place
        while not known.made and not copy.error:
            pthread_cond_wait(&copy.linked, &copy.lock)
        if not known.made:
            failure = GIVEN_UP
    else:
        first[0] = join_path(worker, worker.directory.path, name)
        if first[0] == NULL:
            failure = ENOMEM
        else:
            seen.device, seen.inode, seen.place = found.st_dev, found.st_ino, <size_t>first[0]
            copy.links.taken += 1
    pthread_mutex_unlock(&copy.lock)
    if failure == 0 and known != NULL:
        failure = link_further(worker, known, name)
    return failure

cdef inline void tell_linked(worker_t* worker, path_t* first) noexcept nogil:
    """Let others link to an entry."""
    pthread_mutex_lock(&worker.copy.lock)
    first.made = True
    pthread_cond_broadcast(&worker.copy.linked)
    pthread_mutex_unlock(&worker.copy.lock)

cdef inline int fill_regular(worker_t* worker, const stat_t* found, int source, const char* name) noexcept nogil:
    """Make a regular file from an open one; 0 or an errno."""
    cdef uint32_t mode = found.st_mode & 0o700
    cdef int target, way, failure = xattr_read_open(&worker.xattrs, source)
    if failure:
        return failure
    # Nobody gets more than in the end. Where this mode is the final one, no chmod follows.
    if (
        found.st_uid == worker.copy.uid and found.st_gid == worker.copy.gid and worker.xattrs.size == 0
        and not worker.copy.owns
    ):
        mode = found.st_mode & 0o777
    target = openat_mode(worker.target_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode)
    if target < 0:
        return errno
    if found.st_dev != worker.device:
        worker.device = found.st_dev
        worker.no_clone = worker.copier.by_hand = False
    if found.st_size:
        failure = copy_data(&worker.copier, &worker.no_clone, source, target, found, found.st_size, &way)
    worker.data_bytes += <uint64_t>found.st_size
    if failure == 0:
        failure = put_attributes(worker, found, name, target)
    if close(target) != 0 and failure == 0:
        failure = errno
    if failure:
        unlinkat(worker.target_fd, name, 0)
    return failure

cdef inline int copy_regular(worker_t* worker, const char* name) noexcept nogil:
    """Copy what is listed as a regular file; 0, GIVEN_UP or an errno."""
    cdef stat_t found
    cdef path_t* first = NULL
    cdef int failure = 0
    # Something that took the name meanwhile must not block.
    cdef int source = open_name(worker.source_fd, name, O_RDONLY | O_NONBLOCK)
    if source < 0:
        return errno
    if fstat(source, &found) != 0:
        failure = errno
    elif found.st_mode & S_IFMT != S_IFREG:
        failure = EINVAL
    else:
        if found.st_nlink > 1:
            failure = meet_link(worker, &found, name, &first)
        if failure == 0 and (found.st_nlink <= 1 or first != NULL):
            failure = fill_regular(worker, &found, source, name)
            if failure == 0 and first != NULL:
                tell_linked(worker, first)
    close(source)
    return failure

cdef inline int make_symlink(worker_t* worker, const char* name) noexcept nogil:
    cdef char target[TARGET_BYTES]
    cdef ssize_t length = readlinkat(worker.source_fd, name, target, TARGET_BYTES)
    if length < 0:
        return errno
    if length == TARGET_BYTES:
        return ENAMETOOLONG
    target[length] = 0
    return 0 if symlinkat(target, worker.target_fd, name) == 0 else errno

cdef inline int make_directory(
    worker_t* worker, const stat_t* found, const char* name, directory_t** made
) noexcept nogil:
    """Make a directory, unless it is there; its entries are for the stack. 0 or an errno."""
    cdef directory_t* directory
    cdef stat_t there
    cdef int failure
    if found.st_dev == worker.copy.target_device and found.st_ino == worker.copy.target_inode:
        return EINVAL  # the target lies within the source
    directory = <directory_t*>arena_take(&worker.paths, sizeof(directory_t))
    if directory == NULL:
        return ENOMEM
    memset(directory, 0, sizeof(directory_t))
    directory.path = join_path(worker, worker.directory.path, name)
    if directory.path == NULL:
        return ENOMEM
    if mkdirat(worker.target_fd, name, 0o700) != 0:
        failure = errno
        if failure != EEXIST or fstatat(worker.target_fd, name, &there, AT_SYMLINK_NOFOLLOW) != 0:
            return failure
        if there.st_mode & S_IFMT != S_IFDIR:
            return failure
        directory.was_there = True
    directory.parent = worker.directory
    directory.waiting = 1
    directory.next = made[0]
    made[0] = directory
    return 0

cdef inline int copy_special(worker_t* worker, const stat_t* found, const char* name) noexcept nogil:
    """Copy a symlink, a device, a fifo or a socket; 0, GIVEN_UP or an errno."""
    cdef path_t* first = NULL
    cdef int failure = 0
    if found.st_nlink > 1:
        failure = meet_link(worker, found, name, &first)
        if failure or first == NULL:
            return failure
    failure = xattr_read(&worker.xattrs, worker.source_fd, name)
    if failure:
        return failure
    if found.st_mode & S_IFMT == S_IFLNK:
        failure = make_symlink(worker, name)
    elif mknodat(worker.target_fd, name, found.st_mode & (S_IFMT | 0o700), found.st_rdev) != 0:
        failure = errno
    if failure:
        return failure
    failure = put_attributes(worker, found, name, -1)
    if failure:
        unlinkat(worker.target_fd, name, 0)
    elif first != NULL:
        tell_linked(worker, first)
    return failure

cdef inline int copy_entry(worker_t* worker, const char* name, bint is_regular, directory_t** made) noexcept nogil:
    """Copy one entry of the current directory; 0, GIVEN_UP or an errno."""
    cdef stat_t found
    worker.entries += 1
    if not is_regular:
        if fstatat(worker.source_fd, name, &found, AT_SYMLINK_NOFOLLOW) != 0:
            return errno
        if found.st_mode & S_IFMT == S_IFDIR:
            return make_directory(worker, &found, name, made)
    if worker.copy.replaces and worker.directory.was_there:
        if unlinkat(worker.target_fd, name, 0) != 0 and errno != ENOENT:
            return errno
    if not is_regular:
        if found.st_mode & S_IFMT != S_IFREG:
            return copy_special(worker, &found, name)
    return copy_regular(worker, name)

cdef inline int open_both(worker_t* worker, directory_t* directory) noexcept nogil:
    """Make a directory the current one on both sides; 0 or an errno. close_both follows either way."""
    cdef const path_t* path = directory.path
    worker.directory = directory
    worker.source_fd = open_beneath(worker.copy.source_root, path.text, path.length, O_RDONLY | O_DIRECTORY)
    if worker.source_fd < 0:
        return errno
    worker.target_fd = open_beneath(worker.copy.target_root, path.text, path.length, O_RDONLY | O_DIRECTORY)
    return errno if worker.target_fd < 0 else 0

cdef inline void close_both(worker_t* worker) noexcept nogil:
    if worker.source_fd >= 0:
        close(worker.source_fd)
    if worker.target_fd >= 0:
        close(worker.target_fd)
    worker.source_fd = worker.target_fd = -1

cdef inline int finish_directory(worker_t* worker) noexcept nogil:
    """Give the current directory its metadata; 0 or an errno."""
    cdef int failure
    if worker.copy.leaves_top and worker.directory.parent == NULL:
        return 0
    failure = xattr_read_open(&worker.xattrs, worker.source_fd)
    return failure if failure else put_attributes(worker, &worker.directory.found, b".", worker.target_fd)

cdef inline int drop_default_acl(worker_t* worker) noexcept nogil:
    """Let nothing be inherited from a directory that was there; the source's own comes at the end. 0 or an errno."""
    if worker.copy.leaves_top and worker.directory.parent == NULL:
        return 0
    if fremovexattr(worker.target_fd, b"system.posix_acl_default") == 0 or errno in (ENODATA, EOPNOTSUPP):
        return 0
    return errno
