# cython: language_level=3
"""Sort paths into component order, stably (inline-only).

Most tars are sorted or nearly so (a depth-first walk), so this is a natural merge sort: ascending runs are found
first and a sorted tar costs one comparison per entry. The keys hold what a comparison needs, so that the
168-byte records are not touched.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

cdef extern from *:
    int __builtin_ctzll(unsigned long long value) noexcept nogil

cdef struct key_t:
    const uint8_t* path
    uint32_t length
    uint32_t index       # position in the tar

cdef inline int compare_bytes(const uint8_t* a, size_t a_length, const uint8_t* b, size_t b_length) noexcept nogil:
    """Order two paths as compare_path does, eight bytes at a time (paths share long prefixes)."""
    cdef size_t shared = a_length if a_length < b_length else b_length
    cdef size_t at = 0
    cdef uint64_t x, y
    cdef uint8_t left, right
    while at + 8 <= shared:
        memcpy(&x, a + at, 8)
        memcpy(&y, b + at, 8)
        if x != y:
            at += __builtin_ctzll(x ^ y) >> 3
            break
        at += 8
    while at < shared and a[at] == b[at]:
        at += 1
    if at == shared:
        return (a_length > b_length) - (a_length < b_length)
    left = 0 if a[at] == 47 else a[at]
    right = 0 if b[at] == 47 else b[at]
    return -1 if left < right else 1

cdef inline int compare_keys(const key_t* a, const key_t* b) noexcept nogil:
    return compare_bytes(a.path, a.length, b.path, b.length)

cdef inline bint is_below(const uint8_t* path, size_t length, const uint8_t* top, size_t top_length) noexcept nogil:
    """Tell whether path lies strictly below the directory top; everything but the root lies below the root."""
    if top_length == 0:
        return length > 0
    return length > top_length and path[top_length] == 47 and compare_bytes(path, top_length, top, top_length) == 0

cdef inline void merge_runs(key_t* source, key_t* target, size_t middle, size_t end) noexcept nogil:
    """Merge the runs [0, middle) and [middle, end) of source into target; the left one wins ties."""
    cdef size_t left = 0
    cdef size_t right = middle
    cdef size_t at = 0
    if middle < end and compare_keys(&source[middle - 1], &source[middle]) > 0:
        while left < middle and right < end:
            if compare_keys(&source[left], &source[right]) <= 0:
                target[at] = source[left]
                left += 1
            else:
                target[at] = source[right]
                right += 1
            at += 1
    if left < middle:
        memcpy(&target[at], &source[left], (middle - left) * sizeof(key_t))
        at += middle - left
    if right < end:
        memcpy(&target[at], &source[right], (end - right) * sizeof(key_t))

cdef inline size_t find_runs(const key_t* keys, size_t count, size_t* runs) noexcept nogil:
    """Store where each ascending run starts, and count at the end; return the number of runs."""
    cdef size_t found = 0
    cdef size_t at
    for at in range(count):
        if at == 0 or compare_keys(&keys[at - 1], &keys[at]) > 0:
            runs[found] = at
            found += 1
    runs[found] = count
    return found

cdef inline int sort_keys(key_t* keys, size_t count) noexcept nogil:
    """Sort in place; -1 without memory."""
    cdef key_t* spare = <key_t*> malloc((count + 1) * sizeof(key_t))
    cdef size_t* runs = <size_t*> malloc((count + 1) * sizeof(size_t))
    cdef key_t* source = keys
    cdef key_t* target = spare
    cdef size_t found, run, kept, middle
    if spare == NULL or runs == NULL:
        free(spare)
        free(runs)
        return -1
    found = find_runs(keys, count, runs)
    while found > 1:
        kept = 0
        run = 0
        while run < found:
            middle = runs[run + 1]
            if run + 1 < found:
                merge_runs(source + runs[run], target + runs[run], middle - runs[run], runs[run + 2] - runs[run])
            else:
                memcpy(target + runs[run], source + runs[run], (middle - runs[run]) * sizeof(key_t))
            runs[kept] = runs[run]
            kept += 1
            run += 2
        runs[kept] = count
        found = kept
        source, target = target, source
    if source != keys and count:
        memcpy(keys, source, count * sizeof(key_t))
    free(spare)
    free(runs)
    return 0
