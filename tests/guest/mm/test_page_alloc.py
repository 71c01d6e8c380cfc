"""guest/mm/page_alloc.py: splitting, merging, placement, isolation, and the errors of a wrong free."""

import pytest

from guest.mm.errors import BadPageError, DoubleFreeError, NotAllocatedError, WrongOrderError
from guest.mm.mmzone import ZoneSpan, ZoneType
from guest.mm.page_alloc import PageAllocator
from guest.mm.page_flags import ABSENT, BUDDY, ISOLATED
from guest.mm.pageblock import MigrateType
from protocol.errors import UsageError
from tests.guest.mm.reporting.reporting import entries

WHOLE = 1024
"""Pages in a block of MAX_ORDER."""


def small(blocks: int = 4) -> PageAllocator:
    return PageAllocator(blocks * WHOLE)


# --- Allocation ---


def test_split_keeps_the_lower_half_and_puts_each_upper_half_on_its_list() -> None:
    allocator = small(1)
    assert allocator.alloc_pages(7) == 0
    assert [entries(allocator, order) for order in (7, 8, 9, 10)] == [[128], [256], [512], []]
    allocator.validate()


def test_addresses_are_handed_out_ascending() -> None:
    allocator = small(2)
    assert [allocator.alloc_pages(order) for order in (0, 0, 0, 3, 1, 9)] == [0, 1, 2, 8, 4, 512]
    allocator.validate()


def test_smallest_block_that_will_do_is_taken_before_a_larger_one_is_split() -> None:
    allocator = small(2)
    assert allocator.alloc_pages(10) == 0
    assert allocator.alloc_pages(0) == WHOLE
    assert allocator.alloc_pages(9) == WHOLE + 512
    allocator.free_pages(0, 10)
    assert allocator.alloc_pages(2) == WHOLE + 4


def test_allocation_stops_at_the_minimum_watermark() -> None:
    allocator = small(1)
    minimum = allocator.zones[0].watermarks.min
    taken = 0
    while allocator.alloc_pages(0) is not None:
        taken += 1
    assert minimum == 64
    assert taken == WHOLE - minimum
    assert allocator.nr_free_pages() == minimum
    allocator.validate()


def test_large_request_fails_when_no_block_is_large_enough() -> None:
    allocator = PageAllocator(2 * WHOLE, min_free_kbytes=0)
    assert [allocator.alloc_pages(order) for order in (9, 10, 10)] == [0, WHOLE, None]
    assert allocator.nr_free_pages() == 512


def test_highest_zone_is_used_first_and_the_lower_one_when_it_is_exhausted() -> None:
    spans = [ZoneSpan(name="DMA32", start_pfn=0, end_pfn=WHOLE), ZoneSpan(name="Normal", start_pfn=WHOLE, end_pfn=2048)]
    allocator = PageAllocator(2048, zones=spans, min_free_kbytes=0)
    # Above their low watermarks first, one page each; then down to the minimum, which is nothing here.
    assert [allocator.alloc_pages(9) for _ in range(4)] == [WHOLE, 0, WHOLE + 512, None]
    # The lower zone keeps a 256th of the upper one from a request that could have used that one.
    assert allocator.zones[0].lowmem_reserve[ZoneType.NORMAL] == 4
    assert [zone.free_pages for zone in allocator.zones] == [512, 0]
    allocator.validate()


@pytest.mark.parametrize("order", [-1, 11, 64])
def test_order_that_does_not_exist_is_refused(order: int) -> None:
    with pytest.raises(UsageError, match=f"order {order} is not within 0 and 10"):
        small().alloc_pages(order)


# --- Free ---


def test_free_merges_up_to_the_largest_block() -> None:
    allocator = small(1)
    held = [allocator.alloc_pages(0) for _ in range(8)]
    for pfn in held:
        assert pfn is not None
        allocator.free_pages(pfn, 0)
    assert entries(allocator, 10) == [0]
    assert allocator.nr_free_pages() == WHOLE
    allocator.validate()


def test_blocks_of_max_order_do_not_merge() -> None:
    allocator = small(2)
    assert allocator.alloc_pages(10) == 0
    allocator.free_pages(0, 10)
    assert entries(allocator, 10) == [0, WHOLE]


def test_freed_block_goes_to_the_head_when_no_merge_is_near() -> None:
    allocator = small(4)
    held = [allocator.alloc_pages(10) for _ in range(3)]
    allocator.free_pages(WHOLE, 10)
    allocator.free_pages(0, 10)
    assert held == [0, WHOLE, 2 * WHOLE]
    assert entries(allocator, 10) == [0, WHOLE, 3 * WHOLE]


def hold_all(allocator: PageAllocator) -> None:
    while allocator.alloc_pages(0) is not None:
        pass


