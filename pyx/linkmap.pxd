# cython: language_level=3
"""Remember where an inode with several names was first seen (inline-only)."""
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free

cdef struct seen_t:
    uint64_t device
    uint64_t inode
    size_t place       # the caller's, never 0; 0 marks a free slot

cdef struct linkmap_t:
    seen_t* slots      # open addressing; the number of slots is a power of two, at most half are taken
    size_t slot_count
    size_t taken

cdef inline seen_t* link_slot(seen_t* slots, size_t slot_count, uint64_t device, uint64_t inode) noexcept nogil:
    """Find the slot that holds an inode, or the free one where it belongs."""
    cdef uint64_t mixed = (inode ^ (device << 32 | device >> 32)) * <uint64_t>0x9E3779B97F4A7C15
    cdef size_t at = <size_t>(mixed >> 17) & (slot_count - 1)
    while slots[at].place and (slots[at].inode != inode or slots[at].device != device):
        at = (at + 1) & (slot_count - 1)
    return &slots[at]

cdef inline seen_t* link_find(linkmap_t* known, uint64_t device, uint64_t inode) noexcept nogil:
    """Find an inode, or the free slot for it (fill device, inode and place, and count it in taken); NULL: no memory."""
    cdef seen_t* slots
    cdef size_t slot_count, at
    if (known.taken + 1) * 2 > known.slot_count:
        slot_count = known.slot_count * 2 if known.slot_count else 256
        slots = <seen_t*>calloc(slot_count, sizeof(seen_t))
        if slots == NULL:
            return NULL
        for at in range(known.slot_count):
            if known.slots[at].place:
                link_slot(slots, slot_count, known.slots[at].device, known.slots[at].inode)[0] = known.slots[at]
        free(known.slots)
        known.slots = slots
        known.slot_count = slot_count
    return link_slot(known.slots, known.slot_count, device, inode)
