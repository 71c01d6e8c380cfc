"""Counts the pages that the host backs: those of some blocks, or those of each cell of a row.

Nearly every range is backed as a whole or not at all. Both are found out by comparing memory, at many bytes a cycle;
only what is mixed is counted, a byte at a time.
"""

from collections.abc import Iterable
from typing import Final

from guest.mm.pageblock import MAX_ORDER_NR_PAGES

Residency = bytes | bytearray
"""One byte for each page from pfn 0 on: 1 for a page that the host backs, another even number for all others."""

BACKED: Final = 1

_RUN_CELLS: Final = 32
"""Cells that are looked at together first."""
_ALL_BACKED: Final = bytes([BACKED]) * MAX_ORDER_NR_PAGES


def count_in_blocks(residency: Residency, pfns: Iterable[int], pages: int) -> int:
    """Return how many pages of the blocks that begin at ``pfns`` the host backs.

    Each block has ``pages`` pages, at most MAX_ORDER_NR_PAGES. In ascending order one search for the next backed page
    passes over all blocks before it.
    """
    find, startswith, all_backed = residency.find, residency.startswith, _ALL_BACKED[:pages]
    backed, following = 0, -1
    for pfn in sorted(pfns):
        end = pfn + pages
        if following < pfn:
            following = find(BACKED, pfn)
            if following < 0:
                break
        if following >= end:
            continue
        if following == pfn and startswith(all_backed, pfn, end):
            backed += pages
        else:
            backed += residency.count(BACKED, following, end)
    return backed


def count_cells(residency: Residency, order: int) -> list[int]:
    """Return how many pages of each cell of 2**order pages the host backs; the last cell may be cut off."""
    pages = 1 << order
    whole_run = bytes([BACKED]) * (_RUN_CELLS << order)
    counts: list[int] = []
    for begin in range(0, len(residency), _RUN_CELLS << order):
        end = min(begin + (_RUN_CELLS << order), len(residency))
        if residency[begin] == BACKED and residency.startswith(whole_run, begin, end):
            counts += [pages] * _RUN_CELLS
        elif residency[begin] != BACKED and residency.find(BACKED, begin, end) < 0:
            counts += [0] * -(-(end - begin) >> order)
        else:
            counts += [residency.count(BACKED, cell, min(cell + pages, end)) for cell in range(begin, end, pages)]
    return counts
