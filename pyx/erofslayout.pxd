# cython: language_level=3
"""Decide where each inode and directory of an EROFS image lies (inline-only)."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from entry cimport FLAG_HARDLINK, FLAG_OPAQUE, FLAG_SPARSE, FLAG_WHITEOUT, compare_path, entry_t
from erofsformat cimport (
    BLOCK_BITS, BLOCK_BYTES, CHUNK_BYTES, DIRENT_BYTES, FORMAT_CHUNKED, FORMAT_INLINE, FORMAT_PLAIN, INODE_BYTES,
    MOST_CHUNK_BITS, SLOT_BITS, XATTR_HEADER_BYTES,
)
from fileat cimport S_IFDIR, S_IFLNK, S_IFMT, S_IFREG
from layercheck cimport table_t

cdef enum:
    NO_NODE = 0xFFFFFFFF
    MOST_CHUNKS = 1 << 20        # 8 MiB of index for one file; a sparser one has to be unpacked

cdef enum:
    FAULT_PARENT = 1
    FAULT_LINK = 2
    FAULT_DEVICE = 3
    FAULT_SPARSE = 4             # from here on: correct, but no EROFS can show it
    FAULT_SIZE = 5
    FAULT_NAME = 6
    FAULT_XATTR = 7

cdef struct node_t:
    uint32_t slot                # byte offset of the inode, divided by 32
    uint32_t parent
    uint32_t child               # first; a hard link: the row that holds its inode
    uint32_t sibling             # next
    uint32_t last                # last child so far
    uint32_t nlink
    uint32_t block               # where a FORMAT_PLAIN node's data begins, relative to the directories' region
    uint32_t xattr_bytes
    uint64_t size                # of a directory: its encoded entries
    uint16_t format
    uint8_t chunk_bits           # beyond BLOCK_BITS

cdef struct tar_t:               # one layer's data: its own file, and its base where it has one
    uint64_t size_bytes
    uint64_t base_end            # data before it lies in the base, at the same offsets; 0: there is no base
    uint16_t device              # of the tar in chunk indexes; the base is the next one

cdef struct names_t:             # a directory's entries in byte order, "." and ".." among them
    uint32_t child
    int dots                     # how many of the two were given

cdef struct name_t:
    const uint8_t* bytes
    uint32_t length
    uint32_t node

cdef inline uint32_t base_length(const table_t* table, const entry_t* row) noexcept nogil:
    """Give the length of the path up to the last slash; 0 for an entry at the top."""
    cdef const uint8_t* path = table.heap + row.path_offset
    cdef uint32_t at = row.path_length
    while at and path[at - 1] != c'/':
        at -= 1
    return at

cdef inline bint is_directory(const entry_t* row) noexcept nogil:
    return not row.flags & FLAG_WHITEOUT and row.mode & S_IFMT == S_IFDIR

cdef inline bint precedes(const uint8_t* dots, uint32_t count, const uint8_t* name, uint32_t length) noexcept nogil:
    cdef int order = memcmp(dots, name, count if count < length else length)
    return order < 0 or (order == 0 and count < length)

cdef inline bint next_name(
    const table_t* table, const node_t* nodes, uint32_t folder, names_t* names, name_t* out
) noexcept nogil:
    """Give a directory's next entry; False at the end."""
    cdef const entry_t* row
    cdef uint32_t start
    if names.child != NO_NODE:
        row = &table.rows[names.child]
        start = base_length(table, row)
        out.bytes = table.heap + row.path_offset + start
        out.length = row.path_length - start
        if names.dots == 2 or not precedes(<const uint8_t*>b"..", names.dots + 1, out.bytes, out.length):
            out.node = names.child
            names.child = nodes[names.child].sibling
            return True
    elif names.dots == 2:
        return False
    out.bytes = <const uint8_t*>b".."
    out.length = names.dots + 1
    out.node = folder if names.dots == 0 else nodes[folder].parent
    names.dots += 1
    return True

