"""Books every free page that the host still backs to the one cause that holds it (see ``guest/README.md``).

Free are the pages on the buddy lists, on per-CPU lists, and in the report that the device has not answered. A free page
that the host does not back counts as returned, whether it was discarded or never touched.

The sum is exact by construction: each free block is looked at once, and of its pages those are counted that are
resident in the one snapshot ``residency``. Where the owner of the host's side keeps count of the backed free pages, the
lists are counted only as far as it takes to tell the causes apart.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from guest.ledger.free_pages import count_backed, count_backed_free
from guest.mm.free_list import LIST_HEADS
from guest.mm.mmzone import Zone
from guest.mm.page_alloc import PageAllocator
from guest.mm.page_flags import REPORTED
from guest.mm.pageblock import MIGRATE_TYPES, NR_PAGE_ORDERS
from guest.mm.reporting.cause import Cause
from guest.mm.reporting.page_reporting import PageReporter
from guest.mm.views.residency import Residency
from protocol.memory import PAGE_SIZE

CAUSES: Final[tuple[Cause, ...]] = tuple(cause for cause in Cause if cause is not Cause.UNKNOWN)
"""The causes of an emulated guest, in the order of a ledger. A real kernel's has UNKNOWN after them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """The free bytes of a guest at one moment, and what holds those that the host still backs."""

    free_bytes: int
    """Bytes that the guest has free."""
    held_bytes: dict[Cause, int]
    """Bytes by cause: every cause in its fixed order, 0 where it holds nothing."""

    @property
    def not_returned_bytes(self) -> int:
        """Free bytes that the host still backs: the sum over all causes."""
        return sum(self.held_bytes.values())

    @property
    def returned_bytes(self) -> int:
        """Free bytes that the host does not back."""
        return self.free_bytes - self.not_returned_bytes


def take_ledger(
    allocator: PageAllocator,
    reporter: PageReporter | None,
    residency: Residency,
    *,
    kept_for: Cause | None = None,
    backed_free_pages: int | None = None,
) -> Ledger:
    """Return the ledger of ``allocator``.

    Args:
        reporter: of this memory, registered or not; None in a guest without one.
        residency: which pages the host backs, from pfn 0 on. It must be a snapshot: the host may discard meanwhile.
        kept_for: why the device keeps what is reported (POISON, INHIBITED), None for one that discards it. It holds
            every block that could be reported.
        backed_free_pages: how many free pages the host backs, where that is known and the device discards all that it
            acknowledges. It spares the longest of the lists.
    """
    held: dict[Cause, int] = dict.fromkeys(CAUSES, 0)
    free_pages = allocator.nr_free_pages() + allocator.nr_pcp_pages()
    if reporter is not None:
        free_pages += sum(1 << order for _, order in reporter.in_flight)
    if backed_free_pages is None:
        _count_all(held, allocator, reporter, residency, kept_for)
    elif backed_free_pages:
        _count_apart(held, allocator, reporter, residency, backed_free_pages)
    return Ledger(
        free_bytes=free_pages * PAGE_SIZE, held_bytes={cause: pages * PAGE_SIZE for cause, pages in held.items()}
    )


def _count_all(
    held: dict[Cause, int],
    allocator: PageAllocator,
    reporter: PageReporter | None,
    residency: Residency,
    kept_for: Cause | None,
) -> None:
    held[Cause.PCP] = _count_pcp(allocator, residency)
    if reporter is None:
        held[kept_for or Cause.INHIBITED] += count_backed_free(allocator, residency, NR_PAGE_ORDERS)
    else:
        held[Cause.UNACKNOWLEDGED] = _count_in_flight(reporter, residency)
        held[Cause.BELOW_ORDER] = count_backed_free(allocator, residency, reporter.order)
        for cause, pages in _large_blocks(allocator, reporter, residency, kept_for):
            held[cause] += pages


