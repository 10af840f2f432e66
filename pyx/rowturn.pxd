# cython: language_level=3
"""Say when a layer's row is made, and make the links, which come last (inline-only)."""
from libc.errno cimport ENAMETOOLONG, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy
from posix.unistd cimport close

from beneath cimport O_DIRECTORY, O_PATH, open_beneath
from entry cimport FLAG_HARDLINK, FLAG_WHITEOUT, entry_t
from fileat cimport S_IFDIR, S_IFMT, S_IFREG, linkat
from layercheck cimport table_t

cdef enum:
    TURN_FIRST = 0             # directories and whiteouts, in order
    TURN_FILE = 1              # what stands for itself, in any order
    TURN_LINK = 2
    NAME_BYTES = 256           # a path's last component and its NUL

cdef inline int turn_of(const entry_t* row) noexcept nogil:
    if not row.path_length or row.flags & FLAG_WHITEOUT or row.mode & S_IFMT == S_IFDIR:
        return TURN_FIRST
    return TURN_LINK if row.flags & FLAG_HARDLINK else TURN_FILE

cdef inline uint64_t find_end(const table_t* table, Py_ssize_t first, Py_ssize_t end) noexcept nogil:
    """Find where the tar's data of rows first to end ends, as if no file were sparse."""
    cdef const entry_t* row
    cdef uint64_t last = 0
    cdef Py_ssize_t index
    for index in range(first, end):
        row = &table.rows[index]
        if row.mode & S_IFMT == S_IFREG and not row.flags & (FLAG_HARDLINK | FLAG_WHITEOUT):
            last = max(last, row.data_offset + row.size_bytes)
    return last

cdef inline int link_beneath(
    int root_fd, const char* target, uint32_t length, int parent_fd, const char* name
) noexcept nogil:
    """Give what lies at target beneath root_fd another name in parent_fd; 0 or an errno."""
    cdef char last[NAME_BYTES]
    cdef uint32_t end = length
    cdef int fd, failure
    while end and target[end - 1] != c'/':
        end -= 1
    if length - end >= NAME_BYTES:
        return ENAMETOOLONG
    memcpy(last, target + end, length - end)
    last[length - end] = 0
    fd = open_beneath(root_fd, target, end - 1 if end else 0, O_PATH | O_DIRECTORY)
    if fd < 0:
        return errno
    failure = errno if linkat(fd, last, parent_fd, name, 0) != 0 else 0
    close(fd)
    return failure
