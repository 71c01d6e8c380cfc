"""The physical memory as a row of cells: how much of each is free, reported, in the balloon, and backed by the host.

A cell is a power of two of pages. Of each layer it has a level from 0 to :data:`LEVELS`, written as a letter: ``a`` for
nothing, ``i`` for all, and one in between for any part. A letter with a number after it stands for so many cells:
``a12ci3`` is twelve cells of nothing, one of a quarter, and three of all. What is in no layer of the guest is in use.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from guest.mm.page_alloc import PageAllocator
from guest.mm.page_flags import BUDDY, ORDER_MASK, REPORTED
from guest.mm.pageblock import MIGRATE_TYPES, NR_PAGE_ORDERS
from guest.mm.views.residency import count_cells
from protocol.memory import PAGE_SIZE

LEVELS: Final = 8
"""The level of a whole cell."""

CELLS: Final = 1024
"""The most cells of a map, if nothing else is asked for."""

_FEW: Final = 5
"""Blocks are few when they are fewer than pages >> _FEW: then they are looked at one by one."""

_LETTERS: Final = "abcdefghi"
_TO_LETTERS: Final = bytes(ord(_LETTERS[byte]) if byte <= LEVELS else 0 for byte in range(256))
_REPEATED: Final = re.compile(r"(.)\1\1+")
_RUN: Final = re.compile(r"([a-i])([0-9]*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryMap:
    """One moment. Each layer has the level of every cell, from the lowest address on.

    ``free_blocks`` are the blocks on the free lists by order, ``reported_blocks`` those of them that are marked
    reported. Without ``free`` only the host's side is known.
    """

    cell_bytes: int
    resident: Sequence[int]
    free: Sequence[int] | None = None
    """Free, but not marked reported; those on per-CPU lists and those that the device has at the moment too."""
    reported: Sequence[int] | None = None
    balloon: Sequence[int] | None = None
    free_blocks: Sequence[int] | None = None
    reported_blocks: Sequence[int] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the map as JSON values; what is not known is left out."""
        layers = {"free": self.free, "reported": self.reported, "balloon": self.balloon, "resident": self.resident}
        counts = {"free_blocks": self.free_blocks, "reported_blocks": self.reported_blocks}
        return {
            "cell_bytes": self.cell_bytes,
            **{name: encode(layer) for name, layer in layers.items() if layer is not None},
            **{name: list(blocks) for name, blocks in counts.items() if blocks is not None},
        }


def take_map(
    allocator: PageAllocator,
    residency: bytes | bytearray,
    *,
    cells: int = CELLS,
    ballooned: Iterable[int] = (),
    in_flight: Iterable[tuple[int, int]] = (),
) -> MemoryMap:
    """Return the map of ``allocator`` in at most ``cells`` cells.

    Args:
        residency: one byte for each page from pfn 0 on, 1 for one that the host backs.
        ballooned: the page frame numbers of the pages in the balloon.
        in_flight: pfn and order of the blocks that the device has.
    """
    order = cell_order(len(residency), cells)
    begins = range(0, len(residency), 1 << order)
    free, reported = [0] * len(begins), [0] * len(begins)
    free_blocks, reported_blocks = [0] * NR_PAGE_ORDERS, [0] * NR_PAGE_ORDERS
    mem_map = allocator.mem_map
    for block_order in range(NR_PAGE_ORDERS):
        free_blocks[block_order] = sum(zone.nr_free[block_order] for zone in allocator.zones)
        if block_order <= order and free_blocks[block_order] << _FEW > len(residency):
            # Quicker than block by block: how often the map of pages has such a block in each cell.
            _count_states(free, mem_map, begins, BUDDY | block_order)
            reported_blocks[block_order] = _count_states(reported, mem_map, begins, BUDDY | REPORTED | block_order)
            continue
        for zone in allocator.zones:
            for migratetype in range(MIGRATE_TYPES) if zone.nr_free[block_order] else ():
                pfns = list(zone.free_list.entries(block_order, migratetype))
                told = [pfn for pfn in pfns if mem_map[pfn] & REPORTED]
                reported_blocks[block_order] += len(told)
                _add(reported, order, told, block_order)
                if len(told) < len(pfns):
                    _add(free, order, [pfn for pfn in pfns if not mem_map[pfn] & REPORTED], block_order)
    for zone in allocator.zones:
        for pcp in zone.pcps:
            for block_order, pcp_pfns in zip(pcp.list_orders, pcp.lists, strict=True):
                _add(free, order, pcp_pfns, block_order)
    for pfn, block_order in in_flight:
        _add(free, order, (pfn,), block_order)
    held = sorted(ballooned)
    return MemoryMap(
        cell_bytes=PAGE_SIZE << order,
        resident=resident_levels(residency, order),
        free=levels(free, len(residency), order),
        reported=levels(reported, len(residency), order),
        balloon=levels(_count_sorted(held, begins, order), len(residency), order) if held else [0] * len(begins),
        free_blocks=free_blocks,
        reported_blocks=reported_blocks,
    )


