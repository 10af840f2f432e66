# cython: language_level=3
"""The writing pass of walk (inline-only): the gathered tree becomes records and heap in component order."""
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from entry cimport FLAG_HARDLINK, entry_t
from gather cimport S_IFDIR, S_IFMT, item_t, node_t, walk_t

cdef inline size_t write_row(
    entry_t* row, const item_t* item, char* heap, size_t at, const node_t* parent
) noexcept nogil:
    """Write one record and its share of the heap from offset `at`; the end of that share."""
    cdef size_t length = 0
    memset(row, 0, sizeof(entry_t))
    row.path_offset = at
    if parent != NULL and parent.path_length:
        memcpy(heap + at, heap + parent.path_offset, parent.path_length)
        length = parent.path_length + 1
        heap[at + length - 1] = c'/'
    if item.name_length:
        memcpy(heap + at + length, item.name, item.name_length)
    length += item.name_length
    row.path_length = <uint32_t>length
    at += length
    row.link_offset = at
    row.link_length = item.link_length
    if item.link_length:
        memcpy(heap + at, item.link, item.link_length)
        at += item.link_length
    row.xattr_offset = at
    row.xattr_length = item.xattr_length
    if item.xattr_length:
        memcpy(heap + at, item.xattrs, item.xattr_length)
        at += item.xattr_length
    row.size_bytes = item.size_bytes
    row.mtime_ns = item.mtime_ns
    row.ctime_ns = item.ctime_ns
    row.device = item.device
    row.inode = item.inode
    row.mode = item.mode
    row.uid = item.uid
    row.gid = item.gid
    row.rdev_major = item.rdev_major
    row.rdev_minor = item.rdev_minor
    row.nlink = item.nlink
    return at

cdef inline void mark_link(entry_t* rows, size_t at, uint64_t* first, size_t mask) noexcept nogil:
    """Make row `at` a hard link if an earlier row has its inode; `first` is an open-addressing table of row + 1."""
    cdef entry_t* row = rows + at
    cdef entry_t* other
    cdef size_t slot = <size_t>((row.inode * <uint64_t>0x9E3779B97F4A7C15 ^ row.device) * <uint64_t>0xD6E8FEB86659FD93)
    slot = (slot >> 32) & mask
    while first[slot]:
        other = rows + first[slot] - 1
        if other.inode == row.inode and other.device == row.device:
            row.flags |= FLAG_HARDLINK
            row.link_offset = other.path_offset
            row.link_length = other.path_length
            return
        slot = (slot + 1) & mask
    first[slot] = at + 1

cdef inline size_t write_rows(
    walk_t* walk, entry_t* rows, char* heap, uint64_t* first, size_t mask, size_t* heap_bytes
) noexcept nogil:
    """Write the gathered tree in component order; the number of rows."""
    cdef node_t* node = &walk.root
    cdef item_t* item
    cdef size_t count = 1
    cdef size_t at = write_row(rows, &walk.root_item, heap, 0, NULL)
    node.path_offset = 0
    while node != NULL:
        if node.cursor == node.count:
            node = node.parent
            continue
        item = &node.items[node.cursor]
        node.cursor += 1
        if item.gone:
            continue
        at = write_row(rows + count, item, heap, at, node)
        if item.nlink > 1 and item.mode & S_IFMT != S_IFDIR:
            mark_link(rows, count, first, mask)
        if item.child != NULL:
            item.child.path_offset = rows[count].path_offset
            node = item.child
        count += 1
    heap_bytes[0] = at
    return count