def _count_apart(
    held: dict[Cause, int],
    allocator: PageAllocator,
    reporter: PageReporter | None,
    residency: Residency,
    backed: int,
) -> None:
    # Book `backed` pages: of the lists of each cause but one, what is counted, and to that one the rest. It is the one
    # with the most blocks.
    held[Cause.PCP] = _count_pcp(allocator, residency)
    rest = backed - held[Cause.PCP]
    if reporter is None:
        held[Cause.INHIBITED] = rest
        return
    in_flight = _count_in_flight(reporter, residency)
    held[Cause.UNACKNOWLEDGED] = in_flight
    rest -= in_flight
    if not rest:
        return
    lists = _waiting_lists(allocator, reporter)
    blocks = {cause: sum(zone.nr_free[order] for zone, order, _ in lists[cause]) for cause in lists}
    blocks[Cause.BELOW_ORDER] = sum(sum(zone.nr_free[: reporter.order]) for zone in allocator.zones)
    *others, largest = sorted(blocks, key=blocks.__getitem__)
    for cause in others:
        if cause is Cause.BELOW_ORDER:
            pages = count_backed_free(allocator, residency, reporter.order)
        else:
            pages = sum(
                count_backed(residency, zone.free_list.entries(order, migratetype), order)
                for zone, order, migratetype in lists[cause]
            )
        held[cause] += pages
        rest -= pages
    held[largest] += rest


def _waiting_lists(allocator: PageAllocator, reporter: PageReporter) -> dict[Cause, list[tuple[Zone, int, int]]]:
    # Zone, order and migratetype of the lists with blocks that are large enough to be reported, by what they wait for.
    lists: dict[Cause, list[tuple[Zone, int, int]]] = {}
    registered = reporter.registered
    for zone in allocator.zones:
        following = zone.free_list.next
        for order in range(reporter.order, NR_PAGE_ORDERS):
            if zone.nr_free[order] == zone.reported_pages[order]:
                continue
            for migratetype in range(MIGRATE_TYPES):
                if following[LIST_HEADS[migratetype][order]] >= 0:
                    cause = reporter.waiting(zone, order, migratetype) if registered else Cause.INHIBITED
                    lists.setdefault(cause, []).append((zone, order, migratetype))
    return lists


def _count_pcp(allocator: PageAllocator, residency: Residency) -> int:
    return sum(
        count_backed(residency, blocks, order)
        for zone in allocator.zones
        for pcp in zone.pcps
        if pcp.count
        for order, blocks in zip(pcp.list_orders, pcp.lists, strict=True)
        if blocks
    )


def _count_in_flight(reporter: PageReporter, residency: Residency) -> int:
    return sum(count_backed(residency, (pfn,), order) for pfn, order in reporter.in_flight)


def _large_blocks(
    allocator: PageAllocator, reporter: PageReporter, residency: Residency, kept_for: Cause | None
) -> Iterable[tuple[Cause, int]]:
    # Cause and backed pages, list by list, of the blocks that are large enough to be reported.
    for zone in allocator.zones:
        for order in range(reporter.order, NR_PAGE_ORDERS):
            if not zone.nr_free[order]:
                continue
            for migratetype in range(MIGRATE_TYPES):
                acknowledged, waiting = _split(allocator, zone, order, migratetype)
                if pages := count_backed(residency, acknowledged, order):
                    yield kept_for or Cause.REFUSED, pages
                if pages := count_backed(residency, waiting, order):
                    if kept_for is not None:
                        yield kept_for, pages
                    elif not reporter.registered:
                        yield Cause.INHIBITED, pages
                    else:
                        yield reporter.waiting(zone, order, migratetype), pages


def _split(allocator: PageAllocator, zone: Zone, order: int, migratetype: int) -> tuple[list[int], list[int]]:
    # The blocks of one list that are marked reported, and those that are not.
    pfns = list(zone.free_list.entries(order, migratetype))
    reported = zone.reported_pages[order]
    if not reported or reported == zone.nr_free[order]:
        return (pfns, []) if reported else ([], pfns)
    mem_map = allocator.mem_map
    return [pfn for pfn in pfns if mem_map[pfn] & REPORTED], [pfn for pfn in pfns if not mem_map[pfn] & REPORTED]