cdef inline uint64_t measure_directory(const table_t* table, const node_t* nodes, uint32_t folder) noexcept nogil:
    """Give the bytes of a directory: whole blocks, the last one only as far as it is used."""
    cdef names_t names
    cdef name_t name
    cdef uint64_t whole = 0
    cdef uint32_t used = 0
    names.child = nodes[folder].child
    names.dots = 0
    while next_name(table, nodes, folder, &names, &name):
        if used + DIRENT_BYTES + name.length > BLOCK_BYTES:
            whole += BLOCK_BYTES
            used = 0
        used += DIRENT_BYTES + name.length
    return whole + used

cdef inline int find_target(const table_t* table, const entry_t* row, uint32_t below) noexcept nogil:
    """Find the row that a hard link names among the rows before it; -1 when there is none that holds an inode."""
    cdef uint32_t low = 0, high = below, middle
    cdef const entry_t* found
    cdef int order
    while low < high:
        middle = low + (high - low) // 2
        found = &table.rows[middle]
        order = compare_path(table.heap + found.path_offset, found.path_length,
                             table.heap + row.link_offset, row.link_length)
        if order == 0:
            if found.flags & (FLAG_HARDLINK | FLAG_WHITEOUT) or (found.mode ^ row.mode) & S_IFMT:
                return -1
            return <int>middle
        if order < 0:
            low = middle + 1
        else:
            high = middle
    return -1

cdef inline int link_nodes(const table_t* table, node_t* nodes, uint32_t* row_at) noexcept nogil:
    """Connect every row with its directory, and hard links with their inode; 0 or a fault at row_at."""
    cdef uint32_t at, parent, base
    cdef const entry_t* row
    cdef node_t* node
    cdef int target
    for at in range(<uint32_t>table.count):
        row_at[0] = at
        row = &table.rows[at]
        node = &nodes[at]
        node.child = node.sibling = node.last = NO_NODE
        node.nlink = 2 if is_directory(row) else 1
        node.parent = 0
        base = base_length(table, row)
        if row.path_length - base > 255:
            return FAULT_NAME
        if at:
            parent = at - 1
            # The directory is the row before or one of its ancestors, as the rows are in component order.
            while (table.rows[parent].path_length != (base - 1 if base else 0) or (base and memcmp(
                    table.heap + table.rows[parent].path_offset, table.heap + row.path_offset, base - 1) != 0)):
                if parent == 0:
                    return FAULT_PARENT
                parent = nodes[parent].parent
            if not is_directory(&table.rows[parent]):
                return FAULT_PARENT
            node.parent = parent
            if nodes[parent].last == NO_NODE:
                nodes[parent].child = at
            else:
                nodes[nodes[parent].last].sibling = at
            nodes[parent].last = at
            if is_directory(row):
                nodes[parent].nlink += 1
        if row.flags & FLAG_HARDLINK and not row.flags & FLAG_WHITEOUT:
            target = find_target(table, row, at)
            if target < 0:
                return FAULT_LINK
            node.child = <uint32_t>target
            nodes[target].nlink += 1
    return 0

cdef inline int check_device(
    const table_t* table, const entry_t* row, const tar_t* tars, size_t count
) noexcept nogil:
    """Check that a file's data lies in one device as a whole; 0 or FAULT_DEVICE."""
    cdef uint64_t length, packed = row.size_bytes, end
    cdef uint32_t at = 8
    if row.layer >= count:
        return FAULT_DEVICE
    if row.flags & FLAG_SPARSE:
        packed = 0
        while at < row.link_length:
            memcpy(&length, table.heap + row.link_offset + at, 8)
            packed += length
            at += 16
    end = tars[row.layer].size_bytes
    if row.data_offset < tars[row.layer].base_end:
        end = tars[row.layer].base_end
    return FAULT_DEVICE if row.data_offset + packed > end else 0

cdef inline uint16_t device_of(const entry_t* row, const tar_t* tars) noexcept nogil:
    """Number the device that holds a checked row's data."""
    return tars[row.layer].device + (row.data_offset < tars[row.layer].base_end)

