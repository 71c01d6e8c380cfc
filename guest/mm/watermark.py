"""Watermarks: may a zone serve a request (Linux mm/page_alloc.c as of 6.1, ``__zone_watermark_ok`` and its inputs).

A request is served from a zone when afterwards more pages than a watermark would be free, not counting

* ``lowmem_reserve``: the pages that a low zone keeps from requests that could also use a higher one,
* the HIGHATOMIC reserve, unless the request may use it,
* free CMA pages, unless the request is movable.

The watermark is ``low`` at first; ``min`` when the request had to wake kswapd; a fraction of ``min`` for one that
cannot wait.
"""

from collections.abc import Sequence
from enum import IntFlag
from typing import Final

from guest.mm.mmzone import (
    NEVER,
    Zone,
    ZoneType,
    highest_zone_type,
)
from guest.mm.pageblock import MIGRATE_TYPES, MigrateType


class AllocFlags(IntFlag):
    """How a request is to be served, beyond its order and migratetype (``gfp_t`` as far as it matters here)."""

    NONE = 0
    ATOMIC = 1
    """The caller cannot wait (GFP_ATOMIC): no reclaim, a deeper cut into the reserves, and HIGHATOMIC pageblocks."""
    NORETRY = 2
    """Fail instead of reclaiming, compacting or killing (__GFP_NORETRY, here without its one round of reclaim)."""
    NO_WATERMARKS = 4
    """Ignore the watermarks (ALLOC_NO_WATERMARKS): for a task that frees memory by using some."""
    NO_KSWAPD = 8
    """Do not wake kswapd (without __GFP_KSWAPD_RECLAIM): this request alone is no reason to reclaim."""


LOWMEM_RESERVE_RATIO: Final = {ZoneType.DMA: 256, ZoneType.DMA32: 256, ZoneType.NORMAL: 32, ZoneType.MOVABLE: 0}
"""``vm.lowmem_reserve_ratio``: a zone keeps 1/ratio of the pages above it."""
WATERMARK_BOOST_FACTOR: Final = 15000
"""``vm.watermark_boost_factor``, in 1/10000 of the high watermark."""

_USES_CMA: Final = (MigrateType.MOVABLE, MigrateType.CMA)


def setup_lowmem_reserve(zones: Sequence[Zone]) -> None:
    """Set what each zone keeps from requests that could use a higher one (``setup_per_zone_lowmem_reserve``)."""
    for zone in zones:
        ratio = LOWMEM_RESERVE_RATIO[zone.type]
        reserve = [0] * len(ZoneType)
        if ratio:
            for highest in range(zone.type + 1, len(ZoneType)):
                above = sum(other.managed_pages for other in zones if zone.type < other.type <= highest)
                reserve[highest] = above // ratio
        zone.lowmem_reserve = tuple(reserve)
        refresh(zone)


def refresh(zone: Zone) -> None:
    """Compute ``fast_mark`` again, after a mark, the boost or a reserve has changed.

    It is ``NEVER`` where the full check has to decide: in a zone with CMA pages, as it depends on how many of them are
    free; for migratetypes that may not use the zone; and for ISOLATE, which is never allocated.
    """
    common = zone.watermarks.low + zone.watermark_boost + zone.nr_reserved_highatomic
    fast_mark = [
        NEVER if zone.cma_pages or highest < zone.type else common + zone.lowmem_reserve[highest]
        for highest in map(highest_zone_type, range(MIGRATE_TYPES))
    ]
    fast_mark[MigrateType.ISOLATE] = NEVER
    zone.fast_mark = fast_mark


def zone_watermark_ok(
    zone: Zone, order: int, mark: int, highest: ZoneType, *, migratetype: int, flags: AllocFlags = AllocFlags.NONE
) -> bool:
    """Return whether ``zone`` stays above ``mark`` pages when it gives a block of ``order``.

    The kernel's check also looks for a block that is large enough. Here the caller finds that out by taking one.
    """
    usable = zone.free_pages - (1 << order) + 1
    if flags & AllocFlags.ATOMIC:
        mark -= mark // 2
        mark -= mark // 4
    else:
        usable -= zone.unusable_highatomic
    if migratetype not in _USES_CMA:
        usable -= zone.free_cma_pages
    return usable > mark + zone.lowmem_reserve[highest]


def min_wmark_pages(zone: Zone) -> int:
    """Return the minimum watermark with the boost, in pages."""
    return zone.watermark_min + zone.watermark_boost


def low_wmark_pages(zone: Zone) -> int:
    """Return the low watermark with the boost, in pages."""
    return zone.watermarks.low + zone.watermark_boost


def high_wmark_pages(zone: Zone) -> int:
    """Return the high watermark with the boost, in pages."""
    return zone.watermarks.high + zone.watermark_boost


def boost_watermark(zone: Zone, pageblock_nr_pages: int, factor: int = WATERMARK_BOOST_FACTOR) -> bool:
    """Raise all marks of a zone by a pageblock after a steal between types; kswapd makes room and lowers them again.

    Zones of less than four pageblocks are left alone: boosted marks would run them out of memory.

    Returns:
        whether kswapd is to be woken.
    """
    most = zone.watermarks.high * factor // 10000
    if not most or pageblock_nr_pages * 4 > zone.managed_pages:
        return False
    zone.watermark_boost = min(zone.watermark_boost + pageblock_nr_pages, max(pageblock_nr_pages, most))
    refresh(zone)
    return True
