"""The guest's allocator, which tells the ledger of every block that enters or leaves its free lists."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from guest.mm.mmzone import Zone
from guest.mm.page_alloc import PageAllocator
from guest.mm.page_flags import ALLOCATED, BUDDY, ISOLATED, ORDER_MASK, REPORTED, page_reported
from guest.mm.pageblock import MigrateType
from guest.mm.watermark import AllocFlags
from scripts.check.ownership.page_owners import PageOwners
from scripts.check.ownership.page_state import PageEvent
from scripts.check.ownership.pages import Pages, block

_MIN_FREE_KBYTES: Final = 16
"""So little that memory runs out in a short run."""


class WatchedAllocator(PageAllocator):
    """A page allocator of ``total_pages`` pages. What it does is not changed.

    Pages on per-CPU lists are free: the ledger does not tell them from those on the buddy lists.
    """

    def __init__(self, total_pages: int, owners: PageOwners, *, nr_cpus: int) -> None:
        super().__init__(total_pages, min_free_kbytes=_MIN_FREE_KBYTES, nr_cpus=nr_cpus)
        self._owners = owners
        self._takes = PageEvent.ALLOCATE

    @contextmanager
    def for_the_driver(self) -> Iterator[None]:
        """A context in which what is allocated is not used, but lent to the device."""
        self._takes = PageEvent.ISOLATE
        try:
            yield
        finally:
            self._takes = PageEvent.ALLOCATE

    def alloc_pages(
        self, order: int, migratetype: MigrateType = MigrateType.MOVABLE, flags: AllocFlags = AllocFlags.NONE
    ) -> int | None:
        pfn = super().alloc_pages(order, migratetype, flags)
        if pfn is not None:
            self._owners.note(self._takes, block(pfn, order))
        return pfn

    def free_pages(self, pfn: int, order: int) -> None:
        self._owners.note(PageEvent.FREE, block(pfn, order))
        super().free_pages(pfn, order)

    def isolate_free_page(self, zone: Zone, pfn: int, order: int) -> bool:
        flagged = page_reported(self.mem_map, pfn)
        isolated = super().isolate_free_page(zone, pfn, order)
        if isolated:
            self._owners.isolate(block(pfn, order), flagged=flagged)
        return isolated

    def putback_isolated_page(self, zone: Zone, pfn: int, order: int) -> bool:
        self._owners.note(PageEvent.FREE, block(pfn, order))
        return super().putback_isolated_page(zone, pfn, order)

    def reported_blocks(self) -> list[Pages]:
        """Return every free block of a pageblock or more that is marked as reported; smaller ones are not reported."""
        size = self.pageblock_nr_pages
        return [
            block(number * size, state & ORDER_MASK)
            for number, state in enumerate(self.mem_map[::size])
            if state & (BUDDY | REPORTED | ALLOCATED | ISOLATED) == BUDDY | REPORTED
        ]
