# cython: language_level=3
"""The 512-byte tar header as read: fields, checksum, numbers, path normalisation (inline-only).

Source: POSIX.1-2017 pax (ustar interchange format), GNU tar manual "Basic Tar Format".
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    #if defined(__SSE2__)
    #include <emmintrin.h>
    #endif
    /* Add up the bytes of a header. */
    static inline uint32_t sum_header(const uint8_t *block) {
    #if defined(__SSE2__)
        __m128i even = _mm_setzero_si128(), odd = _mm_setzero_si128();
        for (int at = 0; at < 512; at += 32) {
            __m128i first = _mm_loadu_si128((const __m128i *)(block + at));
            __m128i second = _mm_loadu_si128((const __m128i *)(block + at + 16));
            even = _mm_add_epi64(even, _mm_sad_epu8(first, _mm_setzero_si128()));
            odd = _mm_add_epi64(odd, _mm_sad_epu8(second, _mm_setzero_si128()));
        }
        even = _mm_add_epi64(even, odd);
        return (uint32_t)_mm_cvtsi128_si32(even) + (uint32_t)_mm_cvtsi128_si32(_mm_srli_si128(even, 8));
    #else
        uint32_t total = 0;
        for (int at = 0; at < 512; at++) total += block[at];
        return total;
    #endif
    }
    /* Ask for the eight cache lines of a header that is read next. */
    static inline void prefetch_header(const uint8_t *block) {
        for (int at = 0; at < 512; at += 64) __builtin_prefetch(block + at, 0, 3);
    }
    /* Tell whether a path needs no normalising: no NUL, no name that is empty or starts with a dot. */
    static inline int is_normal(const uint8_t *path, size_t length) {
        size_t at = 0;
        if (length == 0 || path[0] == '/' || path[0] == '.') return 0;
        if (path[length - 1] == '/' || path[length - 1] == 0) return 0;
    #if defined(__SSE2__)
        const __m128i slash = _mm_set1_epi8('/'), dot = _mm_set1_epi8('.');
        __m128i broken = _mm_setzero_si128();
        for (; length > 16 && at + 1 < length; at += 16) {  /* pairs of neighbours; the last 16 may overlap */
            if (at + 17 > length) at = length - 17;
            __m128i first = _mm_loadu_si128((const __m128i *)(path + at));
            __m128i second = _mm_loadu_si128((const __m128i *)(path + at + 1));
            __m128i bad = _mm_or_si128(_mm_cmpeq_epi8(second, slash), _mm_cmpeq_epi8(second, dot));
            bad = _mm_and_si128(bad, _mm_cmpeq_epi8(first, slash));
            broken = _mm_or_si128(broken, _mm_or_si128(bad, _mm_cmpeq_epi8(first, _mm_setzero_si128())));
        }
        if (_mm_movemask_epi8(broken)) return 0;
    #endif
        for (; at + 1 < length; at++)
            if (path[at] == 0 || (path[at] == '/' && (path[at + 1] == '/' || path[at + 1] == '.'))) return 0;
        return 1;
    }
    """
    uint32_t sum_header(const uint8_t* block) noexcept nogil
    void prefetch_header(const uint8_t* block) noexcept nogil
    bint is_normal(const uint8_t* path, size_t length) noexcept nogil

cdef enum:
    BLOCK = 512
    AT_NAME = 0
    AT_MODE = 100
    AT_UID = 108
    AT_GID = 116
    AT_SIZE = 124
    AT_MTIME = 136
    AT_CHECKSUM = 148
    AT_TYPE = 156
    AT_LINK = 157
    AT_MAGIC = 257
    AT_MAJOR = 329
    AT_MINOR = 337
    AT_PREFIX = 345
    AT_SPARSE = 386         # old GNU: 4 pairs of 12-byte numbers
    AT_EXTENDED = 482
    AT_REAL_SIZE = 483
    AT_STAR = 508           # "tar\0" of star, whose prefix is shorter
    PATH_LIMIT = 4095       # Linux PATH_MAX without its NUL: nothing longer can be opened or linked to

cdef enum:
    PATH_PARENT = -1        # has a '..' component
    PATH_NUL = -2
    PATH_LONG = -3

cdef inline bint is_zero(const uint8_t* block) noexcept nogil:
    """Tell whether a block holds only zeros."""
    return block[0] == 0 and memcmp(block, block + 1, BLOCK - 1) == 0

cdef inline int64_t eight_digits(uint64_t text) noexcept nogil:
    """Read eight octal digits at once, the first in the lowest byte; -1 when one isn't a digit."""
    if text & <uint64_t> 0xF8F8F8F8F8F8F8F8 != <uint64_t> 0x3030303030303030:
        return -1
    text &= <uint64_t> 0x0707070707070707
    text = (text << 3 | text >> 8) & <uint64_t> 0x003F003F003F003F
    text = (text << 6 | text >> 16) & <uint64_t> 0x00000FFF00000FFF
    return <int64_t> ((text << 12 | text >> 32) & 0xFFFFFF)

