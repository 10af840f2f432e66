# cython: autotestdict=False
"""Write an EROFS image that has only metadata: the files' data stays in the layers' tars, its extra devices.

Three passes over the table: connect rows with directories, place inodes, write. An inode is 64 bytes, its xattrs, and
either a small directory or link target, or one 8-byte chunk that says where in which tar the data lies. Larger
directories follow in blocks of their own. Nothing but the table's nodes (48 bytes a row) and 1 MiB is held in memory.
"""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset, strerror

from entry cimport FLAG_HARDLINK, FLAG_OPAQUE, FLAG_SPARSE, FLAG_WHITEOUT, entry_t
from erofsformat cimport (
    BLOCK_BITS, BLOCK_BYTES, CHUNK_INDEXES, DEVICE_BYTES, DEVICE_SLOT, DIRENT_BYTES, FEATURE_CHECKSUM, FEATURE_CHUNKED,
    FEATURE_DEVICES, FEATURE_MTIME, FORMAT_CHUNKED, FORMAT_INLINE, FORMAT_PLAIN, HOLE, MAGIC, MOST_NAMES, OUT_BYTES,
    SLOT_BITS, SUPER_BYTES, SUPER_OFFSET, XATTR_HEADER_BYTES, checksum, chunk_t, device_t, dirent_t, flush, inode_t,
    kind_of, out_t, put, super_t, told,
)
from erofslayout cimport (
    FAULT_DEVICE, FAULT_LINK, FAULT_NAME, FAULT_PARENT, FAULT_SIZE, FAULT_SPARSE, FAULT_XATTR, check_device, device_of,
    is_directory, link_nodes, measure_directory, name_t, names_t, next_name, node_t, place_node, plan_chunks, tar_t,
)
from fileat cimport S_IFBLK, S_IFCHR, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG
from layercheck cimport check_table, table_t

MOST_DEVICES = 15000             # the root's inode number has 16 bits, and the device table lies before it

cdef struct job_t:
    table_t table
    node_t* nodes
    tar_t* tars
    size_t tar_count
    size_t devices               # of the tars and their bases
    uint8_t opaque_index         # namespace of the opaque mark
    uint64_t first_block         # of the directories' region
    uint64_t blocks              # of the whole image
    out_t out

cdef struct prefix_t:
    const char* text
    uint8_t length
    uint8_t index

cdef prefix_t[5] PREFIXES
PREFIXES[0] = prefix_t(b"user.", 5, 1)
PREFIXES[1] = prefix_t(b"system.posix_acl_access", 23, 2)
PREFIXES[2] = prefix_t(b"system.posix_acl_default", 24, 3)
PREFIXES[3] = prefix_t(b"trusted.", 8, 4)
PREFIXES[4] = prefix_t(b"security.", 9, 6)


class NotMappable(ValueError):
    """A row is right but EROFS can't show it over its tar; the layer has to be unpacked."""


cdef str describe(int fault):
    return {
        FAULT_PARENT: "lacks its directory",
        FAULT_LINK: "is a hard link, but names no earlier row with a file of its type",
        FAULT_NAME: "has a name of more than 255 bytes",
        FAULT_XATTR: "has an extended attribute that EROFS cannot hold",
        FAULT_DEVICE: "has its data outside its device",
        FAULT_SPARSE: "has holes or data that do not lie at multiples of 512 bytes, or too many",
        FAULT_SIZE: "lies beyond 2 TiB",
    }[fault]


cdef inline bint is_overlays(const uint8_t* name, uint16_t length) noexcept nogil:
    """Tell whether an attribute is overlayfs's own, which a layer must not set."""
    return ((length >= 16 and memcmp(name, b"trusted.overlay.", 16) == 0)
            or (length >= 13 and memcmp(name, b"user.overlay.", 13) == 0))


