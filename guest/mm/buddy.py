"""The buddy lists (Linux mm/page_alloc.c as of 6.1, with the three hooks that page reporting needs).

Theory. Memory is a run of blocks, each of ``1 << order`` pages and aligned to its size. One byte per page, ``mem_map``,
says what each first page of a block is (``page_flags``); free blocks are also on a list of their zone (``free_list``).
A free merges a block with its buddy, whose page frame number differs in the one bit ``1 << order``, for as long as
that one is free too. The map begins at pfn 0 (the flat memory model), so a pfn is its index, and ends at a whole block
of MAX_ORDER, so a buddy is always inside; pages outside RAM are ``ABSENT`` and never merge. Zones meet at multiples of
such a block, so no merge crosses from one zone into another.

``alloc_pages``, ``rmqueue_smallest``, ``free_pages`` and ``free_one_page`` run once or more for every page of every
workload. They repeat the list operations of ``free_list`` instead of calling them: a call costs as much as its body.
"""

from collections.abc import Iterator
from typing import Final, Protocol

from guest.mm.errors import NotAllocatedError
from guest.mm.free_list import LIST_HEADS
from guest.mm.mmzone import Zone
from guest.mm.page_flags import (
    ABSENT,
    ALLOCATED,
    BUDDY,
    BUDDY_ORDER,
    ISOLATED,
    MOVABLE,
    ORDER_MASK,
    REPORTED,
    TAIL,
)
from guest.mm.pageblock import MAX_ORDER, MIGRATE_TYPES, MigrateType
from guest.mm.shuffle import SHUFFLE_ORDER, Shuffle
from guest.mm.watermark import refresh
from protocol.errors import UsageError

MERGEABLE: Final = (True, True, True, False, False, False)
"""Indexed by migratetype: may free blocks of it merge with other such types above a pageblock."""

ALLOCATED_AS: Final = tuple(ALLOCATED | (MOVABLE if mt == MigrateType.MOVABLE else 0) for mt in MigrateType)
_MOVABLE: Final = int(MigrateType.MOVABLE)
_ISOLATE: Final = int(MigrateType.ISOLATE)
_CMA: Final = int(MigrateType.CMA)


class Reporter(Protocol):
    """What the allocator calls on the registered page reporter."""

    def page_reporting_free_area_release(self, zone: Zone, order: int, migratetype: int) -> None:
        """Forget the place reached in one list, because its order has changed (compaction, shuffling)."""

    def validate(self) -> None:
        """Raise CorruptionError when the reporter's own state contradicts the lists."""


