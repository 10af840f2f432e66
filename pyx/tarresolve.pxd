# cython: language_level=3
"""From tar entries in tar order to table rows in component order (inline-only).

What extracting the tar one entry after another would leave, found without a file system: the last entry of a path
wins, a directory keeps what is below it, anything else hides what was below it before, a hard link means the
entry that its target path named at that moment. Whiteouts speak only of lower layers, so they have no moment: a row
of their own path wins over them (and is OPAQUE when it is a directory).
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from entry cimport FLAG_HARDLINK, FLAG_IMPLICIT, FLAG_OPAQUE, FLAG_WHITEOUT, entry_t
from growable cimport append, growable_t, release
from pathsort cimport compare_bytes, is_below, key_t, sort_keys
from tarorder cimport fill_folder
from tarstate cimport fail, scan_t

cdef enum:
    S_IFMT = 0o170000
    S_IFDIR = 0o040000

cdef enum:
    NONE = 0xFFFFFFFF
    KIND_ENTRY = 0           # the raw entry
    KIND_IMPLICIT = 1        # a directory that only things below it name
    KIND_MADE = 2            # a directory deleted below and made again without an entry of its own

cdef struct out_t:
    uint64_t path_offset
    uint32_t path_length
    uint32_t raw             # position in the tar, NONE for directories without an entry
    uint32_t kind
    uint32_t flags           # to add

cdef struct group_t:         # all entries of one path; a frame of the ancestor stack
    size_t start             # keys: real entries in [start, real_end), marks (whiteout, opaque) up to end
    size_t real_end
    size_t end
    int64_t last_other       # latest non-directory of this path or of an ancestor, -1 none
    bint has_other           # this path has a non-directory

cdef struct resolve_t:
    scan_t* scan
    entry_t* raws
    size_t count
    key_t* keys
    uint32_t* hidden_at      # by raw: the later entry that removed it by replacing an ancestor, or NONE
    uint32_t* next_other     # by key: the next non-directory of the same path from here on, or NONE
    uint32_t* roots          # by raw: the entry whose inode it is (hard links)
    uint32_t* names          # by raw: how many rows name the inode
    uint32_t* first          # by raw: the first row that does
    growable_t groups        # stack of group_t
    growable_t chain         # stack of u32: rows of the ancestors of the last row, and itself
    growable_t outs          # out_t

cdef inline bint is_mark(const entry_t* raw) noexcept nogil:
    return raw.flags & (FLAG_WHITEOUT | FLAG_OPAQUE) != 0

cdef inline bint is_directory(const entry_t* raw) noexcept nogil:
    return raw.mode & S_IFMT == S_IFDIR and not raw.flags & FLAG_HARDLINK

cdef inline size_t count_before(const resolve_t* r, size_t start, size_t end, uint32_t moment) noexcept nogil:
    """First key in [start, end) whose tar position is not before the moment."""
    cdef size_t middle
    while start < end:
        middle = (start + end) // 2
        if r.keys[middle].index < moment:
            start = middle + 1
        else:
            end = middle
    return start

cdef inline void split_group(resolve_t* r, group_t* group) noexcept nogil:
    """Put marks after the real entries (which stay in tar order), find the group's non-directories."""
    cdef size_t at, into, moved
    cdef uint32_t following = NONE
    cdef key_t key
    group.real_end = group.end
    group.has_other = False
    if group.end - group.start > 1:
        into = group.start
        for at in range(group.start, group.end):
            if not is_mark(&r.raws[r.keys[at].index]):
                key = r.keys[into]
                r.keys[into] = r.keys[at]
                r.keys[at] = key
                into += 1
        group.real_end = into
    elif is_mark(&r.raws[r.keys[group.start].index]):
        group.real_end = group.start
    moved = group.real_end
    while moved > group.start:
        moved -= 1
        if not is_directory(&r.raws[r.keys[moved].index]):
            following = r.keys[moved].index
            group.has_other = True
            if <int64_t> following > group.last_other:
                group.last_other = following
        r.next_other[moved] = following

cdef inline int judge(resolve_t* r, uint32_t moment, const group_t* groups, size_t depth) noexcept nogil:
    """Refuse an entry below what was no directory at its moment; note which later entry hides it."""
    cdef size_t at, found
    cdef uint32_t earlier
    cdef uint32_t hidden = NONE
    for at in range(depth):
        if not groups[at].has_other:
            continue
        found = count_before(r, groups[at].start, groups[at].real_end, moment)
        if found > groups[at].start:
            earlier = r.keys[found - 1].index
            if not is_directory(&r.raws[earlier]) and r.hidden_at[earlier] > moment:
                return fail(r.scan, r.raws[moment].header_offset,
                            b"expected a directory above this entry, but an earlier entry made it something else")
        if found < groups[at].real_end and r.next_other[found] < hidden:
            hidden = r.next_other[found]
    r.hidden_at[moment] = hidden
    return 0

