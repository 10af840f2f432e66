# cython: language_level=3
"""A byte buffer that grows, with a bound (inline-only)."""
from libc.stdint cimport uint8_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

cdef enum:
    GROW_MEMORY = -1     # the allocator refused
    GROW_LIMIT = -2      # the bound was met

cdef struct growable_t:
    uint8_t* data
    size_t length
    size_t capacity
    size_t limit         # largest length allowed

cdef inline int reserve(growable_t* buffer, size_t more) noexcept nogil:
    """Make room for `more` further bytes; 0, GROW_MEMORY or GROW_LIMIT."""
    cdef size_t needed, capacity
    cdef void* moved
    if more > buffer.limit or buffer.length > buffer.limit - more:
        return GROW_LIMIT
    needed = buffer.length + more
    if needed <= buffer.capacity:
        return 0
    capacity = buffer.capacity + buffer.capacity // 2
    if capacity < needed:
        capacity = needed
    if capacity < 4096:
        capacity = 4096
    moved = realloc(buffer.data, capacity)
    if moved == NULL:
        return GROW_MEMORY
    buffer.data = <uint8_t*> moved
    buffer.capacity = capacity
    return 0

cdef inline int append(growable_t* buffer, const void* source, size_t length) noexcept nogil:
    """Copy length bytes to the end; 0, GROW_MEMORY or GROW_LIMIT."""
    cdef int status = reserve(buffer, length)
    if status < 0:
        return status
    if length:  # memcpy must not be handed a null pointer, even for no bytes
        memcpy(buffer.data + buffer.length, source, length)
        buffer.length += length
    return 0

cdef inline void release(growable_t* buffer) noexcept nogil:
    """Free the memory; the buffer is empty afterwards."""
    free(buffer.data)
    buffer.data = NULL
    buffer.length = 0
    buffer.capacity = 0
