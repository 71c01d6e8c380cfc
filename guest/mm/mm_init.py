"""Memory at boot: how zones and the map are laid out (Linux mm/mm_init.c and ``memblock_free_all``)."""

from collections.abc import Sequence

from guest.mm.buddy import Buddy
from guest.mm.free_list import list_head
from guest.mm.mmzone import MAX_PFN, Zone, ZoneSpan, ZoneType, default_min_free_kbytes, watermarks
from guest.mm.page_flags import ABSENT, BUDDY
from guest.mm.pageblock import MAX_ORDER, MAX_ORDER_NR_PAGES, MigrateType
from guest.mm.pcp import PerCpuPages, pcp_orders, zone_batchsize, zone_highsize
from guest.mm.watermark import refresh, setup_lowmem_reserve
from protocol.errors import BalloonError, UsageError


def check_spans(total_pages: int, start_pfn: int, zones: Sequence[ZoneSpan] | None) -> tuple[ZoneSpan, ...]:
    """Return the zones to make; without ``zones`` that is one called Normal.

    Raises:
        UsageError: memory that is empty or exceeds the address space, or zones that overlap, begin inside a block of
            MAX_ORDER, or do not have ``total_pages`` pages from ``start_pfn`` on.
    """
    if total_pages < 1:
        raise UsageError(f"a guest of {total_pages} pages has no memory")
    if start_pfn < 0 or start_pfn + total_pages > MAX_PFN:
        raise UsageError(
            f"{total_pages} pages from pfn {start_pfn} are not within the {MAX_PFN} pages of the address space"
        )
    if zones is None:
        return (ZoneSpan(name="Normal", start_pfn=start_pfn, end_pfn=start_pfn + total_pages),)
    position, pages = start_pfn, 0
    for span in zones:
        if span.start_pfn < position or span.end_pfn <= span.start_pfn:
            raise UsageError(
                f"zone {span.name} is pfn {span.start_pfn} to {span.end_pfn}, but has to begin at {position} or later"
            )
        if not pages and span.start_pfn != start_pfn:
            raise UsageError(f"zone {span.name} begins at pfn {span.start_pfn}, the memory at {start_pfn}")
        if pages and span.start_pfn % MAX_ORDER_NR_PAGES:
            raise UsageError(
                f"zone {span.name} begins at pfn {span.start_pfn}, which {MAX_ORDER_NR_PAGES} does not divide"
            )
        position = span.end_pfn
        pages += span.end_pfn - span.start_pfn
    if pages != total_pages:
        raise UsageError(f"the zones have {pages} pages, the memory {total_pages}")
    return tuple(zones)