cdef inline const prefix_t* find_prefix(const uint8_t* name, uint16_t length) noexcept nogil:
    cdef int at
    for at in range(5):
        if length >= PREFIXES[at].length and memcmp(name, PREFIXES[at].text, PREFIXES[at].length) == 0:
            if (PREFIXES[at].index in (2, 3)) == (length == PREFIXES[at].length):
                return &PREFIXES[at]
    return NULL


cdef void put_xattr(
    out_t* out, uint8_t index, const void* name, size_t name_length, const void* value, size_t value_length
) noexcept nogil:
    cdef uint8_t head[4]
    cdef uint16_t size = <uint16_t>value_length
    head[0] = <uint8_t>name_length
    head[1] = index
    memcpy(head + 2, &size, 2)
    put(out, head, 4)
    put(out, name, name_length)
    put(out, value, value_length)
    put(out, NULL, (4 - (name_length + value_length) % 4) % 4)


cdef int each_xattr(job_t* job, const entry_t* row, uint32_t* size) noexcept nogil:
    """Measure a row's attributes (size given), or write them (NULL); 0 or FAULT_XATTR."""
    cdef const uint8_t* at = job.table.heap + row.xattr_offset
    cdef const uint8_t* end = at + row.xattr_length
    cdef const prefix_t* prefix
    cdef uint16_t name_length
    cdef uint32_t value_length, total = 0
    cdef bint marked = is_directory(row) and row.flags & FLAG_OPAQUE
    cdef uint8_t header[XATTR_HEADER_BYTES]
    if size == NULL:
        memset(header, 0, XATTR_HEADER_BYTES)
        put(&job.out, header, XATTR_HEADER_BYTES)
    if marked:
        total += (4 + 14 + 1 + 3) & ~3
        if size == NULL:
            put_xattr(&job.out, job.opaque_index, b"overlay.opaque", 14, b"y", 1)
    while at < end and not row.flags & FLAG_WHITEOUT:
        memcpy(&name_length, at, 2)
        memcpy(&value_length, at + 2, 4)
        at += 6
        if not is_overlays(at, name_length):
            prefix = find_prefix(at, name_length)
            if prefix == NULL or name_length - prefix.length > 255 or value_length > 0xFFFF:
                return FAULT_XATTR
            total += (4 + name_length - prefix.length + value_length + 3) & ~3
            if total > 0xFFFF:
                return FAULT_XATTR
            if size == NULL:
                put_xattr(&job.out, prefix.index, at + prefix.length, name_length - prefix.length,
                          at + name_length, value_length)
        at += name_length + value_length
    if size != NULL:
        size[0] = total + XATTR_HEADER_BYTES if total else 0
    return 0


cdef int lay_out(job_t* job, uint32_t* row_at) noexcept nogil:
    """Place everything; 0 or a fault at row_at."""
    cdef uint64_t position = SUPER_OFFSET + SUPER_BYTES + DEVICE_BYTES * job.devices
    cdef uint64_t plain = 0
    cdef uint32_t at
    cdef const entry_t* row
    cdef node_t* node
    cdef uint32_t kind
    cdef int fault = link_nodes(&job.table, job.nodes, row_at)
    if fault:
        return fault
    position = (position + BLOCK_BYTES - 1) & ~<uint64_t>(BLOCK_BYTES - 1)
    for at in range(<uint32_t>job.table.count):
        row_at[0] = at
        row = &job.table.rows[at]
        node = &job.nodes[at]
        if row.flags & FLAG_HARDLINK and not row.flags & FLAG_WHITEOUT:
            node.slot = job.nodes[node.child].slot
            continue
        node.format = FORMAT_PLAIN
        kind = S_IFCHR if row.flags & FLAG_WHITEOUT else row.mode & S_IFMT
        fault = each_xattr(job, row, &node.xattr_bytes)
        if kind == S_IFDIR:
            node.size = measure_directory(&job.table, job.nodes, at)
        elif kind == S_IFLNK:
            node.size = row.link_length
        elif kind == S_IFREG and row.size_bytes:
            node.format = FORMAT_CHUNKED
            fault = (fault or check_device(&job.table, row, job.tars, job.tar_count)
                     or plan_chunks(&job.table, row, node))
        if fault:
            return fault
        position = place_node(&job.table, job.nodes, at, position, &plain)
    job.first_block = (position + BLOCK_BYTES - 1) >> BLOCK_BITS
    job.blocks = job.first_block + plain
    return FAULT_SIZE if job.blocks >> 32 else 0