def cell_order(pages: int, cells: int) -> int:
    """Return the least order of a cell with which ``pages`` pages are at most ``cells`` cells."""
    order = 0
    while -(-pages >> order) > cells:
        order += 1
    return order


def resident_levels(residency: bytes | bytearray, order: int) -> list[int]:
    """Return the level of each cell of 2**order pages that the host backs: ``residency`` has 1 for such a page."""
    return levels(count_cells(residency, order), len(residency), order)


def levels(parts: Sequence[int], pages: int, order: int) -> list[int]:
    """Return the level of each cell of 2**order pages, of which ``parts`` are counted; the last one may be cut off at
    ``pages``."""
    if not any(parts):
        return [0] * len(parts)
    found = {part: level(part, 1 << order) for part in set(parts)}
    result = list(map(found.__getitem__, parts))
    if result:
        result[-1] = level(parts[-1], pages - (len(parts) - 1 << order))
    return result


def level(part: int, whole: int) -> int:
    """Return the level of a part: 0 only for nothing, :data:`LEVELS` only for all."""
    if not part:
        return 0
    return LEVELS if part >= whole else min(max(1, round(part * LEVELS / whole)), LEVELS - 1)


def encode(layer: Sequence[int]) -> str:
    """Return the text of a layer."""
    text = bytes(layer).translate(_TO_LETTERS).decode()
    if text and text.count(text[0]) == len(text):
        return text[0] if len(text) == 1 else f"{text[0]}{len(text)}"
    return _REPEATED.sub(lambda run: f"{run[1]}{len(run[0])}", text)


def decode(text: str) -> list[int]:
    """Return the levels of a layer's text."""
    return [level for letter, count in _RUN.findall(text) for level in [_LETTERS.index(letter)] * int(count or 1)]


def _add(counts: list[int], cell: int, pfns: Iterable[int], order: int) -> None:
    # A free block is aligned to its size, so it is within one cell, or made up of whole ones.
    if order <= cell:
        pages = 1 << order
        for pfn in pfns:
            counts[pfn >> cell] += pages
    else:
        cells = 1 << order - cell
        for pfn in pfns:
            counts[pfn >> cell : (pfn >> cell) + cells] = [1 << cell] * cells


def _count_states(counts: list[int], mem_map: bytearray, begins: range, state: int) -> int:
    # Add the pages of the blocks, no larger than a cell, whose first page has `state`; return how many blocks.
    count, pages = mem_map.count, begins.step
    order, blocks = state & ORDER_MASK, mem_map.count(state)
    if blocks:
        for cell, begin in enumerate(begins):
            counts[cell] += count(state, begin, begin + pages) << order
    return blocks


def _count_sorted(pfns: Sequence[int], begins: range, order: int) -> list[int]:
    # How many of the pages are in each cell.
    bounds = [bisect_left(pfns, begin) for begin in begins]
    bounds.append(bisect_left(pfns, len(begins) << order))
    return [after - before for before, after in pairwise(bounds)]
