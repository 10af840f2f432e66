# cython: language_level=3
"""Encode one entry's tar headers (inline-only): ustar, PAX records where ustar cannot say it, data alignment.

The format is fixed for ever by docs/internals/canonical-tar.md; a change here changes every diff_id.
"""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

cdef enum:
    BLOCK = 512
    NAME_LIMIT = 100          # ustar name and linkname
    PREFIX_LIMIT = 155
    SMALL_LIMIT = 2097151     # seven octal digits: uid, gid, device numbers
    PAX_LIMIT = 1048576       # Go's archive/tar refuses more in one extended header

cdef struct header_t:
    const uint8_t* name       # as written: '/' after a directory, './' for the root
    size_t name_length
    const uint8_t* link
    size_t link_length
    const uint8_t* xattr      # the heap's encoding
    size_t xattr_length
    uint64_t size_bytes
    int64_t mtime_s
    uint32_t mode
    uint32_t uid
    uint32_t gid
    uint32_t rdev_major
    uint32_t rdev_minor
    uint8_t typeflag

cdef inline bint is_large(uint64_t value) noexcept nogil:
    """Tell whether a size or mtime (a negative one too) needs more than eleven octal digits."""
    return value >> 33 != 0

cdef inline size_t round_block(size_t length) noexcept nogil:
    return (length + BLOCK - 1) & ~<size_t>(BLOCK - 1)

cdef inline bint is_utf8(const uint8_t* text, size_t length) noexcept nogil:
    """Tell whether text is UTF-8 by RFC 3629: no surrogates, no overlong forms, nothing above U+10FFFF."""
    cdef size_t at = 0, more
    cdef uint8_t lead, low, high
    while at < length:
        lead = text[at]
        at += 1
        if lead < 0x80:
            continue
        low = 0x80
        high = 0xBF
        if 0xC2 <= lead <= 0xDF:
            more = 1
        elif 0xE0 <= lead <= 0xEF:
            more = 2
            if lead == 0xE0:
                low = 0xA0
            elif lead == 0xED:
                high = 0x9F
        elif 0xF0 <= lead <= 0xF4:
            more = 3
            if lead == 0xF0:
                low = 0x90
            elif lead == 0xF4:
                high = 0x8F
        else:
            return False
        if length - at < more:
            return False
        while more:
            if text[at] < low or text[at] > high:
                return False
            low = 0x80
            high = 0xBF
            at += 1
            more -= 1
    return True

cdef inline void put_octal(uint8_t* field, int digits, uint64_t value) noexcept nogil:
    """Write value as that many octal digits; the NUL after them is already there."""
    while digits:
        digits -= 1
        field[digits] = <uint8_t>(48 + (value & 7))
        value >>= 3

cdef inline int put_decimal(uint8_t* out, int64_t value) noexcept nogil:
    cdef uint8_t digits[24]
    cdef int count = 0, at = 0
    cdef uint64_t rest = <uint64_t>value
    if value < 0:
        out[0] = 45
        at = 1
        rest = 0 - rest
    while True:
        digits[count] = <uint8_t>(48 + rest % 10)
        count += 1
        rest //= 10
        if rest == 0:
            break
    while count:
        count -= 1
        out[at] = digits[count]
        at += 1
    return at

cdef inline int count_digits(size_t value) noexcept nogil:
    cdef int digits = 1
    while value >= 10:
        value //= 10
        digits += 1
    return digits

cdef inline uint8_t* put_record(
    uint8_t* out, const char* key, size_t key_length, const uint8_t* name, size_t name_length,
    const uint8_t* value, size_t value_length,
) noexcept nogil:
    """Write the PAX record `LENGTH KEY+NAME=VALUE\\n`; LENGTH counts its own digits. Returns the end."""
    cdef size_t rest = key_length + name_length + value_length + 3
    cdef int digits = 1
    while count_digits(rest + <size_t>digits) > digits:
        digits += 1
    out += put_decimal(out, <int64_t>(rest + <size_t>digits))
    out[0] = 32
    memcpy(out + 1, key, key_length)
    out += 1 + key_length
    if name_length:
        memcpy(out, name, name_length)
        out += name_length
    out[0] = 61
    if value_length:
        memcpy(out + 1, value, value_length)
    out += 1 + value_length
    out[0] = 10
    return out + 1

cdef inline uint8_t* put_number(uint8_t* out, const char* key, size_t key_length, int64_t value) noexcept nogil:
    cdef uint8_t text[24]
    cdef int length = put_decimal(text, value)
    return put_record(out, key, key_length, NULL, 0, text, <size_t>length)

cdef inline uint8_t* put_xattrs(uint8_t* out, const uint8_t* xattr, size_t length) noexcept nogil:
    """Write one SCHILY.xattr record per attribute, in the heap's order (by name)."""
    cdef const uint8_t* end = xattr + length
    cdef uint16_t name_length
    cdef uint32_t value_length
    while xattr < end:
        memcpy(&name_length, xattr, 2)
        memcpy(&value_length, xattr + 2, 4)
        xattr += 6
        out = put_record(out, b"SCHILY.xattr.", 13, xattr, name_length, xattr + name_length, value_length)
        xattr += <size_t>name_length + value_length
    return out

