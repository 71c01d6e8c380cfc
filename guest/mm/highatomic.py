"""The reserve of pageblocks for urgent requests of several pages (Linux mm/page_alloc.c, MIGRATE_HIGHATOMIC).

When a pageblock joins the reserve, and when it leaves; how much the watermarks leave out for it. Since Linux 6.8 the
reserve is whole pageblocks of a hundredth of the zone, so a small zone has none; since 6.10 a block that is larger than
a pageblock joins as a whole; since 6.13 the watermarks leave out what is free in the reserve, not all of it.
"""

from typing import Final

from guest.mm.buddy import Buddy
from guest.mm.free_list import LIST_HEADS
from guest.mm.mmzone import Zone
from guest.mm.pageblock import MIGRATE_PCPTYPES, NR_PAGE_ORDERS, MigrateType
from guest.mm.watermark import refresh

_HIGHATOMIC: Final = MigrateType.HIGHATOMIC


def reserve(allocator: Buddy, zone: Zone, pfn: int, order: int) -> bool:
    """Keep the pageblock of an urgent allocation of ``order`` for others like it (``reserve_highatomic_pageblock``).

    Only a pageblock of an ordinary type.
    """
    pageblock = allocator.pageblock_nr_pages
    old_type = allocator.pageblock_migratetype[pfn >> allocator.pageblock_order]
    if zone.nr_reserved_highatomic >= _most(allocator, zone) or old_type >= MIGRATE_PCPTYPES:
        return False
    pages = max(pageblock, 1 << order) if allocator.claims_pageblocks else pageblock
    zone.nr_reserved_highatomic += pages
    for begin in range(pfn, pfn + pages, pageblock):
        allocator.set_pageblock_migratetype(begin, _HIGHATOMIC)
    refresh(zone)
    return True


def _most(allocator: Buddy, zone: Zone) -> int:
    # Pages from which on no pageblock joins.
    hundredth, pageblock = zone.managed_pages // 100, allocator.pageblock_nr_pages
    if not allocator.claims_pageblocks:
        return hundredth + pageblock
    return 0 if hundredth < pageblock else -(-hundredth // pageblock) * pageblock


def unreserve(allocator: Buddy, migratetype: int, *, force: bool = False) -> bool:
    """Give a reserved pageblock that has free pages to ``migratetype`` (``unreserve_highatomic_pageblock``).

    Without ``force`` every zone keeps one pageblock.

    Returns:
        whether free pages have come to the lists of ``migratetype``.
    """
    for zone in allocator.zonelists[migratetype]:
        if not force and zone.nr_reserved_highatomic <= allocator.pageblock_nr_pages:
            continue
        for order in range(NR_PAGE_ORDERS):
            pfn = zone.free_list.next[LIST_HEADS[_HIGHATOMIC][order]]
            if pfn >= 0 and zone.nr_reserved_highatomic:
                given_up = allocator.set_pageblock_migratetype(pfn, migratetype) << allocator.pageblock_order
                zone.nr_reserved_highatomic = max(0, zone.nr_reserved_highatomic - given_up)
                refresh(zone)
                return True
    return False
