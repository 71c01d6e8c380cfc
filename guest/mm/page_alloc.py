"""The buddy allocator (Linux mm/page_alloc.c as of 6.1, with the three hooks that page reporting needs).

Must not know which reporter is registered, who holds an allocated page, or what time it is.

Theory. Memory is a run of blocks, each of ``1 << order`` pages and aligned to its size. One byte per page, ``mem_map``,
says what each first page of a block is (``page_flags``); free blocks are also on a list of their zone (``free_list``).
A free merges a block with its buddy, whose page frame number differs in the one bit ``1 << order``, for as long as
that one is free too. The map begins at pfn 0 (the flat memory model), so a pfn is its index, and ends at a whole block
of MAX_ORDER, so a buddy is always inside; pages that are no memory are ``ABSENT`` and never merge. Zones meet at
multiples of such a block, so no merge crosses from one zone into another.

``alloc_pages``, ``_rmqueue_smallest``, ``free_pages`` and ``_free_one_page`` run once or more for every page of every
workload. They repeat the list operations of ``free_list`` instead of calling them: a call costs as much as its body.
"""

from collections.abc import Sequence
from typing import Final, Protocol

from guest.mm import mm_init, page_check
from guest.mm.errors import NotAllocatedError
from guest.mm.fallback import rmqueue_fallback
from guest.mm.free_list import LIST_HEADS
from guest.mm.mmzone import (
    MAX_ORDER,
    MIGRATE_TYPES,
    PAGEBLOCK_NR_PAGES,
    PAGEBLOCK_ORDER,
    MigrateType,
    Zone,
    ZoneSpan,
)
from guest.mm.page_flags import (
    ABSENT,
    ALLOCATED,
    ALLOCATED_ORDER,
    BUDDY,
    BUDDY_ORDER,
    ISOLATED,
    MOVABLE,
    ORDER_MASK,
    REPORTED,
    TAIL,
)
from protocol.errors import UsageError

MERGEABLE: Final = (True, True, True, False, False, False)
"""Indexed by migratetype: may free blocks of it merge with other such types above a pageblock."""

_ALLOCATED_AS: Final = tuple(ALLOCATED | (MOVABLE if mt == MigrateType.MOVABLE else 0) for mt in MigrateType)
_MOVABLE: Final = int(MigrateType.MOVABLE)
_ISOLATE: Final = int(MigrateType.ISOLATE)


class Reporter(Protocol):
    """What the allocator asks of whoever is registered for page reporting."""

    def page_reporting_free_area_release(self, zone: Zone, order: int, migratetype: int) -> None:
        """Forget the place reached in one list, because compaction has changed its order."""

    def validate(self) -> None:
        """Raise CorruptionError when the reporter's own state contradicts the lists."""


