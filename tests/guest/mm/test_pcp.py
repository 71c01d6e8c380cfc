"""guest/mm/pcp.py and its use: the orders and the number of pages kept per CPU, and their return."""

import pytest

from guest.mm.errors import CorruptionError, DoubleFreeError
from guest.mm.page_alloc import PageAllocator
from guest.mm.page_flags import BUDDY, PCP
from guest.mm.pageblock import MigrateType
from guest.mm.pcp import PerCpuPages, pcp_orders, zone_batchsize, zone_highsize
from protocol.errors import UsageError

GIB = 1 << 18
UNMOVABLE, MOVABLE = MigrateType.UNMOVABLE, MigrateType.MOVABLE


@pytest.mark.parametrize(
    ("managed_pages", "batch"),
    [(4096, 1), (16384, 3), (32768, 7), (1 << 16, 15), (1 << 17, 31), (GIB, 63), (64 * GIB, 63)],
)
def test_batch(managed_pages: int, batch: int) -> None:
    assert zone_batchsize(managed_pages) == batch


def test_high_is_the_low_watermark_shared_by_the_cpus_but_four_batches() -> None:
    assert zone_highsize(1286, 63, 1) == 1286
    assert zone_highsize(1286, 63, 4) == 321
    assert zone_highsize(1286, 63, 16) == 252


def test_orders_that_are_kept() -> None:
    assert pcp_orders(9) == (0, 1, 2, 3, 9)
    assert pcp_orders(None) == (0, 1, 2, 3)


def guest(nr_cpus: int = 1, pageblock_order: int = 9) -> PageAllocator:
    return PageAllocator(GIB, nr_cpus=nr_cpus, pageblock_order=pageblock_order)


def test_first_page_brings_a_batch_and_addresses_ascend() -> None:
    allocator = guest()
    assert [allocator.alloc_pages(0) for _ in range(3)] == [0, 1, 2]
    assert allocator.zones[0].free_pages == GIB - 63
    assert allocator.nr_pcp_pages() == 60
    assert allocator.mem_map[3] == PCP | 0
    allocator.validate()


@pytest.mark.parametrize(("order", "blocks"), [(0, 63), (1, 31), (2, 15), (3, 7), (9, 2)])
def test_batch_shrinks_with_the_order(order: int, blocks: int) -> None:
    allocator = guest()
    allocator.alloc_pages(order)
    assert allocator.nr_pcp_pages() == (blocks - 1) << order


@pytest.mark.parametrize("order", [4, 8, 10])
def test_orders_without_a_list_bypass_the_pageset(order: int) -> None:
    allocator = guest()
    pfn = allocator.alloc_pages(order)
    assert pfn is not None
    assert allocator.nr_pcp_pages() == 0
    allocator.free_pages(pfn, order)
    assert allocator.nr_free_pages() == GIB


def test_pageblock_order_bypasses_the_pageset_without_huge_pages() -> None:
    allocator = guest(pageblock_order=10)
    pfn = allocator.alloc_pages(9)
    assert pfn is not None
    allocator.free_pages(pfn, 9)
    assert allocator.nr_free_pages() == GIB


def test_freed_page_is_the_next_to_be_handed_out_and_not_in_the_buddy_lists() -> None:
    allocator = guest()
    pfns = [allocator.alloc_pages(0) for _ in range(10)]
    for pfn in (4, 7):
        allocator.free_pages(pfn, 0)
    assert pfns == list(range(10))
    assert [allocator.alloc_pages(0) for _ in range(3)] == [7, 4, 10]


def test_excess_leaves_in_batches_that_double_from_the_cold_end() -> None:
    allocator = guest()
    zone, pcp = allocator.zones[0], allocator.zones[0].pcp
    assert pcp is not None
    assert (pcp.batch, pcp.high) == (63, 1286)
    pfns = [allocator.alloc_pages(0) for _ in range(63 * 40)]
    assert pcp.count == 0
    drained = []
    for pfn in pfns:
        assert pfn is not None
        before = zone.free_pages
        allocator.free_pages(pfn, 0)
        if zone.free_pages != before:
            drained.append(zone.free_pages - before)
            allocator.validate()
    # 63 << 4 = 1008 is still below high - batch = 1223; then that is the most.
    assert drained == [63, 126, 252, 504, 1008][: len(drained)]
    assert len(drained) >= 4
    # The pages freed first were the coldest.
    assert allocator.mem_map[0] & ~0x0F == BUDDY


def test_allocation_halves_the_next_drain() -> None:
    pcp = PerCpuPages(63, 1000, pcp_orders(9))
    pcp.count = 1000
    assert [pcp.excess(0) for _ in range(3)] == [63, 126, 252]
    pcp.free_factor >>= 1
    assert pcp.excess(0) == 126


