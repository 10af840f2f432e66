# cython: autotestdict=False
"""Content-defined chunking: FastCDC with normalised chunking (Xia et al., USENIX ATC 2016).

The rule, which every kernel follows and which golden values hold:

- gear[b] for b = 0 to 255 is output number b + 1 of splitmix64 with the seed GEAR_SEED.
- A chunk starts with fingerprint 0. Bytes 0 to min - 1 are skipped. For each later byte: fingerprint =
  (fingerprint << 1) + gear[byte], modulo 2**64; the chunk ends after this byte if (fingerprint & mask) == 0.
- mask is the strict one (log2(average) + 2 bits) while fewer than `average` bytes precede the byte, then the loose
  one (log2(average) - 2 bits); both are the topmost bits of the fingerprint, the ones that the most bytes reach.
- A chunk that has max bytes ends; the last one ends with the buffer.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

cdef enum:
    KERNEL_REFERENCE = 0
    KERNEL_PAIRS = 1
    NORMALISATION_BITS = 2
    HASH_BYTES = 32

cdef packed struct chunk_t:
    uint64_t offset
    uint32_t size_bytes
    uint32_t reserved
    uint8_t blake3[HASH_BYTES]

cdef struct rule_t:
    uint64_t min_bytes
    uint64_t average_bytes
    uint64_t max_bytes
    uint64_t strict
    uint64_t loose
    int kernel

cdef uint64_t GEAR_SEED = 0x7079_6C61_7965_7273  # "pylayers"
cdef uint64_t gear[256]
cdef uint64_t gear_twice[256]  # gear << 1, for the first byte of a pair

cdef void fill_gear() noexcept:
    cdef uint64_t state = GEAR_SEED, mixed
    cdef int index
    for index in range(256):
        state += <uint64_t>0x9E3779B97F4A7C15
        mixed = state
        mixed = (mixed ^ (mixed >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
        mixed = (mixed ^ (mixed >> 27)) * <uint64_t>0x94D049BB133111EB
        gear[index] = mixed ^ (mixed >> 31)
        gear_twice[index] = gear[index] << 1

fill_gear()


cdef uint64_t cut_reference(const uint8_t* data, uint64_t size, const rule_t* rule) noexcept nogil:
    """Give the length of the first chunk, word for word by the rule."""
    cdef uint64_t fingerprint = 0, mask
    cdef uint64_t at = rule.min_bytes
    while at < size and at < rule.max_bytes:
        mask = rule.strict if at < rule.average_bytes else rule.loose
        fingerprint = (fingerprint << 1) + gear[data[at]]
        at += 1
        if fingerprint & mask == 0:
            return at
    return min(size, rule.max_bytes)


cdef inline uint64_t scan_pairs(
    const uint8_t* data, uint64_t at, uint64_t end, uint64_t mask, uint64_t* fingerprint
) noexcept nogil:
    """Look for a cut from `at` to end, two bytes a step; 0 when there is none.

    After two bytes a, b the fingerprint is (f << 2) + (gear[a] << 1) + gear[b]: the value after a is not waited for.
    """
    cdef uint64_t first, value = fingerprint[0]
    while at + 8 <= end:
        first = (value << 1) + gear[data[at]]
        value = (value << 2) + gear_twice[data[at]] + gear[data[at + 1]]
        if first & mask == 0:
            return at + 1
        if value & mask == 0:
            return at + 2
        first = (value << 1) + gear[data[at + 2]]
        value = (value << 2) + gear_twice[data[at + 2]] + gear[data[at + 3]]
        if first & mask == 0:
            return at + 3
        if value & mask == 0:
            return at + 4
        first = (value << 1) + gear[data[at + 4]]
        value = (value << 2) + gear_twice[data[at + 4]] + gear[data[at + 5]]
        if first & mask == 0:
            return at + 5
        if value & mask == 0:
            return at + 6
        first = (value << 1) + gear[data[at + 6]]
        value = (value << 2) + gear_twice[data[at + 6]] + gear[data[at + 7]]
        if first & mask == 0:
            return at + 7
        if value & mask == 0:
            return at + 8
        at += 8
    while at < end:
        value = (value << 1) + gear[data[at]]
        at += 1
        if value & mask == 0:
            return at
    fingerprint[0] = value
    return 0


cdef uint64_t cut_pairs(const uint8_t* data, uint64_t size, const rule_t* rule) noexcept nogil:
    """Give the length of the first chunk: each mask has a loop of its own, whose dependency is one step per pair."""
    cdef uint64_t fingerprint = 0, found
    cdef uint64_t end = min(size, rule.max_bytes)
    cdef uint64_t middle = min(end, rule.average_bytes)
    if end <= rule.min_bytes:
        return end
    found = scan_pairs(data, rule.min_bytes, middle, rule.strict, &fingerprint)
    if found == 0:
        found = scan_pairs(data, max(middle, rule.min_bytes), end, rule.loose, &fingerprint)
    return found if found else end


cdef int make_rule(rule_t* rule, object min_bytes, object average_bytes, object max_bytes, str kernel) except -1:
    """Check the sizes and take the masks from them."""
    cdef int bits
    if average_bytes < 64 or average_bytes > 1 << 30 or average_bytes & (average_bytes - 1):
        raise ValueError("average_bytes must be a power of two from 64 to 2**30")
    if not 0 < min_bytes <= average_bytes <= max_bytes <= 0xFFFFFFFF:
        raise ValueError("chunk sizes must be 0 < min_bytes <= average_bytes <= max_bytes < 2**32")
    if kernel not in ("auto", "pairs", "reference"):
        raise ValueError(f"no chunking kernel is named {kernel!r}; there are {', '.join(kernels())}")
    rule.min_bytes, rule.average_bytes, rule.max_bytes = min_bytes, average_bytes, max_bytes
    bits = average_bytes.bit_length() - 1
    rule.strict = ~<uint64_t>0 << (64 - bits - NORMALISATION_BITS)
    rule.loose = ~<uint64_t>0 << (64 - bits + NORMALISATION_BITS)
    rule.kernel = KERNEL_REFERENCE if kernel == "reference" else KERNEL_PAIRS
    return 0


cdef int cut_all(
    const uint8_t* data, uint64_t size, const rule_t* rule, uint64_t** ends, size_t* count
) noexcept nogil:
    """Cut a whole buffer; the ends are the caller's to free. -1 when there is no memory."""
    cdef uint64_t at = 0
    cdef size_t capacity = 0
    cdef void* moved
    while at < size:
        if count[0] == capacity:
            # The expected number first; growth is for data that cuts shorter.
            capacity = capacity * 2 if capacity else <size_t>(size // rule.average_bytes) + 16
            moved = realloc(ends[0], capacity * sizeof(uint64_t))
            if moved == NULL:
                return -1
            ends[0] = <uint64_t*>moved
        if rule.kernel == KERNEL_REFERENCE:
            at += cut_reference(data + at, size - at, rule)
        else:
            at += cut_pairs(data + at, size - at, rule)
        ends[0][count[0]] = at
        count[0] += 1
    return 0


cdef bytearray cut_buffer(const uint8_t[::1] buffer, const rule_t* rule):
    """Cut a buffer and return the chunk ends as native uint64."""
    cdef const uint8_t* data = &buffer[0] if buffer.shape[0] else NULL
    cdef uint64_t size = buffer.shape[0]
    cdef uint64_t* ends = NULL
    cdef size_t count = 0
    cdef int status
    try:
        with nogil:
            status = cut_all(data, size, rule, &ends, &count)
        if status != 0:
            raise MemoryError
        return bytearray((<const char*>ends)[:count * sizeof(uint64_t)]) if count else bytearray()
    finally:
        free(ends)


def boundaries(const uint8_t[::1] buffer, min_bytes, average_bytes, max_bytes, str kernel not None="auto"):
    """Cut a buffer into content-defined chunks and return the chunk ends as native uint64.

    FastCDC (Xia et al., USENIX ATC 2016) with normalised chunking over a gear table derived from a fixed seed;
    average_bytes is a power of two. `kernel` names an implementation ("reference" is the slow one); all give the
    same cuts. Releases the GIL; one pass. Golden cut-points hold the result for ever.
    """
    cdef rule_t rule
    make_rule(&rule, min_bytes, average_bytes, max_bytes, kernel)
    return cut_buffer(buffer, &rule)


def kernels():
    """Name the implementations that run on this machine, fastest first."""
    return ("pairs", "reference")


def manifest(const uint8_t[::1] buffer, min_bytes, average_bytes, max_bytes, blake3 not None):
    """Cut a buffer and hash each chunk: packed (offset u64, size u32, reserved u32, blake3 32 bytes) records."""
    cdef rule_t rule
    cdef bytearray ends, packed
    cdef const uint64_t* end
    cdef chunk_t* records
    cdef uint64_t at = 0
    cdef Py_ssize_t index, count
    cdef bytes digest
    make_rule(&rule, min_bytes, average_bytes, max_bytes, "auto")
    ends = cut_buffer(buffer, &rule)
    count = len(ends) // sizeof(uint64_t)
    packed = bytearray(count * <Py_ssize_t>sizeof(chunk_t))
    end = <const uint64_t*><char*>ends
    records = <chunk_t*><char*>packed
    view = memoryview(buffer)
    for index in range(count):
        digest = blake3(view[at:end[index]]).digest()  # releases the GIL by itself where that pays
        if len(digest) != HASH_BYTES:
            raise ValueError("blake3 gave a digest that is not 32 bytes")
        records[index].offset = at
        records[index].size_bytes = <uint32_t>(end[index] - at)
        memcpy(records[index].blake3, <const char*>digest, HASH_BYTES)
        at = end[index]
    return packed