cdef void put_device(job_t* job, uint64_t size_bytes) noexcept nogil:
    cdef device_t device
    memset(&device, 0, sizeof(device))
    device.blocks = <uint32_t>((size_bytes + BLOCK_BYTES - 1) >> BLOCK_BITS)
    put(&job.out, &device, DEVICE_BYTES)


cdef void put_super(job_t* job) noexcept nogil:
    cdef super_t head
    cdef size_t at
    cdef uint32_t sum
    put(&job.out, NULL, SUPER_OFFSET)
    memset(&head, 0, sizeof(head))
    head.magic = MAGIC
    head.compatible = FEATURE_CHECKSUM | FEATURE_MTIME
    head.block_bits = BLOCK_BITS
    head.root = <uint16_t>job.nodes[0].slot
    head.inodes = <uint64_t>job.table.count
    head.blocks = <uint32_t>job.blocks
    head.incompatible = FEATURE_CHUNKED | FEATURE_DEVICES
    head.devices = <uint16_t>job.devices
    head.device_slot = DEVICE_SLOT
    put(&job.out, &head, SUPER_BYTES)
    for at in range(job.tar_count):
        put_device(job, job.tars[at].size_bytes)
        if job.tars[at].base_end:
            put_device(job, job.tars[at].base_end)
    put(&job.out, NULL, (BLOCK_BYTES - told(&job.out) % BLOCK_BYTES) % BLOCK_BYTES)
    # All of this is in the buffer still, but for a table of thousands of devices.
    if told(&job.out) < OUT_BYTES:
        sum = checksum(job.out.buffer + SUPER_OFFSET, BLOCK_BYTES)
        memcpy(job.out.buffer + SUPER_OFFSET + 4, &sum, 4)


cdef void put_directory(job_t* job, uint32_t folder, uint64_t size) noexcept nogil:
    """Write a directory's blocks: entries first, names behind them, each block by itself."""
    cdef uint8_t block[BLOCK_BYTES]
    cdef name_t[MOST_NAMES] pending
    cdef names_t names
    cdef name_t name
    cdef uint32_t count = 0, used = 0, length
    cdef bint more = True
    names.child = job.nodes[folder].child
    names.dots = 0
    while more:
        more = next_name(&job.table, job.nodes, folder, &names, &name)
        if count and (not more or used + DIRENT_BYTES + name.length > BLOCK_BYTES):
            length = BLOCK_BYTES if more else used
            memset(block, 0, BLOCK_BYTES)
            fill_block(job, block, pending, count)
            put(&job.out, block, length)
            count = used = 0
        if more:
            pending[count] = name
            count += 1
            used += DIRENT_BYTES + name.length


cdef void fill_block(job_t* job, uint8_t* block, const name_t* pending, uint32_t count) noexcept nogil:
    cdef dirent_t entry
    cdef uint32_t at, offset = count * DIRENT_BYTES
    cdef const entry_t* row
    for at in range(count):
        row = &job.table.rows[pending[at].node]
        memset(&entry, 0, sizeof(entry))
        entry.inode = job.nodes[pending[at].node].slot
        entry.name_offset = <uint16_t>offset
        entry.kind = kind_of(S_IFCHR if row.flags & FLAG_WHITEOUT else row.mode & S_IFMT)
        memcpy(block + at * DIRENT_BYTES, &entry, DIRENT_BYTES)
        memcpy(block + offset, pending[at].bytes, pending[at].length)
        offset += pending[at].length