cdef inline uint8_t trailing_zeros(uint64_t value) noexcept nogil:
    cdef uint8_t bits = 0
    while bits < 63 and not value & 1:
        value >>= 1
        bits += 1
    return bits

cdef inline int plan_chunks(const table_t* table, const entry_t* row, node_t* node) noexcept nogil:
    """Choose the chunk size of a regular file: one chunk for all of it, or what its holes allow; 0 or a fault."""
    cdef uint8_t bits = BLOCK_BITS, cut = 63, aligned
    cdef uint64_t offset, length, packed = 0
    cdef uint32_t at = 0
    while bits < BLOCK_BITS + MOST_CHUNK_BITS and <uint64_t>1 << bits < row.size_bytes:
        bits += 1
    if row.flags & FLAG_SPARSE:
        while at < row.link_length:
            memcpy(&offset, table.heap + row.link_offset + at, 8)
            memcpy(&length, table.heap + row.link_offset + at + 8, 8)
            at += 16
            if not length:
                continue
            if packed % BLOCK_BYTES:
                return FAULT_SPARSE
            packed += length
            if offset:
                aligned = trailing_zeros(offset)
                cut = aligned if aligned < cut else cut
            if offset + length != row.size_bytes:
                aligned = trailing_zeros(offset + length)
                cut = aligned if aligned < cut else cut
        bits = cut if cut < bits else bits
        if bits < BLOCK_BITS or row.size_bytes >> bits >= MOST_CHUNKS:
            return FAULT_SPARSE
    if row.data_offset % BLOCK_BYTES:
        return FAULT_SPARSE
    if row.data_offset >> BLOCK_BITS >= <uint64_t>0xFFFFFFFF - (row.size_bytes >> BLOCK_BITS):
        return FAULT_SIZE
    node.chunk_bits = bits - BLOCK_BITS
    return 0

cdef inline uint64_t count_chunks(const entry_t* row, const node_t* node) noexcept nogil:
    cdef uint64_t last = (<uint64_t>1 << (BLOCK_BITS + node.chunk_bits)) - 1
    return (row.size_bytes + last) >> (BLOCK_BITS + node.chunk_bits)

cdef inline uint64_t place_node(
    const table_t* table, node_t* nodes, uint32_t at, uint64_t position, uint64_t* blocks
) noexcept nogil:
    """Place one inode and what follows it at or after position; give the end. 'blocks' counts FORMAT_PLAIN's."""
    cdef const entry_t* row = &table.rows[at]
    cdef node_t* node = &nodes[at]
    cdef uint64_t head = INODE_BYTES + node.xattr_bytes, tail = node.size, room
    position = (position + 31) & ~<uint64_t>31
    if position % BLOCK_BYTES > BLOCK_BYTES - INODE_BYTES:
        position = (position + BLOCK_BYTES - 1) & ~<uint64_t>(BLOCK_BYTES - 1)
    if node.format == FORMAT_CHUNKED:
        head = (head + CHUNK_BYTES - 1) & ~<uint64_t>(CHUNK_BYTES - 1)
        node.slot = <uint32_t>(position >> SLOT_BITS)
        return position + head + CHUNK_BYTES * count_chunks(row, node)
    if not tail:
        node.slot = <uint32_t>(position >> SLOT_BITS)
        return position + head
    # Directories and symlinks: what fits into the rest of the inode's last block lies there.
    room = BLOCK_BYTES - (position + head) % BLOCK_BYTES
    if tail > room and tail <= BLOCK_BYTES - head % BLOCK_BYTES:
        position = (position + BLOCK_BYTES - 1) & ~<uint64_t>(BLOCK_BYTES - 1)
        room = BLOCK_BYTES - head % BLOCK_BYTES
    node.slot = <uint32_t>(position >> SLOT_BITS)
    if tail <= room:
        node.format = FORMAT_INLINE
        return position + head + tail
    node.block = <uint32_t>blocks[0]
    blocks[0] += (tail + BLOCK_BYTES - 1) >> BLOCK_BITS
    return position + head
