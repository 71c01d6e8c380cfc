"""Free pages that the host backs, counted together and one by one."""

import random

import pytest

from guest.ledger.free_pages import count_backed, count_backed_free
from guest.mm.mmzone import ZoneSpan
from guest.mm.page_alloc import PageAllocator
from guest.mm.page_flags import BUDDY_ORDER


def test_backed_pages_of_blocks() -> None:
    residency = bytearray(64)
    residency[8:16] = b"\x01" * 8
    residency[20:24] = b"\x02" * 4
    assert count_backed(residency, [0, 8, 20], 2) == 4
    assert count_backed(residency, [8], 3) == 8
    assert count_backed(bytes(residency), [], 0) == 0


@pytest.mark.parametrize("orders", [0, 1, 5, 8, 9, 11])
@pytest.mark.parametrize("share", [0.01, 0.5])
def test_all_blocks_below_an_order_are_counted(orders: int, share: float) -> None:
    """Two zones with a hole between them, few and many small blocks, residency page by page."""
    rng = random.Random(orders)
    zones = [
        ZoneSpan(name="DMA32", start_pfn=0, end_pfn=5 * 1024),
        ZoneSpan(name="Normal", start_pfn=8 * 1024, end_pfn=17 * 1024),
    ]
    allocator = PageAllocator(14 * 1024, zones=zones)
    held = {pfn: order for order in rng.choices((0, 0, 1, 2, 3, 6, 7, 8), k=3000) if (pfn := _take(allocator, order))}
    for pfn, order in held.items():
        if rng.random() < share:
            allocator.free_pages(pfn, order)
    residency = bytearray(rng.choices((0, 1, 2), k=17 * 1024))
    expected = sum(
        residency.count(1, pfn, pfn + (1 << order))
        for pfn, state in enumerate(allocator.mem_map)
        if (order := _order(state)) < orders
    )
    assert count_backed_free(allocator, residency, orders) == expected
    assert expected > 0 or orders == 0 or share < 0.1


def _take(allocator: PageAllocator, order: int) -> int:
    return allocator.alloc_pages(order) or 0


def _order(state: int) -> int:
    order = BUDDY_ORDER[state]
    return 99 if order is None else order