cdef void put_chunks(job_t* job, const entry_t* row, const node_t* node) noexcept nogil:
    """Write where each chunk of a file lies: in a tar, or nowhere for a hole."""
    cdef uint64_t start = 0, packed = 0, offset = 0, length = 0
    cdef uint32_t at = 0
    cdef chunk_t chunk
    cdef uint16_t device = device_of(row, job.tars)
    cdef bint sparse = row.flags & FLAG_SPARSE
    memset(&chunk, 0, sizeof(chunk))
    put(&job.out, NULL, (8 - told(&job.out) % 8) % 8)
    while start < row.size_bytes:
        chunk.device = device
        chunk.block = <uint32_t>((row.data_offset + start) >> BLOCK_BITS)
        if sparse:
            while at < row.link_length and offset + length <= start:
                packed += length
                memcpy(&offset, job.table.heap + row.link_offset + at, 8)
                memcpy(&length, job.table.heap + row.link_offset + at + 8, 8)
                at += 16
            if offset <= start < offset + length:
                chunk.block = <uint32_t>((row.data_offset + packed + start - offset) >> BLOCK_BITS)
            else:
                chunk.device = 0
                chunk.block = HOLE
        put(&job.out, &chunk, sizeof(chunk))
        start += <uint64_t>1 << (BLOCK_BITS + node.chunk_bits)