def test_freed_block_goes_to_the_tail_when_the_next_larger_buddy_is_free() -> None:
    allocator = PageAllocator(WHOLE, min_free_kbytes=0)
    hold_all(allocator)
    for pfn in (2, 3, 100):
        allocator.free_pages(pfn, 0)
    assert entries(allocator, 1) == [2]
    # Page 0 could merge with 1, and then with 2..3, which is free already. Page 200 has no such prospect.
    allocator.free_pages(0, 0)
    assert entries(allocator, 0) == [100, 0]
    allocator.free_pages(200, 0)
    assert entries(allocator, 0) == [200, 100, 0]


def test_top_two_orders_alone_do_not_wait_for_a_merge() -> None:
    for order, expected in ((8, [2048, 0]), (9, [0, 2048])):
        allocator = PageAllocator(4 * WHOLE, min_free_kbytes=0)
        while allocator.alloc_pages(order) is not None:
            pass
        size = 1 << order
        # The upper neighbours of block 0 are free, as one block of the next order.
        for pfn in (2 * size, 3 * size, 2048, 0):
            allocator.free_pages(pfn, order)
        assert entries(allocator, order + 1) == [2 * size]
        assert entries(allocator, order) == expected


def test_blocks_of_different_types_merge_above_a_pageblock_only_when_both_types_are_ordinary() -> None:
    allocator = PageAllocator(2 * WHOLE, min_free_kbytes=0)
    for _ in range(4):
        allocator.alloc_pages(9)
    allocator.set_pageblock_migratetype(0, MigrateType.ISOLATE)
    allocator.set_pageblock_migratetype(WHOLE, MigrateType.UNMOVABLE)
    for pfn in (0, 512, WHOLE, WHOLE + 512):
        allocator.free_pages(pfn, 9)
    assert entries(allocator, 9, MigrateType.ISOLATE) == [0]
    assert entries(allocator, 9) == [512]
    # The merged block is filed under the type of the page that was freed last.
    assert entries(allocator, 10) == [WHOLE]
    assert allocator.pageblock_migratetype[2] == MigrateType.UNMOVABLE
    allocator.validate()


# --- A free that is wrong ---


def state_of(allocator: PageAllocator) -> tuple[object, ...]:
    zone = allocator.zones[0]
    return bytes(allocator.mem_map), list(zone.nr_free), zone.free_pages, dict(zone.free_list.next)


@pytest.mark.parametrize(
    ("pfn", "order", "error", "message"),
    [
        (8, 3, DoubleFreeError, "already free, or was never allocated, in the block at pfn 8 of order 3"),
        (600, 0, DoubleFreeError, "already free, or was never allocated, in the block at pfn 512 of order 9"),
        (0, 2, WrongOrderError, "it was allocated with order 3"),
        (0, 4, WrongOrderError, "it was allocated with order 3"),
        (0, 64, WrongOrderError, "it was allocated with order 3"),
        (0, -61, WrongOrderError, "it was allocated with order 3"),
        (4, 2, NotAllocatedError, "not a first page, it is allocated in the block at pfn 0 of order 3"),
        (1024, 0, NotAllocatedError, "there is no such page"),
        (10**9, 0, NotAllocatedError, "there is no such page"),
        (-1024, 3, NotAllocatedError, "there is no such page"),
    ],
)
def test_wrong_free_names_pfn_and_order_and_changes_nothing(
    pfn: int, order: int, error: type[BadPageError], message: str
) -> None:
    allocator = small(1)
    assert allocator.alloc_pages(3) == 0
    before = state_of(allocator)
    with pytest.raises(error, match=f"^cannot free pfn {pfn} order {order}: .*{message}") as caught:
        allocator.free_pages(pfn, order)
    assert (caught.value.pfn, caught.value.order) == (pfn, order)
    assert state_of(allocator) == before
    allocator.validate()


def test_freeing_twice_is_refused_after_a_merge_too() -> None:
    allocator = small(1)
    assert allocator.alloc_pages(0) == 0
    allocator.free_pages(0, 0)
    with pytest.raises(DoubleFreeError):
        allocator.free_pages(0, 0)


def test_freeing_a_block_that_is_being_reported_is_refused() -> None:
    allocator = small(1)
    zone = allocator.zones[0]
    zone.watermark_min = -1
    assert allocator.isolate_free_page(zone, 0, 10)
    with pytest.raises(DoubleFreeError, match="it is free and being reported"):
        allocator.free_pages(0, 10)


# --- Isolation ---


def test_isolation_takes_the_block_off_its_list_and_putback_returns_it_to_the_tail() -> None:
    allocator = small(3)
    zone = allocator.zones[0]
    assert allocator.isolate_free_page(zone, 0, 10)
    assert allocator.mem_map[0] == ISOLATED | 10
    assert allocator.nr_free_pages() == 2 * WHOLE
    allocator.validate()
    assert allocator.putback_isolated_page(zone, 0, 10)
    assert entries(allocator, 10) == [WHOLE, 2 * WHOLE, 0]
    assert allocator.mem_map[0] == BUDDY | 10


