"""guest/mm/x86/zones.py: the zones of x86-64, with and without a hole below 4 GiB."""

import pytest

from guest.mm.errors import NotAllocatedError
from guest.mm.page_alloc import PageAllocator
from guest.mm.page_flags import ABSENT
from guest.mm.pageblock import MigrateType
from guest.mm.views.vmstat_zoneinfo import zoneinfo
from guest.mm.x86.zones import ram_ranges, x86_64_zones
from protocol.errors import UsageError

GIB = 1 << 18


def spans(*args: int, kernelcore: int | None = None, lowmem_end: int = 4 * GIB) -> list[tuple[str, int, int]]:
    total, *start = args
    zones = x86_64_zones(
        total, start_pfn=start[0] if start else 0, kernelcore_pages=kernelcore, lowmem_end_pfn=lowmem_end
    )
    return [(zone.name, zone.start_pfn, zone.end_pfn) for zone in zones]


def test_zones_of_x86_64() -> None:
    assert spans(2048) == [("DMA", 0, 2048)]
    assert spans(GIB) == [("DMA", 0, 4096), ("DMA32", 4096, GIB)]
    assert spans(8 * GIB, 1) == [("DMA", 1, 4096), ("DMA32", 4096, 4 * GIB), ("Normal", 4 * GIB, 8 * GIB + 1)]
    assert spans(GIB, 8 * GIB) == [("Normal", 8 * GIB, 9 * GIB)]


def test_movable_is_what_the_kernel_core_leaves_of_the_highest_zone() -> None:
    assert spans(8 * GIB, kernelcore=6 * GIB + 1)[2:] == [
        ("Normal", 4 * GIB, 6 * GIB + 1024),
        ("Movable", 6 * GIB + 1024, 8 * GIB),
    ]
    # The zones below are the kernel's anyway, and Normal is empty when that is enough.
    assert spans(8 * GIB, kernelcore=GIB)[2:] == [("Movable", 4 * GIB, 8 * GIB)]
    assert spans(8 * GIB, kernelcore=9 * GIB) == spans(8 * GIB)
    with pytest.raises(UsageError, match="kernelcore of -1 pages is negative"):
        spans(GIB, kernelcore=-1)


def test_memory_beyond_the_hole_begins_at_4_gib() -> None:
    assert ram_ranges(6 * GIB, lowmem_end_pfn=2 * GIB) == (range(2 * GIB), range(4 * GIB, 8 * GIB))
    assert ram_ranges(2 * GIB, lowmem_end_pfn=2 * GIB) == (range(2 * GIB),)
    assert spans(6 * GIB, lowmem_end=2 * GIB) == [
        ("DMA", 0, 4096),
        ("DMA32", 4096, 2 * GIB),
        ("Normal", 4 * GIB, 8 * GIB),
    ]


def test_kernel_core_counts_memory_and_not_the_hole() -> None:
    assert spans(6 * GIB, kernelcore=3 * GIB, lowmem_end=2 * GIB)[2:] == [
        ("Normal", 4 * GIB, 5 * GIB),
        ("Movable", 5 * GIB, 8 * GIB),
    ]


def small(hole_pages: int = 4096) -> PageAllocator:
    # 64 MiB with a hole of 16 MiB below 4 GiB.
    lowmem_end_pfn = 4 * GIB - hole_pages
    start_pfn = lowmem_end_pfn - 8192
    zones = x86_64_zones(16384, start_pfn=start_pfn, lowmem_end_pfn=lowmem_end_pfn)
    return PageAllocator(16384, start_pfn=start_pfn, zones=zones)


def test_pages_of_the_hole_are_absent() -> None:
    allocator = small()
    hole = range(4 * GIB - 4096, 4 * GIB)
    assert set(allocator.mem_map[hole.start : hole.stop]) == {ABSENT}
    assert (allocator.nr_free_pages(), allocator.end_pfn) == (16384, 4 * GIB + 8192)
    pfns = []
    while (pfn := allocator.alloc_pages(0)) is not None:
        pfns.append(pfn)
    assert not any(pfn in hole for pfn in pfns)
    for pfn in pfns:
        allocator.free_pages(pfn, 0)
    allocator.validate()
    assert [zone.free_pages for zone in allocator.zones] == [8192, 8192]
    with pytest.raises(NotAllocatedError, match="is outside RAM"):
        allocator.set_pageblock_migratetype(hole.start, MigrateType.UNMOVABLE)
    with pytest.raises(NotAllocatedError, match="there is no such page"):
        allocator.free_pages(hole.start, 0)


def test_zone_spans_the_hole_that_follows_it() -> None:
    spanned = [line.split()[1] for line in zoneinfo(small()).splitlines() if line.startswith("        spanned")]
    present = [line.split()[1] for line in zoneinfo(small()).splitlines() if line.startswith("        present")]
    assert (spanned, present) == (["12288", "8192", "0"], ["8192", "8192", "0"])
