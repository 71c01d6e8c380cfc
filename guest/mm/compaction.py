"""Compaction: larger free blocks by moving blocks in use (Linux mm/compaction.c, one run over one zone at a time).

The owner of a block moves its content, through ``migrate``, or declines.

Theory. Two scanners walk a zone toward each other by pageblocks. The migrate scanner goes up from the start and
collects allocated movable blocks; the free scanner goes down from the end and isolates free blocks as their new places.
So blocks in use gather at the end of the zone, and the start becomes free and merges. The run ends when there is a
free block of the wanted order, when nothing more can be moved, or when the scanners meet.

Before either scanner walks, it asks the free lists of MOVABLE, which is much faster: for a pageblock that is nearly
empty (``fast_find_migrateblock``), or for free pages far up (``fast_isolate_freepages``). Both move the entries that
they have looked at to the end of the list, so that the next search does not meet them first. As that changes the order
of the list, the page reporter has to forget its place in it (``page_reporting_free_area_release``, v12 3/6).

Where this departs from Linux: a block of any order below a pageblock moves as a whole, as since 6.9, to the smallest
free block in the pageblock at hand that will hold it, and the rest of that block is free again at once; skip bits and
cached scanner positions are not modelled, so a run begins with the whole zone; nor are contention and signals.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from guest.mm.buddy import Buddy
from guest.mm.fallback import FALLBACKS
from guest.mm.free_list import LIST_HEADS
from guest.mm.mmzone import Zone, highest_zone_type
from guest.mm.page_flags import ALLOCATED, BLOCK_ORDER, BUDDY_ORDER, ISOLATED, MOVABLE, ORDER_MASK
from guest.mm.pageblock import MAX_ORDER, NR_PAGE_ORDERS, MigrateType
from guest.mm.pcp import PAGE_ALLOC_COSTLY_ORDER
from guest.mm.watermark import low_wmark_pages, min_wmark_pages, zone_watermark_ok

Migrate = Callable[[int, int, int], bool]
"""Old first page, new first page, order: move the content. False leaves the block where it is. Must not allocate."""

FREELIST_SCAN_LIMIT: Final = 32
"""Entries that a fast search looks at in one list (``freelist_scan_limit`` of a run that has not failed before)."""

COMPACT_MAX_DEFER_SHIFT: Final = 6

_MOVABLE: Final = int(MigrateType.MOVABLE)
_TARGETS: Final = (_MOVABLE, int(MigrateType.CMA))
_IN_USE_MOVABLE: Final = ALLOCATED | MOVABLE


@dataclass(slots=True)
class CompactionStatistics:
    """The counters ``compact_*`` of /proc/vmstat."""

    runs: int = 0
    migrate_scanned: int = 0
    free_scanned: int = 0
    migrated_pages: int = 0
    declined: int = 0
    """Blocks whose owner did not move them."""
    success: int = 0
    fail: int = 0


@dataclass(slots=True)
class Deferral:
    """How often to skip compaction of one zone after a failure (``compact_defer_shift``, ``compact_considered``)."""

    considered: int = 0
    shift: int = 0
    order_failed: int = NR_PAGE_ORDERS

    def deferred(self, order: int) -> bool:
        """Return whether to skip this run. Each failure doubles the number of runs skipped, up to 64."""
        if order < self.order_failed:
            return False
        self.considered = min(self.considered + 1, 1 << self.shift)
        return self.considered < 1 << self.shift

    def note(self, order: int, *, success: bool) -> None:
        """Remember how a run has ended."""
        if success:
            self.considered = self.shift = 0
            self.order_failed = max(self.order_failed, order + 1)
        else:
            self.considered = 0
            self.shift = min(self.shift + 1, COMPACT_MAX_DEFER_SHIFT)
            self.order_failed = min(self.order_failed, order)


class Compaction:
    """One run over one zone (``struct compact_control``).

    Args:
        order: the order that is wanted; -1 moves everything movable (``/proc/sys/vm/compact_memory``).
        migratetype: the type whose lists are to have a block of that order in the end.
    """

    def __init__(
        self,
        allocator: Buddy,
        zone: Zone,
        order: int,
        migratetype: int,
        migrate: Migrate,
        statistics: CompactionStatistics,
    ) -> None:
        self._allocator = allocator
        self._zone = zone
        self._order = order
        self._migratetype = migratetype
        self._migrate = migrate
        self._statistics = statistics
        self._size = allocator.pageblock_nr_pages
        self._free_pfn = (zone.end_pfn - 1) & -self._size
        self._targets: list[list[int]] = [[] for _ in range(NR_PAGE_ORDERS)]  # isolated blocks, by order
        self._searched_fast = False

    def run(self) -> bool:
        """Move until the run ends; return whether a block of the wanted order is free now."""
        if not self.suitable():
            return self.finished()
        self._statistics.runs += 1
        pageblock: int | None = self._fast_find_migrateblock()
        try:
            if pageblock is not None:
                self._migrate_pageblock(pageblock)
            pageblock = self._zone.start_pfn & -self._size
            while not self.finished() and pageblock < self._free_pfn:
                if not self._migrate_pageblock(pageblock):
                    break
                pageblock += self._size
        finally:
            self._release_targets()
        done = self.finished()
        if done:
            self._statistics.success += 1
        else:
            self._statistics.fail += 1
        return done

    def suitable(self) -> bool:
        """Return whether compaction is needed, and twice the wanted size is free as room to move to.

        That is ``compaction_suitable``.
        """
        if self._order < 0:
            return True
        mark = low_wmark_pages(self._zone) if self._order > PAGE_ALLOC_COSTLY_ORDER else min_wmark_pages(self._zone)
        highest = highest_zone_type(self._migratetype)
        return not self.finished() and zone_watermark_ok(
            self._zone, 0, mark + (2 << self._order), highest, migratetype=_MOVABLE
        )

    def finished(self) -> bool:
        """Return whether a block of the wanted order could be taken now, if need be from another migratetype.

        That is ``compact_finished``. A movable request is to take from others only what it may keep.
        """
        if self._order < 0:
            return False
        following = self._zone.free_list.next
        movable = self._migratetype == _MOVABLE
        own = (self._migratetype, MigrateType.CMA) if movable else (self._migratetype,)
        for order in range(self._order, NR_PAGE_ORDERS):
            may_steal = not movable or order >= self._allocator.pageblock_order // 2
            others = FALLBACKS.get(self._migratetype, ()) if may_steal else ()
            if any(following[LIST_HEADS[migratetype][order]] >= 0 for migratetype in (*own, *others)):
                return True
        return False

    # --- The migrate scanner ---

    def _migrate_pageblock(self, start: int) -> bool:
        # isolate_migratepages_block and migrate_pages. False when no free block is left to move to.
        if not self._suitable_source(start):
            return True
        for pfn, order in list(self._movable_blocks(start)):
            target = self._take_target(order)
            if target is None and order:
                continue  # a smaller one may still find a place
            if target is None:
                return False
            if target < pfn:
                self._targets[order].append(target)
                return False
            self._move(pfn, target, order)
        return True

    def _suitable_source(self, start: int) -> bool:
        # suitable_migration_source: a run on behalf of a movable request looks at movable pageblocks only.
        block_type = self._allocator.pageblock_migratetype[start >> self._allocator.pageblock_order]
        return block_type in _TARGETS or (self._migratetype != _MOVABLE and block_type != MigrateType.ISOLATE)

    def _movable_blocks(self, start: int) -> Iterator[tuple[int, int]]:
        mem_map = self._allocator.mem_map
        pfn = max(start, self._zone.start_pfn)
        end = min(start + self._size, self._zone.end_pfn)
        while pfn < end:
            order = BLOCK_ORDER[mem_map[pfn]]
            if order is None:
                pfn += 1
                continue
            self._statistics.migrate_scanned += 1
            if mem_map[pfn] & ~ORDER_MASK == _IN_USE_MOVABLE and order < self._allocator.pageblock_order:
                yield pfn, order
            pfn += 1 << order

    def _move(self, pfn: int, target: int, order: int) -> None:
        # The new place becomes an allocated block of the same order; the old one is freed, straight to the buddy lists.
        allocator = self._allocator
        try:
            moved = self._migrate(pfn, target, order)
        except BaseException:
            self._targets[order].append(target)  # returned with the others, so an owner that raises loses no page
            raise
        if not moved:
            self._statistics.declined += 1
            self._targets[order].append(target)
            return
        allocator.mem_map[target] = _IN_USE_MOVABLE | order
        block_type = allocator.pageblock_migratetype[pfn >> allocator.pageblock_order]
        allocator.free_one_page(self._zone, pfn, order, block_type)
        self._statistics.migrated_pages += 1 << order

    # --- The free scanner ---

    def _take_target(self, order: int) -> int | None:
        # A place for a block of `order`: the smallest isolated block that will do, split; more are isolated as needed.
        mem_map = self._allocator.mem_map
        while True:
            size = next((size for size in range(order, NR_PAGE_ORDERS) if self._targets[size]), None)
            if size is not None:
                break
            if not self._isolate_freepages():
                return None
        pfn = self._targets[size].pop()
        while size > order:
            size -= 1
            self._targets[size].append(pfn + (1 << size))
            mem_map[pfn + (1 << size)] = mem_map[pfn] = ISOLATED | size
        return pfn

    def _isolate_freepages(self) -> bool:
        # Isolate the free blocks of one more pageblock; False when the free scanner has come to the start.
        if not self._searched_fast:
            self._searched_fast = True
            if (pageblock := self._fast_isolate_freepages()) is not None:
                return self._isolate_pageblock(pageblock)
        while self._free_pfn >= self._zone.start_pfn:
            pageblock = self._free_pfn
            self._free_pfn -= self._size
            if self._suitable_target(pageblock) and self._isolate_pageblock(pageblock):
                return True
        return False

    def _suitable_target(self, start: int) -> bool:
        # suitable_migration_target: movable or CMA, and not free as a whole already.
        allocator = self._allocator
        order = BUDDY_ORDER[allocator.mem_map[start]]
        if order is not None and order >= allocator.pageblock_order:
            return False
        return allocator.pageblock_migratetype[start >> allocator.pageblock_order] in _TARGETS

    def _isolate_pageblock(self, start: int) -> bool:
        allocator, zone = self._allocator, self._zone
        found = False
        pfn, end = max(start, zone.start_pfn), min(start + self._size, zone.end_pfn)
        while pfn < end:
            state = allocator.mem_map[pfn]
            block_order = BLOCK_ORDER[state]
            if block_order is None:
                pfn += 1
                continue
            self._statistics.free_scanned += 1
            if BUDDY_ORDER[state] is not None and allocator.isolate_free_page(zone, pfn, block_order):
                self._targets[block_order].append(pfn)
                found = True
            pfn += 1 << block_order
        return found

    def _release_targets(self) -> None:
        # release_freepages: blocks that were isolated and not used go back.
        allocator = self._allocator
        for order, pfns in enumerate(self._targets):
            for pfn in pfns:
                block_type = allocator.pageblock_migratetype[pfn >> allocator.pageblock_order]
                allocator.free_one_page(self._zone, pfn, order, block_type)
            pfns.clear()

    # --- Asking the free lists ---

    def _fast_find_migrateblock(self) -> int | None:
        # A pageblock in the first half of the zone, of which a large part is free already. For orders that are worth
        # it, and for movable requests only.
        if self._order <= 3 or self._migratetype != _MOVABLE:
            return None
        limit = (self._zone.start_pfn + self._zone.end_pfn) // 2
        for order in range(min(self._order, MAX_ORDER + 1) - 1, 2, -1):
            found = self._search(order, lambda pfn: pfn < limit)
            if found is not None:
                return found & -self._size
        return None

    def _fast_isolate_freepages(self) -> int | None:
        # A pageblock in the last quarter of the zone with a free block of less than the wanted order.
        highest = self._order - 1 if self._order > 0 else self._allocator.pageblock_order - 1
        limit = self._zone.start_pfn + (self._zone.end_pfn - self._zone.start_pfn) * 3 // 4
        for order in range(min(highest, self._allocator.pageblock_order - 1), -1, -1):
            found = self._search(order, lambda pfn: pfn >= limit)
            if found is not None and self._suitable_target(found & -self._size):
                return found & -self._size
        return None

    def _search(self, order: int, wanted: Callable[[int], bool]) -> int | None:
        # The first entry from the head that will do. The entries passed over move to the end of the list, so that the
        # next search begins where this one ends (move_freelist_head).
        zone = self._zone
        head = LIST_HEADS[_MOVABLE][order]
        following = zone.free_list.next
        if following[head] < 0:
            return None
        if self._allocator.reporter is not None:
            self._allocator.reporter.page_reporting_free_area_release(zone, order, _MOVABLE)
        entry = following[head]
        for _ in range(FREELIST_SCAN_LIMIT):
            if entry < 0:
                return None
            if wanted(entry):
                if following[head] != entry:
                    zone.free_list.rotate_to_front(entry, head)
                return entry
            entry = following[entry]
        if entry >= 0:
            zone.free_list.rotate_to_front(entry, head)
        return None
