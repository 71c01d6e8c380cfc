"""Per-CPU page lists (Linux mm/page_alloc.c as of 6.1: ``struct per_cpu_pages`` and the functions that size it).

They hold pages between a free and the buddy lists; ``page_alloc`` and ``alloc_slowpath`` fill and drain them.

A zone has one :class:`PerCpuPages` for each CPU. Each is a set of lists, one for every order that is kept (0..3, and
that of a transparent huge page) and every ordinary migratetype. A free puts its page on the hot end, an allocation
takes from there, so a page is handed out again while it is cache-hot. The excess leaves at the cold end, and blocks
fetched for an empty list arrive there. ``count``, in 4 KiB pages over all lists together, is kept below ``high``.

Where this departs from 6.1: a page that leaves goes to the buddy list of the type that its pageblock has then, as since
6.10, and not of the type it had when the page was freed.
"""

from collections import deque
from collections.abc import Iterator
from typing import Final

from guest.mm.pageblock import MIGRATE_PCPTYPES, NR_PAGE_ORDERS, MigrateType

PAGE_ALLOC_COSTLY_ORDER: Final = 3
_NR_PAGES_MEBIBYTE: Final = 256

PageList = deque[int]
"""First pages of blocks of one order. The right end is the hot one."""


def zone_batchsize(managed_pages: int) -> int:
    """Return how many pages move between a per-CPU list and the buddy lists at once: a thousandth of the zone or less.

    At most a quarter of 1 MiB, and one less than a power of two, so that two CPUs do not take turns on pages of
    opposite colours: 63 for every zone of 1 GiB or more.
    """
    batch = max(1, min(managed_pages >> 10, _NR_PAGES_MEBIBYTE) // 4)
    return max(1, (1 << (batch + batch // 2).bit_length() - 1) - 1)


def zone_highsize(low_watermark: int, batch: int, nr_cpus: int) -> int:
    """Return how many pages the lists of one CPU may hold: its share of the low watermark, at least four batches."""
    return max(low_watermark // nr_cpus, batch << 2)


def pcp_orders(thp_order: int | None) -> tuple[int, ...]:
    """Return the orders that have per-CPU lists (``pcp_allowed_order``)."""
    return (*range(PAGE_ALLOC_COSTLY_ORDER + 1), *(() if thp_order is None else (thp_order,)))


class PerCpuPages:
    """``struct per_cpu_pages``: the lists of one CPU in one zone.

    ``lists`` are in the order of the kernel's ``pindex``: all types of order 0, all of order 1 and so on.
    ``for_alloc`` and ``for_free`` find them by migratetype and order, None where there is no list. Pages of HIGHATOMIC
    and CMA pageblocks are freed to the movable list; pages of ISOLATE pageblocks and blocks of all other orders bypass
    the lists.
    """

    __slots__ = ("batch", "count", "for_alloc", "for_free", "free_factor", "high", "list_orders", "lists")

    def __init__(self, batch: int, high: int, orders: tuple[int, ...]) -> None:
        self.batch = batch
        self.high = high
        self.count = 0
        """4 KiB pages on all lists together."""
        self.free_factor = 0
        """Number of drains since pages were last allocated: each one doubles the size of the next."""
        self.lists: tuple[PageList, ...] = tuple(deque() for _ in orders for _ in range(MIGRATE_PCPTYPES))
        self.list_orders = tuple(order for order in orders for _ in range(MIGRATE_PCPTYPES))

        def table(migratetype: int) -> tuple[PageList | None, ...]:
            found: list[PageList | None] = [None] * NR_PAGE_ORDERS
            for place, order in enumerate(orders):
                found[order] = self.lists[place * MIGRATE_PCPTYPES + migratetype]
            return tuple(found)

        nothing: tuple[PageList | None, ...] = (None,) * NR_PAGE_ORDERS
        ordinary = tuple(table(migratetype) for migratetype in range(MIGRATE_PCPTYPES))
        self.for_alloc = (*ordinary, nothing, nothing, nothing)
        self.for_free = (*ordinary, ordinary[MigrateType.MOVABLE], ordinary[MigrateType.MOVABLE], nothing)

    def refill_count(self, order: int) -> int:
        """Return how many blocks of ``order`` to fetch for an empty list."""
        return max(self.batch >> order, 2) if self.batch > 1 else self.batch

    def excess(self, order: int, *, reclaiming: bool = False) -> int:
        """Return how many pages have to leave, 0 or more, now that a block of ``order`` was freed (``nr_pcp_free``).

        When frees outnumber allocations (``free_factor``) and blocks larger than a page come in, everything leaves:
        the lists would keep these blocks from merging. While the zone is being reclaimed, at most four batches stay.
        """
        if self.free_factor and 0 < order <= PAGE_ALLOC_COSTLY_ORDER:
            return self.count
        high = min(self.batch << 2, self.high) if reclaiming else self.high
        if self.count < high:
            return 0
        if high < self.batch:
            return 1
        most = high - self.batch
        wanted = self.batch << self.free_factor
        if wanted < most:
            self.free_factor += 1
        return min(max(wanted, self.batch), most)

    def take_cold(self, nr_pages: int, first: PageList | None = None) -> Iterator[tuple[int, int]]:
        """Remove about ``nr_pages`` pages and yield them as (pfn, order), list after list (``free_pcppages_bulk``).

        Begins with the list ``first``, empties it from its cold end, and goes on to the next that is not empty.
        """
        nr_pages = min(nr_pages, self.count)
        place = 0 if first is None else next(index for index, pages in enumerate(self.lists) if pages is first)
        while nr_pages > 0:
            pages, order = self.lists[place], self.list_orders[place]
            while pages and nr_pages > 0:
                nr_pages -= 1 << order
                self.count -= 1 << order
                yield pages.popleft(), order
            place = (place + 1) % len(self.lists)
