# cython: autotestdict=False
"""Content-defined chunking by a rule that processors can follow 64 bytes at a time (docs/decisions/0010).

The rule, which every kernel follows and which golden values hold:

- The bytes, taken as a polynomial over GF(2) (byte i has the coefficients of x**(8*i) to
  x**(8*i + 7)), are multiplied by the polynomial CUT_MULTIPLIER of degree 56; product(i) is byte i of that, and depends
  on bytes i - 7 to i alone.
- pair(i) = product(i) + 3 * product(i - 8), quad(i) = pair(i) + 3 * pair(i - 16), fingerprint(i) = quad(i) + 3 *
  quad(i - 32), all modulo 256: a fingerprint depends on 64 bytes.
- A chunk may end after byte i, counted from its start, if i >= min - 1, fingerprint(i) <= low, fingerprint(i - 1) >=
  high and fingerprint(i - 2) <= third. These limits let one place in 2**bits pass: of bits, 8 go to low, 8 to high, the
  rest to third, as far as there are so many. It ends at the first such place.
- bits is log2(average) + 2 while i < average (strict), then log2(average) - 2 (loose): normalised chunking as in
  FastCDC (Xia et al., USENIX ATC 2016).
- A chunk that has max bytes ends; the last one ends with the buffer. min >= 128: no byte before the chunk counts.
"""
from cutscan cimport (
    CUT_BEHIND, avx2_find, avx512_find, cut_fill_product, cut_finder, cut_has_avx2, cut_has_avx512, cut_has_pclmul,
    cut_limit, cut_product, cut_touch, pclmul_find, plain_find,
)
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

cdef enum:
    NORMALISATION_BITS = 2
    HASH_BYTES = 32
    BATCH_BYTES = 1 << 19  # cut before it is hashed: small enough for a core's own cache

cdef packed struct chunk_t:
    uint64_t offset
    uint32_t size_bytes
    uint32_t reserved
    uint8_t blake3[HASH_BYTES]

cdef struct rule_t:
    uint64_t min_bytes
    uint64_t average_bytes
    uint64_t max_bytes
    cut_limit strict
    cut_limit loose
    cut_finder find

cdef struct ends_t:
    uint64_t* ends
    size_t count
    size_t capacity

cut_fill_product()


cdef inline uint8_t product_at(const uint8_t* data, uint64_t at) noexcept nogil:
    cdef uint64_t product = 0
    cdef uint64_t back
    for back in range(8):
        product ^= cut_product[data[at - back]] >> 8 * back
    return <uint8_t>product


cdef inline uint8_t fingerprint_at(const uint8_t* data, uint64_t at) noexcept nogil:
    cdef uint32_t total = 0
    cdef uint32_t factor
    cdef uint64_t step
    for step in range(8):
        # 3 to the power of how many of the lags 8, 16 and 32 add up to this one
        factor = (3 if step & 1 else 1) * (3 if step & 2 else 1) * (3 if step & 4 else 1)
        total += factor * product_at(data, at - 8 * step)
    return <uint8_t>total


cdef uint64_t reference_find(
    const uint8_t* data, uint64_t begin, uint64_t end, uint64_t middle, const cut_limit* strict, const cut_limit* loose
) noexcept nogil:
    """Look for the end of a chunk word for word by the rule; 0 when there is none."""
    cdef const cut_limit* limit
    cdef uint64_t at
    for at in range(begin, end):
        limit = strict if at < middle else loose
        if (fingerprint_at(data, at) <= limit.low and fingerprint_at(data, at - 1) >= limit.high
                and fingerprint_at(data, at - 2) <= limit.third):
            return at + 1
    return 0


cdef cut_limit limit_for(int bits) noexcept:
    """Give the limits that one place in 2**bits passes."""
    cdef cut_limit limit
    limit.low = <uint8_t>(255 >> min(bits, 8))
    limit.high = <uint8_t>(255 - (255 >> min(max(bits - 8, 0), 8)))
    limit.third = <uint8_t>(255 >> max(bits - 16, 0))
    return limit


cdef cut_finder find_kernel(str name) except NULL:
    if name not in ("auto", *kernels()):
        raise ValueError(f"no chunking kernel is named {name!r} here; there are {', '.join(kernels())}")
    name = kernels()[0] if name == "auto" else name
    if name == "avx512":
        return avx512_find
    if name == "avx2":
        return avx2_find
    if name == "pclmul":
        return pclmul_find
    return plain_find if name == "plain" else reference_find


cdef int make_rule(rule_t* rule, object min_bytes, object average_bytes, object max_bytes, str kernel) except -1:
    """Check the sizes and take the limits from them."""
    cdef int bits
    if average_bytes < CUT_BEHIND or average_bytes > 1 << 22 or average_bytes & (average_bytes - 1):
        raise ValueError(f"average_bytes must be a power of two from {CUT_BEHIND} to 2**22")
    if not CUT_BEHIND <= min_bytes <= average_bytes <= max_bytes <= 0xFFFFFFFF:
        raise ValueError(f"chunk sizes must be {CUT_BEHIND} <= min_bytes <= average_bytes <= max_bytes < 2**32")
    rule.find = find_kernel(kernel)
    rule.min_bytes, rule.average_bytes, rule.max_bytes = min_bytes, average_bytes, max_bytes
    bits = average_bytes.bit_length() - 1
    rule.strict = limit_for(bits + NORMALISATION_BITS)
    rule.loose = limit_for(bits - NORMALISATION_BITS)
    return 0


