"""guest/mm/alloc_slowpath.py, vmscan.py, highatomic.py: the steps when memory is short, and their order."""

import pytest

from guest.mm import highatomic
from guest.mm.mmzone import ZoneType
from guest.mm.page_alloc import PageAllocator
from guest.mm.pageblock import MigrateType
from guest.mm.vmscan import PageCache
from guest.mm.watermark import AllocFlags, zone_watermark_ok
from tests.guest.mm.reporting.reporting import entries

UNMOVABLE, MOVABLE, RECLAIMABLE = MigrateType.UNMOVABLE, MigrateType.MOVABLE, MigrateType.RECLAIMABLE
HIGHATOMIC, CMA = MigrateType.HIGHATOMIC, MigrateType.CMA


def fill(allocator: PageAllocator, order: int = 0, migratetype: MigrateType = MOVABLE) -> list[int]:
    pfns = []
    while (pfn := allocator.alloc_pages(order, migratetype)) is not None:
        pfns.append(pfn)
    return pfns


# --- Reclaim ---


def cached(allocator: PageAllocator, pages: int) -> PageCache[int]:
    """Fill a cache with single pages and have it asked when memory is short."""

    def release(pfn: int) -> int:
        allocator.free_pages(pfn, 0)
        return 1

    cache: PageCache[int] = PageCache(release)
    for _ in range(pages):
        pfn = allocator.alloc_pages(0)
        assert pfn is not None
        cache.touch(pfn)
    allocator.vmscan.register_shrinker(cache.shrink)
    return cache


@pytest.mark.parametrize("nr_cpus", [0, 1])
def test_below_the_low_watermark_the_oldest_of_the_cache_goes_until_high_is_reached(nr_cpus: int) -> None:
    allocator = PageAllocator(1 << 15, nr_cpus=nr_cpus)
    zone = allocator.zones[0]
    cache = cached(allocator, (1 << 15) - 4096)
    used = []
    while allocator.vmscan.kswapd_runs == 0:
        used.append(allocator.alloc_pages(0))
    assert None not in used
    assert zone.watermarks.high <= zone.free_pages <= zone.watermarks.high + 64
    assert 0 not in cache
    assert allocator.vmscan.direct_reclaims == 0
    allocator.validate()


def test_page_used_last_is_the_last_to_go() -> None:
    allocator = PageAllocator(1 << 15)
    cache = cached(allocator, 100)
    cache.touch(0)
    assert cache.shrink(99) == 99
    assert 0 in cache
    assert (cache.drop(), len(cache)) == (1, 0)
    assert allocator.nr_free_pages() == 1 << 15


def test_page_cache_is_reclaimed_whole_before_memory_is_out() -> None:
    allocator = PageAllocator(1 << 14)
    zone = allocator.zones[0]
    cache = cached(allocator, 8192)
    events = []

    def remember(order: int, migratetype: int) -> bool:
        events.append((order, migratetype))
        return False

    allocator.vmscan.on_out_of_memory = remember
    held = fill(allocator)
    assert len(cache) == 0
    assert len(held) == (1 << 14) - zone.watermarks.min
    assert events == [(0, MOVABLE)]
    assert allocator.vmscan.out_of_memory_events == 1
    assert allocator.vmscan.reclaimed_pages == 8192


def test_out_of_memory_handler_that_frees_is_asked_again_and_the_request_is_served() -> None:
    allocator = PageAllocator(1 << 14)
    held = fill(allocator)

    def kill(order: int, migratetype: int) -> bool:
        for _ in range(100):
            allocator.free_pages(held.pop(), 0)
        return True

    allocator.vmscan.on_out_of_memory = kill
    assert allocator.alloc_pages(0) is not None
    assert allocator.vmscan.out_of_memory_events == 2


def test_out_of_memory_handler_that_frees_nothing_is_not_believed() -> None:
    allocator = PageAllocator(1 << 14)
    allocator.vmscan.on_out_of_memory = lambda order, migratetype: True
    assert fill(allocator)
    assert allocator.vmscan.out_of_memory_events == 1


def test_out_of_memory_is_not_declared_for_a_large_block_or_an_optional_request() -> None:
    allocator = PageAllocator(1 << 14)
    allocator.vmscan.on_out_of_memory = lambda order, migratetype: pytest.fail("out of memory")
    assert fill(allocator, 4)
    while allocator.alloc_pages(0, flags=AllocFlags.NORETRY) is not None:
        pass
    assert allocator.alloc_pages(0, flags=AllocFlags.ATOMIC) is not None


