# cython: language_level=3
"""The gathering pass of walk (inline-only): list and stat directories, in any number of threads.

Workers take directories from a shared stack (last in, first out), and keep what they find in memory of their own.
Nothing recurses. A directory is opened by its one name beneath its parent's descriptor, which is kept for as long as
children wait to be opened. At most KEPT_LIMIT descriptors are kept; a directory whose parent's is not is opened by
its path from the root. Neither way follows a symlink: a directory that is swapped for one is an error, not an escape.
"""
from libc.errno cimport EINTR, EINVAL, ENAMETOOLONG, ENOENT, ENOMEM, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, qsort
from libc.string cimport memcmp, memcpy, memset, strlen
from posix.unistd cimport close

from arena cimport arena_copy, arena_free, arena_t, arena_take, grow
from beneath cimport O_DIRECTORY, O_RDONLY, open_beneath, open_name, syscall
from thread cimport (
    count_down, count_up, pthread_cond_broadcast, pthread_cond_signal, pthread_cond_t, pthread_cond_wait,
    pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock,
)
from xattr cimport proc_missing, xattr_read, xattr_scratch_t, xattr_start, xattr_stop

cdef extern from *:
    """
    #include <fcntl.h>
    #include <sys/stat.h>
    #include <sys/syscall.h>
    #include <sys/sysmacros.h>
    #include <unistd.h>
    """
    struct statx_timestamp:
        int64_t tv_sec
        uint32_t tv_nsec
    struct statx_t "statx":
        uint32_t stx_nlink
        uint32_t stx_uid
        uint32_t stx_gid
        uint32_t stx_mode
        uint64_t stx_ino
        uint64_t stx_size
        statx_timestamp stx_mtime
        statx_timestamp stx_ctime
        uint32_t stx_rdev_major
        uint32_t stx_rdev_minor
        uint32_t stx_dev_major
        uint32_t stx_dev_minor
    int statx(int fd, const char* path, int flags, unsigned int mask, statx_t* found) nogil
    ssize_t readlinkat(int fd, const char* path, char* target, size_t size) nogil
    uint64_t makedev(unsigned int major, unsigned int minor) nogil
    enum:
        AT_EMPTY_PATH
        AT_NO_AUTOMOUNT
        AT_SYMLINK_NOFOLLOW
        STATX_BASIC_STATS
        STATX_ATIME
        STATX_BLOCKS
        SYS_getdents64
        S_IFMT
        S_IFDIR
        S_IFLNK
        S_IFREG

cdef enum:
    KEPT_LIMIT = 64
    LISTING_BYTES = 1 << 17  # also holds any symlink target
    NAME_OFFSET = 19         # of struct linux_dirent64: u64 inode, i64 offset, u16 length, u8 type, name
    GONE = -1                # not an errno: the entry vanished
    RAISED = -2              # not an errno: a Python exception is set

cdef struct name_t:
    uint64_t key             # the first eight bytes, big endian, so that most comparisons need no more
    char* name
    size_t length

cdef struct item_t:
    uint64_t device
    uint64_t inode
    uint64_t size_bytes
    int64_t mtime_ns
    int64_t ctime_ns
    char* name
    char* link
    char* xattrs
    node_t* child
    uint32_t name_length
    uint32_t link_length
    uint32_t xattr_length
    uint32_t mode
    uint32_t uid
    uint32_t gid
    uint32_t rdev_major
    uint32_t rdev_minor
    uint32_t nlink
    bint gone

cdef struct node_t:          # a directory
    node_t* parent
    node_t* next             # in the stack
    item_t* self             # its own row, kept in the parent's items
    item_t* items
    size_t count
    size_t cursor            # of the writing pass
    size_t path_length
    size_t path_offset       # in the heap
    int fd                   # while children wait to be opened, else -1
    int waiting              # how many

cdef struct walk_t:
    pthread_mutex_t lock
    pthread_cond_t wake
    node_t* stack
    node_t root
    item_t root_item
    int root_fd
    int busy
    int idle
    int kept
    int error                # an errno, RAISED, or 0
    char* error_path
    size_t error_length
    bint cross_devices
    bint want_xattrs
    int (*choose)(walk_t* walk, node_t* node) noexcept nogil  # drops items of a listed directory; 0 or RAISED
    void* context            # of choose

