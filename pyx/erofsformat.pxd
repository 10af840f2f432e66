# cython: language_level=3
"""EROFS's records on disk, and a buffered output for them (inline-only).

Source: Linux, Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h. All little endian.
"""
from libc.errno cimport EINTR, EIO, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fileat cimport S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFREG, S_IFSOCK

cdef extern from "<unistd.h>" nogil:
    ssize_t pwrite(int, const void*, size_t, int64_t)

cdef enum:
    BLOCK_BITS = 9               # a tar's data starts at multiples of 512 bytes, so that must be the block
    BLOCK_BYTES = 512
    SUPER_OFFSET = 1024
    SUPER_BYTES = 128
    DEVICE_BYTES = 128
    DEVICE_SLOT = 9              # the device table follows the superblock
    SLOT_BITS = 5                # inodes lie at multiples of 32 bytes; the number is the inode's
    INODE_BYTES = 64             # always the extended form: the compact one has no mtime
    DIRENT_BYTES = 12
    MOST_NAMES = 42              # of a block: each takes 12 bytes and its name
    XATTR_HEADER_BYTES = 12
    CHUNK_BYTES = 8
    MOST_CHUNK_BITS = 31
    FEATURE_CHECKSUM = 1         # compatible
    FEATURE_MTIME = 2
    FEATURE_CHUNKED = 4          # incompatible
    FEATURE_DEVICES = 8
    FORMAT_PLAIN = 1             # extended | layout << 1
    FORMAT_INLINE = 5
    FORMAT_CHUNKED = 9
    CHUNK_INDEXES = 0x20
    OUT_BYTES = 1 << 20

cdef enum:
    MAGIC = 0xE0F5E1E2
    POLYNOMIAL = 0x82F63B78      # of CRC-32C, reversed
    HOLE = 0xFFFFFFFF

cdef packed struct super_t:
    uint32_t magic
    uint32_t checksum
    uint32_t compatible
    uint8_t block_bits
    uint8_t slots
    uint16_t root
    uint64_t inodes
    uint64_t epoch
    uint32_t epoch_ns
    uint32_t blocks
    uint32_t meta_block
    uint32_t xattr_block
    uint8_t uuid[16]
    uint8_t name[16]
    uint32_t incompatible
    uint16_t algorithms
    uint16_t devices
    uint16_t device_slot
    uint8_t directory_bits
    uint8_t prefixes
    uint32_t prefix_start
    uint64_t packed_inode
    uint8_t xattr_filter
    uint8_t reserved[23]

cdef packed struct device_t:
    uint8_t tag[64]
    uint32_t blocks
    uint32_t mapped_block
    uint8_t reserved[56]

cdef packed struct inode_t:
    uint16_t format
    uint16_t xattr_count
    uint16_t mode
    uint16_t reserved
    uint64_t size
    uint32_t place               # first block, chunk format or device number
    uint32_t number
    uint32_t uid
    uint32_t gid
    uint64_t mtime
    uint32_t mtime_ns
    uint32_t nlink
    uint8_t reserved2[16]

cdef packed struct dirent_t:
    uint64_t inode
    uint16_t name_offset
    uint8_t kind
    uint8_t reserved

cdef packed struct chunk_t:
    uint16_t reserved
    uint16_t device
    uint32_t block

cdef struct out_t:
    int fd
    int code                     # the first errno, 0 while all is well
    uint8_t* buffer              # OUT_BYTES
    size_t used
    uint64_t offset              # of the buffer's first byte in the file

cdef inline void flush(out_t* out) noexcept nogil:
    """Write what is buffered; an error is kept and ends all further writing."""
    cdef size_t at = 0
    cdef ssize_t count
    while at < out.used and not out.code:
        count = pwrite(out.fd, out.buffer + at, out.used - at, <int64_t>(out.offset + at))
        if count > 0:
            at += <size_t>count
        elif count == 0 or errno != EINTR:
            out.code = errno if count < 0 else EIO
    out.offset += out.used
    out.used = 0

cdef inline void put(out_t* out, const void* content, size_t length) noexcept nogil:
    """Append bytes, or zeros where content is NULL."""
    cdef const uint8_t* source = <const uint8_t*>content
    cdef size_t part
    while length:
        part = OUT_BYTES - out.used
        if part > length:
            part = length
        if source == NULL:
            memset(out.buffer + out.used, 0, part)
        else:
            memcpy(out.buffer + out.used, source, part)
            source += part
        out.used += part
        length -= part
        if out.used == OUT_BYTES:
            flush(out)

cdef inline uint64_t told(const out_t* out) noexcept nogil:
    return out.offset + out.used

cdef inline uint32_t checksum(const uint8_t* content, size_t length) noexcept nogil:
    """Give the CRC-32C as the superblock has it: started with ones, not inverted at the end."""
    cdef uint32_t crc = 0xFFFFFFFF
    cdef size_t at
    cdef int _bit
    for at in range(length):
        crc ^= content[at]
        for _bit in range(8):
            crc = (crc >> 1) ^ (POLYNOMIAL & -(crc & 1))
    return crc

cdef inline uint8_t kind_of(uint32_t kind) noexcept nogil:
    """Give a directory entry's type for a file's."""
    if kind == S_IFREG:
        return 1
    if kind == S_IFDIR:
        return 2
    if kind == S_IFCHR:
        return 3
    if kind == S_IFBLK:
        return 4
    if kind == S_IFIFO:
        return 5
    return 6 if kind == S_IFSOCK else 7
