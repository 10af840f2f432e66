# cython: language_level=3
"""Walk a directory tree into entry records, and compare walked tables with remembered ones.

A walk has two passes: gather.pxd lists and stats the directories, in any number of threads; then treerow.pxd writes
records and heap in component order, so the result does not depend on how the work was shared. remember.pxd compares.
"""
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize, PyByteArray_Resize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport ENOENT, ENOMEM
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset, strerror
from posix.unistd cimport close

from arena cimport arena_copy, grow
from beneath cimport open_parent, parent_t
from entry cimport entry_t
from gather cimport (
    AT_EMPTY_PATH, GONE, RAISED, close_kept, item_t, node_t, run, start_worker, stat_item,
    stop_worker, walk_t, worker_t, write_path,
)
from remember cimport copy_known, match_rows, table_ok, tables_same
from thread cimport (
    pthread_cond_destroy, pthread_cond_init, pthread_create, pthread_join, pthread_mutex_destroy, pthread_mutex_init,
    pthread_t,
)
from treerow cimport write_rows
from xattr cimport xattr_read, xattr_scratch_t, xattr_start, xattr_stop

cdef enum:
    THREAD_LIMIT = 64


cdef int choose(walk_t* walk, node_t* node) noexcept with gil:
    """Ask the Python `select` which items of a listed directory to keep; 0, or RAISED with the exception put by."""
    cdef size_t index, kept = 0
    cdef const uint8_t[::1] answer
    cdef list context = <list>walk.context
    try:
        path = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>node.path_length)
        write_path(node, PyBytes_AS_STRING(path))
        names = [node.items[index].name[:node.items[index].name_length] for index in range(node.count)]
        modes = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(node.count * 4))
        for index in range(node.count):
            memcpy(PyBytes_AS_STRING(modes) + index * 4, &node.items[index].mode, 4)
        wanted = context[0](path, names, modes)
        if wanted is None:
            return 0
        answer = memoryview(wanted).cast("B")
        if <size_t>answer.shape[0] != node.count:
            raise ValueError(f"select returned {answer.shape[0]} bytes for {node.count} names")
        for index in range(node.count):
            if answer[index]:
                node.items[kept] = node.items[index]
                kept += 1
        node.count = kept
        return 0
    except BaseException as error:
        context.append(error)
        return RAISED


cdef void gather(walk_t* walk, worker_t* workers, int threads) noexcept nogil:
    """Run the workers, the first of them in this thread; a thread that cannot be had leaves its work to the others."""
    cdef pthread_t ids[THREAD_LIMIT]
    cdef int started = 1
    pthread_mutex_init(&walk.lock, NULL)
    pthread_cond_init(&walk.wake, NULL)
    walk.stack = &walk.root
    while started < threads and pthread_create(&ids[started], NULL, &run, &workers[started]) == 0:
        started += 1
    run(&workers[0])
    while started > 1:
        started -= 1
        pthread_join(ids[started], NULL)
    pthread_cond_destroy(&walk.wake)
    pthread_mutex_destroy(&walk.lock)


cdef tuple assemble(walk_t* walk, worker_t* workers, int threads):
    """Turn what was gathered into (records, heap)."""
    cdef size_t rows = 1, heap_bytes = walk.root_item.xattr_length, linked = 0, slots = 16, used
    cdef uint64_t* first
    cdef int index
    for index in range(threads):
        rows += workers[index].rows
        heap_bytes += workers[index].heap_bytes
        linked += workers[index].linked
    while slots < linked * 2:
        slots *= 2
    records = PyByteArray_FromStringAndSize(NULL, <Py_ssize_t>(rows * sizeof(entry_t)))
    heap = PyByteArray_FromStringAndSize(NULL, <Py_ssize_t>heap_bytes)
    first = <uint64_t*>calloc(slots, sizeof(uint64_t))
    if first == NULL:
        raise MemoryError
    cdef entry_t* table = <entry_t*>PyByteArray_AS_STRING(records)
    cdef char* text = PyByteArray_AS_STRING(heap)
    with nogil:
        used = write_rows(walk, table, text, first, slots - 1, &heap_bytes)
        free(first)
    # Room for what vanished, and for the targets of hard-linked symlinks, was not used.
    PyByteArray_Resize(records, <Py_ssize_t>(used * sizeof(entry_t)))
    PyByteArray_Resize(heap, <Py_ssize_t>heap_bytes)
    return records, heap


