# cython: language_level=3
"""SHA-256 that shows its chaining states and goes on from one.

A chaining state is all that a hash knows of the whole blocks behind it (FIPS 180-4, section 6.2.2), so whoever kept
the states of one input hashes another that begins alike from where they part.
"""
cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

from shablock cimport (
    sha_absorber, sha_absorber_two, sha_fast, sha_fast_two, sha_has_fast, sha_plain, sha_plain_two, sha_start
)

cdef enum:
    BLOCK_BYTES = 64
    LENGTH_AT = 56              # in the last block: how many bits were hashed
    STATE_BYTES = 32
    GIL_BYTES = 2048            # less is hashed before another thread could take over

cdef uint64_t SIZE_LIMIT = <uint64_t>1 << 61   # bytes: the length field counts bits

cdef struct hash_t:
    sha_absorber absorb
    sha_absorber_two absorb_two
    uint32_t state[8]
    uint8_t rest[BLOCK_BYTES]   # its first size_bytes % BLOCK_BYTES: bytes that are no whole block yet
    uint64_t size_bytes
    uint64_t every_bytes        # a state is kept after each so many; 0: none is
    uint8_t* kept               # STATE_BYTES each; room for those of a whole update
    size_t kept_bytes


cdef inline void pack_state(const uint32_t* state, uint8_t* packed) noexcept nogil:
    cdef int at
    for at in range(STATE_BYTES):
        packed[at] = <uint8_t>(state[at // 4] >> (24 - at % 4 * 8))


cdef inline void unpack_state(const uint8_t* packed, uint32_t* state) noexcept nogil:
    cdef int at
    memset(state, 0, STATE_BYTES)
    for at in range(STATE_BYTES):
        state[at // 4] = state[at // 4] << 8 | packed[at]


cdef inline uint64_t count_whole(const hash_t* own, uint64_t length) noexcept nogil:
    """Count the bytes of the data before it that can be taken as whole blocks at once: none in the middle of one."""
    if own.size_bytes % BLOCK_BYTES:
        return 0
    length -= length % BLOCK_BYTES
    return min(length, own.every_bytes - own.size_bytes % own.every_bytes) if own.every_bytes else length


cdef inline void advance(hash_t* own, uint64_t taken) noexcept nogil:
    """Count bytes that the state has taken, and keep it where it is asked for."""
    own.size_bytes += taken
    if own.every_bytes and own.size_bytes % own.every_bytes == 0:
        pack_state(own.state, own.kept + own.kept_bytes)
        own.kept_bytes += STATE_BYTES


cdef uint64_t take_some(hash_t* own, const uint8_t* data, uint64_t length) noexcept nogil:
    """Hash the next bytes, up to a state that is kept or to the end of a block; return how many."""
    cdef uint64_t rest = own.size_bytes % BLOCK_BYTES
    cdef uint64_t taken = count_whole(own, length)
    if taken:
        own.absorb(own.state, data, taken // BLOCK_BYTES)
    else:
        taken = min(BLOCK_BYTES - rest, length)
        memcpy(own.rest + rest, data, taken)
        if rest + taken == BLOCK_BYTES:
            own.absorb(own.state, own.rest, 1)
    advance(own, taken)
    return taken


cdef void take(hash_t* own, const uint8_t* data, uint64_t length) noexcept nogil:
    """Hash the next bytes and keep the states that are asked for."""
    cdef uint64_t taken
    while length:
        taken = take_some(own, data, length)
        data += taken
        length -= taken


cdef void take_two(
    hash_t* one, const uint8_t* one_data, uint64_t one_length,
    hash_t* other, const uint8_t* other_data, uint64_t other_length,
) noexcept nogil:
    """Hash the next bytes of both, side by side as far as both have some."""
    cdef uint64_t taken
    while one_length and other_length:
        taken = min(count_whole(one, one_length), count_whole(other, other_length))
        if taken:
            one.absorb_two(one.state, one_data, other.state, other_data, taken // BLOCK_BYTES)
            advance(one, taken)
            advance(other, taken)
            one_data += taken
            one_length -= taken
            other_data += taken
            other_length -= taken
        elif count_whole(one, one_length) == 0:
            taken = take_some(one, one_data, one_length)
            one_data += taken
            one_length -= taken
        else:
            taken = take_some(other, other_data, other_length)
            other_data += taken
            other_length -= taken
    take(one, one_data, one_length)
    take(other, other_data, other_length)


cdef void finish(hash_t* own, uint8_t* digest) noexcept nogil:
    """Pad the message, which ends here, and give its digest."""
    cdef uint64_t bits = own.size_bytes * 8
    cdef uint64_t rest = own.size_bytes % BLOCK_BYTES
    cdef int at
    own.rest[rest] = 0x80
    rest += 1
    memset(own.rest + rest, 0, BLOCK_BYTES - rest)
    if rest > LENGTH_AT:
        own.absorb(own.state, own.rest, 1)
        memset(own.rest, 0, LENGTH_AT)
    for at in range(8):
        own.rest[LENGTH_AT + at] = <uint8_t>(bits >> (56 - 8 * at))
    own.absorb(own.state, own.rest, 1)
    pack_state(own.state, digest)


@cython.final
cdef class Sha256:
    """Hash bytes and keep the chaining state after each every_bytes of them, packed (eight big-endian words).

    every_bytes is a multiple of 64; 0 keeps none. `kernel` names an implementation; all give the same. One object
    belongs to one thread at a time.
    """
    cdef hash_t own
    cdef bint busy              # a thread hashes without the GIL

    def __cinit__(self, every_bytes=0, str kernel not None="auto"):
        if not 0 <= every_bytes < SIZE_LIMIT or every_bytes % BLOCK_BYTES:
            raise ValueError(f"every_bytes must be a multiple of {BLOCK_BYTES}, or 0")
        if kernel not in ("auto", *kernels()):
            raise ValueError(f"no SHA-256 kernel is named {kernel!r} here; there are {', '.join(kernels())}")
        self.own.absorb, self.own.absorb_two = sha_plain, sha_plain_two
        if (kernels()[0] if kernel == "auto" else kernel) == "fast":
            self.own.absorb, self.own.absorb_two = sha_fast, sha_fast_two
        self.own.every_bytes = every_bytes
        memcpy(self.own.state, sha_start, STATE_BYTES)

    def __dealloc__(self):
        free(self.own.kept)

    cdef int check_idle(self) except -1:
        if self.busy:
            raise RuntimeError("another thread is hashing with this object")
        return 0

    cdef int make_room(self, uint64_t more_bytes) except -1:
        """Have room for every state up to so many bytes more."""
        cdef void* moved
        cdef uint64_t size_bytes
        if more_bytes >= SIZE_LIMIT - self.own.size_bytes:
            raise ValueError("SHA-256 takes less than 2**61 bytes")
        size_bytes = self.own.size_bytes + more_bytes
        if self.own.every_bytes and size_bytes // self.own.every_bytes * STATE_BYTES > self.own.kept_bytes:
            # No growth by factors: states are rare beside the bytes they stand for.
            moved = realloc(self.own.kept, size_bytes // self.own.every_bytes * STATE_BYTES)
            if moved == NULL:
                raise MemoryError
            self.own.kept = <uint8_t*>moved
        return 0

    @staticmethod
    def resume(bytes states not None, every_bytes, str kernel not None="auto"):
        """Go on after len(states) // 32 * every_bytes bytes, from the last of the states; all are kept."""
        cdef Sha256 made = Sha256(every_bytes, kernel)
        cdef size_t length = <size_t>PyBytes_GET_SIZE(states)
        cdef const uint8_t* packed = <const uint8_t*>PyBytes_AS_STRING(states)
        if every_bytes == 0 or length % STATE_BYTES:
            raise ValueError(f"states are {STATE_BYTES} bytes for each every_bytes, which cannot be 0")
        if length // STATE_BYTES > (SIZE_LIMIT - 1) // made.own.every_bytes:
            raise ValueError("so many bytes cannot have been hashed")
        if length:
            made.own.size_bytes = length // STATE_BYTES * made.own.every_bytes
            made.make_room(0)
            memcpy(made.own.kept, packed, length)
            made.own.kept_bytes = length
            unpack_state(packed + length - STATE_BYTES, made.own.state)
        return made

    def update(self, buffer):
        """Hash the next bytes, contiguous and borrowed for the call. Releases the GIL where that pays."""
        cdef Py_buffer view
        self.check_idle()
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
        try:
            self.check_idle()   # an exporter may be Python code
            self.make_room(<uint64_t>view.len)
            if view.len < GIL_BYTES:
                take(&self.own, <const uint8_t*>view.buf, <uint64_t>view.len)
                return
            self.busy = True
            with nogil:
                take(&self.own, <const uint8_t*>view.buf, <uint64_t>view.len)
            self.busy = False
        finally:
            PyBuffer_Release(&view)

    def digest(self):
        """Return the digest of what has been hashed; more may follow."""
        cdef hash_t copy
        cdef uint8_t digest[STATE_BYTES]
        self.check_idle()
        copy = self.own
        finish(&copy, digest)
        return PyBytes_FromStringAndSize(<const char*>digest, STATE_BYTES)

    @property
    def states(self):
        """Every state so far, 32 bytes each."""
        self.check_idle()
        return PyBytes_FromStringAndSize(<const char*>self.own.kept, <Py_ssize_t>self.own.kept_bytes)


def update_two(Sha256 one not None, one_buffer, Sha256 other not None, other_buffer):
    """Hash the next bytes of two inputs side by side, in less time than one after the other. Releases the GIL."""
    cdef Py_buffer one_view, other_view
    if one is other:
        raise ValueError("one object hashes one input")
    if one.own.absorb != other.own.absorb:
        raise ValueError("both have to be of one kernel")
    PyObject_GetBuffer(one_buffer, &one_view, PyBUF_SIMPLE)
    try:
        PyObject_GetBuffer(other_buffer, &other_view, PyBUF_SIMPLE)
        try:
            one.check_idle()
            other.check_idle()
            one.make_room(<uint64_t>one_view.len)
            other.make_room(<uint64_t>other_view.len)
            one.busy = other.busy = True
            with nogil:
                take_two(
                    &one.own, <const uint8_t*>one_view.buf, <uint64_t>one_view.len,
                    &other.own, <const uint8_t*>other_view.buf, <uint64_t>other_view.len,
                )
            one.busy = other.busy = False
        finally:
            PyBuffer_Release(&other_view)
    finally:
        PyBuffer_Release(&one_view)


def kernels():
    """Name the implementations that run on this machine, fastest first."""
    return ("fast", "plain") if sha_has_fast() else ("plain",)


def is_fast():
    """Tell whether the processor has SHA-256 instructions that are used here; hashlib is faster where it has not."""
    return sha_has_fast()
