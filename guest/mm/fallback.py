"""Stealing between migratetypes (Linux mm/page_alloc.c, ``__rmqueue_fallback`` and ``steal_suitable_fallback``).

Which type takes from which, and how much of the pageblock comes along.
"""

from typing import Final

from guest.mm.buddy import Buddy
from guest.mm.free_list import LIST_HEADS
from guest.mm.mmzone import Zone
from guest.mm.pageblock import MAX_ORDER, MigrateType
from guest.mm.watermark import boost_watermark

FALLBACKS: Final[dict[int, tuple[MigrateType, ...]]] = {
    MigrateType.UNMOVABLE: (MigrateType.RECLAIMABLE, MigrateType.MOVABLE),
    MigrateType.MOVABLE: (MigrateType.RECLAIMABLE, MigrateType.UNMOVABLE),
    MigrateType.RECLAIMABLE: (MigrateType.UNMOVABLE, MigrateType.MOVABLE),
}
"""Where a migratetype takes from when its own lists are empty, in this order. The others take from nobody."""


def rmqueue_fallback(allocator: Buddy, zone: Zone, order: int, migratetype: int, *, no_fragment: bool = False) -> bool:
    """Bring a block of at least ``order`` from another type to the lists of ``migratetype``; False when there is none.

    The largest block first, so that types mix as little as possible. Only a movable request that may not take the whole
    pageblock takes the smallest block that will do: movable pages can be moved out of the way later. With
    ``no_fragment`` nothing smaller than a pageblock is taken (ALLOC_NOFRAGMENT).
    """
    if migratetype not in FALLBACKS:
        return False
    pageblock_order = allocator.pageblock_order
    least = max(order, min(pageblock_order, MAX_ORDER)) if no_fragment else order
    for current in range(MAX_ORDER, least - 1, -1):
        if (pfn := _find_suitable_fallback(zone, current, migratetype)) >= 0:
            can_steal = current >= pageblock_order // 2 or migratetype != MigrateType.MOVABLE
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
    allocator: Buddy, zone: Zone, pfn: int, order: int, start_type: int, *, whole_block: bool
) -> None:
    # Move the block, and where `whole_block` allows all free blocks of its pageblock. The pageblock itself changes its
    # type when at least half of it is free or in use in a compatible way. Types that come to share a pageblock are what
    # kswapd is to prevent by keeping more pages free.
    types = allocator.pageblock_migratetype
    pageblock_order = allocator.pageblock_order
    nr_pages = 1 << pageblock_order
    block = pfn >> pageblock_order
    old_type = types[block]
    if old_type == MigrateType.HIGHATOMIC:
        whole_block = False
    elif order >= pageblock_order:
        count = 1 << (order - pageblock_order)
        types[block : block + count] = bytes([start_type]) * count
        whole_block = False
    elif boost_watermark(zone, nr_pages):
        allocator.kswapd_wanted = True
    if whole_block and (block + 1) << pageblock_order <= zone.end_pfn:
        free_pages, movable_pages = allocator.move_freepages_block(pfn, start_type)
        if start_type == MigrateType.MOVABLE:
            alike_pages = movable_pages
        elif old_type == MigrateType.MOVABLE:
            # What is allocated and not movable is unmovable or reclaimable: close enough.
            alike_pages = nr_pages - (free_pages + movable_pages)
        else:
            alike_pages = 0
        if free_pages + alike_pages >= nr_pages // 2:
            types[block] = start_type
        return
    allocator.move_to_free_list(zone, pfn, order, start_type)
