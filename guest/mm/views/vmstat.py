"""The memory manager's text interfaces (Linux 6.1, mm/vmstat.c): free blocks by order and by migratetype.

Each view has two parts: one counts, from a :class:`~guest.mm.page_alloc.PageAllocator`; the other formats plain numbers
as the kernel does, so that a test can compare it with the text of any real kernel. ``zoneinfo`` is in
``vmstat_zoneinfo``.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from guest.mm.free_list import LIST_HEADS
from guest.mm.mmzone import Zone
from guest.mm.page_alloc import PageAllocator
from guest.mm.pageblock import MIGRATE_TYPES, NR_PAGE_ORDERS, PAGEBLOCK_ORDER
from guest.mm.views.vmstat_zoneinfo import zoneinfo

MIGRATETYPE_NAMES: Final = ("Unmovable", "Movable", "Reclaimable", "HighAtomic", "CMA", "Isolate")
"""``migratetype_names``, indexed by migratetype. A kernel built without CMA or isolation lacks the last ones."""

FREECOUNT_LIMIT: Final = 100000
"""``pagetypeinfo`` stops counting a list at this many blocks and marks the number with ``>``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageTypes:
    """One zone of ``/proc/pagetypeinfo``.

    ``free_counts`` has a row for each migratetype with the free blocks of each order, ``blocks`` the number of
    pageblocks of each migratetype.
    """

    node: int
    name: str
    free_counts: Sequence[Sequence[int]]
    blocks: Sequence[int]


# --- Counting ---


def buddyinfo(allocator: PageAllocator) -> str:
    """Return ``/proc/buddyinfo``, byte for byte: for each populated zone the number of free blocks of each order."""
    return "".join(format_buddyinfo(zone.node, zone.name, zone.nr_free) for zone in _populated(allocator))


def pagetypeinfo(allocator: PageAllocator) -> str:
    """Return ``/proc/pagetypeinfo``, byte for byte: free blocks and pageblocks by migratetype.

    Every list is walked, as in the kernel, up to ``FREECOUNT_LIMIT`` entries.
    """
    return format_pagetypeinfo(
        [
            PageTypes(
                node=zone.node,
                name=zone.name,
                free_counts=_count_free_lists(zone),
                blocks=_count_pageblocks(allocator, zone),
            )
            for zone in _populated(allocator)
        ],
        pageblock_order=allocator.pageblock_order,
    )


def unusable_index(allocator: PageAllocator) -> str:
    """Return debugfs' ``extfrag/unusable_index``: for each order the share of free memory in blocks too small for it.

    0.000 means that all free memory is in blocks large enough, 1.000 that all of it is in smaller ones.
    """
    return "".join(format_unusable_index(zone.node, zone.name, zone.nr_free) for zone in _populated(allocator))


VIEWS: Final[dict[str, Callable[[PageAllocator], str]]] = {
    "buddyinfo": buddyinfo,
    "pagetypeinfo": pagetypeinfo,
    "zoneinfo": zoneinfo,
    "unusable_index": unusable_index,
}
"""All text interfaces by name; each returns whole lines."""


def _populated(allocator: PageAllocator) -> Iterable[Zone]:
    return (zone for zone in allocator.zones if zone.managed_pages)


def _count_free_lists(zone: Zone) -> list[list[int]]:
    # pagetypeinfo_showfree_print: the counters are kept for all types together, so the lists have to be walked.
    after = zone.free_list.next
    counts = [[0] * NR_PAGE_ORDERS for _ in range(MIGRATE_TYPES)]
    for migratetype, heads in enumerate(LIST_HEADS):
        for order, head in enumerate(heads):
            count = 0
            entry = after[head]
            while entry != head and count < FREECOUNT_LIMIT:
                count += 1
                entry = after[entry]
            counts[migratetype][order] = count
    return counts


def _count_pageblocks(allocator: PageAllocator, zone: Zone) -> list[int]:
    # pagetypeinfo_showblockcount_print. A block of which the zone has only a part counts.
    first, last = zone.start_pfn >> allocator.pageblock_order, (zone.end_pfn - 1) >> allocator.pageblock_order
    of_zone = allocator.pageblock_migratetype[first : last + 1]
    return [of_zone.count(migratetype) for migratetype in range(MIGRATE_TYPES)]


# --- Writing ---


def format_buddyinfo(node: int, name: str, nr_free: Sequence[int]) -> str:
    """Return one zone's line (``frag_show_print``)."""
    return f"Node {node}, zone {name:>8} " + "".join(f"{count:6d} " for count in nr_free) + "\n"


def format_unusable_index(node: int, name: str, nr_free: Sequence[int]) -> str:
    """Return one zone's line (``unusable_show_print``), from the number of free blocks of each order."""
    indices = (unusable_free_index(order, nr_free) for order in range(len(nr_free)))
    return f"Node {node}, zone {name:>8} " + "".join(f"{i // 1000}.{i % 1000:03d} " for i in indices) + "\n"


def unusable_free_index(order: int, nr_free: Sequence[int]) -> int:
    """Return how many thousandths of the free memory lie in blocks smaller than ``order``; 1000 when none is free."""
    free_pages = sum(count << o for o, count in enumerate(nr_free))
    suitable_pages = sum(count << o for o, count in enumerate(nr_free) if o >= order)
    return (free_pages - suitable_pages) * 1000 // free_pages if free_pages else 1000


def format_pagetypeinfo(
    zones: Sequence[PageTypes],
    *,
    pageblock_order: int = PAGEBLOCK_ORDER,
    names: Sequence[str] = MIGRATETYPE_NAMES,
) -> str:
    """Return the whole text (``pagetypeinfo_show``). ``names`` are those of the rows and columns of every zone."""
    lines = [
        f"Page block order: {pageblock_order}",
        f"Pages per block:  {1 << pageblock_order}",
        "",
        f"{'Free pages count per migrate type at order ':<43} "
        + "".join(f"{order:6d} " for order in range(NR_PAGE_ORDERS)),
    ]
    for zone in zones:
        for name, counts in zip(names, zone.free_counts, strict=True):
            head = f"Node {zone.node:4d}, zone {zone.name:>8}, type {name:>12} "
            lines.append(head + "".join(_freecount(count) for count in counts))
    lines += ["", f"{'Number of blocks type ':<23}" + "".join(f"{name:>12} " for name in names)]
    for zone in zones:
        lines.append(f"Node {zone.node}, zone {zone.name:>8} " + "".join(f"{count:12d} " for count in zone.blocks))
    return "\n".join(lines) + "\n"


def _freecount(count: int) -> str:
    return f"{'>' if count >= FREECOUNT_LIMIT else ''}{count:6d} "
