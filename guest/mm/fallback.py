"""Stealing between migratetypes (Linux mm/page_alloc.c, ``__rmqueue_fallback`` and ``steal_suitable_fallback``).

Knows which type takes from which and how much of a pageblock comes along. Must not know how a block is then allocated.
Left out: ``boost_watermark``, which only matters to a kswapd, and ``ALLOC_NOFRAGMENT``.
"""

from typing import TYPE_CHECKING, Final

from guest.mm.free_list import LIST_HEADS
from guest.mm.mmzone import MAX_ORDER, PAGEBLOCK_NR_PAGES, PAGEBLOCK_ORDER, MigrateType, Zone
from protocol.errors import UsageError

if TYPE_CHECKING:
    from guest.mm.page_alloc import PageAllocator

FALLBACKS: Final[dict[int, tuple[MigrateType, ...]]] = {
    MigrateType.UNMOVABLE: (MigrateType.RECLAIMABLE, MigrateType.MOVABLE),
    MigrateType.MOVABLE: (MigrateType.RECLAIMABLE, MigrateType.UNMOVABLE),
    MigrateType.RECLAIMABLE: (MigrateType.UNMOVABLE, MigrateType.MOVABLE),
}
"""Where a migratetype takes from when its own lists are empty, in this order. The others take from nobody."""


def rmqueue_fallback(allocator: "PageAllocator", zone: Zone, order: int, migratetype: int) -> bool:
    """Bring a block of at least ``order`` from another type to the lists of ``migratetype``; False when there is none.

    The largest block first, so that types mix as little as possible. Only a movable request that may not take the whole
    pageblock takes the smallest block that will do: movable pages can be moved out of the way later.

    Raises:
        UsageError: pages of ISOLATE were asked for.
    """
    if migratetype == MigrateType.ISOLATE:
        raise UsageError("pages of an isolated pageblock cannot be allocated")
    if migratetype not in FALLBACKS:
        return False
    for current in range(MAX_ORDER, order - 1, -1):
        if (pfn := _find_suitable_fallback(zone, current, migratetype)) >= 0:
            can_steal = current >= PAGEBLOCK_ORDER // 2 or migratetype != MigrateType.MOVABLE
            if not can_steal:
                current, pfn = _find_smallest(zone, order, migratetype)
            _steal_suitable_fallback(allocator, zone, pfn, current, migratetype, whole_block=can_steal)
            return True
    return False


def _find_suitable_fallback(zone: Zone, order: int, migratetype: int) -> int:
    # The first block of the first type that has one of this order, -1 when none has.
    for fallback in FALLBACKS[migratetype]:
        pfn = zone.free_list.next[LIST_HEADS[fallback][order]]
        if pfn >= 0:
            return pfn
    return -1


def _find_smallest(zone: Zone, order: int, migratetype: int) -> tuple[int, int]:
    # Order and pfn of the smallest block that will do. The caller has seen that there is one.
    while (pfn := _find_suitable_fallback(zone, order, migratetype)) < 0:
        order += 1
    return order, pfn


def _steal_suitable_fallback(
    allocator: "PageAllocator", zone: Zone, pfn: int, order: int, start_type: int, *, whole_block: bool
) -> None:
    # Move the block, and where `whole_block` allows all free blocks of its pageblock. The pageblock itself changes its
    # type when at least half of it is free or in use in a compatible way.
    types = allocator.pageblock_migratetype
    block = pfn >> PAGEBLOCK_ORDER
    old_type = types[block]
    if order >= PAGEBLOCK_ORDER:
        count = 1 << (order - PAGEBLOCK_ORDER)
        types[block : block + count] = bytes([start_type]) * count
    elif whole_block and old_type != MigrateType.HIGHATOMIC:
        free_pages, movable_pages = allocator.move_freepages_block(pfn, start_type)
        if start_type == MigrateType.MOVABLE:
            alike_pages = movable_pages
        elif old_type == MigrateType.MOVABLE:
            # What is allocated and not movable is unmovable or reclaimable: close enough.
            alike_pages = PAGEBLOCK_NR_PAGES - (free_pages + movable_pages)
        else:
            alike_pages = 0
        if free_pages + alike_pages >= PAGEBLOCK_NR_PAGES // 2:
            types[block] = start_type
        return
    allocator.move_to_free_list(zone, pfn, order, start_type)