cdef struct worker_t:
    walk_t* walk
    arena_t arena
    xattr_scratch_t xattrs
    name_t* names
    size_t name_capacity
    char* listing
    size_t rows              # these count what vanished later, too
    size_t heap_bytes
    size_t linked            # rows that may be hard links

cdef inline int compare_name(const void* a, const void* b) noexcept nogil:
    cdef const name_t* x = <const name_t*>a
    cdef const name_t* y = <const name_t*>b
    cdef size_t shared
    cdef int order
    if x.key != y.key:
        return -1 if x.key < y.key else 1
    shared = x.length if x.length < y.length else y.length
    order = memcmp(x.name, y.name, shared)
    return order if order else (x.length > y.length) - (x.length < y.length)

cdef inline void write_path(const node_t* node, char* path) noexcept nogil:
    """Write node.path_length bytes, from the last component to the first."""
    cdef size_t end = node.path_length
    while node.parent != NULL:
        end -= node.self.name_length
        memcpy(path + end, node.self.name, node.self.name_length)
        if end:
            end -= 1
            path[end] = c'/'
        node = node.parent

cdef inline int fail(worker_t* worker, const node_t* node, const char* name, int error) noexcept nogil:
    """Note the walk's first failure with the path of `name` in `node` (NULL: the node itself); returns error."""
    cdef walk_t* walk = worker.walk
    cdef size_t name_length = strlen(name) if name != NULL else 0
    cdef size_t slash = 1 if name_length and node.path_length else 0
    cdef char* path = <char*>malloc(node.path_length + slash + name_length + 1)
    if path != NULL:
        write_path(node, path)
        if slash:
            path[node.path_length] = c'/'
        if name_length:
            memcpy(path + node.path_length + slash, name, name_length)
    pthread_mutex_lock(&walk.lock)
    if walk.error == 0:
        walk.error = error
        walk.error_path = path
        walk.error_length = node.path_length + slash + name_length
        path = NULL
    pthread_mutex_unlock(&walk.lock)
    free(path)
    return error

cdef inline int open_node(worker_t* worker, node_t* node) noexcept nogil:
    """Open a directory by its name beneath its parent when that is open, else by its path beneath the root."""
    cdef walk_t* walk = worker.walk
    cdef node_t* parent = node.parent
    cdef char* path
    cdef int fd, failure
    if parent == NULL:
        return open_name(walk.root_fd, b".", O_RDONLY | O_DIRECTORY)
    if parent.fd >= 0:
        fd = open_name(parent.fd, node.self.name, O_RDONLY | O_DIRECTORY)
        failure = errno
        if count_down(&parent.waiting) == 0:
            close(parent.fd)
            parent.fd = -1
            count_down(&walk.kept)
    else:
        path = <char*>malloc(node.path_length + 1)
        if path == NULL:
            (&errno)[0] = ENOMEM
            return -1
        write_path(node, path)
        fd = open_beneath(walk.root_fd, path, node.path_length, O_RDONLY | O_DIRECTORY)
        failure = errno
        free(path)
    (&errno)[0] = failure
    return fd

cdef inline int stat_item(item_t* item, int fd, const char* name, int flags) noexcept nogil:
    """Fill an item from statx; 0, GONE or an errno. The stat is as fresh as lstat's, also on network file systems."""
    cdef statx_t found
    if statx(fd, name, flags | AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT,
             STATX_BASIC_STATS & ~(STATX_ATIME | STATX_BLOCKS), &found) != 0:
        return GONE if errno == ENOENT else errno
    item.device = makedev(found.stx_dev_major, found.stx_dev_minor)
    item.inode = found.stx_ino
    item.size_bytes = found.stx_size if found.stx_mode & S_IFMT == S_IFREG else 0
    item.mtime_ns = found.stx_mtime.tv_sec * 1000000000 + found.stx_mtime.tv_nsec
    item.ctime_ns = found.stx_ctime.tv_sec * 1000000000 + found.stx_ctime.tv_nsec
    item.mode = found.stx_mode
    item.uid = found.stx_uid
    item.gid = found.stx_gid
    item.rdev_major = found.stx_rdev_major
    item.rdev_minor = found.stx_rdev_minor
    item.nlink = found.stx_nlink
    return 0

