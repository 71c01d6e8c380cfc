"""The reserve of pageblocks for urgent requests of several pages (Linux mm/page_alloc.c as of 6.1, MIGRATE_HIGHATOMIC).

When a pageblock joins the reserve, and when it leaves.
"""

from typing import Final

from guest.mm.buddy import Buddy
from guest.mm.free_list import LIST_HEADS
from guest.mm.mmzone import Zone
from guest.mm.pageblock import MIGRATE_PCPTYPES, NR_PAGE_ORDERS, MigrateType
from guest.mm.watermark import refresh

_HIGHATOMIC: Final = MigrateType.HIGHATOMIC


def reserve(allocator: Buddy, zone: Zone, pfn: int) -> bool:
    """Keep the pageblock of an urgent allocation for others like it (``reserve_highatomic_pageblock``).

    At most a hundredth of the zone and one pageblock; only a pageblock of an ordinary type.
    """
    most = zone.managed_pages // 100 + allocator.pageblock_nr_pages
    old_type = allocator.pageblock_migratetype[pfn >> allocator.pageblock_order]
    if zone.nr_reserved_highatomic >= most or old_type >= MIGRATE_PCPTYPES:
        return False
    zone.nr_reserved_highatomic += allocator.pageblock_nr_pages
    allocator.set_pageblock_migratetype(pfn, _HIGHATOMIC)
    refresh(zone)
    return True


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
