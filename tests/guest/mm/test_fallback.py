"""guest/mm/fallback.py: which type steals from which, and how much."""

import pytest

from guest.mm.fallback import rmqueue_fallback
from guest.mm.page_alloc import PageAllocator
from guest.mm.page_flags import MOVABLE as MOVABLE_FLAG
from guest.mm.pageblock import MigrateType
from protocol.errors import UsageError
from tests.guest.mm.reporting.reporting import entries

UNMOVABLE, MOVABLE, RECLAIMABLE = MigrateType.UNMOVABLE, MigrateType.MOVABLE, MigrateType.RECLAIMABLE


def guest(blocks: int = 1, *, claims: bool = False) -> PageAllocator:
    return PageAllocator(blocks * 1024, min_free_kbytes=0, claims_pageblocks=claims)


def retag(allocator: PageAllocator, migratetype: MigrateType, *pfns: int) -> None:
    for pfn in pfns:
        allocator.set_pageblock_migratetype(pfn, migratetype)


@pytest.mark.parametrize("claims", [False, True])
def test_block_of_a_pageblock_or_more_is_taken_alone_and_its_pageblocks_change_type(claims: bool) -> None:
    allocator = guest(2, claims=claims)
    assert allocator.alloc_pages(0, UNMOVABLE) == 0
    assert list(allocator.pageblock_migratetype) == [UNMOVABLE, UNMOVABLE, MOVABLE, MOVABLE]
    assert entries(allocator, 10) == [1024]
    assert entries(allocator, 9, UNMOVABLE) == [512]
    allocator.validate()


@pytest.mark.parametrize(
    ("wanted", "first"), [(UNMOVABLE, RECLAIMABLE), (MOVABLE, RECLAIMABLE), (RECLAIMABLE, UNMOVABLE)]
)
def test_fallback_order(wanted: MigrateType, first: MigrateType) -> None:
    (second,) = {UNMOVABLE, MOVABLE, RECLAIMABLE} - {wanted, first}
    allocator = guest(2)
    for pfn, migratetype in ((0, second), (512, second), (1024, first), (1536, first)):
        allocator.pageblock_migratetype[pfn >> 9] = migratetype
    for pfn, migratetype in ((0, second), (1024, first)):
        allocator.move_to_free_list(allocator.zones[0], pfn, 10, migratetype)
    assert [allocator.alloc_pages(10, wanted) for _ in range(3)] == [1024, 0, None]


def test_largest_block_is_stolen_although_a_smaller_one_would_do() -> None:
    allocator = guest(2)
    assert allocator.alloc_pages(4) == 0
    assert allocator.alloc_pages(0, UNMOVABLE) == 1024


def fragment(allocator: PageAllocator, migratetype: MigrateType, free: list[tuple[int, int]]) -> None:
    """Allocate everything as order 0, make all pageblocks ``migratetype``, free the given (pfn, order) runs."""
    while allocator.alloc_pages(0, migratetype) is not None:
        pass
    for pageblock in range(len(allocator.pageblock_migratetype)):
        allocator.pageblock_migratetype[pageblock] = migratetype
    for start, order in free:
        for pfn in range(start, start + (1 << order)):
            allocator.free_pages(pfn, 0)


def test_movable_request_takes_the_smallest_block_when_it_may_not_have_the_pageblock() -> None:
    allocator = guest()
    fragment(allocator, UNMOVABLE, [(0, 3), (64, 1), (128, 0)])
    assert allocator.alloc_pages(1, MOVABLE) == 64
    # Only that block came over: the others are still unmovable, and so is the pageblock.
    assert (entries(allocator, 3, UNMOVABLE), entries(allocator, 0, UNMOVABLE)) == ([0], [128])
    assert allocator.pageblock_migratetype[0] == UNMOVABLE
    allocator.validate()


