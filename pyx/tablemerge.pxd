# cython: language_level=3
"""Merge layer tables: which row of which layer is visible at each path (inline-only).

A k-way merge over the sorted tables with a binary heap of cursors. Rows of one path are taken together and judged
from the highest layer down; `floor` is the lowest layer that may still be seen below a directory.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from entry cimport FLAG_HARDLINK, FLAG_IMPLICIT, FLAG_OPAQUE, FLAG_WHITEOUT, entry_t
from growable cimport append, growable_t, release
from pathsort cimport is_below
from rowtable cimport (
    NO_ROW, TYPE_DIRECTORY, check_table, compare_rows, find_file, is_folder, path_of, refusal_t, refuse, table_t,
)

cdef struct pick_t:
    uint32_t layer
    uint32_t row             # NO_ROW: a root that no table has
    uint32_t file            # row of the same layer that holds the inode

cdef struct folder_t:        # a path that lower or higher rows may lie below
    const uint8_t* path
    uint32_t length
    uint32_t floor
    bint open                # it is a directory of the merged tree

cdef struct merge_t:
    table_t* tables
    size_t layers
    size_t* at               # by layer: next row
    uint32_t* queue          # binary heap of layers, smallest path first
    size_t waiting
    uint32_t* same           # layers whose next row has the current path, highest first
    size_t same_count
    growable_t folders       # stack of folder_t
    growable_t picks         # pick_t, in component order
    uint64_t* base           # by layer: number of its row 0 over all layers
    uint32_t* first          # by row over all layers: first pick of that inode
    uint32_t* names          # and how many there are
    bint links
    uint64_t heap_length
    refusal_t* refusal

cdef inline bint comes_before(const merge_t* m, uint32_t a, uint32_t b) noexcept nogil:
    """Order two layers by their next row's path, the higher layer first when equal."""
    cdef int order = compare_rows(&m.tables[a], &m.tables[a].rows[m.at[a]], &m.tables[b], &m.tables[b].rows[m.at[b]])
    return order < 0 or (order == 0 and a > b)

cdef inline void sift_down(merge_t* m, size_t at) noexcept nogil:
    cdef uint32_t moving = m.queue[at]
    cdef size_t child = 2 * at + 1
    while child < m.waiting:
        if child + 1 < m.waiting and comes_before(m, m.queue[child + 1], m.queue[child]):
            child += 1
        if not comes_before(m, m.queue[child], moving):
            break
        m.queue[at] = m.queue[child]
        at = child
        child = 2 * at + 1
    m.queue[at] = moving

cdef inline void take_same(merge_t* m) noexcept nogil:
    """Move every cursor that stands at the smallest path on by one, noting the layers, highest first."""
    cdef uint32_t layer = m.queue[0]
    cdef const table_t* table = &m.tables[layer]
    cdef const entry_t* lead = &table.rows[m.at[layer]]
    cdef uint32_t following
    m.same_count = 0
    while True:
        m.same[m.same_count] = layer
        m.same_count += 1
        m.at[layer] += 1
        if m.at[layer] == m.tables[layer].count:
            m.waiting -= 1
            m.queue[0] = m.queue[m.waiting]
        if m.waiting == 0:
            return
        sift_down(m, 0)
        following = m.queue[0]
        if compare_rows(table, lead, &m.tables[following], &m.tables[following].rows[m.at[following]]) != 0:
            return
        layer = following

cdef inline void settle_floor(const merge_t* m, size_t at, uint32_t floor, folder_t* folder) noexcept nogil:
    """Find the layer from which on a directory's children are seen, below the row that gave its metadata."""
    cdef uint32_t layer
    cdef const entry_t* row
    for at in range(at, m.same_count):
        layer = m.same[at]
        if layer < floor:
            return
        row = &m.tables[layer].rows[m.at[layer] - 1]
        if row.flags & FLAG_WHITEOUT or not is_folder(row):
            folder.floor = layer + 1
            return
        if row.flags & FLAG_OPAQUE:
            folder.floor = layer
            return

