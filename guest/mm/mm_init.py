"""Bringing memory up at boot (Linux mm/mm_init.c and ``memblock_free_all``).

Knows how zones and the map are laid out at first; must not know how blocks are allocated later, nor about reporters.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from guest.mm.free_list import list_head
from guest.mm.mmzone import (
    MAX_ORDER,
    MAX_ORDER_NR_PAGES,
    MAX_PFN,
    MigrateType,
    Zone,
    ZoneSpan,
    watermarks,
)
from guest.mm.page_flags import ABSENT, BUDDY
from protocol.errors import UsageError

if TYPE_CHECKING:
    from guest.mm.page_alloc import PageAllocator


def check_spans(total_pages: int, start_pfn: int, zones: Sequence[ZoneSpan] | None) -> tuple[ZoneSpan, ...]:
    """Return the zones to make; without ``zones`` that is one called Normal.

    Raises:
        UsageError: memory of no size or beyond the address space, or zones that do not tile it in order.
    """
    if total_pages < 1:
        raise UsageError(f"a guest of {total_pages} pages has no memory")
    if start_pfn < 0 or start_pfn + total_pages > MAX_PFN:
        raise UsageError(
            f"{total_pages} pages from pfn {start_pfn} are not within the {MAX_PFN} pages of the address space"
        )
    if zones is None:
        return (ZoneSpan(name="Normal", start_pfn=start_pfn, end_pfn=start_pfn + total_pages),)
    position = start_pfn
    for span in zones:
        if span.start_pfn != position or span.end_pfn <= position:
            raise UsageError(
                f"zone {span.name} is pfn {span.start_pfn} to {span.end_pfn}, but has to begin at {position}"
            )
        if position != start_pfn and position % MAX_ORDER_NR_PAGES:
            raise UsageError(f"zone {span.name} begins at pfn {position}, which {MAX_ORDER_NR_PAGES} does not divide")
        position = span.end_pfn
    if position != start_pfn + total_pages:
        raise UsageError(f"the zones end at pfn {position}, the memory at {start_pfn + total_pages}")
    return tuple(zones)


def make_mem_map(start_pfn: int, end_pfn: int) -> bytearray:
    """Return one byte for each page from 0 up to a whole block of MAX_ORDER, with everything but the memory ABSENT."""
    padded = -(-end_pfn // MAX_ORDER_NR_PAGES) * MAX_ORDER_NR_PAGES
    mem_map = bytearray(padded)
    mem_map[:start_pfn] = bytes([ABSENT]) * start_pfn
    mem_map[end_pfn:] = bytes([ABSENT]) * (padded - end_pfn)
    return mem_map


def make_zones(spans: Sequence[ZoneSpan], min_free_kbytes: int | None) -> tuple[Zone, ...]:
    """Return empty zones, with the watermarks that the whole memory gives them."""
    lowmem_pages = sum(span.end_pfn - span.start_pfn for span in spans)
    return tuple(
        Zone(index, span, watermarks(span.end_pfn - span.start_pfn, lowmem_pages, min_free_kbytes=min_free_kbytes))
        for index, span in enumerate(spans)
    )


def free_pages_core(allocator: "PageAllocator", zone: Zone) -> None:
    """Put all pages of a zone on its lists: the largest aligned blocks, ascending, each to the tail.

    Blocks cut like this cannot merge, so they need not be freed one by one (``__free_pages_core`` does); the run of
    MAX_ORDER blocks, which is nearly everything, is written in bulk.
    """
    pfn = zone.start_pfn
    first_whole = min(zone.end_pfn, -(-pfn // MAX_ORDER_NR_PAGES) * MAX_ORDER_NR_PAGES)
    last_whole = max(first_whole, zone.end_pfn // MAX_ORDER_NR_PAGES * MAX_ORDER_NR_PAGES)
    _free_edge(allocator, zone, pfn, first_whole)
    _free_run(allocator, zone, first_whole, last_whole, MAX_ORDER)
    _free_edge(allocator, zone, last_whole, zone.end_pfn)


def _free_edge(allocator: "PageAllocator", zone: Zone, pfn: int, end_pfn: int) -> None:
    # Less than a block of MAX_ORDER: at each step the largest order that is aligned and fits.
    while pfn < end_pfn:
        order = min(MAX_ORDER, (pfn & -pfn).bit_length() - 1 if pfn else MAX_ORDER, (end_pfn - pfn).bit_length() - 1)
        _free_run(allocator, zone, pfn, pfn + (1 << order), order)
        pfn += 1 << order


def _free_run(allocator: "PageAllocator", zone: Zone, pfn: int, end_pfn: int, order: int) -> None:
    pfns = list(range(pfn, end_pfn, 1 << order))
    allocator.mem_map[pfn : end_pfn : 1 << order] = bytes([BUDDY | order]) * len(pfns)
    zone.free_list.extend(pfns, list_head(order, MigrateType.MOVABLE))
    zone.nr_free[order] += len(pfns)
    zone.free_pages += end_pfn - pfn