def test_movable_request_may_have_the_pageblock_for_half_of_its_order() -> None:
    allocator = guest()
    fragment(allocator, UNMOVABLE, [(0, 4), (64, 1)])
    assert allocator.alloc_pages(1, MOVABLE) == 64
    assert entries(allocator, 4, MOVABLE) == [0]
    # 18 free pages and none movable are less than half of it, so it stays unmovable.
    assert allocator.pageblock_migratetype[0] == UNMOVABLE
    allocator.validate()


@pytest.mark.parametrize("claims", [False, True])
@pytest.mark.parametrize(("free_order", "expected"), [(7, MOVABLE), (8, UNMOVABLE)])
def test_unmovable_request_keeps_the_pageblock_when_half_of_it_is_free(
    free_order: int, expected: MigrateType, claims: bool
) -> None:
    allocator = guest(claims=claims)
    fragment(allocator, MOVABLE, [(0, free_order)])
    assert allocator.alloc_pages(0, UNMOVABLE) == 0
    assert list(allocator.pageblock_migratetype) == [expected, MOVABLE]
    allocator.validate()


def test_pages_allocated_as_unmovable_count_as_compatible_for_an_unmovable_request() -> None:
    allocator = guest()
    # The whole guest is in use as unmovable memory, in pageblocks that are called movable.
    fragment(allocator, UNMOVABLE, [])
    for pageblock in (0, 1):
        allocator.pageblock_migratetype[pageblock] = MOVABLE
    allocator.free_pages(5, 0)
    assert allocator.alloc_pages(0, UNMOVABLE) == 5
    assert list(allocator.pageblock_migratetype) == [UNMOVABLE, MOVABLE]


def test_movable_request_counts_movable_pages_as_compatible() -> None:
    allocator = guest()
    fragment(allocator, MOVABLE, [])
    for pageblock in (0, 1):
        allocator.pageblock_migratetype[pageblock] = RECLAIMABLE
    for pfn in range(16):
        allocator.free_pages(pfn, 0)
    assert allocator.alloc_pages(4, MOVABLE) == 0
    assert list(allocator.pageblock_migratetype) == [MOVABLE, RECLAIMABLE]


def test_high_atomic_and_cma_neither_take_nor_give() -> None:
    allocator = guest()
    assert allocator.alloc_pages(0, MigrateType.HIGHATOMIC) is None
    assert allocator.alloc_pages(0, MigrateType.CMA) is None
    allocator.pageblock_migratetype[:] = bytes([MigrateType.CMA]) * 2
    allocator.move_to_free_list(allocator.zones[0], 0, 10, MigrateType.CMA)
    assert allocator.alloc_pages(0, MOVABLE) is None
    assert allocator.alloc_pages(0, MigrateType.CMA) == 0


def test_movable_request_leaves_the_rest_of_a_stolen_block_with_its_type() -> None:
    allocator = guest(claims=True)
    fragment(allocator, UNMOVABLE, [(0, 3), (64, 2), (128, 0)])
    assert allocator.alloc_pages(1, MOVABLE) == 64
    assert (entries(allocator, 3, UNMOVABLE), entries(allocator, 1, UNMOVABLE)) == ([0], [66])
    assert [entries(allocator, order, MOVABLE) for order in range(11)] == [[]] * 11
    assert allocator.pageblock_migratetype[0] == UNMOVABLE
    allocator.validate()


def test_unmovable_request_steals_the_smallest_block_where_no_pageblock_can_be_claimed() -> None:
    allocator = guest(claims=True)
    fragment(allocator, MOVABLE, [(0, 7), (256, 2), (512, 6)])
    assert allocator.alloc_pages(1, UNMOVABLE) == 256
    # 132 of 512 pages are free and the others movable: all stay where they were.
    assert list(allocator.pageblock_migratetype) == [MOVABLE, MOVABLE]
    assert [entries(allocator, order, MOVABLE) for order in (7, 6, 1)] == [[0], [512], [258]]
    allocator.validate()


