"""guest/mm/mm_init.py: boot."""

import tracemalloc

import pytest

from guest.mm.mmzone import ZoneSpan
from guest.mm.page_alloc import PageAllocator
from guest.mm.pageblock import MigrateType
from protocol.errors import UsageError
from tests.guest.mm.reporting.reporting import entries


def test_boot_frees_whole_blocks_ascending_to_the_tail() -> None:
    allocator = PageAllocator(4096)
    assert entries(allocator, 10) == [0, 1024, 2048, 3072]
    assert allocator.nr_free_pages() == 4096
    assert set(allocator.pageblock_migratetype) == {MigrateType.MOVABLE}
    allocator.validate()


def test_edges_get_the_largest_aligned_blocks() -> None:
    # 1000..1023 and 4096..4101 around three whole blocks.
    allocator = PageAllocator(3102, start_pfn=1000)
    assert entries(allocator, 3) == [1000]
    assert entries(allocator, 4) == [1008]
    assert entries(allocator, 10) == [1024, 2048, 3072]
    assert (entries(allocator, 2), entries(allocator, 1)) == ([4096], [4100])
    assert allocator.nr_free_pages() == 3102
    allocator.validate()


@pytest.mark.parametrize(("start_pfn", "total_pages"), [(0, 1), (0, 1023), (1, 1), (5, 2000), (1023, 2), (513, 300)])
def test_odd_sizes_are_consistent(start_pfn: int, total_pages: int) -> None:
    allocator = PageAllocator(total_pages, start_pfn=start_pfn)
    assert allocator.nr_free_pages() == total_pages
    allocator.validate()


def test_zones_of_a_machine() -> None:
    spans = [
        ZoneSpan(name="DMA", start_pfn=1, end_pfn=4096),
        ZoneSpan(name="DMA32", start_pfn=4096, end_pfn=10000),
    ]
    allocator = PageAllocator(9999, start_pfn=1, zones=spans)
    assert [(zone.name, zone.free_pages, zone.index) for zone in allocator.zones] == [
        ("DMA", 4095, 0),
        ("DMA32", 5904, 1),
    ]
    assert sum(zone.watermarks.min for zone in allocator.zones) == pytest.approx(199, abs=1)
    allocator.validate()


@pytest.mark.parametrize(
    ("total_pages", "start_pfn", "message"),
    [
        (0, 0, "a guest of 0 pages has no memory"),
        (-1, 0, "a guest of -1 pages has no memory"),
        (1, -1, "1 pages from pfn -1 are not within"),
        ((1 << 40) + 1, 0, "are not within the 1099511627776 pages of the address space"),
        (1, 1 << 40, "are not within"),
    ],
)
def test_memory_that_cannot_be_is_refused(total_pages: int, start_pfn: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PageAllocator(total_pages, start_pfn=start_pfn)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([("A", 0, 1024)], "the zones have 1024 pages, the memory 4096"),
        ([("A", 0, 1024), ("B", 2048, 4096)], "the zones have 3072 pages, the memory 4096"),
        ([("A", 0, 2048), ("B", 1024, 3072)], "zone B is pfn 1024 to 3072, but has to begin at 2048 or later"),
        ([("A", 1024, 5120)], "zone A begins at pfn 1024, the memory at 0"),
        ([("A", 0, 100), ("B", 100, 4096)], "zone B begins at pfn 100, which 1024 does not divide"),
        ([("A", 0, 0), ("B", 0, 4096)], "zone A is pfn 0 to 0"),
        ([], "the zones have 0 pages, the memory 4096"),
    ],
)
def test_zones_that_are_not_the_memory_are_refused(spans: list[tuple[str, int, int]], message: str) -> None:
    zones = [ZoneSpan(name=name, start_pfn=start, end_pfn=end) for name, start, end in spans]
    with pytest.raises(UsageError, match=message):
        PageAllocator(4096, zones=zones)


def test_64_gib_need_at_most_1_3_bytes_a_page() -> None:
    pages = 64 << 18
    tracemalloc.start()
    try:
        allocator = PageAllocator(pages)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert allocator.nr_free_pages() == pages
    assert peak / pages <= 1.3