class Buddy:
    """The map, the pageblocks and the zones, and every way in which a block enters or leaves a free list."""

    start_pfn: int
    end_pfn: int
    move_to_tail: bool
    claims_pageblocks: bool
    pageblock_order: int
    pageblock_nr_pages: int
    mem_map: bytearray
    pageblock_migratetype: bytearray
    zones: tuple[Zone, ...]
    zonelists: tuple[tuple[Zone, ...], ...]
    pageblock_zone: list[Zone]
    shuffle: Shuffle | None
    reporter: Reporter | None
    kswapd_wanted: bool

    # --- Taking blocks off the lists ---

    def rmqueue_smallest(self, zone: Zone, order: int, migratetype: int) -> int:
        """Take the first block of the smallest order that has one; the unused upper halves go back (``expand``).

        The caller gives the page its next state, and counts free CMA pages.

        Returns:
            its first page, -1 when the lists of this migratetype have nothing large enough.
        """
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

    def free_one_page(self, zone: Zone, pfn: int, order: int, migratetype: int, reported: bool = False) -> None:
        """Put a block on its list after merging it upward as far as possible (``__free_one_page``).

        ``reported`` is the return of a block from a reporter: to the tail and without a notification (FPI_TO_TAIL |
        FPI_SKIP_REPORT_NOTIFY). Otherwise the reporter is notified of a block that has become large enough.
        """
        mem_map = self.mem_map
        after, before = zone.free_list.next, zone.free_list.prev
        nr_free = zone.nr_free
        pageblock_order = self.pageblock_order
        if order > pageblock_order and self._of_unlike_types(pfn, order):
            self._free_by_pageblock(zone, pfn, order, reported)
            return
        mem_map[pfn] = TAIL
        zone.free_pages += 1 << order
        if migratetype == _CMA:
            zone.free_cma_pages += 1 << order
        while order < MAX_ORDER:
            buddy = pfn ^ (1 << order)
            state = mem_map[buddy]
            if BUDDY_ORDER[state] != order or (order >= pageblock_order and not self._join(migratetype, buddy, order)):
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
        # With shuffling, chance decides for the top order.
        if reported or (
            BUDDY_ORDER[mem_map[pfn & ~(1 << order) ^ (2 << order)]] == order + 1
            if order < MAX_ORDER - 1
            else self.shuffle is not None and order == SHUFFLE_ORDER and self.shuffle.pick_tail()
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

    def _of_unlike_types(self, pfn: int, order: int) -> bool:
        # Whether a block larger than a pageblock covers pageblocks whose types may not be merged.
        block = pfn >> self.pageblock_order
        types = set(self.pageblock_migratetype[block : block + (1 << order >> self.pageblock_order)])
        return len(types) > 1 and not all(MERGEABLE[migratetype] for migratetype in types)

    def _free_by_pageblock(self, zone: Zone, pfn: int, order: int, reported: bool) -> None:
        # split_large_buddy (since 6.7): pageblocks that became unlike while the block was in use are filed apart.
        self.mem_map[pfn] = TAIL
        for part in range(pfn, pfn + (1 << order), self.pageblock_nr_pages):
            migratetype = self.pageblock_migratetype[part >> self.pageblock_order]
            self.free_one_page(zone, part, self.pageblock_order, migratetype, reported)

    def _join(self, migratetype: int, buddy: int, order: int) -> bool:
        # Whether a block of a pageblock or more may merge with its buddy: with its like, or one ordinary type with
        # another. Linux 7.2 then gives the buddy the block's type: its parts belong on the lists of one type.
        buddy_type = self.pageblock_migratetype[buddy >> self.pageblock_order]
        if migratetype == buddy_type:
            return True
        if not (MERGEABLE[migratetype] and MERGEABLE[buddy_type]):
            return False
        if self.claims_pageblocks:
            self.change_pageblock_range(buddy, order, migratetype)
        return True

    def change_pageblock_range(self, pfn: int, order: int, migratetype: int) -> None:
        """Give each pageblock of the block ``pfn`` of ``order``, a pageblock or more, the type ``migratetype``."""
        block, nr_blocks = pfn >> self.pageblock_order, 1 << order - self.pageblock_order
        self.pageblock_migratetype[block : block + nr_blocks] = bytes([migratetype]) * nr_blocks

    def move_to_free_list(self, zone: Zone, pfn: int, order: int, migratetype: int) -> None:
        """Put a free block on the list of ``migratetype``. It stays reported, but the boundary moves off it."""
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
        zone = self.pageblock_zone[pfn >> self.pageblock_order]
        for page, order, state in self._blocks_of(pfn):
            if BUDDY_ORDER[state] is not None:
                self.move_to_free_list(zone, page, order, migratetype)
        return self.count_freepages_block(pfn)

    def count_freepages_block(self, pfn: int) -> tuple[int, int]:
        """Return what :meth:`move_freepages_block` would return, and move nothing (prep_move_freepages_block)."""
        free_pages = movable_pages = 0
        for _, order, state in self._blocks_of(pfn):
            if BUDDY_ORDER[state] is not None:
                free_pages += 1 << order
            elif state & (ALLOCATED | MOVABLE) == ALLOCATED | MOVABLE and state != ABSENT:
                movable_pages += 1 << order
        return free_pages, movable_pages

    def _blocks_of(self, pfn: int) -> Iterator[tuple[int, int, int]]:
        # First page, order and state of each block in the pageblock of `pfn`; a page of no such block has order 0.
        page = pfn & -self.pageblock_nr_pages
        end = page + self.pageblock_nr_pages
        while page < end:
            state = self.mem_map[page]
            order = state & ORDER_MASK if state not in (TAIL, ABSENT) else 0
            yield page, order, state
            page += 1 << order

    def set_pageblock_migratetype(self, pfn: int, migratetype: int) -> int:
        """Give the pageblock of ``pfn`` a migratetype and bring its free blocks to the matching lists.

        Where it is part of a larger free block, of which the other part may not be merged with the new type, that part
        changes with it: a free block is on one list.

        Unlike in Linux, free pages of an ISOLATE pageblock go on counting as free: nothing here takes memory away for
        good (offlining, contiguous allocations), which is what that type is for.

        Returns:
            the number of pageblocks that have the type now.

        Raises:
            NotAllocatedError: ``pfn`` is outside RAM.
            UsageError: an unknown migratetype.
        """
        if not self.start_pfn <= pfn < self.end_pfn or self.mem_map[pfn] == ABSENT:
            raise NotAllocatedError(f"pfn {pfn} is outside RAM", pfn=pfn, order=0)
        if not 0 <= migratetype < MIGRATE_TYPES:
            raise UsageError(f"there is no migratetype {migratetype}")
        block = pfn >> self.pageblock_order
        zone = self.pageblock_zone[block]
        old_type = self.pageblock_migratetype[block]
        self.pageblock_migratetype[block] = migratetype
        change = (migratetype == _CMA) - (old_type == _CMA)
        nr_blocks, moved_pages = 1, 0
        for order in range(self.pageblock_order + 1, MAX_ORDER + 1):
            head = pfn & -(1 << order)
            if BUDDY_ORDER[self.mem_map[head]] == order and self._of_unlike_types(head, order):
                nr_blocks, moved_pages = 1 << order - self.pageblock_order, 1 << order
                self.change_pageblock_range(head, order, migratetype)
                self.move_to_free_list(zone, head, order, migratetype)
        if not moved_pages:
            moved_pages, _ = self.move_freepages_block(pfn, migratetype)
        if change:
            zone.cma_pages += change * nr_blocks << self.pageblock_order
            zone.free_cma_pages += change * moved_pages
            refresh(zone)
        return nr_blocks

    # --- What page reporting needs ---

    def isolate_free_page(self, zone: Zone, pfn: int, order: int) -> bool:
        """Take the free block ``pfn`` off its list for a reporter (``__isolate_free_page``).

        Refuses, without a change, when the zone would be left with no more than its minimum watermark. Ordinary
        pageblocks of which the block is at least half become MOVABLE: reporting moves unmovable and reclaimable memory
        over to the movable lists, because the block goes back by its pageblock's type.
        """
        block = pfn >> self.pageblock_order
        types = self.pageblock_migratetype
        if types[block] != _ISOLATE:
            unreserved = zone.free_pages - zone.unusable_highatomic
            if unreserved <= zone.watermark_min + (1 << order):
                return False
        self._del_page_from_free_list(zone, pfn, order)
        if types[block] == _CMA:
            zone.free_cma_pages -= 1 << order
        self.mem_map[pfn] = ISOLATED | order
        if order >= self.pageblock_order - 1:
            for covered in range(block, block + max(1, 1 << order >> self.pageblock_order)):
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
        self.free_one_page(zone, pfn, order, self.pageblock_migratetype[pfn >> self.pageblock_order], reported=True)
        return self.mem_map[pfn] == BUDDY | order

    def _del_page_from_free_list(self, zone: Zone, pfn: int, order: int) -> None:
        # The caller gives the page its next state, and counts free CMA pages.
        if self.mem_map[pfn] & REPORTED:
            self._clear_page_reported(zone, pfn, order)
        zone.free_list.remove(pfn)
        zone.nr_free[order] -= 1
        zone.free_pages -= 1 << order

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