def test_pageblock_with_a_smaller_free_block_is_claimed_where_the_first_cannot_be() -> None:
    allocator = guest(2, claims=True)
    # The largest free block lies among movable pages; the other one in a pageblock that is otherwise unmovable.
    fragment(allocator, MOVABLE, [(0, 7)])
    allocator.free_pages(512, 0)
    for pfn in range(513, 1024):
        allocator.mem_map[pfn] &= ~MOVABLE_FLAG
    assert allocator.alloc_pages(0, UNMOVABLE) == 512
    assert list(allocator.pageblock_migratetype) == [MOVABLE, UNMOVABLE, MOVABLE, MOVABLE]
    assert entries(allocator, 7, MOVABLE) == [0]
    allocator.validate()


@pytest.mark.parametrize("in_one_bulk", [False, True])
def test_bulk_that_has_stolen_a_block_looks_for_no_pageblock_any_more(in_one_bulk: bool) -> None:
    allocator = PageAllocator(4096, min_free_kbytes=0, claims_pageblocks=True, nr_cpus=1)
    pcp = allocator.zones[0].pcps[0]
    pcp.batch = 2 if in_one_bulk else 1
    # Page 512 has a pageblock that is otherwise unmovable; page 0, before it on the list, lies among movable pages.
    fragment(allocator, MOVABLE, [*((pfn, 0) for pfn in range(1024, 1060, 2)), (512, 0), (0, 0)])
    for pfn in range(513, 1024):
        allocator.mem_map[pfn] &= ~MOVABLE_FLAG
    allocator.drain_all_pages()
    assert entries(allocator, 0, MOVABLE)[:2] == [0, 512]
    assert [allocator.alloc_pages(0, UNMOVABLE) for _ in range(2)] == [0, 512]
    # A request of its own claims the second pageblock.
    assert list(allocator.pageblock_migratetype[:2]) == [MOVABLE, MOVABLE if in_one_bulk else UNMOVABLE]
    allocator.validate()


def test_request_that_must_not_fragment_steals_nothing_smaller_than_a_pageblock() -> None:
    allocator = guest(claims=True)
    fragment(allocator, MOVABLE, [(0, 8)])
    zone = allocator.zones[0]
    assert rmqueue_fallback(allocator, zone, 0, UNMOVABLE, no_fragment=True) == -1
    assert rmqueue_fallback(allocator, zone, 0, UNMOVABLE) == 0


def test_pageblock_that_merges_takes_over_the_type_of_the_block_it_joins() -> None:
    for claims, expected in ((False, [MOVABLE, RECLAIMABLE]), (True, [RECLAIMABLE, RECLAIMABLE])):
        allocator = guest(claims=claims)
        assert [allocator.alloc_pages(9), allocator.alloc_pages(9)] == [0, 512]
        allocator.pageblock_migratetype[1] = RECLAIMABLE
        allocator.free_pages(0, 9)
        allocator.free_pages(512, 9)
        assert entries(allocator, 10, RECLAIMABLE) == [0]
        assert list(allocator.pageblock_migratetype) == expected
        allocator.validate()


def test_isolated_pages_cannot_be_asked_for() -> None:
    with pytest.raises(UsageError, match="isolated pageblock"):
        guest().alloc_pages(0, MigrateType.ISOLATE)
    allocator = guest()
    retag(allocator, MigrateType.ISOLATE, 0, 512)
    with pytest.raises(UsageError, match="isolated pageblock"):
        allocator.alloc_pages(10, MigrateType.ISOLATE)
    assert allocator.alloc_pages(0) is None


def test_stolen_block_stays_reported() -> None:
    allocator = guest(2)
    zone = allocator.zones[0]
    allocator.mem_map[0] |= 0x20
    zone.reported_pages[10] += 1
    retag(allocator, RECLAIMABLE, 0)
    assert entries(allocator, 10, RECLAIMABLE) == [0]
    assert zone.reported_pages[10] == 1
    allocator.validate()
    assert allocator.alloc_pages(10, RECLAIMABLE) == 0
    assert zone.reported_pages[10] == 0