cdef inline bint judge_same(const merge_t* m, uint32_t floor, pick_t* pick, folder_t* folder) noexcept nogil:
    """Decide one path from the highest layer down; True when a row is visible, folder says what may lie below."""
    cdef bint content = True     # lower children are still seen
    cdef bint found = False
    cdef size_t at
    cdef uint32_t layer
    cdef const entry_t* row
    folder.floor = floor
    folder.open = False
    for at in range(m.same_count):
        layer = m.same[at]
        if layer < floor:
            break
        row = &m.tables[layer].rows[m.at[layer] - 1]
        if row.flags & FLAG_WHITEOUT or not is_folder(row):
            if content:
                folder.floor = layer + 1
            if not found and not row.flags & FLAG_WHITEOUT:
                pick.layer = layer
                pick.row = <uint32_t> (m.at[layer] - 1)
                return True
            break
        # metadata: the highest row that the tar really holds, else the lowest implicit one
        pick.layer = layer
        pick.row = <uint32_t> (m.at[layer] - 1)
        found = True
        folder.open = True
        if content and row.flags & FLAG_OPAQUE:
            folder.floor = layer
            content = False
        if not row.flags & FLAG_IMPLICIT:
            # metadata is settled; go on only to learn what hides lower children
            if content:
                settle_floor(m, at + 1, floor, folder)
            return True
    return found