cdef inline int64_t parse_full(const uint8_t* field, size_t width) noexcept nogil:
    """Read a field of 7 or 11 octal digits and a NUL or space, as most are; -1 when it is something else."""
    cdef uint64_t first
    cdef uint32_t rest
    cdef int64_t high, low
    if field[width - 1] != 0 and field[width - 1] != 32:
        return -1
    memcpy(&first, field, 8)
    if width == 8:
        return eight_digits(first << 8 | 48)
    if width != 12:
        return -1
    memcpy(&rest, field + 8, 4)
    high = eight_digits(first)
    low = eight_digits(<uint64_t> rest << 40 | <uint64_t> 0x3030303030)
    return -1 if high < 0 or low < 0 else high << 9 | low

cdef inline int parse_number(const uint8_t* field, size_t width, int64_t* value) noexcept nogil:
    """Read an octal or base-256 field; -1 when malformed or beyond 63 bits."""
    cdef uint64_t total = 0
    cdef size_t at = 0
    cdef uint8_t inverted, byte
    value[0] = parse_full(field, width)
    if value[0] >= 0:
        return 0
    if field[0] & 0x80:
        inverted = 0xFF if field[0] & 0x40 else 0
        for at in range(width):
            byte = field[at] ^ inverted
            if at == 0:
                byte &= 0x7F
            if total >> 55:
                return -1
            total = total << 8 | byte
        value[0] = -<int64_t> total - 1 if inverted else <int64_t> total
        return 0
    while at < width and (field[at] == 32 or field[at] == 0):
        at += 1
    while at < width and 48 <= field[at] <= 55:
        total = total << 3 | (field[at] - 48)
        at += 1
    while at < width and field[at] == 32:
        at += 1
    if at < width and field[at] != 0:
        return -1
    value[0] = <int64_t> total
    return 0

cdef inline bint checksum_matches(const uint8_t* block) noexcept nogil:
    """Compare the checksum field with the sum of the block's bytes (unsigned, or signed as old tars did)."""
    cdef int64_t stored
    cdef uint32_t total
    cdef uint32_t high = 0
    cdef size_t at
    if parse_number(block + AT_CHECKSUM, 8, &stored) < 0:
        return False
    total = sum_header(block)
    for at in range(AT_CHECKSUM, AT_CHECKSUM + 8):
        total = total - block[at] + 32
    if stored == <int64_t> total:
        return True
    for at in range(BLOCK):
        if block[at] & 0x80 and not AT_CHECKSUM <= at < AT_CHECKSUM + 8:
            high += 256
    return stored == <int64_t> total - <int64_t> high

cdef inline size_t text_length(const uint8_t* field, size_t width) noexcept nogil:
    """Length of a NUL-terminated field that may fill its width."""
    cdef const void* end = memchr(field, 0, width) if width else NULL
    return width if end == NULL else <size_t> (<const uint8_t*> end - field)

cdef inline int parse_decimal(const uint8_t* text, size_t length, int64_t* value) noexcept nogil:
    """Read a whole non-negative decimal number; -1 when malformed or beyond 63 bits."""
    cdef uint64_t total = 0
    cdef size_t at
    if length == 0 or length > 19:
        return -1
    for at in range(length):
        if not 48 <= text[at] <= 57:
            return -1
        total = total * 10 + (text[at] - 48)
    if total >> 63:
        return -1
    value[0] = <int64_t> total
    return 0

cdef inline int parse_time(const uint8_t* text, size_t length, int64_t* nanoseconds) noexcept nogil:
    """Read seconds with an optional sign and fraction (cut after nine digits); -1 when malformed or out of range."""
    cdef int64_t seconds = 0
    cdef int64_t fraction = 0
    cdef int64_t unit = 100_000_000
    cdef bint negative = length > 0 and text[0] == 45
    cdef const void* point
    cdef size_t whole, at
    if negative:
        text += 1
        length -= 1
    if length == 0:
        return -1
    point = memchr(text, 46, length)
    whole = length if point == NULL else <size_t> (<const uint8_t*> point - text)
    if parse_decimal(text, whole, &seconds) < 0 or seconds > 9223372035LL:
        return -1
    for at in range(whole + 1, length):
        if not 48 <= text[at] <= 57:
            return -1
        fraction += unit * (text[at] - 48)
        unit //= 10
    nanoseconds[0] = seconds * 1000000000 + fraction
    if negative:
        nanoseconds[0] = -nanoseconds[0]
    return 0

cdef inline int64_t normalise(const uint8_t* path, size_t length, uint8_t* target) noexcept nogil:
    """Copy path without leading, doubled and trailing slashes and '.' components; length, or a PATH_ code.

    target has room for PATH_LIMIT bytes.
    """
    cdef size_t at = 0
    cdef size_t kept = 0
    cdef size_t part
    cdef const void* slash
    if length and memchr(path, 0, length) != NULL:
        return PATH_NUL
    while at < length:
        slash = memchr(path + at, 47, length - at)
        part = length - at if slash == NULL else <size_t> (<const uint8_t*> slash - (path + at))
        if part == 2 and path[at] == 46 and path[at + 1] == 46:
            return PATH_PARENT
        if part and not (part == 1 and path[at] == 46):
            if kept + part + 1 > PATH_LIMIT:
                return PATH_LONG
            if kept:
                target[kept] = 47
                kept += 1
            memcpy(target + kept, path + at, part)
            kept += part
        at += part + 1
    return <int64_t> kept
