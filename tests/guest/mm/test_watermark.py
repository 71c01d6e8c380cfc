"""guest/mm/watermark.py and the zones of x86-64: how many pages a request may take from which zone."""

import pytest

from guest.mm.mmzone import NEVER, Watermarks, Zone, ZoneSpan, ZoneType
from guest.mm.page_alloc import PageAllocator
from guest.mm.pageblock import MigrateType
from guest.mm.watermark import AllocFlags, boost_watermark, zone_watermark_ok
from guest.mm.x86.zones import x86_64_zones
from protocol.errors import UsageError

GIB = 1 << 18
UNMOVABLE, MOVABLE = MigrateType.UNMOVABLE, MigrateType.MOVABLE


def x86(gib: int = 8, kernelcore_gib: int | None = None) -> PageAllocator:
    kernelcore = None if kernelcore_gib is None else kernelcore_gib * GIB
    return PageAllocator(gib * GIB, zones=x86_64_zones(gib * GIB, kernelcore_pages=kernelcore))


def test_zones_carry_their_share_of_min_free_kbytes() -> None:
    zones = x86().zones
    # 4 * sqrt(8 GiB in KiB) = 11585 KiB, of which each zone has the part that it has of the pages.
    assert [zone.watermarks.min for zone in zones] == [2896 * size // (8 * GIB) for size in (4096, 1044480, 1048576)]
    # What is Movable does not raise the sum, but takes part in it.
    assert sum(zone.watermarks.min for zone in x86(8, 4).zones) == pytest.approx(2048, abs=3)


def test_lowmem_reserve_keeps_a_share_of_all_higher_zones() -> None:
    dma, dma32, normal, movable = x86(12, 6).zones
    assert dma.lowmem_reserve == (0, 1044480 // 256, (1044480 + 2 * GIB) // 256, (1044480 + 8 * GIB) // 256)
    assert dma32.lowmem_reserve == (0, 0, 2 * GIB // 256, 8 * GIB // 256)
    assert normal.lowmem_reserve == (0, 0, 0, 6 * GIB // 32)
    assert movable.lowmem_reserve == (0, 0, 0, 0)


def test_movable_zone_serves_movable_requests_alone() -> None:
    allocator = x86(8, 6)
    normal, movable = allocator.zones[2:]
    assert allocator.alloc_pages(0, MOVABLE) == movable.start_pfn
    assert allocator.alloc_pages(0, UNMOVABLE) == normal.start_pfn
    assert allocator.alloc_pages(0, MigrateType.RECLAIMABLE) is not None
    assert movable.free_pages == movable.managed_pages - 1


def test_memory_that_is_movable_alone_serves_movable_requests_alone() -> None:
    allocator = PageAllocator(4096, zones=[ZoneSpan(name="Movable", start_pfn=0, end_pfn=4096)], nr_cpus=1)
    assert allocator.alloc_pages(0, UNMOVABLE) is None
    assert allocator.alloc_pages(0, MOVABLE) == 0


def test_next_zone_serves_before_the_first_one_goes_below_its_low_watermark() -> None:
    allocator = PageAllocator(
        40960,
        zones=[
            ZoneSpan(name="DMA32", start_pfn=0, end_pfn=20480),
            ZoneSpan(name="Normal", start_pfn=20480, end_pfn=40960),
        ],
    )
    dma32, normal = allocator.zones
    while dma32.free_pages == dma32.managed_pages:
        allocator.alloc_pages(0)
    assert normal.free_pages == normal.watermarks.low
    while allocator.alloc_pages(0) is not None:
        pass
    assert (normal.free_pages, dma32.free_pages) == (normal.watermarks.min, dma32.watermarks.min + 20480 // 256)
    # An urgent request goes to 3/8 of the minimum, one without watermarks takes the last page.
    while allocator.alloc_pages(0, flags=AllocFlags.ATOMIC) is not None:
        pass
    assert (normal.watermarks.min, normal.free_pages) == (202, 202 - 101 - 25)
    while allocator.alloc_pages(0, flags=AllocFlags.NO_WATERMARKS) is not None:
        pass
    assert (normal.free_pages, dma32.free_pages) == (0, 0)


def zone(free: int) -> Zone:
    made = Zone(0, ZoneSpan(name="Normal", start_pfn=0, end_pfn=1 << 16), Watermarks(min=100, low=125, high=150))
    made.free_pages = free
    return made


@pytest.mark.parametrize(("order", "free", "ok"), [(0, 100, False), (0, 101, True), (4, 115, False), (4, 116, True)])
def test_free_pages_must_exceed_the_mark(order: int, free: int, ok: bool) -> None:
    assert zone_watermark_ok(zone(free), order, 100, ZoneType.NORMAL, migratetype=UNMOVABLE) is ok


def test_reserves_count_as_used_for_those_who_may_not_have_them() -> None:
    full = zone(300)
    full.nr_reserved_highatomic, full.free_cma_pages = 150, 100
    full.lowmem_reserve = (0, 0, 0, 60)

    def left(migratetype: MigrateType, flags: AllocFlags = AllocFlags.NONE, highest: ZoneType = ZoneType.NORMAL) -> int:
        return (
            max(
                mark
                for mark in range(-1, 300)
                if zone_watermark_ok(full, 0, mark, highest, migratetype=migratetype, flags=flags)
            )
            + 1
        )

    assert left(UNMOVABLE) == 300 - 150 - 100
    assert left(MOVABLE) == 300 - 150
    assert left(MOVABLE, highest=ZoneType.MOVABLE) == 300 - 150 - 60
    assert left(UNMOVABLE, AllocFlags.ATOMIC) == 300


def test_boost_is_a_pageblock_at_a_time_and_bounded() -> None:
    boosted = zone(1 << 16)
    marks = []
    for _ in range(4):
        assert boost_watermark(boosted, 64)
        marks.append(boosted.watermark_boost)
    # 150 % of the high watermark.
    assert marks == [64, 128, 192, 225]
    assert boosted.fast_mark[MOVABLE] == 125 + 225
    assert not boost_watermark(boosted, 1 << 15)


def test_zone_with_cma_has_no_fast_answer() -> None:
    allocator = PageAllocator(8192, cma_pages=1024)
    assert set(allocator.zones[0].fast_mark) == {NEVER}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pageblock_order": 0}, "pageblock order 0 is not within 1 and 10"),
        ({"pageblock_order": 11}, "pageblock order 11 is not within 1 and 10"),
        ({"nr_cpus": -1}, "-1 processors cannot have page lists"),
        ({"cma_pages": 100}, "area of 100 pages is not a multiple of 512, the size of a pageblock"),
        ({"cma_pages": -512}, "area of -512 pages is not a multiple of 512, the size of a pageblock"),
        ({"cma_pages": 8192}, "zone Normal of 4096 pages cannot hold a contiguous area of 8192"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PageAllocator(4096, **options)  # type: ignore[arg-type]
