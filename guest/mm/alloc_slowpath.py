"""What happens when a request cannot be served at once (Linux mm/page_alloc.c as of 6.1, ``__alloc_pages_slowpath``).

The steps, in order:

1. try every zone above its low watermark, filling an empty per-CPU list on the way; steal from another type's pageblock
   only when no zone has a whole pageblock to give
2. wake kswapd; try every zone above its minimum watermark. A request that cannot wait goes below that mark, may use the
   HIGHATOMIC pageblocks, and fails when that does not help
3. compact, for blocks of more than 8 pages, or of several unmovable pages
4. reclaim, and compact for blocks of several pages, for as long as that makes progress; pages on per-CPU lists and in
   the HIGHATOMIC reserve return to the buddy lists
5. out of memory: ``on_out_of_memory`` may free something. Never for blocks of more than 8 pages
"""

from typing import TYPE_CHECKING, Final

from guest.mm import highatomic
from guest.mm.fallback import RmqueueMode, rmqueue_fallback, rmqueue_steal
from guest.mm.mmzone import Zone, highest_zone_type
from guest.mm.page_flags import ALLOCATED, MOVABLE, PCP
from guest.mm.pageblock import MigrateType
from guest.mm.pcp import PAGE_ALLOC_COSTLY_ORDER, PageList
from guest.mm.watermark import AllocFlags, low_wmark_pages, min_wmark_pages, zone_watermark_ok
from protocol.errors import UsageError

if TYPE_CHECKING:
    from guest.mm.page_alloc import PageAllocator

_MOVABLE: Final = MigrateType.MOVABLE
_CMA: Final = MigrateType.CMA
_HIGHATOMIC: Final = MigrateType.HIGHATOMIC


def alloc_pages_slowpath(allocator: "PageAllocator", order: int, migratetype: int, flags: AllocFlags) -> int | None:
    """Serve a request that the preferred zone could not serve at once, or return None.

    Raises:
        UsageError: pages of ISOLATE were asked for.
    """
    if migratetype == MigrateType.ISOLATE:
        raise UsageError("pages of an isolated pageblock cannot be allocated")
    pfn = _get_page_from_freelist(allocator, order, migratetype, AllocFlags.NONE, low=True)
    if pfn < 0:
        if not flags & AllocFlags.NO_KSWAPD:
            allocator.vmscan.wakeup_kswapd(order, migratetype)
        pfn = _get_page_from_freelist(allocator, order, migratetype, flags, low=False)
    if pfn < 0 and not flags & (AllocFlags.ATOMIC | AllocFlags.NORETRY | AllocFlags.NO_WATERMARKS):
        pfn = _make_room(allocator, order, migratetype)
    if allocator.kswapd_wanted:
        if pfn >= 0:
            # The caller does not know of this block yet, so it must not be moved.
            allocator.mem_map[pfn] = ALLOCATED | order
        allocator.vmscan.wakeup_kswapd(order, migratetype)
    if pfn < 0:
        return None
    allocator.mem_map[pfn] = ALLOCATED | MOVABLE | order if migratetype == _MOVABLE else ALLOCATED | order
    return pfn


def _make_room(allocator: "PageAllocator", order: int, migratetype: int) -> int:
    # The part that may take time: compact, reclaim, compact again, and at last the out-of-memory event. -1 on failure.
    def attempt() -> int:
        return _get_page_from_freelist(allocator, order, migratetype, AllocFlags.NONE, low=False)

    vmscan = allocator.vmscan
    # Reclaim does not cure fragmentation: blocks that it is unlikely to yield are made by compaction first.
    compact_first = order > PAGE_ALLOC_COSTLY_ORDER or (order > 0 and migratetype != _MOVABLE)
    if compact_first and vmscan.compact(order, migratetype) and (pfn := attempt()) >= 0:
        return pfn
    while True:
        progress = vmscan.direct_reclaim(order)
        if (pfn := attempt()) >= 0:
            return pfn
        highatomic.unreserve(allocator, migratetype)
        allocator.drain_all_pages()
        if (pfn := attempt()) >= 0:
            return pfn
        if order and vmscan.compact(order, migratetype) and (pfn := attempt()) >= 0:
            return pfn
        if progress and order <= PAGE_ALLOC_COSTLY_ORDER:
            continue
        if highatomic.unreserve(allocator, migratetype, force=True):
            continue
        if order > PAGE_ALLOC_COSTLY_ORDER or not vmscan.out_of_memory(order, migratetype):
            return -1