cdef inline const folder_t* enclosing(merge_t* m, const uint8_t* path, uint32_t length) noexcept nogil:
    """Cut the folder stack back to the nearest one above path; NULL when there is none (path is the root)."""
    cdef folder_t* top
    while m.folders.length:
        top = &(<folder_t*> m.folders.data)[m.folders.length // sizeof(folder_t) - 1]
        if is_below(path, length, top.path, top.length):
            return top
        m.folders.length -= sizeof(folder_t)
    return NULL

cdef inline bint is_child(const uint8_t* path, uint32_t length, uint32_t parent_length) noexcept nogil:
    """Tell whether a path known to lie below a directory lies directly in it."""
    cdef size_t at
    for at in range(parent_length + 1 if parent_length else 0, length):
        if path[at] == 47:
            return False
    return True

cdef inline int pick_file(merge_t* m, pick_t* pick) noexcept nogil:
    """Add a visible row, counting the names of its inode when there are hard links."""
    cdef uint64_t number
    cdef size_t found
    cdef uint32_t at = <uint32_t> (m.picks.length // sizeof(pick_t))
    cdef const entry_t* row
    pick.file = pick.row
    if m.links and pick.row != NO_ROW and not is_folder(&m.tables[pick.layer].rows[pick.row]):
        found = find_file(&m.tables[pick.layer], pick.row, m.refusal)
        if found == NO_ROW:
            m.refusal.layer = pick.layer
            return -1
        pick.file = <uint32_t> found
        number = m.base[pick.layer] + found
        m.names[number] += 1
        if m.names[number] == 1:
            m.first[number] = at
    if pick.row != NO_ROW:
        row = &m.tables[pick.layer].rows[pick.file]
        m.heap_length += m.tables[pick.layer].rows[pick.row].path_length + <uint64_t> row.link_length + row.xattr_length
    return append(&m.picks, pick, sizeof(pick_t))

cdef inline int merge_path(merge_t* m) noexcept nogil:
    """Judge the rows that take_same found."""
    cdef uint32_t layer = m.same[0]
    cdef const entry_t* row = &m.tables[layer].rows[m.at[layer] - 1]
    cdef const folder_t* above
    cdef folder_t folder
    cdef pick_t pick
    folder.path = path_of(&m.tables[layer], row)
    folder.length = row.path_length
    above = enclosing(m, folder.path, folder.length)
    if above != NULL and layer < above.floor:
        return 0  # hidden, and so is everything below it
    if row.path_length and (above == NULL or not above.open or not is_child(folder.path, folder.length, above.length)):
        m.refusal.layer = layer
        return refuse(m.refusal, b"has no row for the directory it lies in", m.at[layer] - 1)
    if judge_same(m, above.floor if above != NULL else 0, &pick, &folder):
        if pick_file(m, &pick) < 0:
            return -1
    return append(&m.folders, &folder, sizeof(folder_t))

cdef inline int prepare_merge(merge_t* m) noexcept nogil:
    """Check the tables and take memory."""
    cdef size_t layer, at
    cdef uint64_t total = 0
    m.folders.limit = m.picks.limit = <size_t> -1
    m.at = <size_t*> calloc(m.layers + 1, sizeof(size_t))
    m.queue = <uint32_t*> malloc((m.layers + 1) * 4)
    m.same = <uint32_t*> malloc((m.layers + 1) * 4)
    m.base = <uint64_t*> malloc((m.layers + 1) * 8)
    if m.at == NULL or m.queue == NULL or m.same == NULL or m.base == NULL:
        return -1
    for layer in range(m.layers):
        if check_table(&m.tables[layer], m.refusal) < 0:
            m.refusal.layer = layer
            return -1
        m.base[layer] = total
        total += m.tables[layer].count
        if m.tables[layer].count:
            m.queue[m.waiting] = <uint32_t> layer
            m.waiting += 1
        for at in range(m.tables[layer].count):
            if m.tables[layer].rows[at].flags & FLAG_HARDLINK:
                m.links = True
                break
    if total >= NO_ROW:
        return refuse(m.refusal, b"is beyond 4294967294 rows in all", 0)
    if m.links:
        m.first = <uint32_t*> malloc((total + 1) * 4)
        m.names = <uint32_t*> calloc(total + 1, 4)
        if m.first == NULL or m.names == NULL:
            return -1
    return 0

cdef inline int merge_tables(merge_t* m) noexcept nogil:
    """Pick the visible rows of all layers; linear in the rows, times the logarithm of the layers."""
    cdef size_t at
    cdef pick_t root
    cdef folder_t folder
    if prepare_merge(m) < 0:
        return -1
    at = m.waiting // 2
    while at > 0:
        at -= 1
        sift_down(m, at)
    if m.waiting == 0 or m.tables[m.queue[0]].rows[0].path_length:  # no table has a root: the result does
        root.layer = 0
        root.row = NO_ROW
        memset(&folder, 0, sizeof(folder_t))
        folder.path = <const uint8_t*> b""
        folder.open = True
        if pick_file(m, &root) < 0 or append(&m.folders, &folder, sizeof(folder_t)) < 0:
            return -1
    while m.waiting:
        take_same(m)
        if merge_path(m) < 0:
            return -1
    return 0

cdef inline uint64_t copy_out(
    const table_t* table, uint64_t source, uint32_t length, uint8_t* heap, uint64_t* used
) noexcept nogil:
    """Copy from the table's heap to the end of the new one; return where it went."""
    cdef uint64_t offset = used[0]
    if length:  # an empty field's offset is not checked, so no pointer is made of it
        memcpy(heap + offset, table.heap + source, length)
    used[0] += length
    return offset

cdef inline uint64_t fill_merged(const merge_t* m, entry_t* out, uint8_t* heap) noexcept nogil:
    """Write the picked rows and their heap; return the heap's length, at most heap_length."""
    cdef const pick_t* picks = <const pick_t*> m.picks.data
    cdef const pick_t* pick
    cdef const table_t* table
    cdef const entry_t* named
    cdef entry_t* row
    cdef uint64_t used = 0
    cdef uint64_t number
    cdef size_t at
    for at in range(m.picks.length // sizeof(pick_t)):
        pick = &picks[at]
        row = &out[at]
        if pick.row == NO_ROW:
            memset(row, 0, sizeof(entry_t))
            row.mode = TYPE_DIRECTORY | 0o755
            row.nlink = 1
            row.flags = FLAG_IMPLICIT
            continue
        table = &m.tables[pick.layer]
        named = &table.rows[pick.row]
        row[0] = table.rows[pick.file]
        row.flags &= ~<uint32_t> FLAG_OPAQUE
        row.layer = pick.layer
        row.path_length = named.path_length
        row.path_offset = copy_out(table, named.path_offset, named.path_length, heap, &used)
        row.xattr_offset = copy_out(table, row.xattr_offset, row.xattr_length, heap, &used)
        number = m.base[pick.layer] + pick.file
        if not is_folder(row):
            row.nlink = m.names[number] if m.links else 1
        if m.links and not is_folder(row) and m.first[number] != at:
            row.flags |= FLAG_HARDLINK
            row.link_offset = out[m.first[number]].path_offset
            row.link_length = out[m.first[number]].path_length
        else:
            row.link_offset = copy_out(table, row.link_offset, row.link_length, heap, &used)
    return used

cdef inline void release_merge(merge_t* m) noexcept nogil:
    free(m.at)
    free(m.queue)
    free(m.same)
    free(m.base)
    free(m.first)
    free(m.names)
    release(&m.folders)
    release(&m.picks)
