"""Pages that the host backs, against counting each one."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from guest.mm.pageblock import MAX_ORDER_NR_PAGES
from guest.mm.views.residency import count_cells, count_in_blocks

RUNS = st.lists(st.tuples(st.sampled_from((0, 1, 2, 4)), st.integers(1, 300)), max_size=12)
"""Runs of pages that are never touched, backed, discarded, or in swap."""


@given(RUNS, st.integers(0, 9))
def test_each_cell_has_its_pages(runs: list[tuple[int, int]], order: int) -> None:
    residency = b"".join(bytes([state]) * pages for state, pages in runs)
    pages = 1 << order
    expected = [residency[begin : begin + pages].count(1) for begin in range(0, len(residency), pages)]
    assert count_cells(residency, order) == expected
    assert count_cells(bytearray(residency), order) == expected


@given(RUNS, st.sampled_from((1, 4, 64, MAX_ORDER_NR_PAGES)), st.randoms(use_true_random=False))
def test_blocks_in_any_order_have_their_pages(runs: list[tuple[int, int]], pages: int, rng: Random) -> None:
    residency = b"".join(bytes([state]) * count for state, count in runs)
    residency += bytes(-len(residency) % pages)
    pfns = [pfn for pfn in range(0, len(residency), pages) if rng.random() < 0.6]
    rng.shuffle(pfns)
    assert count_in_blocks(residency, pfns, pages) == sum(residency[pfn : pfn + pages].count(1) for pfn in pfns)
    assert count_in_blocks(residency, [], pages) == 0