def make_mem_map(spans: Sequence[ZoneSpan]) -> bytearray:
    """Return one byte for each page from 0 up to a whole block of MAX_ORDER, with everything but the zones ABSENT.

    Raises:
        BalloonError: too little memory for the map.
    """
    padded = -(-spans[-1].end_pfn // MAX_ORDER_NR_PAGES) * MAX_ORDER_NR_PAGES
    try:
        mem_map = bytearray(padded)
    except MemoryError:
        raise BalloonError(f"too little memory for the map of {padded} pages, one byte each") from None
    hole = 0
    for start_pfn, end_pfn in (*((span.start_pfn, span.end_pfn) for span in spans), (padded, padded)):
        mem_map[hole:start_pfn] = bytes([ABSENT]) * (start_pfn - hole)
        hole = end_pfn
    return mem_map


def make_zones(spans: Sequence[ZoneSpan], min_free_kbytes: int | None) -> tuple[Zone, ...]:
    """Return empty zones, with the watermarks that the whole memory gives them."""
    all_pages = sum(span.end_pfn - span.start_pfn for span in spans)
    zones: list[Zone] = []
    if min_free_kbytes is not None and min_free_kbytes < 0:
        raise UsageError(f"min_free_kbytes of {min_free_kbytes} is below 0")
    if min_free_kbytes is None:
        movable_pages = sum(span.end_pfn - span.start_pfn for span in spans if span.name == "Movable")
        min_free_kbytes = default_min_free_kbytes(all_pages - movable_pages)
    for index, span in enumerate(spans):
        marks = watermarks(span.end_pfn - span.start_pfn, all_pages, min_free_kbytes=min_free_kbytes)
        zones.append(Zone(index, span, marks))
    setup_lowmem_reserve(zones)
    return tuple(zones)


def make_pcps(zone: Zone, nr_cpus: int, thp_order: int | None) -> None:
    """Give a zone per-CPU lists for ``nr_cpus`` processors and select the first (``setup_per_cpu_pageset``)."""
    batch = zone_batchsize(zone.managed_pages)
    high = zone_highsize(zone.watermarks.low, batch, nr_cpus)
    zone.pcps = tuple(PerCpuPages(batch, high, pcp_orders(thp_order)) for _ in range(nr_cpus))
    zone.pcp = zone.pcps[0]


def free_pages_core(allocator: Buddy, zone: Zone, hole: range) -> None:
    """Put the pages of a zone except ``hole`` on its lists: the largest aligned blocks, ascending, each to the tail.

    Blocks cut like this cannot merge, so they need not be freed one by one (``__free_pages_core`` does); the run of
    MAX_ORDER blocks, which is nearly everything, is written in bulk.
    """
    if hole and zone.start_pfn <= hole.start < zone.end_pfn:
        _free_span(allocator, zone, zone.start_pfn, hole.start)
        _free_span(allocator, zone, hole.stop, zone.end_pfn)
    else:
        _free_span(allocator, zone, zone.start_pfn, zone.end_pfn)


def cma_area(allocator: Buddy, cma_pages: int) -> range:
    """Return the page frames of the contiguous memory area, empty without one (``dma_contiguous_reserve``).

    Raises:
        UsageError: the area does not consist of whole pageblocks, or is larger than its zone.
    """
    if not cma_pages:
        return range(0)
    zone = next((zone for zone in allocator.zones[::-1] if zone.type is not ZoneType.MOVABLE), allocator.zones[0])
    size = allocator.pageblock_nr_pages
    if cma_pages < 0 or cma_pages % size:
        what = f"a contiguous memory area of {cma_pages} pages"
        raise UsageError(f"{what} is not a multiple of {size}, the size of a pageblock")
    start = (zone.end_pfn - cma_pages) // size * size
    if start < zone.start_pfn or zone.managed_pages < cma_pages:
        raise UsageError(
            f"zone {zone.name} of {zone.managed_pages} pages cannot hold a contiguous area of {cma_pages}; "
            "it is the highest zone but Movable"
        )
    return range(start, start + cma_pages)


def free_cma_area(allocator: Buddy, area: range) -> None:
    """Make the pageblocks of the area CMA and free them, one after the other (``init_cma_reserved_pageblock``)."""
    shift = allocator.pageblock_order
    for pfn in range(area.start, area.stop, allocator.pageblock_nr_pages):
        zone = allocator.pageblock_zone[pfn >> shift]
        allocator.pageblock_migratetype[pfn >> shift] = MigrateType.CMA
        zone.cma_pages += allocator.pageblock_nr_pages
        refresh(zone)
        allocator.free_one_page(zone, pfn, shift, MigrateType.CMA)


def _free_span(allocator: Buddy, zone: Zone, pfn: int, end_pfn: int) -> None:
    first_whole = min(end_pfn, -(-pfn // MAX_ORDER_NR_PAGES) * MAX_ORDER_NR_PAGES)
    last_whole = max(first_whole, end_pfn // MAX_ORDER_NR_PAGES * MAX_ORDER_NR_PAGES)
    _free_edge(allocator, zone, pfn, first_whole)
    _free_run(allocator, zone, first_whole, last_whole, MAX_ORDER)
    _free_edge(allocator, zone, last_whole, end_pfn)


def _free_edge(allocator: Buddy, zone: Zone, pfn: int, end_pfn: int) -> None:
    # Less than a block of MAX_ORDER: at each step the largest order that is aligned and fits.
    while pfn < end_pfn:
        order = min(MAX_ORDER, (pfn & -pfn).bit_length() - 1 if pfn else MAX_ORDER, (end_pfn - pfn).bit_length() - 1)
        _free_run(allocator, zone, pfn, pfn + (1 << order), order)
        pfn += 1 << order


def _free_run(allocator: Buddy, zone: Zone, pfn: int, end_pfn: int, order: int) -> None:
    pfns = list(range(pfn, end_pfn, 1 << order))
    allocator.mem_map[pfn : end_pfn : 1 << order] = bytes([BUDDY | order]) * len(pfns)
    zone.free_list.extend(pfns, list_head(order, MigrateType.MOVABLE))
    zone.nr_free[order] += len(pfns)
    zone.free_pages += end_pfn - pfn