def _get_page_from_freelist(
    allocator: "PageAllocator", order: int, migratetype: int, flags: AllocFlags, *, low: bool
) -> int:
    # The first zone, from the highest down, that stays above its mark and has a block. -1 when none has.
    highest = highest_zone_type(migratetype)
    for no_fragment in (True, False) if allocator.no_fragment and low else (False,):
        for zone in allocator.zonelists[migratetype]:
            mark = low_wmark_pages(zone) if low else min_wmark_pages(zone)
            if flags & AllocFlags.NO_WATERMARKS or zone_watermark_ok(
                zone, order, mark, highest, migratetype=migratetype, flags=flags
            ):
                pfn = _rmqueue_zone(allocator, zone, order, migratetype, flags, no_fragment)
                if pfn >= 0:
                    allocator.mem_map[pfn] = ALLOCATED | order
                    if order and flags & AllocFlags.ATOMIC:
                        highatomic.reserve(allocator, zone, pfn, order)
                    return pfn
    return -1


def _rmqueue_zone(
    allocator: "PageAllocator", zone: Zone, order: int, migratetype: int, flags: AllocFlags, no_fragment: bool
) -> int:
    # rmqueue: the per-CPU list, then for urgent requests of several pages the reserve, then the buddy lists.
    pcp = zone.pcp
    if pcp is not None:
        pages = pcp.for_alloc[migratetype][order]
        if pages is not None and (
            pages or _rmqueue_bulk(allocator, zone, order, migratetype, pages, no_fragment=no_fragment)
        ):
            pcp.count -= 1 << order
            pcp.free_factor >>= 1
            return pages.pop()
    if order and flags & AllocFlags.ATOMIC:
        pfn = allocator.rmqueue_smallest(zone, order, _HIGHATOMIC)
        if pfn >= 0:
            return pfn
    return rmqueue(allocator, zone, order, migratetype, no_fragment=no_fragment)


def _rmqueue_bulk(
    allocator: "PageAllocator", zone: Zone, order: int, migratetype: int, pages: PageList, *, no_fragment: bool = False
) -> bool:
    # Fetch a batch of blocks for an empty per-CPU list; False when there was not even one. They arrive at the cold end
    # one after the other, so the first one fetched, the lowest, is handed out first.
    pcp = zone.pcp
    if pcp is None:
        return False
    mem_map = allocator.mem_map
    mode = RmqueueMode()
    for _ in range(pcp.refill_count(order)):
        pfn = rmqueue(allocator, zone, order, migratetype, no_fragment=no_fragment, mode=mode)
        if pfn < 0:
            break
        mem_map[pfn] = PCP | order
        pages.appendleft(pfn)
        pcp.count += 1 << order
    return bool(pages)


def rmqueue(
    allocator: "PageAllocator",
    zone: Zone,
    order: int,
    migratetype: int,
    *,
    no_fragment: bool = False,
    mode: RmqueueMode | None = None,
) -> int:
    """Take a block off the buddy lists and return its first page, -1 on failure (``__rmqueue``).

    ``mode`` is shared by the requests of one bulk.

    Movable requests use CMA pageblocks first while these hold more than half of the free pages, so that they do not
    stay empty while the rest fills up. Otherwise CMA pageblocks come after their own lists and before other types.
    """
    uses_cma = migratetype == _MOVABLE and zone.free_cma_pages > 0
    if uses_cma and zone.free_cma_pages > zone.free_pages // 2:
        pfn = _rmqueue_cma(allocator, zone, order)
        if pfn >= 0:
            return pfn
    if migratetype == _CMA:
        return _rmqueue_cma(allocator, zone, order)
    if mode is not None and mode.is_stealing:
        return rmqueue_steal(allocator, zone, order, migratetype)
    pfn = allocator.rmqueue_smallest(zone, order, migratetype)
    if pfn < 0 and uses_cma:
        pfn = _rmqueue_cma(allocator, zone, order)
    if pfn < 0:
        pfn = rmqueue_fallback(allocator, zone, order, migratetype, no_fragment=no_fragment, mode=mode)
    return pfn


def _rmqueue_cma(allocator: "PageAllocator", zone: Zone, order: int) -> int:
    pfn = allocator.rmqueue_smallest(zone, order, _CMA)
    if pfn >= 0:
        zone.free_cma_pages -= 1 << order
    return pfn