def test_shrinker_can_be_taken_away() -> None:
    allocator = PageAllocator(1 << 14)
    cache = cached(allocator, 10)
    allocator.vmscan.unregister_shrinker(cache.shrink)
    assert allocator.vmscan.shrink(10) == 0
    with pytest.raises(ValueError, match="not in list"):
        allocator.vmscan.unregister_shrinker(cache.shrink)


# --- The HIGHATOMIC reserve ---


def short(order: int = 1) -> PageAllocator:
    """A guest at its minimum watermark in which blocks of ``order`` are free."""
    allocator = PageAllocator(1 << 15)
    fill(allocator, order, UNMOVABLE)
    return allocator


def test_urgent_block_reserves_its_pageblock() -> None:
    allocator = short()
    zone = allocator.zones[0]
    assert allocator.alloc_pages(1, UNMOVABLE) is None
    pfn = allocator.alloc_pages(1, UNMOVABLE, AllocFlags.ATOMIC)
    assert pfn is not None
    assert zone.nr_reserved_highatomic == 512
    assert allocator.pageblock_migratetype[pfn >> 9] == HIGHATOMIC
    assert zone.fast_mark[UNMOVABLE] == zone.watermarks.low + 512
    # The free rest of the pageblock is for others like it.
    following = allocator.alloc_pages(1, MOVABLE, AllocFlags.ATOMIC)
    assert following is not None
    assert following >> 9 == pfn >> 9
    allocator.validate()


def test_single_pages_reserve_nothing() -> None:
    allocator = short()
    assert allocator.alloc_pages(0, UNMOVABLE, AllocFlags.ATOMIC) is not None
    assert allocator.zones[0].nr_reserved_highatomic == 0


def test_reserve_is_a_hundredth_of_the_zone_and_a_pageblock_at_most() -> None:
    allocator = PageAllocator(1 << 18)
    zone = allocator.zones[0]
    fill(allocator, 8, UNMOVABLE)
    assert [highatomic.reserve(allocator, zone, pfn, 8) for pfn in range(0, 9 * 512, 512)] == [True] * 7 + [False] * 2
    # 2621 + 512 pages were not yet reached after six pageblocks.
    assert zone.nr_reserved_highatomic == 7 * 512
    assert list(allocator.pageblock_migratetype[:8]) == [HIGHATOMIC] * 7 + [UNMOVABLE]
    assert not highatomic.unreserve(allocator, MOVABLE)
    allocator.free_pages(512, 8)
    assert entries(allocator, 8, HIGHATOMIC) == [512]
    assert highatomic.unreserve(allocator, MOVABLE)
    assert (zone.nr_reserved_highatomic, allocator.pageblock_migratetype[1]) == (6 * 512, MOVABLE)
    allocator.validate()


def test_reserve_of_7_2_is_whole_pageblocks_and_none_in_a_small_zone() -> None:
    allocator = PageAllocator(1 << 18, claims_pageblocks=True)
    zone = allocator.zones[0]
    fill(allocator, 10, UNMOVABLE)
    # A hundredth, 2621 pages, is five pageblocks and a part. A block of two pageblocks joins as a whole.
    assert [highatomic.reserve(allocator, zone, pfn, 10) for pfn in range(0, 4 * 1024, 1024)] == [True] * 3 + [False]
    assert zone.nr_reserved_highatomic == 6 * 512
    assert list(allocator.pageblock_migratetype[:7]) == [HIGHATOMIC] * 6 + [UNMOVABLE]
    small = PageAllocator(99 * 512, claims_pageblocks=True)
    assert not highatomic.reserve(small, small.zones[0], 0, 1)


