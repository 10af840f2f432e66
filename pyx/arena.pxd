# cython: language_level=3
"""Memory that grows and is freed at once (inline-only): pointers from an arena stay valid until it is freed.

Its chunks are mappings, so that they go back to the machine when they are freed. malloc keeps blocks of this size for
itself in a process that has freed a larger one before (M_MMAP_THRESHOLD is dynamic).
"""
from libc.stdlib cimport realloc
from libc.string cimport memcpy

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdlib.h>
    #include <sys/mman.h>
    #ifdef __SANITIZE_ADDRESS__      /* which sees the ends of blocks that it has given alone */
    static inline void *take_pages(size_t size) { return malloc(size); }
    static inline void give_pages(void *pages, size_t size) { free(pages); }
    #else
    static inline void *take_pages(size_t size) {
        void *pages = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        return pages == MAP_FAILED ? NULL : pages;
    }
    static inline void give_pages(void *pages, size_t size) { munmap(pages, size); }
    #endif
    """
    void* take_pages(size_t size) nogil
    void give_pages(void* pages, size_t size) nogil

cdef enum:
    ARENA_CHUNK_BYTES = 1 << 18

cdef struct chunk_t:
    chunk_t* next
    size_t capacity

cdef struct arena_t:
    chunk_t* chunk
    char* at
    size_t left

cdef inline void* arena_take(arena_t* arena, size_t size) noexcept nogil:
    """Take `size` bytes aligned to 8, or NULL when memory runs out."""
    cdef size_t capacity
    cdef chunk_t* chunk
    cdef void* taken
    if size > <size_t>1 << 48:
        return NULL
    size = (size + 7) & ~<size_t>7 if size else 8
    if size > arena.left:
        capacity = ARENA_CHUNK_BYTES if size <= ARENA_CHUNK_BYTES // 4 else size + sizeof(chunk_t)
        chunk = <chunk_t*>take_pages(capacity)
        if chunk == NULL:
            return NULL
        chunk.next = arena.chunk
        chunk.capacity = capacity
        arena.chunk = chunk
        if capacity != ARENA_CHUNK_BYTES:  # a big block of its own; the current chunk is given up only when small
            taken = <char*>chunk + sizeof(chunk_t)
            return taken
        arena.at = <char*>chunk + sizeof(chunk_t)
        arena.left = capacity - sizeof(chunk_t)
    taken = arena.at
    arena.at += size
    arena.left -= size
    return taken

cdef inline char* arena_copy(arena_t* arena, const void* source, size_t size) noexcept nogil:
    """Copy bytes into the arena and end them with a NUL; NULL when memory runs out."""
    cdef char* copy = <char*>arena_take(arena, size + 1)
    if copy != NULL:
        memcpy(copy, source, size)
        copy[size] = 0
    return copy

cdef inline void arena_free(arena_t* arena) noexcept nogil:
    """Free everything that was taken."""
    cdef chunk_t* chunk = arena.chunk
    cdef chunk_t* following
    while chunk != NULL:
        following = chunk.next
        give_pages(chunk, chunk.capacity)
        chunk = following
    arena.chunk = NULL
    arena.left = 0

cdef inline void* grow(void* block, size_t* capacity, size_t needed, size_t item_size) noexcept nogil:
    """Give `block` room for `needed` items, doubling; on NULL the old block is still valid and still owned."""
    cdef size_t wanted = capacity[0] if capacity[0] else 64
    cdef void* moved
    if needed <= capacity[0]:
        return block
    while wanted < needed:
        if wanted > (<size_t>1 << 47) // item_size:
            return NULL
        wanted *= 2
    moved = realloc(block, wanted * item_size)
    if moved != NULL:
        capacity[0] = wanted
    return moved