cdef inline int read_item(worker_t* worker, item_t* item, int fd, const char* name) noexcept nogil:
    """Read the symlink target and, when asked, the xattrs; 0, GONE or an errno."""
    cdef ssize_t length
    cdef int failure, tries = 0
    while item.mode & S_IFMT == S_IFLNK:
        length = readlinkat(fd, name, worker.listing, LISTING_BYTES)
        if length >= LISTING_BYTES:
            return ENAMETOOLONG
        if length >= 0:
            item.link_length = <uint32_t>length
            item.link = arena_copy(&worker.arena, worker.listing, <size_t>length)
            if item.link == NULL:
                return ENOMEM
            break
        tries += 1
        if errno != EINVAL or tries > 8:
            return GONE if errno == ENOENT else errno
        failure = stat_item(item, fd, name, 0)  # no symlink any more: it was replaced since its stat
        if failure:
            return failure
    if worker.walk.want_xattrs:
        failure = xattr_read(&worker.xattrs, fd, name)
        if failure:
            return GONE if failure == ENOENT and not proc_missing(fd) else failure
        if worker.xattrs.size:
            item.xattr_length = <uint32_t>worker.xattrs.size
            item.xattrs = arena_copy(&worker.arena, worker.xattrs.encoded, worker.xattrs.size)
            if item.xattrs == NULL:
                return ENOMEM
    return 0

cdef inline int list_names(worker_t* worker, int fd, size_t* count) noexcept nogil:
    """Read a directory's names into worker.names, sorted; 0, GONE or an errno."""
    cdef long got
    cdef long at
    cdef size_t length, index
    cdef const char* name
    cdef name_t* found
    cdef void* moved
    count[0] = 0
    while True:
        got = syscall(SYS_getdents64, fd, worker.listing, LISTING_BYTES)
        if got == 0:
            break
        if got < 0:
            if errno == EINTR:
                continue
            return GONE if errno == ENOENT else errno
        at = 0
        while at < got:
            name = worker.listing + at + NAME_OFFSET
            at += (<uint8_t>worker.listing[at + 16]) | (<long><uint8_t>worker.listing[at + 17]) << 8
            if name[0] == c'.' and (name[1] == 0 or (name[1] == c'.' and name[2] == 0)):
                continue
            moved = grow(worker.names, &worker.name_capacity, count[0] + 1, sizeof(name_t))
            if moved == NULL:
                return ENOMEM
            worker.names = <name_t*>moved
            found = &worker.names[count[0]]
            length = strlen(name)
            found.name = arena_copy(&worker.arena, name, length)
            if found.name == NULL:
                return ENOMEM
            found.length = length
            found.key = 0
            for index in range(8):
                found.key = found.key << 8 | (<uint8_t>name[index] if index < length else 0)
            count[0] += 1
    if count[0] > 1:
        qsort(worker.names, count[0], sizeof(name_t), compare_name)
    return 0

cdef inline int add_item(
    worker_t* worker, node_t* node, item_t* item, node_t** children, node_t** last
) noexcept nogil:
    """Count a finished item, and make the node of a directory that is to be descended; 0 or an errno."""
    cdef size_t path_length = node.path_length + (1 if node.path_length else 0) + item.name_length
    cdef node_t* child
    worker.rows += 1
    worker.heap_bytes += path_length + item.link_length + item.xattr_length
    if path_length > <size_t>0xFFFFFFFF:
        return ENAMETOOLONG
    if item.mode & S_IFMT != S_IFDIR:
        worker.linked += item.nlink > 1
        return 0
    if not worker.walk.cross_devices and item.device != worker.walk.root_item.device:
        return 0
    child = <node_t*>arena_take(&worker.arena, sizeof(node_t))
    if child == NULL:
        return ENOMEM
    memset(child, 0, sizeof(node_t))
    child.parent = node
    child.self = item
    child.path_length = path_length
    child.fd = -1
    item.child = child
    node.waiting += 1
    if children[0] == NULL:
        children[0] = child
    else:
        last[0].next = child
    last[0] = child
    return 0

