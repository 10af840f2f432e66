# cython: language_level=3
"""Graft a subtree of one entry table to another path: the rows of a COPY, with where each row's data lies."""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from entry cimport (
    FLAG_HARDLINK,
    FLAG_HASHED,
    FLAG_SPARSE,
    entry_t,
)
from tarsame cimport count_same_rows, side_t, take_place

cdef extern from "sys/stat.h":
    enum:
        S_IFMT
        S_IFREG
        S_IFLNK

cdef enum:
    SOURCE_NONE = 0
    SOURCE_PATH = 1
    SOURCE_RANGE = 2

cdef packed struct source_t:
    int32_t descriptor
    uint32_t kind
    uint64_t offset
    uint64_t length

cdef struct plan_t:
    const entry_t* rows
    const uint8_t* heap
    uint64_t heap_size
    const uint8_t* prefix
    size_t prefix_length
    size_t strip                # bytes of the top row's own path
    const int32_t* descriptors
    size_t descriptor_count
    uint32_t kind
    int64_t uid
    int64_t gid
    int64_t mode


cdef inline bint in_heap(const plan_t* plan, uint64_t offset, uint64_t length) noexcept nogil:
    return offset <= plan.heap_size and length <= plan.heap_size - offset


cdef inline bint below_top(const plan_t* plan, const entry_t* top, const uint8_t* path, size_t length) noexcept nogil:
    """Tell whether path is the top row's path or lies below it."""
    cdef const uint8_t* base = plan.heap + top.path_offset
    cdef size_t at
    if length < plan.strip:
        return False
    for at in range(plan.strip):
        if path[at] != base[at]:
            return False
    return plan.strip == 0 or length == plan.strip or path[plan.strip] == 47


cdef inline size_t regrafted_length(const plan_t* plan, size_t length) noexcept nogil:
    """Return the length of a path once its top is exchanged for the prefix."""
    cdef size_t rest = length - plan.strip
    if plan.strip == 0 and length != 0 and plan.prefix_length != 0:
        rest += 1
    elif plan.strip != 0 and plan.prefix_length == 0 and rest != 0:
        rest -= 1
    return plan.prefix_length + rest


cdef inline void regraft(const plan_t* plan, const uint8_t* path, size_t length, uint8_t* out) noexcept nogil:
    """Write prefix + the part of path below the top; out has regrafted_length bytes."""
    cdef size_t at = plan.prefix_length
    if at != 0:
        memcpy(out, plan.prefix, at)
    if plan.strip == 0:
        if length != 0:
            if at != 0:
                out[at] = 47
                at += 1
            memcpy(out + at, path, length)
    elif length > plan.strip:
        if at == 0:
            memcpy(out, path + plan.strip + 1, length - plan.strip - 1)
        else:
            memcpy(out + at, path + plan.strip, length - plan.strip)


cdef int measure(const plan_t* plan, size_t start, size_t end, uint64_t* total) noexcept nogil:
    """Sum the heap bytes that the grafted rows need. Returns -1 for a row that points outside its heap."""
    cdef size_t row
    cdef const entry_t* entry
    total[0] = 0
    for row in range(start, end):
        entry = &plan.rows[row]
        if (not in_heap(plan, entry.path_offset, entry.path_length)
                or not in_heap(plan, entry.link_offset, entry.link_length)
                or not in_heap(plan, entry.xattr_offset, entry.xattr_length)
                or not below_top(plan, &plan.rows[start], plan.heap + entry.path_offset, entry.path_length)):
            return -1
        total[0] += regrafted_length(plan, entry.path_length) + entry.path_length
        total[0] += entry.link_length + plan.prefix_length + 1 + entry.xattr_length
    return 0