@pytest.mark.parametrize(("claims", "left_out"), [(False, 1024), (True, 512)], ids=["6.1", "7.2"])
def test_watermarks_leave_out_the_reserve_or_what_is_free_of_it(claims: bool, left_out: int) -> None:
    allocator = PageAllocator(1 << 18, claims_pageblocks=claims)
    zone = allocator.zones[0]
    pfn = allocator.alloc_pages(9, UNMOVABLE)
    assert pfn is not None
    assert highatomic.reserve(allocator, zone, pfn, 9)
    assert highatomic.reserve(allocator, zone, pfn ^ 512, 9)
    assert (zone.nr_reserved_highatomic, zone.free_highatomic) == (1024, 512)
    most = zone.free_pages - left_out  # a mark that the usable pages just reach
    assert not zone_watermark_ok(zone, 0, most, ZoneType.NORMAL, migratetype=MOVABLE)
    assert zone_watermark_ok(zone, 0, most - 1, ZoneType.NORMAL, migratetype=MOVABLE)
    # A reporter may take a block from exactly so many pages.
    zone.watermark_min = most - 1024 - 1
    assert allocator.isolate_free_page(zone, 8192, 10)
    allocator.putback_isolated_page(zone, 8192, 10)
    zone.watermark_min += 1
    assert not allocator.isolate_free_page(zone, 8192, 10)


def test_reserve_is_given_up_before_memory_is_out() -> None:
    allocator = short()
    zone = allocator.zones[0]
    assert allocator.alloc_pages(1, UNMOVABLE, AllocFlags.ATOMIC) is not None
    free_there = len(entries(allocator, 1, HIGHATOMIC)) + sum(zone.nr_free[2:])
    assert free_there > 0
    zone.watermark_min = 0
    assert fill(allocator)
    assert zone.nr_reserved_highatomic == 0
    assert allocator.nr_free_pages() == 0
    allocator.validate()


# --- CMA ---


def cma_guest() -> PageAllocator:
    return PageAllocator(8192, cma_pages=6144, min_free_kbytes=0)


def test_area_is_at_the_end_and_on_lists_of_its_own() -> None:
    allocator = cma_guest()
    zone = allocator.zones[0]
    assert (zone.cma_pages, zone.free_cma_pages, zone.free_pages) == (6144, 6144, 8192)
    # Freed one pageblock after the other, each pair merges and goes to the head.
    assert entries(allocator, 10, CMA) == [7168, 6144, 5120, 4096, 3072, 2048]
    assert entries(allocator, 10) == [0, 1024]
    allocator.validate()


def test_movable_requests_use_it_first_while_more_than_half_of_what_is_free_is_there() -> None:
    allocator = cma_guest()
    zone = allocator.zones[0]
    pfns = [allocator.alloc_pages(9) for _ in range(10)]
    # 6144 of 8192, 5632 of 7680 and so on: down to 2048 of 4096, which is not more than half.
    assert all(pfn is not None and pfn >= 2048 for pfn in pfns[:8])
    # The ninth is taken elsewhere, and that makes it more than half again.
    assert pfns[8] == 0
    assert pfns[9] is not None
    assert pfns[9] >= 2048
    assert zone.free_cma_pages == 6144 - 9 * 512
    allocator.validate()


def test_cma_pages_serve_movable_requests_alone_and_before_they_steal() -> None:
    allocator = cma_guest()
    zone = allocator.zones[0]
    assert len(fill(allocator, 0, UNMOVABLE)) == 2048
    assert zone.free_pages == zone.free_cma_pages == 6144
    assert len(fill(allocator)) == 6144
    assert (zone.free_pages, zone.free_cma_pages) == (0, 0)
    allocator.validate()


def test_retagging_keeps_the_count_of_free_cma_pages() -> None:
    allocator = cma_guest()
    zone = allocator.zones[0]
    assert allocator.set_pageblock_migratetype(2048, MOVABLE) == 2
    assert (zone.cma_pages, zone.free_cma_pages) == (5120, 5120)
    assert allocator.set_pageblock_migratetype(0, UNMOVABLE) == 1
    allocator.validate()


# --- Keeping types apart ---


def test_types_that_have_to_share_a_pageblock_boost_the_watermark_until_kswapd_has_run() -> None:
    allocator = PageAllocator(1 << 15)
    zone = allocator.zones[0]
    for pfn in fill(allocator)[:1000]:
        allocator.free_pages(pfn, 0)
    runs = allocator.vmscan.kswapd_runs
    # All is movable, and no whole pageblock is free but the first, which this request takes.
    assert allocator.alloc_pages(0, UNMOVABLE) is not None
    assert allocator.alloc_pages(0, RECLAIMABLE) is not None
    assert allocator.vmscan.kswapd_runs > runs
    assert zone.watermark_boost == 0
    assert zone.fast_mark[MOVABLE] == zone.watermarks.low
    allocator.validate()