cdef void put_node(job_t* job, uint32_t at) noexcept nogil:
    """Write one inode with what follows it."""
    cdef const entry_t* row = &job.table.rows[at]
    cdef const node_t* node = &job.nodes[at]
    cdef bint whiteout = row.flags & FLAG_WHITEOUT
    cdef uint32_t kind = row.mode & S_IFMT
    cdef int64_t seconds = row.mtime_ns // 1000000000
    cdef inode_t inode
    if row.mtime_ns % 1000000000 < 0:    # C rounds towards zero
        seconds -= 1
    memset(&inode, 0, sizeof(inode))
    inode.format = node.format
    inode.xattr_count = <uint16_t>((node.xattr_bytes - XATTR_HEADER_BYTES) // 4 + 1 if node.xattr_bytes else 0)
    inode.mode = <uint16_t>(S_IFCHR if whiteout else row.mode)
    inode.number = at + 1
    inode.nlink = node.nlink
    if not whiteout:
        inode.uid = row.uid
        inode.gid = row.gid
        inode.mtime = <uint64_t>seconds
        inode.mtime_ns = <uint32_t>(row.mtime_ns - seconds * 1000000000)
        if kind == S_IFLNK:
            inode.mode = <uint16_t>(S_IFLNK | 0o777)     # whatever a tar says: Linux knows no other
        if kind in (S_IFDIR, S_IFLNK):
            inode.size = node.size
            inode.place = <uint32_t>(job.first_block + node.block) if node.format == FORMAT_PLAIN else 0
        elif kind == S_IFREG:
            inode.size = row.size_bytes
            inode.place = CHUNK_INDEXES | node.chunk_bits if node.format == FORMAT_CHUNKED else 0
        elif kind in (S_IFCHR, S_IFBLK):
            inode.place = (row.rdev_minor & 0xFF) | (row.rdev_major << 8) | ((row.rdev_minor & ~<uint32_t>0xFF) << 12)
    put(&job.out, NULL, (<uint64_t>node.slot << SLOT_BITS) - told(&job.out))
    put(&job.out, &inode, sizeof(inode))
    if node.xattr_bytes:
        each_xattr(job, row, NULL)
    if node.format == FORMAT_CHUNKED:
        put_chunks(job, row, node)
    elif node.format == FORMAT_INLINE:
        if kind == S_IFDIR:
            put_directory(job, at, node.size)
        else:
            put(&job.out, job.table.heap + row.link_offset, row.link_length)


cdef void write_image(job_t* job) noexcept nogil:
    cdef uint32_t at
    cdef const entry_t* row
    cdef const node_t* node
    put_super(job)
    for at in range(<uint32_t>job.table.count):
        row = &job.table.rows[at]
        if not row.flags & FLAG_HARDLINK or row.flags & FLAG_WHITEOUT:
            put_node(job, at)
    put(&job.out, NULL, (job.first_block << BLOCK_BITS) - told(&job.out))
    for at in range(<uint32_t>job.table.count):
        row = &job.table.rows[at]
        node = &job.nodes[at]
        if node.format == FORMAT_PLAIN and node.size:
            if is_directory(row):
                put_directory(job, at, node.size)
            else:
                put(&job.out, job.table.heap + row.link_offset, row.link_length)
            put(&job.out, NULL, (BLOCK_BYTES - told(&job.out) % BLOCK_BYTES) % BLOCK_BYTES)
    flush(&job.out)


cdef int take_tars(job_t* job, list sizes, list ends) except -1:
    """Number the devices: each tar's own, then its base."""
    cdef size_t at
    if len(ends) not in (0, len(sizes)):
        raise ValueError(f"{len(ends)} bases for {len(sizes)} tars")
    job.tar_count = len(sizes)
    job.devices = len(sizes) + sum(1 for end in ends if end)
    if job.devices > MOST_DEVICES:
        raise NotMappable(f"{job.devices} devices; an image has at most {MOST_DEVICES}")
    job.tars = <tar_t*>calloc(max(len(sizes), 1), sizeof(tar_t))
    if job.tars == NULL:
        raise MemoryError()
    job.devices = 0
    for at in range(job.tar_count):
        job.tars[at].size_bytes = sizes[at]
        job.tars[at].base_end = ends[at] if ends else 0
        if job.tars[at].base_end > job.tars[at].size_bytes:
            raise ValueError(f"the base of tar {at} ends behind it")
        job.tars[at].device = <uint16_t>(job.devices + 1)
        job.devices += 2 if job.tars[at].base_end else 1
    return 0


def write(
    int fd, const uint8_t[::1] records not None, const uint8_t[::1] heap not None, tar_sizes, bint userxattr=False,
    base_ends=()
):
    """Write the image of a layer or merged table to the start of an empty file; see erofs.pyi."""
    cdef job_t job
    cdef const char* wrong = NULL
    cdef Py_ssize_t bad
    cdef uint32_t row = 0
    cdef int fault = 0
    cdef list sizes = list(tar_sizes)
    if records.shape[0] % sizeof(entry_t) or not records.shape[0]:
        raise ValueError("the records end inside a record, or there are none")
    memset(&job, 0, sizeof(job))
    job.table.rows = <const entry_t*>&records[0]
    job.table.count = records.shape[0] // <Py_ssize_t>sizeof(entry_t)
    job.table.heap = &heap[0] if heap.shape[0] else <const uint8_t*>b""
    job.table.heap_bytes = <uint64_t>heap.shape[0]
    job.table.tar_bytes = max(sizes, default=0)
    job.opaque_index = 1 if userxattr else 4
    job.out.fd = fd
    if job.table.count >= 0x7FFFFFFF:
        raise NotMappable("more than 2147483646 rows")
    try:
        take_tars(&job, sizes, list(base_ends))
        job.nodes = <node_t*>calloc(<size_t>job.table.count, sizeof(node_t))
        job.out.buffer = <uint8_t*>malloc(OUT_BYTES)
        if job.nodes == NULL or job.out.buffer == NULL:
            raise MemoryError()
        with nogil:
            bad = check_table(&job.table, &wrong)
            if bad < 0 and job.table.rows[0].path_length == 0:
                fault = lay_out(&job, &row)
                if not fault:
                    write_image(&job)
        if bad >= 0:
            raise ValueError(f"row {bad}: {wrong.decode()}")
        if job.table.rows[0].path_length:
            raise ValueError("the table has no root")
        if fault:
            raise (NotMappable if fault >= FAULT_SPARSE else ValueError)(f"row {row} {describe(fault)}")
        if job.out.code:
            raise OSError(job.out.code, strerror(job.out.code).decode())
        return job.blocks << BLOCK_BITS
    finally:
        free(job.nodes)
        free(job.out.buffer)
        free(job.tars)
