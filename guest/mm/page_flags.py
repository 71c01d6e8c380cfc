"""What one byte per page says (the part of Linux ``include/linux/page-flags.h`` that matters here).

Only the first page of a block carries a state; the other pages of it are 0. The low four bits are the order::

    0x10 | order           Buddy: a free block, on exactly one free list
    0x30 | order           Buddy and Reported: free, and the host was told
    0x40 | order           allocated
    0x60 | order           allocated, movable (as in the kernel one bit serves twice: Reported is PG_uptodate there)
    0x80 | order           isolated: taken off its list by a reporter, neither free nor allocated
    0x90 | order           on a per-CPU list: free for its last owner, in use for the buddy lists
    0xff                   absent: a hole, or padding up to a whole block of MAX_ORDER
    0                      not the first page of a block

The tables turn a state byte into an order with one look-up; the hot paths of ``page_alloc`` depend on that.
"""

from typing import Final

from guest.mm.pageblock import NR_PAGE_ORDERS

ORDER_MASK: Final = 0x0F
BUDDY: Final = 0x10
REPORTED: Final = 0x20
MOVABLE: Final = 0x20
ALLOCATED: Final = 0x40
ISOLATED: Final = 0x80
PCP: Final = 0x90
ABSENT: Final = 0xFF
TAIL: Final = 0x00


def _orders_of(*bits: int) -> tuple[int | None, ...]:
    # A table of 256 entries: the order for every state made of one of `bits` and an order, None for all others.
    valid = {bit | order: order for bit in bits for order in range(NR_PAGE_ORDERS)}
    return tuple(valid.get(state) for state in range(256))


BUDDY_ORDER: Final = _orders_of(BUDDY, BUDDY | REPORTED)
"""State byte to order for a free block, reported or not; None for anything else (``PageBuddy`` and ``buddy_order``)."""
ALLOCATED_ORDER: Final = _orders_of(ALLOCATED, ALLOCATED | MOVABLE)
"""State byte to order for an allocated block; None for anything else."""
BLOCK_ORDER: Final = _orders_of(BUDDY, BUDDY | REPORTED, ALLOCATED, ALLOCATED | MOVABLE, ISOLATED, PCP)
"""State byte to order for the first page of any block; None for anything else."""


def page_reported(mem_map: bytearray, pfn: int) -> bool:
    """Return whether ``pfn`` is the first page of a free block that the host was told about (``page_reported``)."""
    return mem_map[pfn] & (BUDDY | REPORTED | ALLOCATED | ISOLATED) == BUDDY | REPORTED