def walk(int root_fd, select=None, bint xattrs=False, int threads=1, bint cross_devices=True):
    """Walk the directory tree below root_fd and return (records, heap) in component order.

    Row 0 is the root. select(directory_path, names, modes) is called once per directory and keeps the work in
    one thread. Releases the GIL except for select. Raises OSError with the filename as bytes. See walk.pyi.
    """
    cdef walk_t state
    cdef worker_t* workers
    cdef int index, failure = 0
    cdef list context = [select]
    if threads < 1:
        raise ValueError("threads must be at least 1")
    threads = 1 if select is not None else min(threads, THREAD_LIMIT)
    memset(&state, 0, sizeof(state))
    state.root_fd = root_fd
    state.root.fd = -1
    state.root.self = &state.root_item
    state.cross_devices = cross_devices
    state.want_xattrs = xattrs
    state.context = <void*>context
    if select is not None:
        state.choose = choose
    workers = <worker_t*>calloc(threads, sizeof(worker_t))
    if workers == NULL:
        raise MemoryError
    try:
        for index in range(threads):
            if start_worker(&workers[index], &state) != 0:
                raise MemoryError
        with nogil:
            failure = read_root(&state, &workers[0])
            if not failure:
                gather(&state, workers, threads)
        if len(context) > 1:
            raise context[1]
        if failure or state.error:
            failure = failure or state.error
            path = b"" if state.error_path == NULL else state.error_path[:state.error_length]
            raise_error(failure, path)
        return assemble(&state, workers, threads)
    finally:
        if state.error:
            close_kept(&state.root)
        free(state.error_path)
        for index in range(threads):
            stop_worker(&workers[index])
        free(workers)


cdef int read_root(walk_t* walk, worker_t* worker) noexcept nogil:
    """Fill row 0; 0 or an errno."""
    cdef item_t* item = &walk.root_item
    cdef int failure = stat_item(item, walk.root_fd, b"", AT_EMPTY_PATH)
    if failure == 0 and walk.want_xattrs:
        failure = xattr_read(&worker.xattrs, walk.root_fd, b".")
        item.xattr_length = <uint32_t>worker.xattrs.size
        if worker.xattrs.size:
            item.xattrs = arena_copy(&worker.arena, worker.xattrs.encoded, worker.xattrs.size)
            if item.xattrs == NULL:
                return ENOMEM
    return ENOENT if failure == GONE else failure


cdef int raise_error(int failure, bytes path) except -1:
    if failure == ENOMEM:
        raise MemoryError
    raise OSError(failure, strerror(failure).decode(), path)


cdef int check_tables(
    const uint8_t[::1] records, const uint8_t[::1] heap, const uint8_t[::1] known_records, const uint8_t[::1] known_heap
) except -1:
    cdef bint ok
    with nogil:
        ok = table_ok(records, heap) and table_ok(known_records, known_heap)
    if not ok:
        raise ValueError("a record reaches beyond its heap, or the records are not whole")
    return 0


def same(
    const uint8_t[::1] records, const uint8_t[::1] heap, const uint8_t[::1] known_records,
    const uint8_t[::1] known_heap, int64_t trusted_before_ns,
):
    """Tell whether two walked tables name the same paths with the same stat and links, none of them racy.

    blake3, FLAG_HASHED, xattrs and heap offsets are not compared. Releases the GIL; one pass. ValueError when a
    record reaches beyond its heap.
    """
    cdef bint equal
    check_tables(records, heap, known_records, known_heap)
    if records.shape[0] != known_records.shape[0]:
        return False
    with nogil:
        equal = tables_same(
            <const entry_t*>&records[0], <const char*>&heap[0], <const entry_t*>&known_records[0],
            <const char*>&known_heap[0], <size_t>records.shape[0] // sizeof(entry_t), trusted_before_ns,
        )
    return equal


def recall(
    bytearray records not None, bytearray heap not None, const uint8_t[::1] known_records,
    const uint8_t[::1] known_heap, int64_t trusted_before_ns,
):
    """Copy blake3 and xattrs from the known table to the rows whose stat is unchanged; return the others.

    The result is the native uint32 indexes of the rows that did not match; a regular file whose known row has no
    hash is one of them. Grows heap by the recalled xattrs; on an exception nothing was changed. Releases the GIL.
    """
    cdef uint8_t[::1] rows = records
    cdef const uint8_t[::1] text = heap
    cdef size_t at = <size_t>len(heap), missing, xattr_bytes
    cdef const entry_t** matches
    cdef uint8_t* grown
    cdef uint32_t* indexes
    check_tables(rows, text, known_records, known_heap)
    matches = <const entry_t**>malloc(rows.shape[0] // sizeof(entry_t) * sizeof(entry_t*) + 1)
    if matches == NULL:
        raise MemoryError
    try:
        with nogil:
            missing = match_rows(rows, text, known_records, known_heap, trusted_before_ns, matches, &xattr_bytes)
        others = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(missing * 4))
        text = None  # an exported bytearray cannot be resized
        if xattr_bytes:
            PyByteArray_Resize(heap, <Py_ssize_t>(at + xattr_bytes))
        text = heap
        grown = <uint8_t*>PyByteArray_AS_STRING(heap)
        indexes = <uint32_t*>PyBytes_AS_STRING(others)
        with nogil:
            copy_known(rows, grown, at, known_heap, matches, indexes)
        return others
    finally:
        free(matches)