cdef inline int fill_node(worker_t* worker, node_t* node, int fd, node_t** children, node_t** last) noexcept nogil:
    """Fill node.items from its open directory; 0, GONE or an error that is noted already."""
    cdef walk_t* walk = worker.walk
    cdef size_t count, index, kept = 0
    cdef item_t* item
    cdef int failure = list_names(worker, fd, &count)
    if failure:
        return failure
    if count > (<size_t>1 << 47) // sizeof(item_t):
        return ENOMEM
    node.items = <item_t*>arena_take(&worker.arena, count * sizeof(item_t))
    if node.items == NULL:
        return ENOMEM
    for index in range(count):
        item = &node.items[kept]
        memset(item, 0, sizeof(item_t))
        item.name = worker.names[index].name
        item.name_length = <uint32_t>worker.names[index].length
        failure = stat_item(item, fd, item.name, 0)
        if failure > 0:
            return fail(worker, node, item.name, failure)
        kept += failure == 0
    node.count = kept
    if walk.choose != NULL:
        failure = walk.choose(walk, node)
        if failure:
            return fail(worker, node, NULL, failure)
    count = node.count
    kept = 0
    for index in range(count):
        failure = read_item(worker, &node.items[index], fd, node.items[index].name)
        if failure == GONE:
            continue
        if failure:
            return fail(worker, node, node.items[index].name, failure)
        item = &node.items[kept]
        if kept != index:
            item[0] = node.items[index]
        kept += 1
        node.count = kept
        failure = add_item(worker, node, item, children, last)
        if failure:
            return fail(worker, node, item.name, failure)
    node.count = kept
    return 0

cdef inline int visit(worker_t* worker, node_t* node, node_t** children, node_t** last) noexcept nogil:
    """List, stat and read one directory; its subdirectories come back as a linked list in name order. 0 or an error."""
    cdef walk_t* walk = worker.walk
    cdef int failure, fd = open_node(worker, node)
    if fd < 0:
        failure = GONE if errno == ENOENT else errno
    else:
        failure = fill_node(worker, node, fd, children, last)
        if failure or node.waiting == 0:
            close(fd)
        elif count_up(&walk.kept) > KEPT_LIMIT:
            count_down(&walk.kept)
            close(fd)
        else:
            node.fd = fd
    if failure == GONE and node.parent != NULL:  # its row goes too
        node.self.gone = True
        return 0
    if failure:
        return fail(worker, node, NULL, ENOENT if failure == GONE else failure)
    return 0

cdef inline void* run(void* given) noexcept nogil:
    """Visit directories from the shared stack until none is left or one has failed; a thread's whole life."""
    cdef worker_t* worker = <worker_t*>given
    cdef walk_t* walk = worker.walk
    cdef node_t* node
    cdef node_t* children
    cdef node_t* last
    cdef int failure
    pthread_mutex_lock(&walk.lock)
    while True:
        while walk.stack == NULL and walk.busy and not walk.error:
            walk.idle += 1
            pthread_cond_wait(&walk.wake, &walk.lock)
            walk.idle -= 1
        if walk.stack == NULL or walk.error:
            break
        node = walk.stack
        walk.stack = node.next
        walk.busy += 1
        if walk.idle and walk.stack != NULL:
            pthread_cond_signal(&walk.wake)
        pthread_mutex_unlock(&walk.lock)
        children = last = NULL
        failure = visit(worker, node, &children, &last)
        pthread_mutex_lock(&walk.lock)
        walk.busy -= 1
        if not failure and children != NULL:
            last.next = walk.stack
            walk.stack = children
    pthread_cond_broadcast(&walk.wake)
    pthread_mutex_unlock(&walk.lock)
    return NULL

cdef inline int start_worker(worker_t* worker, walk_t* walk) noexcept nogil:
    """Take the memory of a zeroed worker; -1 when there is none."""
    worker.walk = walk
    worker.listing = <char*>malloc(LISTING_BYTES)
    if worker.listing == NULL or (walk.want_xattrs and xattr_start(&worker.xattrs) != 0):
        return -1
    return 0

cdef inline void stop_worker(worker_t* worker) noexcept nogil:
    """Free what the worker gathered, too."""
    arena_free(&worker.arena)
    if worker.walk != NULL and worker.walk.want_xattrs:
        xattr_stop(&worker.xattrs)
    free(worker.names)
    free(worker.listing)

cdef inline void close_kept(node_t* root) noexcept nogil:
    """Close the descriptors that a failed walk still keeps (without recursion: the tree is threaded by cursors)."""
    cdef node_t* node = root
    cdef node_t* child
    while node != NULL:
        if node.fd >= 0:
            close(node.fd)
            node.fd = -1
        child = NULL
        while child == NULL and node.cursor < node.count:
            child = node.items[node.cursor].child
            node.cursor += 1
        node = child if child != NULL else node.parent