cdef inline uint64_t cut_one(const uint8_t* data, uint64_t size, const rule_t* rule) noexcept nogil:
    """Give the length of the first chunk."""
    cdef uint64_t end = min(size, rule.max_bytes)
    cdef uint64_t found = 0
    if end >= rule.min_bytes:
        found = rule.find(data, rule.min_bytes - 1, end, rule.average_bytes, &rule.strict, &rule.loose)
    return found if found else end


cdef int cut_until(
    const uint8_t* data, uint64_t size, uint64_t at, uint64_t stop, const rule_t* rule, ends_t* ends, bint touch
) noexcept nogil:
    """Cut a buffer from `at` on until a chunk ends at or after stop; -1 when there is no memory."""
    cdef void* moved
    while at < stop:
        if ends.count == ends.capacity:
            # The expected number first; growth is for data that cuts shorter.
            ends.capacity = ends.capacity * 2 if ends.capacity else <size_t>((stop - at) // rule.average_bytes) + 16
            moved = realloc(ends.ends, ends.capacity * sizeof(uint64_t))
            if moved == NULL:
                return -1
            ends.ends = <uint64_t*>moved
        if touch:
            cut_touch(data + at, min(size - at, rule.min_bytes))
        at += cut_one(data + at, size - at, rule)
        ends.ends[ends.count] = at
        ends.count += 1
    return 0


def boundaries(const uint8_t[::1] buffer, min_bytes, average_bytes, max_bytes, str kernel not None="auto"):
    """Cut a buffer into content-defined chunks and return the chunk ends as native uint64.

    128 <= min_bytes <= average_bytes <= max_bytes; average_bytes is a power of two, at most 2**22. `kernel` names an
    implementation ("reference" is the slow one); all give the same cuts. Releases the GIL; one pass, whose cost does
    not depend on the content. Golden cut-points hold the result for ever.
    """
    cdef rule_t rule
    cdef const uint8_t* data = &buffer[0] if buffer.shape[0] else NULL
    cdef uint64_t size = buffer.shape[0]
    cdef ends_t ends = ends_t(NULL, 0, 0)
    cdef int status
    make_rule(&rule, min_bytes, average_bytes, max_bytes, kernel)
    try:
        with nogil:
            status = cut_until(data, size, 0, size, &rule, &ends, False)
        if status != 0:
            raise MemoryError
        return bytearray((<const char*>ends.ends)[:ends.count * sizeof(uint64_t)]) if ends.count else bytearray()
    finally:
        free(ends.ends)


def kernels():
    """Name the implementations that run on this machine, fastest first."""
    own = (("avx512", cut_has_avx512()), ("avx2", cut_has_avx2()), ("pclmul", cut_has_pclmul()))
    found = [name for name, has in own if has]
    return (*found, "plain", "reference")


def manifest(const uint8_t[::1] buffer, min_bytes, average_bytes, max_bytes, blake3 not None, start=0):
    """Cut a buffer and hash each chunk: packed (offset u64, size u32, reserved u32, blake3 32 bytes) records.

    Some chunks are cut, then hashed while they lie in the processor's cache. `start` is added to the offsets.
    """
    cdef rule_t rule
    cdef bytearray packed = bytearray()
    cdef const uint8_t* data = &buffer[0] if buffer.shape[0] else NULL
    cdef uint64_t size = buffer.shape[0]
    cdef uint64_t first = start
    cdef uint64_t at = 0
    cdef ends_t ends = ends_t(NULL, 0, 0)
    cdef chunk_t record
    cdef size_t index
    cdef int status
    cdef bytes digest
    make_rule(&rule, min_bytes, average_bytes, max_bytes, "auto")
    record.reserved = 0
    view = memoryview(buffer)
    try:
        while at < size:
            ends.count = 0
            with nogil:
                status = cut_until(data, size, at, min(size, at + BATCH_BYTES), &rule, &ends, True)
            if status != 0:
                raise MemoryError
            for index in range(ends.count):
                digest = blake3(view[at:ends.ends[index]]).digest()  # releases the GIL by itself where that pays
                if len(digest) != HASH_BYTES:
                    raise ValueError("blake3 gave a digest that is not 32 bytes")
                record.offset = first + at
                record.size_bytes = <uint32_t>(ends.ends[index] - at)
                memcpy(record.blake3, <const char*>digest, HASH_BYTES)
                packed += (<const char*>&record)[:sizeof(chunk_t)]
                at = ends.ends[index]
        return packed
    finally:
        free(ends.ends)