cdef inline size_t find_split(const uint8_t* name, size_t length) noexcept nogil:
    """Return where ustar's prefix ends: 0 when name alone is enough, length when no split fits.

    The first '/' that leaves at most 100 bytes after it; it must leave at least one, and at most 155 before it.
    """
    cdef size_t at
    if length <= NAME_LIMIT:
        return 0
    if length > PREFIX_LIMIT + 1 + NAME_LIMIT:
        return length
    at = length - NAME_LIMIT - 1
    if at == 0:
        at = 1
    while at < length and name[at] != 47:
        at += 1
    if at > PREFIX_LIMIT or at + 1 >= length:
        return length
    return at

cdef inline void put_block(const header_t* header, size_t split, uint8_t* out) noexcept nogil:
    """Write one ustar block. Numbers that do not fit are zero there (PAX says them), names cut at 100 bytes."""
    cdef uint32_t total = 0
    cdef const uint8_t* name = header.name
    cdef size_t length = header.name_length, at
    memset(out, 0, BLOCK)
    if 0 < split < length:
        memcpy(out + 345, name, split)
        name += split + 1
        length -= split + 1
    memcpy(out, name, length if length < NAME_LIMIT else NAME_LIMIT)
    put_octal(out + 100, 7, header.mode)
    put_octal(out + 108, 7, header.uid if header.uid <= SMALL_LIMIT else 0)
    put_octal(out + 116, 7, header.gid if header.gid <= SMALL_LIMIT else 0)
    put_octal(out + 124, 11, 0 if is_large(header.size_bytes) else header.size_bytes)
    put_octal(out + 136, 11, 0 if is_large(<uint64_t>header.mtime_s) else <uint64_t>header.mtime_s)
    memset(out + 148, 32, 8)
    out[156] = header.typeflag
    if header.link_length:
        memcpy(out + 157, header.link, header.link_length if header.link_length < NAME_LIMIT else NAME_LIMIT)
    memcpy(out + 257, b"ustar\x0000", 8)
    put_octal(out + 329, 7, header.rdev_major)
    put_octal(out + 337, 7, header.rdev_minor)
    for at in range(<size_t>BLOCK):
        total += out[at]
    put_octal(out + 148, 6, total)
    out[154] = 0

cdef inline uint8_t* put_pax(const header_t* header, size_t split, uint8_t* out) noexcept nogil:
    """Write the records that ustar cannot hold, in the format's order; none at all for most entries."""
    cdef bint long_name = header.name_length > NAME_LIMIT and split == header.name_length
    cdef bint long_link = header.link_length > NAME_LIMIT
    if (long_name and not is_utf8(header.name, header.name_length)) or (
        long_link and not is_utf8(header.link, header.link_length)
    ):
        out = put_record(out, b"hdrcharset", 10, NULL, 0, <const uint8_t*>b"BINARY", 6)
    if long_name:
        out = put_record(out, b"path", 4, NULL, 0, header.name, header.name_length)
    if long_link:
        out = put_record(out, b"linkpath", 8, NULL, 0, header.link, header.link_length)
    if is_large(header.size_bytes):
        out = put_number(out, b"size", 4, <int64_t>header.size_bytes)
    if header.uid > SMALL_LIMIT:
        out = put_number(out, b"uid", 3, header.uid)
    if header.gid > SMALL_LIMIT:
        out = put_number(out, b"gid", 3, header.gid)
    if is_large(<uint64_t>header.mtime_s):
        out = put_number(out, b"mtime", 5, header.mtime_s)
    return put_xattrs(out, header.xattr, header.xattr_length)

cdef inline size_t pad_comment(uint8_t* pax, size_t used, size_t total) noexcept nogil:
    """Fill pax from used to total with one comment record. The caller leaves at least 512 bytes for it.

    The record's length is given, so its text is what remains: no length-digit rollover can occur.
    """
    cdef size_t length = total - used
    cdef int digits = put_decimal(pax + used, <int64_t>length)
    memcpy(pax + used + digits, b" comment=", 9)
    memset(pax + used + digits + 9, 32, length - <size_t>digits - 10)
    pax[total - 1] = 10
    return total

cdef inline size_t encode_header(
    const header_t* header, uint8_t* out, uint64_t position, uint64_t align_bytes
) noexcept nogil:
    """Write every header block of the entry that starts at position of the tar; return their length.

    With align_bytes, the data after them starts at a multiple of it, by as short a comment record as does it.
    out holds PAX_LIMIT + 4 blocks; the caller has checked that the records and align_bytes fit PAX_LIMIT.
    """
    cdef size_t split = find_split(header.name, header.name_length)
    cdef uint8_t* pax = out + BLOCK
    cdef size_t used = <size_t>(put_pax(header, split, pax) - pax)
    cdef size_t total = round_block(used)
    cdef uint64_t end = position + total + (2 * BLOCK if used else BLOCK)
    cdef header_t extended
    if align_bytes and end % align_bytes:
        total += BLOCK
        end = position + total + 2 * BLOCK
        if end % align_bytes:
            total += <size_t>(align_bytes - end % align_bytes)
        used = pad_comment(pax, used, total)
    if used == 0:
        put_block(header, split, out)
        return BLOCK
    memset(pax + used, 0, total - used)
    memset(&extended, 0, sizeof(extended))
    extended.name = <const uint8_t*>b"././@PaxHeader"
    extended.name_length = 14
    extended.size_bytes = used
    extended.typeflag = 120   # x
    put_block(&extended, 0, out)
    put_block(header, split, pax + total)
    return total + 2 * BLOCK
