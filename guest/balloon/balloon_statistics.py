"""The statistics of the guest's memory that the device asks for (update_balloon_stats in Linux's
``drivers/virtio/virtio_balloon.c``)."""

from collections.abc import Sequence

from guest.balloon.balloon import Balloon
from guest.machine import Machine
from guest.mm.page_alloc import PageAllocator
from guest.mm.watermark import high_wmark_pages, low_wmark_pages
from protocol.balloon_statistics import StatisticTag
from protocol.memory import PAGE_SIZE


def balloon_statistics(
    machine: Machine, balloon: Balloon, oom_kills: int, tags: Sequence[StatisticTag]
) -> dict[StatisticTag, int]:
    """Return the statistics ``tags`` as they are now, in that order. Amounts of memory are bytes.

    ``oom_kills`` is how many workloads have ended because memory ran out. Without DEFLATE_ON_OOM the total excludes the
    pages in the balloon (adjust_managed_page_count).
    """
    allocator, vmscan = machine.allocator, machine.allocator.vmscan
    total = sum(zone.managed_pages for zone in allocator.zones)
    if not balloon.deflate_on_oom:
        total -= balloon.num_pages
    known = {
        StatisticTag.SWAP_IN: 0,
        StatisticTag.SWAP_OUT: 0,
        StatisticTag.MEMFREE: allocator.nr_free_pages() * PAGE_SIZE,
        StatisticTag.MEMTOT: total * PAGE_SIZE,
        StatisticTag.AVAIL: mem_available(allocator, machine.cached_pages) * PAGE_SIZE,
        StatisticTag.CACHES: machine.cached_pages * PAGE_SIZE,
        StatisticTag.HTLB_PGALLOC: 0,
        StatisticTag.HTLB_PGFAIL: 0,
        StatisticTag.OOM_KILL: oom_kills,
        StatisticTag.ALLOC_STALL: vmscan.direct_reclaims,
        StatisticTag.ASYNC_RECLAIM: vmscan.kswapd_reclaimed_pages * PAGE_SIZE,
        StatisticTag.DIRECT_RECLAIM: vmscan.direct_reclaimed_pages * PAGE_SIZE,
    }
    return {tag: known[tag] for tag in tags}


def mem_available(allocator: PageAllocator, cached_pages: int) -> int:
    """Return how many pages a new program could have without evicting pages in use (si_mem_available).

    These are the free pages beyond the zones' reserves, and the cache except the part that should stay.
    """
    reserve = wmark_low = 0
    for zone in allocator.zones:
        reserve += min(zone.managed_pages, max(zone.lowmem_reserve) + high_wmark_pages(zone))
        wmark_low += low_wmark_pages(zone)
    cache = cached_pages - min(cached_pages // 2, wmark_low)
    return max(0, allocator.nr_free_pages() - reserve + cache)