cdef int emit(const plan_t* plan, size_t start, size_t end, entry_t* out, source_t* sources,
              uint8_t* heap, uint64_t* used) noexcept nogil:
    """Write the grafted rows. Returns -1 for a row whose layer has no descriptor."""
    cdef size_t row
    cdef uint64_t at = 0
    cdef const entry_t* entry
    cdef entry_t* made
    cdef source_t* source
    cdef const uint8_t* link
    cdef size_t length
    cdef int64_t remainder
    for row in range(start, end):
        entry = &plan.rows[row]
        made = &out[row - start]
        source = &sources[row - start]
        made[0] = entry[0]
        memset(source, 0, sizeof(source_t))
        made.path_offset = at
        length = regrafted_length(plan, entry.path_length)
        made.path_length = <uint32_t> length
        regraft(plan, plan.heap + entry.path_offset, entry.path_length, heap + at)
        at += length

        link = plan.heap + entry.link_offset
        made.flags = entry.flags & (FLAG_HARDLINK | FLAG_HASHED | FLAG_SPARSE)
        made.link_offset = at
        if entry.flags & FLAG_HARDLINK:
            if below_top(plan, &plan.rows[start], link, entry.link_length):
                length = regrafted_length(plan, entry.link_length)
                regraft(plan, link, entry.link_length, heap + at)
                made.link_length = <uint32_t> length
                at += length
            else:
                # The group's first name lies outside what is copied: this name becomes a file of its own.
                made.flags &= ~<uint32_t> FLAG_HARDLINK
                made.link_length = 0
        else:
            memcpy(heap + at, link, entry.link_length)
            at += entry.link_length
        made.xattr_offset = at
        memcpy(heap + at, plan.heap + entry.xattr_offset, entry.xattr_length)
        at += entry.xattr_length

        if entry.mode & S_IFMT == S_IFREG and not made.flags & FLAG_HARDLINK:
            source.kind = plan.kind
            if plan.kind == SOURCE_PATH:
                source.descriptor = plan.descriptors[0]
                source.length = entry.path_length
                if plan.strip == 0:
                    # The old path is the new one's tail.
                    source.offset = made.path_offset + made.path_length - entry.path_length
                else:
                    source.offset = at
                    memcpy(heap + at, plan.heap + entry.path_offset, entry.path_length)
                    at += entry.path_length
            else:
                if entry.layer >= plan.descriptor_count:
                    return -1
                source.descriptor = plan.descriptors[entry.layer]
                source.offset = entry.data_offset
                source.length = entry.size_bytes
        if plan.uid >= 0:
            made.uid = <uint32_t> plan.uid
        if plan.gid >= 0:
            made.gid = <uint32_t> plan.gid
        if plan.mode >= 0 and entry.mode & S_IFMT != S_IFLNK:
            made.mode = (entry.mode & S_IFMT) | (<uint32_t> plan.mode & 0o7777)
        # A canonical tar holds whole seconds, and the table must say what its tar says.
        remainder = entry.mtime_ns % 1000000000
        made.mtime_ns = entry.mtime_ns - (remainder if remainder >= 0 else remainder + 1000000000)
        made.header_offset = 0
        made.data_offset = 0
        # Where tarwrite reads the file itself, the ctime tells it that nothing was written since the walk.
        made.ctime_ns = entry.ctime_ns if source.kind == SOURCE_PATH else 0
        made.device = 0
        made.inode = 0
        made.layer = 0
        made.chunk_first = 0
        made.chunk_count = 0
    used[0] = at
    return 0


