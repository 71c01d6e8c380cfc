"""Counts the free pages that the host backs, without a step of Python for each page.

A few blocks are looked up one by one. Where memory is so fragmented that there are many, all blocks of up to 128 pages
are counted together: one byte a page of the map becomes the bit ``1 << order`` at each first page of a free block; the
bytes of a range are one large integer, in which every block is split into halves, order by order, until each free page
has a bit of its own. That costs a few operations for each order and 4096 pages.
"""

from collections.abc import Iterable
from typing import Final

from guest.mm.page_alloc import PageAllocator
from guest.mm.page_flags import BUDDY_ORDER
from guest.mm.pageblock import MIGRATE_TYPES
from guest.mm.views.residency import BACKED, Residency, count_in_blocks

_LARGE: Final = 6
"""From this order on a look at a block as a whole is worth it before its pages are counted."""
_FEW: Final = 6
"""Blocks are few when they are fewer than pages >> _FEW: from there on counting them together is faster."""
_SMALL_ORDERS: Final = 8
"""Orders that have a bit in a byte."""
_CHUNK_PAGES: Final = 4096
_ONES: Final = int.from_bytes(b"\x01" * _CHUNK_PAGES, "little")


def _order_bits(orders: int) -> bytes:
    # State byte to `1 << order` for a free block of an order below `orders`, to 0 for anything else.
    return bytes(1 << order if order is not None and order < orders else 0 for order in BUDDY_ORDER)


_ORDER_BITS: Final = tuple(_order_bits(orders) for orders in range(_SMALL_ORDERS + 1))


def count_backed(residency: Residency, pfns: Iterable[int], order: int) -> int:
    """Return how many pages of the blocks of ``order`` that begin at ``pfns`` the host backs."""
    pages = 1 << order
    if order >= _LARGE:
        return count_in_blocks(residency, pfns, pages)
    if order:
        count = residency.count
        return sum([count(BACKED, pfn, pfn + pages) for pfn in pfns])
    return [residency[pfn] for pfn in pfns].count(BACKED)


def count_backed_free(allocator: PageAllocator, residency: Residency, orders: int) -> int:
    """Return how many pages of the free blocks of all orders below ``orders`` the host backs."""
    small = min(orders, _SMALL_ORDERS)
    blocks = sum(sum(zone.nr_free[:small]) for zone in allocator.zones)
    if blocks << _FEW > allocator.total_pages:
        return _count_together(allocator.mem_map, residency, small) + _walk(allocator, residency, range(small, orders))
    return _walk(allocator, residency, range(orders))


def _walk(allocator: PageAllocator, residency: Residency, orders: range) -> int:
    return sum(
        count_backed(residency, zone.free_list.entries(order, migratetype), order)
        for zone in allocator.zones
        for order in orders
        if zone.nr_free[order]
        for migratetype in range(MIGRATE_TYPES)
    )


def _count_together(mem_map: bytearray, residency: Residency, orders: int) -> int:
    bits = _ORDER_BITS[orders]
    backed = 0
    for begin in range(0, len(mem_map), _CHUNK_PAGES):
        end = begin + _CHUNK_PAGES
        if residency.find(BACKED, begin, end) < 0:
            continue
        free = int.from_bytes(mem_map[begin:end].translate(bits), "little")
        if not free:
            continue
        for order in range(orders - 1, 0, -1):
            # First pages of blocks of `order` become those of two blocks of half the size.
            if heads := free >> order & _ONES:
                halves = heads << order - 1
                free |= halves | halves << (8 << order - 1)
        backed += (free & _ONES & int.from_bytes(residency[begin:end], "little")).bit_count()
    return backed