def test_putback_says_when_the_block_has_merged() -> None:
    allocator = small(2)
    zone = allocator.zones[0]
    assert allocator.alloc_pages(9) == 0
    assert allocator.isolate_free_page(zone, 512, 9)
    allocator.free_pages(0, 9)
    assert not allocator.putback_isolated_page(zone, 512, 9)
    assert entries(allocator, 10) == [WHOLE, 0]
    with pytest.raises(NotAllocatedError, match="pfn 512 is not isolated with order 9"):
        allocator.putback_isolated_page(zone, 512, 9)


def test_isolation_obeys_the_minimum_watermark() -> None:
    # mm/page_alloc.c: more than min + (1 << order) pages have to be free before.
    allocator = small(2)
    zone = allocator.zones[0]
    zone.watermark_min = WHOLE
    before = state_of(allocator)
    assert not allocator.isolate_free_page(zone, 0, 10)
    assert state_of(allocator) == before
    zone.watermark_min = WHOLE - 1
    assert allocator.isolate_free_page(zone, 0, 10)


@pytest.mark.parametrize(("order", "retagged"), [(7, []), (8, [0]), (9, [0]), (10, [0, 1])])
def test_isolating_at_least_half_a_pageblock_makes_it_movable(order: int, retagged: list[int]) -> None:
    allocator = PageAllocator(WHOLE, min_free_kbytes=0)
    zone = allocator.zones[0]
    zone.watermark_min = -1
    for pageblock in (0, 512):
        allocator.pageblock_migratetype[pageblock >> 9] = MigrateType.RECLAIMABLE
    if order < 10:
        other = allocator.alloc_pages(order)
        assert other == 0
        assert allocator.alloc_pages(order) == 1 << order
        allocator.free_pages(0, order)
    assert allocator.isolate_free_page(zone, 0, order)
    types = list(allocator.pageblock_migratetype)
    assert [block for block in (0, 1) if types[block] == MigrateType.MOVABLE] == retagged
    allocator.putback_isolated_page(zone, 0, order)
    assert entries(allocator, order, MigrateType.MOVABLE if retagged else MigrateType.RECLAIMABLE) == [0]


@pytest.mark.parametrize("kept", [MigrateType.HIGHATOMIC, MigrateType.CMA, MigrateType.ISOLATE])
def test_isolation_leaves_special_pageblocks_as_they_are(kept: MigrateType) -> None:
    allocator = small(2)
    allocator.pageblock_migratetype[0] = kept
    assert allocator.isolate_free_page(allocator.zones[0], 0, 10)
    assert allocator.pageblock_migratetype[0] == kept
    assert allocator.pageblock_migratetype[1] == MigrateType.MOVABLE


# --- Moving between lists ---


@pytest.mark.parametrize(("to_tail", "expected"), [(False, [3072, 2048]), (True, [2048, 3072])])
def test_moved_block_goes_to_the_head_as_in_v12_or_to_the_tail_as_since_5_10(
    to_tail: bool, expected: list[int]
) -> None:
    allocator = PageAllocator(4 * WHOLE, move_to_tail=to_tail)
    for pfn in (2048, 3072):
        allocator.set_pageblock_migratetype(pfn, MigrateType.CMA)
    assert entries(allocator, 10, MigrateType.CMA) == expected
    assert entries(allocator, 10) == [0, WHOLE]
    allocator.validate()


def test_moving_a_pageblock_counts_what_is_free_and_what_is_movable() -> None:
    allocator = PageAllocator(WHOLE, min_free_kbytes=0)
    assert allocator.alloc_pages(4) == 0
    assert allocator.alloc_pages(3) == 16
    assert allocator.alloc_pages(9) == 512
    # Reclaimable takes its page from this pageblock as well, for want of another.
    assert allocator.alloc_pages(0, MigrateType.RECLAIMABLE) == 24
    assert allocator.move_freepages_block(17, MigrateType.RECLAIMABLE) == (512 - 16 - 8 - 1, 16 + 8)
    allocator.validate()


def test_pageblock_outside_memory_cannot_be_moved() -> None:
    with pytest.raises(NotAllocatedError, match="pfn 1024 is outside RAM"):
        small(1).set_pageblock_migratetype(1024, MigrateType.CMA)


def test_hole_below_the_memory_is_absent() -> None:
    allocator = PageAllocator(WHOLE, start_pfn=WHOLE)
    assert set(allocator.mem_map[:WHOLE]) == {ABSENT}
    assert allocator.alloc_pages(10) is None
    assert allocator.alloc_pages(9) == WHOLE
    with pytest.raises(NotAllocatedError, match="there is no such page"):
        allocator.free_pages(0, 0)
    allocator.validate()
