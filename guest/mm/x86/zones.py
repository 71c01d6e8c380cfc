"""The zones of x86-64 (Linux arch/x86/mm/init.c, ``zone_sizes_init``; mm/mm_init.c for Movable)."""

from typing import Final

from guest.mm.mm_init import check_spans
from guest.mm.mmzone import PAGE_SHIFT, ZoneSpan
from guest.mm.pageblock import MAX_ORDER_NR_PAGES
from protocol.errors import UsageError

DMA_END_PFN: Final = 16 << 20 >> PAGE_SHIFT
"""MAX_DMA_PFN: what ISA devices can address."""
DMA32_END_PFN: Final = 4 << 30 >> PAGE_SHIFT
"""MAX_DMA32_PFN."""


def ram_ranges(total_pages: int, *, start_pfn: int = 0, lowmem_end_pfn: int = DMA32_END_PFN) -> tuple[range, ...]:
    """Return the page frames of RAM: the part that does not fit below ``lowmem_end_pfn`` begins at 4 GiB."""
    end_pfn = start_pfn + total_pages
    if not start_pfn < lowmem_end_pfn < end_pfn or lowmem_end_pfn == DMA32_END_PFN:
        return (range(start_pfn, end_pfn),)
    return range(start_pfn, lowmem_end_pfn), range(DMA32_END_PFN, DMA32_END_PFN + end_pfn - lowmem_end_pfn)


def x86_64_zones(
    total_pages: int,
    *,
    start_pfn: int = 0,
    kernelcore_pages: int | None = None,
    lowmem_end_pfn: int = DMA32_END_PFN,
) -> tuple[ZoneSpan, ...]:
    """Return the zones that x86-64 makes of RAM: DMA, DMA32 and Normal, as far as it reaches.

    Args:
        total_pages: RAM in 4 KiB pages.
        start_pfn: its first page frame.
        kernelcore_pages: the kernel's parameter ``kernelcore=``: so many pages stay for every use, and the rest of the
            highest zone becomes Movable, from the next multiple of MAX_ORDER_NR_PAGES on. The zones below it count as
            such pages too, so they never shrink.
        lowmem_end_pfn: where the hole below 4 GiB begins (:mod:`guest.mm.x86.pci_hole`); 4 GiB means without a hole.

    Raises:
        UsageError: memory that is empty or exceeds the address space, or a negative ``kernelcore_pages``.
    """
    check_spans(total_pages, start_pfn, None)
    ranges = ram_ranges(total_pages, start_pfn=start_pfn, lowmem_end_pfn=lowmem_end_pfn)
    end_pfn = ranges[-1].stop
    limits = (("DMA", 0, DMA_END_PFN), ("DMA32", DMA_END_PFN, DMA32_END_PFN), ("Normal", DMA32_END_PFN, end_pfn))
    spans = [
        ZoneSpan(name=name, start_pfn=max(low, ram.start), end_pfn=min(high, ram.stop))
        for name, low, high in limits
        for ram in ranges
        if max(low, ram.start) < min(high, ram.stop)
    ]
    if kernelcore_pages is None:
        return tuple(spans)
    if kernelcore_pages < 0:
        raise UsageError(f"kernelcore of {kernelcore_pages} pages is negative")
    highest = spans.pop()
    in_ranges_below = sum(len(ram) for ram in ranges[:-1])
    movable_pfn = max(highest.start_pfn, ranges[-1].start + kernelcore_pages - in_ranges_below)
    movable_pfn = min(end_pfn, -(-movable_pfn // MAX_ORDER_NR_PAGES) * MAX_ORDER_NR_PAGES)
    if movable_pfn > highest.start_pfn:
        spans.append(ZoneSpan(name=highest.name, start_pfn=highest.start_pfn, end_pfn=movable_pfn))
    if movable_pfn < end_pfn:
        spans.append(ZoneSpan(name="Movable", start_pfn=movable_pfn, end_pfn=end_pfn))
    return tuple(spans)
