"""Blocks of another migratetype, for a request whose own lists are empty (Linux mm/page_alloc.c).

Linux 6.1 (``__rmqueue_fallback``, ``steal_suitable_fallback``) moves blocks to the lists of the type that asks, and
serves the request from these. Linux 7.2 (``__rmqueue_claim``, ``__rmqueue_steal``) claims a whole pageblock that is
mostly free or compatible; where there is no such pageblock it takes the smallest block that will do, and what it does
not need of that block stays with its type. A bulk in which that has happened once goes on so, and looks for no
pageblock any more.
"""

from collections.abc import Iterable
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
"""The types from which a type takes when its own lists are empty, in this order. HIGHATOMIC, CMA and ISOLATE neither
take nor give."""


class RmqueueMode:
    """What the requests of one bulk hand on to each other (``enum rmqueue_mode``, since 6.15): of its values only
    RMQUEUE_STEAL makes a difference."""

    __slots__ = ("is_stealing",)

    def __init__(self) -> None:
        self.is_stealing = False
        """Whether a request of this bulk found no pageblock to claim, and took a single block."""


def rmqueue_fallback(
    allocator: Buddy,
    zone: Zone,
    order: int,
    migratetype: int,
    *,
    no_fragment: bool = False,
    mode: RmqueueMode | None = None,
) -> int:
    """Take a block of ``order`` from another type; return its first page, -1 when no type has one.

    With ``no_fragment`` nothing smaller than a pageblock is taken from (ALLOC_NOFRAGMENT). ``mode`` is that of the bulk
    which the request is part of. The caller gives the page its next state.
    """
    if migratetype not in FALLBACKS:
        return -1
    least = max(order, min(allocator.pageblock_order, MAX_ORDER)) if no_fragment else order
    if not allocator.claims_pageblocks:
        return _move_and_take(allocator, zone, order, migratetype, least)
    pfn = _claim(allocator, zone, order, migratetype, least)
    if pfn < 0 and not no_fragment:
        pfn = rmqueue_steal(allocator, zone, order, migratetype)
        if mode is not None and pfn >= 0:
            mode.is_stealing = True
    return pfn


def _find_suitable_fallback(zone: Zone, orders: Iterable[int], migratetype: int) -> tuple[int, int, int]:
    # Order, type and pfn of the first block of the first type that has one, order by order. The pfn is -1 without one.
    for order in orders:
        for fallback in FALLBACKS[migratetype]:
            pfn = zone.free_list.next[LIST_HEADS[fallback][order]]
            if pfn >= 0:
                return order, fallback, pfn
    return 0, 0, -1


def _may_have_pageblock(allocator: Buddy, order: int, migratetype: int) -> bool:
    # can_steal_fallback, should_try_claim_block. Movable pages among others are no harm: they can be moved out of the
    # way later. So a movable request takes a pageblock only for the sake of a block that is a good part of it.
    return order >= allocator.pageblock_order // 2 or migratetype != MigrateType.MOVABLE


def _pages_compatible(allocator: Buddy, start_type: int, old_type: int, free_pages: int, movable_pages: int) -> int:
    # Pages of a pageblock that are free, or in use in a way that goes well with `start_type`.
    if start_type == MigrateType.MOVABLE:
        return free_pages + movable_pages
    if old_type == MigrateType.MOVABLE:
        # What is allocated and not movable is unmovable or reclaimable: close enough.
        return allocator.pageblock_nr_pages - movable_pages
    return free_pages


def _boost(allocator: Buddy, zone: Zone) -> None:
    # Types that come to share a pageblock are what kswapd is to prevent by keeping more pages free.
    if boost_watermark(zone, allocator.pageblock_nr_pages):
        allocator.kswapd_wanted = True


# --- Linux 6.1 ---


def _move_and_take(allocator: Buddy, zone: Zone, order: int, migratetype: int, least: int) -> int:
    # The largest block first, so that types mix as little as possible; for a movable request that may not have the
    # pageblock, the smallest that will do.
    current, _, pfn = _find_suitable_fallback(zone, range(MAX_ORDER, least - 1, -1), migratetype)
    if pfn < 0:
        return -1
    whole_block = _may_have_pageblock(allocator, current, migratetype)
    if not whole_block:
        current, _, pfn = _find_suitable_fallback(zone, range(order, MAX_ORDER + 1), migratetype)
    _steal_suitable_fallback(allocator, zone, pfn, current, migratetype, whole_block=whole_block)
    return allocator.rmqueue_smallest(zone, order, migratetype)


def _steal_suitable_fallback(
    allocator: Buddy, zone: Zone, pfn: int, order: int, start_type: int, *, whole_block: bool
) -> None:
    # Move the block, and where `whole_block` allows all free blocks of its pageblock. The pageblock itself changes its
    # type when at least half of it is free or in use in a compatible way.
    pageblock_order = allocator.pageblock_order
    block = pfn >> pageblock_order
    old_type = allocator.pageblock_migratetype[block]
    if old_type == MigrateType.HIGHATOMIC:
        whole_block = False
    elif order >= pageblock_order:
        allocator.change_pageblock_range(pfn, order, start_type)
        whole_block = False
    else:
        _boost(allocator, zone)
    if whole_block and (block + 1) << pageblock_order <= zone.end_pfn:
        moved = allocator.move_freepages_block(pfn, start_type)
        if _pages_compatible(allocator, start_type, old_type, *moved) >= allocator.pageblock_nr_pages // 2:
            allocator.pageblock_migratetype[block] = start_type
        return
    allocator.move_to_free_list(zone, pfn, order, start_type)


# --- Linux 7.2 ---


def _claim(allocator: Buddy, zone: Zone, order: int, migratetype: int, least: int) -> int:
    # __rmqueue_claim: from the largest order down, the first block of each whose pageblock can be had.
    for current in range(MAX_ORDER, least - 1, -1):
        if not _may_have_pageblock(allocator, current, migratetype):
            return -1
        _, old_type, pfn = _find_suitable_fallback(zone, (current,), migratetype)
        if pfn >= 0 and _try_to_claim_block(allocator, zone, pfn, current, migratetype, old_type):
            return allocator.rmqueue_smallest(zone, order, migratetype)
    return -1


def _try_to_claim_block(allocator: Buddy, zone: Zone, pfn: int, order: int, start_type: int, old_type: int) -> bool:
    # Bring the block and its pageblocks to `start_type`; False when too much of the pageblock is in use otherwise.
    if order >= allocator.pageblock_order:
        allocator.change_pageblock_range(pfn, order, start_type)
        allocator.move_to_free_list(zone, pfn, order, start_type)
        return True
    _boost(allocator, zone)
    start = pfn & -allocator.pageblock_nr_pages
    if start < zone.start_pfn or start + allocator.pageblock_nr_pages > zone.end_pfn:
        return False
    counted = allocator.count_freepages_block(start)
    if _pages_compatible(allocator, start_type, old_type, *counted) < allocator.pageblock_nr_pages // 2:
        return False
    allocator.move_freepages_block(start, start_type)
    allocator.change_pageblock_range(start, allocator.pageblock_order, start_type)
    return True


def rmqueue_steal(allocator: Buddy, zone: Zone, order: int, migratetype: int) -> int:
    """Take the smallest block of another type that will do, split on the lists of its own type (``__rmqueue_steal``).

    Returns:
        its first page, -1 when no type has one.
    """
    _, old_type, pfn = _find_suitable_fallback(zone, range(order, MAX_ORDER + 1), migratetype)
    return -1 if pfn < 0 else allocator.rmqueue_smallest(zone, order, old_type)