cdef inline int push_row(resolve_t* r, out_t* out) noexcept nogil:
    """Add a row and make it the end of the ancestor chain."""
    cdef uint32_t row = <uint32_t> (r.outs.length // sizeof(out_t))
    if row >= r.scan.max_entries:
        return fail(r.scan, r.scan.length if out.raw == NONE else r.raws[out.raw].header_offset,
                    b"expected fewer entries: the table would pass the limit")
    if append(&r.outs, out, sizeof(out_t)) < 0 or append(&r.chain, &row, 4) < 0:
        return -1
    return 0

cdef inline int make_parents(resolve_t* r, const out_t* out) noexcept nogil:
    """Cut the chain back to the row's nearest ancestor and add the directories missing between."""
    cdef const uint8_t* heap = r.scan.heap.data
    cdef const uint8_t* path = heap + out.path_offset
    cdef out_t parent
    cdef out_t* above
    cdef size_t at = 0
    memset(&parent, 0, sizeof(out_t))
    parent.raw = NONE
    parent.kind = KIND_IMPLICIT
    while r.chain.length:
        above = &(<out_t*> r.outs.data)[(<uint32_t*> r.chain.data)[r.chain.length // 4 - 1]]
        if is_below(path, out.path_length, heap + above.path_offset, above.path_length):
            if above.kind == KIND_ENTRY and r.raws[above.raw].flags & FLAG_WHITEOUT:
                above.kind = KIND_MADE
                above.flags = FLAG_OPAQUE
            at = above.path_length
            break
        r.chain.length -= 4
    if r.chain.length == 0 and out.path_length and push_row(r, &parent) < 0:
        return -1
    for at in range(at + 1, out.path_length):
        if path[at] == 47:
            parent.path_offset = out.path_offset
            parent.path_length = <uint32_t> at
            if push_row(r, &parent) < 0:
                return -1
    return 0

cdef inline int emit_group(resolve_t* r, const group_t* group) noexcept nogil:
    """Add the row, if any, that is left of a group."""
    cdef uint32_t last = r.keys[group.real_end - 1].index if group.real_end > group.start else NONE
    cdef uint32_t opaque = NONE
    cdef uint32_t whiteout = NONE
    cdef uint32_t raw
    cdef size_t at
    cdef out_t out
    if last != NONE and r.hidden_at[last] != NONE:
        last = NONE
    for at in range(group.real_end, group.end):
        raw = r.keys[at].index
        if r.hidden_at[raw] == NONE and r.raws[raw].flags & FLAG_WHITEOUT:
            whiteout = raw
        elif r.hidden_at[raw] == NONE:
            opaque = raw
    memset(&out, 0, sizeof(out_t))
    out.kind = KIND_ENTRY
    out.raw = last
    if last != NONE:
        if is_directory(&r.raws[last]) and (opaque != NONE or whiteout != NONE):
            out.flags = FLAG_OPAQUE
    elif opaque != NONE:
        out.raw = opaque
        out.kind = KIND_IMPLICIT if whiteout == NONE else KIND_MADE
        out.flags = FLAG_OPAQUE
    elif whiteout != NONE:
        out.raw = whiteout
    else:
        return 0
    out.path_offset = r.raws[out.raw].path_offset
    out.path_length = r.raws[out.raw].path_length
    if make_parents(r, &out) < 0:
        return -1
    return push_row(r, &out)

cdef inline int emit_rows(resolve_t* r) noexcept nogil:
    """Go through the sorted entries path by path, with a stack of the ancestors' groups."""
    cdef group_t group
    cdef group_t* groups
    cdef size_t start = 0
    cdef size_t depth, at
    cdef key_t* top
    cdef entry_t* raw
    while start < r.count:
        group.start = start
        group.end = start + 1
        while group.end < r.count and compare_bytes(
                r.keys[start].path, r.keys[start].length, r.keys[group.end].path, r.keys[group.end].length) == 0:
            group.end += 1
        groups = <group_t*> r.groups.data
        depth = r.groups.length // sizeof(group_t)
        while depth:
            top = &r.keys[groups[depth - 1].start]
            if is_below(r.keys[start].path, r.keys[start].length, top.path, top.length):
                break
            depth -= 1
        r.groups.length = depth * sizeof(group_t)
        group.last_other = groups[depth - 1].last_other if depth else -1
        if group.last_other >= 0:
            for at in range(group.start, group.end):
                if judge(r, r.keys[at].index, groups, depth) < 0:
                    return -1
        split_group(r, &group)
        if append(&r.groups, &group, sizeof(group_t)) < 0:
            return -1
        if group.has_other:  # an opaque mark lies inside its directory
            for at in range(group.real_end, group.end):
                raw = &r.raws[r.keys[at].index]
                if raw.flags & FLAG_OPAQUE and judge(r, r.keys[at].index, <group_t*> r.groups.data, depth + 1) < 0:
                    return -1
        if emit_group(r, &group) < 0:
            return -1
        start = group.end
    return 0

cdef inline uint32_t find_target(const resolve_t* r, const entry_t* link, uint32_t moment) noexcept nogil:
    """Find the entry that a hard link's target path named at its moment, or NONE."""
    cdef const uint8_t* path = r.scan.aside.data + link.link_offset
    cdef size_t low = 0
    cdef size_t high = r.count
    cdef size_t middle
    cdef uint32_t found = NONE
    cdef int order
    while low < high:  # the last real key of that path before the moment; marks of the path are stepped over below
        middle = (low + high) // 2
        order = compare_bytes(r.keys[middle].path, r.keys[middle].length, path, link.link_length)
        if order == 0 and (is_mark(&r.raws[r.keys[middle].index]) or r.keys[middle].index >= moment):
            order = 1
        if order <= 0:
            low = middle + 1
            if order == 0:
                found = r.keys[middle].index
        else:
            high = middle
    if found != NONE and r.hidden_at[found] <= moment:
        found = NONE
    return found

cdef inline int link_entries(resolve_t* r) noexcept nogil:
    """Give every hard link the entry whose inode it shares, then count each inode's rows."""
    cdef const out_t* outs = <const out_t*> r.outs.data
    cdef uint32_t at, target
    for at in range(<uint32_t> r.count):
        r.roots[at] = at
        r.first[at] = NONE
        if r.raws[at].flags & FLAG_HARDLINK:
            target = find_target(r, &r.raws[at], at)
            if target == NONE or is_directory(&r.raws[target]):
                return fail(r.scan, r.raws[at].header_offset,
                            b"expected a hard link to an earlier entry of the tar that is not a directory")
            r.roots[at] = r.roots[target]
    for at in range(<uint32_t> (r.outs.length // sizeof(out_t))):
        if outs[at].kind == KIND_ENTRY and outs[at].raw != NONE:
            target = r.roots[outs[at].raw]
            r.names[target] += 1
            if r.first[target] == NONE:
                r.first[target] = at
    return 0

cdef inline void fill_row(const resolve_t* r, uint32_t at, entry_t* row) noexcept nogil:
    """Write row `at` of the table."""
    cdef const out_t* outs = <const out_t*> r.outs.data
    cdef const out_t* out = &outs[at]
    cdef uint32_t root
    if out.kind != KIND_ENTRY:
        fill_folder(row, out.flags | (FLAG_IMPLICIT if out.kind == KIND_IMPLICIT else 0))
    elif r.scan.links == 0:
        row[0] = r.raws[out.raw]
        row.flags |= out.flags
    else:
        root = r.roots[out.raw]
        row[0] = r.raws[root]
        row.flags |= out.flags
        row.nlink = r.names[root]
        if r.first[root] != at:
            row.flags |= FLAG_HARDLINK
            row.link_offset = outs[r.first[root]].path_offset
            row.link_length = outs[r.first[root]].path_length
    row.path_offset = out.path_offset
    row.path_length = out.path_length

cdef inline int resolve_entries(resolve_t* r) noexcept nogil:
    """Sort and settle all entries; the rows are then ready for fill_row."""
    cdef size_t at
    cdef bint links = r.scan.links > 0
    cdef out_t root
    r.raws = r.scan.listing.rows
    r.count = r.scan.listing.count
    r.groups.limit = r.chain.limit = r.outs.limit = <size_t> -1
    r.keys = <key_t*> malloc((r.count + 1) * sizeof(key_t))
    r.hidden_at = <uint32_t*> malloc((r.count + 1) * 4)
    r.next_other = <uint32_t*> malloc((r.count + 1) * 4)
    if r.keys == NULL or r.hidden_at == NULL or r.next_other == NULL:
        return -1
    memset(r.hidden_at, 0xFF, r.count * 4)
    for at in range(r.count):
        r.keys[at].path = r.scan.heap.data + r.raws[at].path_offset
        r.keys[at].length = r.raws[at].path_length
        r.keys[at].index = <uint32_t> at
    if sort_keys(r.keys, r.count) < 0 or emit_rows(r) < 0:
        return -1
    if r.outs.length == 0:
        memset(&root, 0, sizeof(out_t))
        root.raw = NONE
        root.kind = KIND_IMPLICIT
        if push_row(r, &root) < 0:
            return -1
    if not links:
        return 0
    r.roots = <uint32_t*> malloc((r.count + 1) * 4)
    r.first = <uint32_t*> malloc((r.count + 1) * 4)
    r.names = <uint32_t*> calloc(r.count + 1, 4)
    if r.roots == NULL or r.first == NULL or r.names == NULL:
        return -1
    return link_entries(r)

cdef inline void release_resolve(resolve_t* r) noexcept nogil:
    free(r.keys)
    free(r.hidden_at)
    free(r.next_other)
    free(r.roots)
    free(r.first)
    free(r.names)
    release(&r.groups)
    release(&r.chain)
    release(&r.outs)
