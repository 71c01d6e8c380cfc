"""The map of memory: its cells add up to what the allocator has, and its text is what it was made from."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest.mm.page_alloc import PageAllocator
from guest.mm.page_flags import REPORTED
from guest.mm.pageblock import MAX_ORDER
from guest.mm.reporting.reporters import make_reporter
from guest.mm.views.memory_map import LEVELS, cell_order, decode, encode, levels, take_map
from guest.simulation import HostMemory, Simulation
from protocol.memory import PAGE_SIZE


@given(st.lists(st.integers(0, LEVELS)))
def test_the_text_of_a_layer(layer: list[int]) -> None:
    assert decode(encode(layer)) == layer


def test_the_text_has_runs() -> None:
    assert encode([0] * 12 + [2] + [8] * 3) == "a12ci3"


def test_a_level_is_nothing_or_all_only_where_it_is() -> None:
    assert levels([0, 1, 64, 127, 128], 5 * 128, 7) == [0, 1, 4, LEVELS - 1, LEVELS]
    assert levels([128, 60], 128 + 60, 7) == [LEVELS, LEVELS]
    assert levels([], 0, 7) == []


@pytest.mark.parametrize(("pages", "cells", "order"), [(1, 1, 0), (1024, 1024, 0), (1025, 1024, 1), (1 << 18, 256, 10)])
def test_cells_are_as_small_as_allowed(pages: int, cells: int, order: int) -> None:
    assert cell_order(pages, cells) == order


def test_each_page_is_in_one_layer() -> None:
    allocator = PageAllocator(8 << MAX_ORDER)
    host = HostMemory(allocator.end_pfn)
    first = allocator.alloc_pages(MAX_ORDER)
    small = allocator.alloc_pages(MAX_ORDER - 2)
    assert first is not None
    assert small is not None
    host.fill(first, 1 << MAX_ORDER, 1)
    found = take_map(allocator, host.residency, cells=32, ballooned=range(small, small + 256))
    assert found.cell_bytes == PAGE_SIZE << MAX_ORDER - 2
    in_use = {pfn >> MAX_ORDER - 2 for pfn in range(first, first + (1 << MAX_ORDER), 256)}
    assert [cell for cell, level in enumerate(found.resident) if level] == sorted(in_use)
    assert found.balloon == [LEVELS if cell == small >> MAX_ORDER - 2 else 0 for cell in range(32)]
    assert found.free == [0 if cell in in_use or found.balloon[cell] else LEVELS for cell in range(32)]
    assert not any(found.reported or ())


@pytest.mark.parametrize("cells", [8, 64])
def test_reported_blocks_are_a_layer_of_their_own(cells: int) -> None:
    allocator = PageAllocator(64 << MAX_ORDER)
    simulation = Simulation(allocator, make_reporter("boundary", allocator))
    simulation.run(10.0)
    found = take_map(allocator, simulation.host.residency, cells=cells)
    assert simulation.reporter is not None
    assert found.reported is not None
    assert found.free_blocks is not None
    assert found.reported_blocks is not None
    pages = sum(count << order for order, count in enumerate(found.reported_blocks))
    assert pages == simulation.reporter.reported_pages() > 0
    assert sum(count << order for order, count in enumerate(found.free_blocks)) == allocator.nr_free_pages()
    assert sum(found.reported) >= pages * cells * LEVELS // (64 << MAX_ORDER)


def test_many_small_blocks_are_counted_by_cell() -> None:
    """Every second page of the first 4 MiB is free, and half of these are reported."""
    allocator = PageAllocator(4 << MAX_ORDER)
    pfns = [allocator.alloc_pages(0) for _ in range(1 << MAX_ORDER)]
    zone = allocator.zones[0]
    for pfn in pfns[::2]:
        assert pfn is not None
        allocator.free_pages(pfn, 0)
    for pfn in pfns[::4]:
        assert pfn is not None
        allocator.mem_map[pfn] |= REPORTED
        zone.reported_pages[0] += 1
    found = take_map(allocator, bytes(4 << MAX_ORDER), cells=16)
    quarter = LEVELS // 4
    assert found.reported == [quarter] * 4 + [0] * 12
    assert found.free == [quarter] * 4 + [LEVELS] * 12
    assert found.free_blocks == [512, *([0] * (MAX_ORDER - 1)), 3]
    assert found.reported_blocks == [256, *([0] * MAX_ORDER)]


def test_what_is_not_known_is_left_out() -> None:
    allocator = PageAllocator(4 << MAX_ORDER)
    found = take_map(allocator, bytes(4 << MAX_ORDER), cells=4)
    assert found.as_json() == {
        "cell_bytes": PAGE_SIZE << MAX_ORDER,
        "free": "i4",
        "reported": "a4",
        "balloon": "a4",
        "resident": "a4",
        "free_blocks": [0] * MAX_ORDER + [4],
        "reported_blocks": [0] * (MAX_ORDER + 1),
    }