cdef struct reading_t:
    xattr_scratch_t scratch
    parent_t parent
    uint8_t* encoded          # of all rows so far, one after the other
    size_t capacity
    size_t size
    uint32_t* lengths         # one per row
    size_t done


cdef int read_rows(
    reading_t* reading, int root_fd, const entry_t* rows, const char* heap, const uint8_t* picked, size_t count
) noexcept nogil:
    """Read the xattrs of the picked rows; 0, or the errno of row number reading.done."""
    cdef const entry_t* row
    cdef uint32_t index
    cdef int failure
    cdef void* moved
    for reading.done in range(count):
        memcpy(&index, picked + reading.done * 4, 4)
        row = rows + index
        failure = open_parent(&reading.parent, root_fd, heap + row.path_offset, row.path_length)
        if not failure:
            failure = xattr_read(&reading.scratch, reading.parent.fd, reading.parent.name)
        if failure:
            return failure
        if reading.scratch.size:
            moved = grow(reading.encoded, &reading.capacity, reading.size + reading.scratch.size, 1)
            if moved == NULL:
                return ENOMEM
            reading.encoded = <uint8_t*>moved
            memcpy(reading.encoded + reading.size, reading.scratch.encoded, reading.scratch.size)
        reading.size += reading.scratch.size
        reading.lengths[reading.done] = <uint32_t>reading.scratch.size
    return 0


def read_xattrs(
    int root_fd, bytearray records not None, bytearray heap not None, const uint8_t[::1] indexes not None
):
    """Read the extended attributes of the rows named by indexes (native uint32) into the table, growing heap.

    Releases the GIL. OSError with the filename on the first failure, a vanished entry included; the table is
    unchanged then.
    """
    cdef uint8_t[::1] rows = records
    cdef const uint8_t[::1] text = heap
    cdef const uint8_t* picked = &indexes[0]
    cdef size_t count = <size_t>indexes.shape[0] // 4, limit = <size_t>len(records) // sizeof(entry_t)
    cdef size_t at = <size_t>len(heap), index
    cdef uint32_t row
    cdef entry_t* found
    cdef reading_t reading
    cdef int failure
    check_tables(rows, text, rows, text)
    if <size_t>indexes.shape[0] != count * 4:
        raise ValueError("indexes are not whole uint32")
    for index in range(count):
        memcpy(&row, picked + index * 4, 4)
        if row >= limit:
            raise ValueError(f"index {row} is beyond the last row")
    memset(&reading, 0, sizeof(reading))
    reading.parent.fd = -1
    reading.lengths = <uint32_t*>malloc(count * 4 + 1)
    try:
        if reading.lengths == NULL or xattr_start(&reading.scratch) != 0:
            raise MemoryError
        with nogil:
            failure = read_rows(&reading, root_fd, <const entry_t*>&rows[0], <const char*>&text[0], picked, count)
        if failure:
            memcpy(&row, picked + reading.done * 4, 4)
            found = <entry_t*>&rows[0] + row
            path = PyBytes_FromStringAndSize(<const char*>&text[0] + found.path_offset, found.path_length)
            raise_error(failure, path)
        text = None
        if reading.size:
            PyByteArray_Resize(heap, <Py_ssize_t>(at + reading.size))
            memcpy(PyByteArray_AS_STRING(heap) + at, reading.encoded, reading.size)
        for index in range(count):
            memcpy(&row, picked + index * 4, 4)
            found = <entry_t*>&rows[0] + row
            found.xattr_offset = at
            found.xattr_length = reading.lengths[index]
            at += reading.lengths[index]
    finally:
        if reading.parent.fd >= 0:
            close(reading.parent.fd)
        free(reading.parent.path)
        xattr_stop(&reading.scratch)
        free(reading.lengths)
        free(reading.encoded)
