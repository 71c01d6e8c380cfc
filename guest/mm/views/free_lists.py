"""The free lists of a zone in their order, with what is reported on them: what no file in /proc shows.

A list is described from head to tail by the lengths of its runs: first of entries that are not reported, then of
reported ones, and so on in turn. A run may have no entries, if the list begins with a reported one.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Final

from guest.mm.mmzone import Zone
from guest.mm.page_alloc import PageAllocator
from guest.mm.page_flags import page_reported
from guest.mm.pageblock import MAX_ORDER, MIGRATE_TYPES
from guest.mm.views.vmstat import MIGRATETYPE_NAMES

FREE_LISTS: Final = "free_lists"
"""What a guest's control socket is asked for them."""

MOST_ENTRIES: Final = 4096
"""Entries of one list that are looked at. A longer one is cut there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeListView:
    """One list that has entries: the free blocks of one order and migratetype of a zone.

    ``boundary`` is the number of entries on the head's side of the reported boundary, which the next walk may visit. It
    is None where there is no boundary: below the reporting order, with another reporter, while it is invalid.
    ``is_cut`` tells that the list has more than :data:`MOST_ENTRIES`; a boundary further down is None too.
    """

    zone: str
    order: int
    migratetype: str
    runs: tuple[int, ...]
    boundary: int | None = None
    is_cut: bool = False

    @property
    def blocks(self) -> int:
        """How many entries were looked at."""
        return sum(self.runs)

    @property
    def reported_blocks(self) -> int:
        """How many of them are reported."""
        return sum(self.runs[1::2])


def free_lists(allocator: PageAllocator) -> tuple[FreeListView, ...]:
    """Return the lists that have entries: zone by zone from the highest, the highest order first."""
    return tuple(
        view
        for zone in reversed(allocator.zones)
        for order in range(MAX_ORDER, -1, -1)
        if zone.nr_free[order]
        for migratetype in range(MIGRATE_TYPES)
        if (view := _view(allocator, zone, order, migratetype)) is not None
    )


def _view(allocator: PageAllocator, zone: Zone, order: int, migratetype: int) -> FreeListView | None:
    entries = list(islice(zone.free_list.entries(order, migratetype), MOST_ENTRIES + 1))
    if not entries:
        return None
    shown = entries[:MOST_ENTRIES]
    runs = [0]
    for pfn in shown:
        is_reported = page_reported(allocator.mem_map, pfn)
        if is_reported != (len(runs) % 2 == 0):
            runs.append(0)
        runs[-1] += 1
    return FreeListView(
        zone=zone.name,
        order=order,
        migratetype=MIGRATETYPE_NAMES[migratetype],
        runs=tuple(runs),
        boundary=_boundary(zone, order, migratetype, shown),
        is_cut=len(entries) > len(shown),
    )


def _boundary(zone: Zone, order: int, migratetype: int, shown: list[int]) -> int | None:
    if order < zone.reported_boundary_order:
        return None
    entry = zone.reported_boundary[(order - zone.reported_boundary_order) * MIGRATE_TYPES + migratetype]
    if entry < 0:  # the head of the list: nothing below it was walked over
        return len(shown)
    return shown.index(entry) if entry in shown else None


def free_lists_text(allocator: PageAllocator) -> str:
    """Return the lists as JSON, the answer of a guest's control socket."""
    return json.dumps([asdict(view) for view in free_lists(allocator)], separators=(",", ":")) + "\n"


def parse_free_lists(text: str) -> tuple[FreeListView, ...]:
    """Return what :func:`free_lists_text` has written.

    Raises:
        ValueError: it is not such a text.
    """
    return tuple(_parsed(json.loads(text)))


def _parsed(lists: list[dict[str, Any]]) -> Iterator[FreeListView]:
    try:
        for fields in lists:
            yield FreeListView(**{**fields, "runs": tuple(fields["runs"])})
    except (TypeError, KeyError) as error:
        raise ValueError(f"not free lists: {error}") from error