class PageAllocator:
    """Physical memory of the guest: ``total_pages`` pages of 4 KiB from ``start_pfn`` on, at first free and MOVABLE.

    >>> allocator = PageAllocator(1 << 18)
    >>> pfn = allocator.alloc_pages(9)
    >>> allocator.free_pages(pfn, 9)

    Args:
        total_pages: size, in pages.
        start_pfn: first page frame. The map begins at 0 all the same: one byte for every page below, too.
        zones: several zones instead of one called Normal, ascending, without gaps between ``start_pfn`` and the end,
            meeting at multiples of 1024 pages.
        min_free_kbytes: ``vm.min_free_kbytes``, None for the kernel's own sum.
        move_to_tail: blocks that change their migratetype go to the tail of the new list, as since Linux 5.10, and not
            to the head as in v12.

    Raises:
        UsageError: a size or a zone that cannot be.
    """

    def __init__(
        self,
        total_pages: int,
        *,
        start_pfn: int = 0,
        zones: Sequence[ZoneSpan] | None = None,
        min_free_kbytes: int | None = None,
        move_to_tail: bool = False,
    ) -> None:
        spans = mm_init.check_spans(total_pages, start_pfn, zones)
        self.start_pfn = start_pfn
        self.end_pfn = start_pfn + total_pages
        self.total_pages = total_pages
        self.move_to_tail = move_to_tail
        self.reporter: Reporter | None = None
        self.mem_map = mm_init.make_mem_map(start_pfn, self.end_pfn)
        nr_pageblocks = len(self.mem_map) >> PAGEBLOCK_ORDER
        self.pageblock_migratetype = bytearray([MigrateType.MOVABLE]) * nr_pageblocks
        self.zones: tuple[Zone, ...] = mm_init.make_zones(spans, min_free_kbytes)
        # Highest zone first, as in the kernel's zonelist: the low ones are precious.
        self._zonelist = self.zones[::-1]
        self._pageblock_zone = [self.zones[0]] * nr_pageblocks if len(spans) == 1 else self._map_zones(nr_pageblocks)
        for zone in self.zones:
            mm_init.free_pages_core(self, zone)

    def _map_zones(self, nr_pageblocks: int) -> list[Zone]:
        zone_of = [self.zones[0]] * nr_pageblocks
        for zone in self.zones:
            first, last = zone.start_pfn >> PAGEBLOCK_ORDER, (zone.end_pfn - 1) >> PAGEBLOCK_ORDER
            zone_of[first : last + 1] = [zone] * (last + 1 - first)
        return zone_of

    # --- The surface for whoever runs a workload ---

    def alloc_pages(self, order: int, migratetype: MigrateType = MigrateType.MOVABLE) -> int | None:
        """Take a block of ``1 << order`` pages and return its first page, or None when no zone can give one.

        A zone gives nothing that would take it below its minimum watermark (``__zone_watermark_ok``). Its own lists
        come first, then those of other migratetypes.

        Raises:
            UsageError: there is no such order, or pages of ISOLATE were asked for.
        """
        if not 0 <= order <= MAX_ORDER:
            raise UsageError(f"order {order} is not within 0 and {MAX_ORDER}")
        size = 1 << order
        for zone in self._zonelist:
            if zone.free_pages - size >= zone.watermark_min:
                pfn = self._rmqueue_smallest(zone, order, migratetype)
                if pfn < 0:
                    if not rmqueue_fallback(self, zone, order, migratetype):
                        continue
                    pfn = self._rmqueue_smallest(zone, order, migratetype)
                self.mem_map[pfn] = _ALLOCATED_AS[migratetype] | order
                return pfn
        return None

    def free_pages(self, pfn: int, order: int) -> None:
        """Give back the block of ``1 << order`` pages that ``alloc_pages`` returned as ``pfn``.

        Raises:
            DoubleFreeError, NotAllocatedError, WrongOrderError: it is no such block; nothing was changed.
        """
        try:
            state = self.mem_map[pfn]
        except IndexError:
            state = ABSENT
        if ALLOCATED_ORDER[state] != order or pfn < 0:
            raise page_check.bad_page(self.mem_map, pfn, order)
        zone = self._pageblock_zone[pfn >> PAGEBLOCK_ORDER]
        self._free_one_page(zone, pfn, order, self.pageblock_migratetype[pfn >> PAGEBLOCK_ORDER])

    def nr_free_pages(self) -> int:
        """Return the number of free pages on the lists of all zones. What a reporter has isolated does not count."""
        return sum(zone.free_pages for zone in self.zones)

    def validate(self) -> None:
        """Walk every list and every page and compare them with each other and with all counters.

        Raises:
            CorruptionError: naming the first disagreement.
        """
        page_check.validate(self)
        if self.reporter is not None:
            self.reporter.validate()

    # --- Taking blocks off the lists ---

    def _rmqueue_smallest(self, zone: Zone, order: int, migratetype: int) -> int:
        # The first block of the smallest order that has one; the unused upper halves go back to the lists (expand).
        # Returns -1 when the lists of this migratetype have nothing large enough.
        heads = LIST_HEADS[migratetype]
        after = zone.free_list.next
        current = order
        head = heads[order]
        pfn = after[head]
        while pfn < 0:
            if current == MAX_ORDER:
                return -1
            current += 1
            head = heads[current]
            pfn = after[head]
        if self.mem_map[pfn] & REPORTED:
            self._clear_page_reported(zone, pfn, current)
        before = zone.free_list.prev
        following = after.pop(pfn)
        del before[pfn]
        after[head] = following
        before[following] = head
        nr_free = zone.nr_free
        nr_free[current] -= 1
        zone.free_pages -= 1 << order
        while current > order:
            current -= 1
            # The list was searched and found empty, so the upper half becomes its only entry.
            head = heads[current]
            upper = pfn + (1 << current)
            after[head] = before[head] = upper
            after[upper] = before[upper] = head
            self.mem_map[upper] = BUDDY | current
            nr_free[current] += 1
        return pfn

    # --- Putting blocks on the lists ---

    def _free_one_page(self, zone: Zone, pfn: int, order: int, migratetype: int, reported: bool = False) -> None:
        # __free_one_page: merge upward, then file the block. `reported` is the return of a block from a reporter: to
        # the tail and without a notification (FPI_TO_TAIL | FPI_SKIP_REPORT_NOTIFY).
        mem_map = self.mem_map
        after = zone.free_list.next
        before = zone.free_list.prev
        nr_free = zone.nr_free
        mem_map[pfn] = TAIL
        zone.free_pages += 1 << order
        while order < MAX_ORDER:
            buddy = pfn ^ (1 << order)
            state = mem_map[buddy]
            if BUDDY_ORDER[state] != order or (order >= PAGEBLOCK_ORDER and not self._may_merge(migratetype, buddy)):
                break
            if state & REPORTED:
                self._clear_page_reported(zone, buddy, order)
            following = after.pop(buddy)
            previous = before.pop(buddy)
            after[previous] = following
            before[following] = previous
            nr_free[order] -= 1
            mem_map[buddy] = TAIL
            pfn &= buddy
            order += 1
        mem_map[pfn] = BUDDY | order
        nr_free[order] += 1
        head = LIST_HEADS[migratetype][order]
        # The cold end when told so, or when the next larger buddy is free: the block may soon merge into one of twice
        # the size if it is left alone (buddy_merge_likely, not for the two top orders). Otherwise the warm end.
        if reported or (
            order < MAX_ORDER - 1 and BUDDY_ORDER[mem_map[pfn & ~(1 << order) ^ (2 << order)]] == order + 1
        ):
            following = head
            if order >= zone.reported_boundary_order:
                following = self._get_unreported_tail(zone, order, migratetype)
            previous = before[following]
        else:
            previous = head
            following = after[head]
        after[previous] = before[following] = pfn
        after[pfn] = following
        before[pfn] = previous
        if order >= zone.notify_order and not reported:
            zone.notify(zone, order)

    def _may_merge(self, migratetype: int, buddy: int) -> bool:
        # From a pageblock on, blocks of different types stay apart unless both types are ordinary ones.
        buddy_type = self.pageblock_migratetype[buddy >> PAGEBLOCK_ORDER]
        return migratetype == buddy_type or (MERGEABLE[migratetype] and MERGEABLE[buddy_type])

    def move_to_free_list(self, zone: Zone, pfn: int, order: int, migratetype: int) -> None:
        """Put a free block on the list of ``migratetype``. If reported it stays so, but the boundary lets go of it."""
        if order >= zone.reported_boundary_order and self.mem_map[pfn] & REPORTED:
            _leave_boundary(zone, pfn)
        zone.free_list.remove(pfn)
        head = LIST_HEADS[migratetype][order]
        if not self.move_to_tail:
            zone.free_list.add(pfn, head)
        elif order >= zone.reported_boundary_order:
            zone.free_list.add_before(pfn, self._get_unreported_tail(zone, order, migratetype))
        else:
            zone.free_list.add_before(pfn, head)

    def move_freepages_block(self, pfn: int, migratetype: int) -> tuple[int, int]:
        """Put every free block that starts in the pageblock of ``pfn`` on the list of ``migratetype``.

        The pageblock keeps its own type; see :meth:`set_pageblock_migratetype` for both.

        Returns:
            the pages moved, and the pages allocated as movable that were passed on the way.
        """
        start = pfn & -PAGEBLOCK_NR_PAGES
        zone = self._pageblock_zone[start >> PAGEBLOCK_ORDER]
        free_pages = movable_pages = 0
        page = start
        while page < start + PAGEBLOCK_NR_PAGES:
            state = self.mem_map[page]
            order = state & ORDER_MASK if state not in (TAIL, ABSENT) else 0
            if BUDDY_ORDER[state] is not None:
                self.move_to_free_list(zone, page, order, migratetype)
                free_pages += 1 << order
            elif state & (ALLOCATED | MOVABLE) == ALLOCATED | MOVABLE and state != ABSENT:
                movable_pages += 1 << order
            page += 1 << order
        return free_pages, movable_pages

    def set_pageblock_migratetype(self, pfn: int, migratetype: MigrateType) -> None:
        """Give the pageblock of ``pfn`` a migratetype and bring its free blocks to the matching lists.

        Raises:
            NotAllocatedError: ``pfn`` is no memory.
        """
        if not self.start_pfn <= pfn < self.end_pfn:
            raise NotAllocatedError(f"pfn {pfn} is no memory", pfn=pfn, order=0)
        self.pageblock_migratetype[pfn >> PAGEBLOCK_ORDER] = migratetype
        self.move_freepages_block(pfn, migratetype)

    # --- What page reporting needs ---

    def isolate_free_page(self, zone: Zone, pfn: int, order: int) -> bool:
        """Take the free block ``pfn`` off its list for a reporter (``__isolate_free_page``).

        Refuses, without a change, when the zone would be left with no more than its minimum watermark. Ordinary
        pageblocks of which the block is at least half become MOVABLE, whatever they were: reporting moves unmovable and
        reclaimable memory over to the movable lists, because the block goes back by its pageblock's type.
        """
        block = pfn >> PAGEBLOCK_ORDER
        types = self.pageblock_migratetype
        if types[block] != _ISOLATE and zone.free_pages <= zone.watermark_min + (1 << order):
            return False
        if self.mem_map[pfn] & REPORTED:
            self._clear_page_reported(zone, pfn, order)
        zone.free_list.remove(pfn)
        zone.nr_free[order] -= 1
        zone.free_pages -= 1 << order
        self.mem_map[pfn] = ISOLATED | order
        if order >= PAGEBLOCK_ORDER - 1:
            for covered in range(block, block + max(1, 1 << order >> PAGEBLOCK_ORDER)):
                if MERGEABLE[types[covered]]:
                    types[covered] = _MOVABLE
        return True

    def putback_isolated_page(self, zone: Zone, pfn: int, order: int) -> bool:
        """Return an isolated block to the tail of a list, by its pageblock's type, without a notification.

        That is ``__putback_isolated_page``, in v12 ``free_reported_page``. It may merge on the way.

        Returns:
            whether it is still a free block of its own, of the same order: only then may it be marked reported.

        Raises:
            NotAllocatedError: it is not isolated with that order.
        """
        if self.mem_map[pfn] != ISOLATED | order:
            raise NotAllocatedError(f"pfn {pfn} is not isolated with order {order}", pfn=pfn, order=order)
        self._free_one_page(zone, pfn, order, self.pageblock_migratetype[pfn >> PAGEBLOCK_ORDER], reported=True)
        return self.mem_map[pfn] == BUDDY | order

    def _clear_page_reported(self, zone: Zone, pfn: int, order: int) -> None:
        # A reported block is about to leave the lists: the boundary moves off it, the count falls. The caller
        # overwrites the flag with the block's next state. v12 3/6, del_page_from_free_list.
        if order >= zone.reported_boundary_order:
            _leave_boundary(zone, pfn)
        zone.reported_pages[order] -= 1

    @staticmethod
    def _get_unreported_tail(zone: Zone, order: int, migratetype: int) -> int:
        # Where the unreported part of a list ends: the entry before which a tail insertion goes (v12 3/6). Only valid
        # from reported_boundary_order on.
        return zone.reported_boundary[(order - zone.reported_boundary_order) * MIGRATE_TYPES + migratetype]


def _leave_boundary(zone: Zone, pfn: int) -> None:
    # Where `pfn` is the boundary of the list that the scanner last saw it in, the boundary moves one toward the tail.
    index = zone.reported_index[pfn >> zone.reported_boundary_order]
    if zone.reported_boundary[index] == pfn:
        zone.reported_boundary[index] = zone.free_list.next[pfn]
