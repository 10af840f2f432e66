# cython: language_level=3
"""The entry record that every kernel reads and writes (inline-only: nothing here is compiled on its own).

The Python side of the same record is pylayers/store/entry.py; tests/unit/test_entry.py holds the two together.
"""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp

cdef enum:
    FLAG_HARDLINK = 1    # link names the first path (component order) of the same inode; metadata repeats the target's
    FLAG_WHITEOUT = 2    # path is hidden from the layers below; no other field counts
    FLAG_OPAQUE = 4      # directory whose lower content is hidden
    FLAG_IMPLICIT = 8    # directory that the tar does not hold itself (only things below it)
    FLAG_HASHED = 16     # blake3 is valid
    FLAG_SPARSE = 32     # link is an array of (u64 offset, u64 length); the tar holds only those ranges, packed

cdef packed struct entry_t:
    uint64_t path_offset      # heap; no leading or trailing slash, root is the empty path
    uint64_t link_offset      # heap; symlink target verbatim, hard-link target path, or sparse map
    uint64_t xattr_offset     # heap; see xattr encoding below
    uint64_t header_offset    # tar: first byte of the entry's headers, PAX records included
    uint64_t data_offset      # tar: first byte of the data
    uint64_t size_bytes       # regular files only, else 0
    int64_t mtime_ns
    int64_t ctime_ns          # walked entries only (stat cache), else 0
    uint64_t device           # walked entries only, else 0
    uint64_t inode            # walked entries only, else 0
    uint32_t path_length
    uint32_t link_length
    uint32_t xattr_length
    uint32_t mode             # st_mode: type and permission bits
    uint32_t uid
    uint32_t gid
    uint32_t rdev_major
    uint32_t rdev_minor
    uint32_t nlink
    uint32_t flags
    uint32_t layer            # merged tables only: index of the layer the entry comes from, 0 = lowest
    uint32_t chunk_first
    uint32_t chunk_count      # 0: not chunked
    uint32_t reserved
    uint8_t blake3[32]

# Xattr encoding in the heap, repeated, sorted by name bytes:
#   u16 name_length, u32 value_length, name, value   (little endian, packed)

cdef inline int compare_path(const uint8_t* a, size_t a_length, const uint8_t* b, size_t b_length) noexcept nogil:
    """Order two paths by component, so that a directory's subtree is one contiguous run after it.

    Equal to memcmp with '/' taken as the smallest byte (a name holds no NUL).
    """
    cdef size_t shared = a_length if a_length < b_length else b_length
    cdef size_t at = 0
    cdef uint8_t x, y
    while at + 16 <= shared and memcmp(a + at, b + at, 16) == 0:
        at += 16
    while at < shared and a[at] == b[at]:
        at += 1
    if at < shared:
        x = 0 if a[at] == 47 else a[at]
        y = 0 if b[at] == 47 else b[at]
        return -1 if x < y else 1
    if a_length == b_length:
        return 0
    return -1 if a_length < b_length else 1