def graft(const uint8_t[::1] records, const uint8_t[::1] heap, size_t start, size_t end, const uint8_t[::1] prefix,
          const uint8_t[::1] descriptors, uint32_t kind, int64_t uid=-1, int64_t gid=-1, int64_t mode=-1):
    """Copy rows start..end (a subtree, its top first) to a new table whose top is at prefix."""
    cdef plan_t plan
    cdef uint8_t nothing = 0
    cdef uint64_t total = 0
    cdef uint64_t used = 0
    cdef size_t count = records.shape[0] // sizeof(entry_t)
    cdef int status
    if start >= end or end > count:
        raise ValueError(f"rows {start}..{end} are not in a table of {count}")
    if kind != SOURCE_PATH and kind != SOURCE_RANGE:
        raise ValueError(f"source kind {kind} is neither a path nor a range")
    if descriptors.shape[0] < <Py_ssize_t> sizeof(int32_t):
        raise ValueError("no descriptor given")
    plan.rows = <const entry_t*> &records[0]
    plan.heap_size = <uint64_t> heap.shape[0]
    # Never null: memcpy of nothing from null is undefined all the same.
    plan.heap = &heap[0] if plan.heap_size else &nothing
    plan.prefix_length = <size_t> prefix.shape[0]
    plan.prefix = &prefix[0] if plan.prefix_length else &nothing
    plan.strip = plan.rows[start].path_length
    plan.descriptors = <const int32_t*> &descriptors[0]
    plan.descriptor_count = descriptors.shape[0] // sizeof(int32_t)
    plan.kind = kind
    plan.uid = uid
    plan.gid = gid
    plan.mode = mode
    with nogil:
        status = measure(&plan, start, end, &total)
    if status:
        raise ValueError("a row lies outside its heap or outside the subtree")
    out = bytearray((end - start) * sizeof(entry_t))
    sources = bytearray((end - start) * sizeof(source_t))
    grown = bytearray(total + 1)
    cdef uint8_t[::1] out_view = out
    cdef uint8_t[::1] source_view = sources
    cdef uint8_t[::1] heap_view = grown
    with nogil:
        status = emit(&plan, start, end, <entry_t*> &out_view[0], <source_t*> &source_view[0], &heap_view[0], &used)
    if status:
        raise ValueError("a row's layer has no descriptor")
    del out_view, source_view, heap_view
    del grown[used:]
    return out, grown, sources


def adopt_hashes(uint8_t[::1] records, size_t start, const uint8_t[::1] grafted, size_t first, size_t count):
    """Copy blake3 from grafted rows back to the rows they were grafted from; return how many had another or none."""
    cdef entry_t* into
    cdef const entry_t* made
    cdef size_t row, changed = 0
    if (start + count > records.shape[0] // sizeof(entry_t) or first + count > grafted.shape[0] // sizeof(entry_t)
            or start + count < start or first + count < first):
        raise ValueError("the rows to adopt are outside the tables")
    if count == 0:
        return 0
    into = <entry_t*> &records[0] + start
    made = <const entry_t*> &grafted[0] + first
    with nogil:
        for row in range(count):
            if not made[row].flags & FLAG_HASHED:
                continue
            if into[row].flags & FLAG_HASHED and memcmp(into[row].blake3, made[row].blake3, 32) == 0:
                continue
            changed += 1
            memcpy(into[row].blake3, made[row].blake3, 32)
            into[row].flags |= FLAG_HASHED
    return changed


cdef int view_side(side_t* side, const uint8_t[::1] records, const uint8_t[::1] heap) except -1:
    if records.shape[0] % sizeof(entry_t):
        raise ValueError("records end inside a record")
    side.count = records.shape[0] // sizeof(entry_t)
    side.rows = <const entry_t*> &records[0] if side.count else NULL
    side.heap_size = <uint64_t> heap.shape[0]
    side.heap = &heap[0] if side.heap_size else NULL
    return 0


def count_same(
    const uint8_t[::1] records, const uint8_t[::1] heap, const uint8_t[::1] old_records, const uint8_t[::1] old_heap,
    uint64_t limit_bytes,
):
    """Count the leading rows that make the same bytes of a canonical tar as an earlier table's."""
    cdef side_t fresh, old
    cdef size_t count
    memset(&fresh, 0, sizeof(side_t))
    memset(&old, 0, sizeof(side_t))
    view_side(&fresh, records, heap)
    view_side(&old, old_records, old_heap)
    with nogil:
        count = count_same_rows(&fresh, &old, limit_bytes)
    return count


def take_places(uint8_t[::1] records, const uint8_t[::1] old_records, size_t count):
    """Give the leading rows the offsets and hashes of the same rows of an earlier tar."""
    cdef entry_t* into
    cdef const entry_t* old
    cdef size_t row
    if count > <size_t> records.shape[0] // sizeof(entry_t) or count > <size_t> old_records.shape[0] // sizeof(entry_t):
        raise ValueError("there are fewer rows")
    if count == 0:
        return
    into = <entry_t*> &records[0]
    old = <const entry_t*> &old_records[0]
    with nogil:
        for row in range(count):
            take_place(&into[row], &old[row])