def test_larger_blocks_all_leave_when_frees_outnumber_allocations() -> None:
    pcp = PerCpuPages(63, 1000, pcp_orders(9))
    pcp.count = 40
    assert pcp.excess(2) == 0
    pcp.free_factor = 1
    assert (pcp.excess(2), pcp.excess(0), pcp.excess(9)) == (40, 0, 0)


def test_reclaim_leaves_four_batches() -> None:
    pcp = PerCpuPages(63, 1000, pcp_orders(9))
    pcp.count = 300
    assert pcp.excess(0) == 0
    assert pcp.excess(0, reclaiming=True) == 63


def test_drain_begins_with_the_list_that_overflowed_and_goes_round() -> None:
    pcp = PerCpuPages(63, 1000, pcp_orders(9))
    first = pcp.for_free[MOVABLE][1]
    assert first is not None
    for migratetype, order, pfns in ((MOVABLE, 1, [2, 4]), (UNMOVABLE, 2, [16]), (UNMOVABLE, 0, [100, 101])):
        pages = pcp.for_free[migratetype][order]
        assert pages is not None
        pages.extend(pfns)
        pcp.count += len(pfns) << order
    assert list(pcp.take_cold(9, first)) == [(2, 1), (4, 1), (16, 2), (100, 0)]
    assert pcp.count == 1


def test_drain_all_pages_brings_everything_back() -> None:
    allocator = guest(2)
    held = {}
    for cpu in (0, 1):
        allocator.run_on_cpu(cpu)
        held[cpu] = [allocator.alloc_pages(order, kind) for order in (0, 3, 9) for kind in (UNMOVABLE, MOVABLE)]
    assert not set(held[0]) & set(held[1])
    for cpu, pfns in held.items():
        allocator.run_on_cpu(1 - cpu)
        for pfn, order in zip(pfns, (0, 0, 3, 3, 9, 9), strict=True):
            assert pfn is not None
            allocator.free_pages(pfn, order)
    allocator.validate()
    assert allocator.nr_pcp_pages() > 0
    allocator.drain_all_pages()
    assert (allocator.nr_pcp_pages(), allocator.nr_free_pages()) == (0, GIB)
    allocator.validate()


def test_pages_on_per_cpu_lists_come_back_before_a_request_fails() -> None:
    allocator = PageAllocator(4096, nr_cpus=1, min_free_kbytes=0)
    zone = allocator.zones[0]
    pfns = []
    while (pfn := allocator.alloc_pages(0)) is not None:
        pfns.append(pfn)
    assert len(pfns) == 4096
    for pfn in pfns[:3]:
        allocator.free_pages(pfn, 0)
    assert zone.free_pages == 0
    assert allocator.alloc_pages(1) in (0, 2)


def test_cma_and_reserved_pages_are_freed_to_the_movable_list_isolated_ones_go_past() -> None:
    allocator = guest()
    pfn = allocator.alloc_pages(0)
    assert pfn == 0
    for migratetype, kept in ((MigrateType.HIGHATOMIC, True), (MigrateType.CMA, True), (MigrateType.ISOLATE, False)):
        allocator.set_pageblock_migratetype(0, migratetype)
        allocator.free_pages(0, 0)
        assert (allocator.mem_map[0] == PCP) is kept
        allocator.validate()
        if kept:
            assert allocator.alloc_pages(0) == 0


def test_double_free_is_found_on_a_per_cpu_list_too() -> None:
    allocator = guest()
    assert allocator.alloc_pages(0) == 0
    allocator.free_pages(0, 0)
    with pytest.raises(DoubleFreeError, match="cannot free pfn 0 order 0: it is already free, on a per-CPU list"):
        allocator.free_pages(0, 0)
    allocator.validate()


def test_processor_that_does_not_exist() -> None:
    with pytest.raises(UsageError, match="there is no processor 2 with page lists"):
        guest(2).run_on_cpu(2)
    with pytest.raises(UsageError, match="there is no processor 0"):
        guest(0).run_on_cpu(0)


def test_damage_is_found_and_named() -> None:
    for damage, message in (
        ("count", "CPU 0 counts 63 pages, its lists hold 62"),
        ("lost", "per-CPU in the map or on a list, but not both"),
        ("twice", "pfn 5 is on two per-CPU lists, or twice on one"),
    ):
        allocator = guest()
        allocator.alloc_pages(0)
        pcp = allocator.zones[0].pcp
        assert pcp is not None
        pages = pcp.for_free[MOVABLE][0]
        assert pages is not None
        if damage == "count":
            pcp.count += 1
        elif damage == "lost":
            pages.popleft()
            pcp.count -= 1
        else:
            pages.append(5)
            pcp.count += 1
        with pytest.raises(CorruptionError, match=message):
            allocator.validate()
