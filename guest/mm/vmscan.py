"""Reclaim: taking back pages of caches (Linux mm/vmscan.c, much reduced).

A *shrinker* is a callable that is asked for a number of pages, frees the oldest ones of its cache, and returns how many
they were; :class:`PageCache` has one. kswapd has no thread here and takes no time: where the kernel would wake it, it
runs before the request that woke it returns. It brings a zone that the request may use above its high watermark, as far
as the shrinkers allow, then lowers the boosted watermarks and compacts memory, as kcompactd would.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from guest.mm import watermark
from guest.mm.compaction import Compaction, CompactionStatistics, Deferral, Migrate
from guest.mm.mmzone import highest_zone_type
from guest.mm.pageblock import MigrateType

if TYPE_CHECKING:
    from guest.mm.page_alloc import PageAllocator

SWAP_CLUSTER_MAX: Final = 32
"""Pages that are reclaimed at a time."""

Shrinker = Callable[[int], int]
"""Takes the number of pages wanted, returns the number of pages freed, which may be less or more; 0 when empty."""


class VmScan:
    """Reclaim for one allocator: the shrinkers, and counters of what they freed.

    ``on_out_of_memory`` is called with order and migratetype when a request of at most 8 pages finds nothing left to
    reclaim. It returns whether it has freed something, and then the request is tried again.
    ``migrate`` is called with the old and the new first page and the order of a movable block that is to move. It
    returns whether its content is now at the new place; the old one is then freed. Without it nothing can be compacted.
    """

    def __init__(self, allocator: "PageAllocator") -> None:
        self._allocator = allocator
        self._shrinkers: list[Shrinker] = []
        self.on_out_of_memory: Callable[[int, int], bool] | None = None
        self.migrate: Migrate | None = None
        self.kswapd_runs = 0
        self.reclaimed_pages = 0
        self.kswapd_reclaimed_pages = 0
        self.direct_reclaimed_pages = 0
        self.direct_reclaims = 0
        self.out_of_memory_events = 0
        self.compaction = CompactionStatistics()
        self._deferrals: defaultdict[int, Deferral] = defaultdict(Deferral)

    def register_shrinker(self, shrinker: Shrinker) -> None:
        """Register ``shrinker``; it is asked after those registered before (``register_shrinker``)."""
        self._shrinkers.append(shrinker)

    def unregister_shrinker(self, shrinker: Shrinker) -> None:
        """Unregister ``shrinker`` (``unregister_shrinker``).

        Raises:
            ValueError: it is not registered.
        """
        self._shrinkers.remove(shrinker)

    def shrink(self, nr_pages: int) -> int:
        """Have the shrinkers free about ``nr_pages`` pages and return how many they freed."""
        freed = 0
        self._allocator.reclaiming = True
        try:
            for shrinker in self._shrinkers:
                if freed >= nr_pages:
                    break
                freed += shrinker(nr_pages - freed)
        finally:
            self._allocator.reclaiming = False
        self.reclaimed_pages += freed
        return freed

    def wakeup_kswapd(self, order: int, migratetype: int) -> None:
        """Reclaim until one zone that the request may use is above its high watermark (``balance_pgdat``)."""
        self._allocator.kswapd_wanted = False
        self.kswapd_runs += 1
        before = self.reclaimed_pages
        while not self._balanced(order, migratetype) and self.shrink(SWAP_CLUSTER_MAX):
            pass
        self.kswapd_reclaimed_pages += self.reclaimed_pages - before
        boosted = False
        for zone in self._allocator.zones:
            if zone.watermark_boost:
                zone.watermark_boost = 0
                watermark.refresh(zone)
                boosted = True
        if boosted:
            self.compact(self._allocator.pageblock_order, MigrateType.UNMOVABLE)

    def _balanced(self, order: int, migratetype: int) -> bool:
        # pgdat_balanced
        return any(
            watermark.zone_watermark_ok(
                zone, order, watermark.high_wmark_pages(zone), highest_zone_type(migratetype), migratetype=migratetype
            )
            for zone in self._allocator.zonelists[migratetype]
        )

    def direct_reclaim(self, order: int) -> int:
        """Reclaim on behalf of a request that waits for it; return the number of pages freed."""
        self.direct_reclaims += 1
        freed = self.shrink(max(SWAP_CLUSTER_MAX, 1 << order))
        self.direct_reclaimed_pages += freed
        return freed

    def compact(self, order: int, migratetype: int) -> bool:
        """Move pages to make blocks of ``order``; True when a zone has one (``try_to_compact_pages``).

        A zone in which that has failed is deferred (``compaction_deferred``). An order of -1 moves everything movable
        in all zones, deferred or not. Without ``migrate`` pages cannot move.
        """
        if self.migrate is None:
            return False
        self._allocator.drain_all_pages()
        for zone in self._allocator.zonelists[migratetype]:
            run = Compaction(self._allocator, zone, order, migratetype, self.migrate, self.compaction)
            if order < 0 or not run.suitable():
                done = run.run()
            elif self._deferrals[zone.index].deferred(order):
                continue
            else:
                done = run.run()
                self._deferrals[zone.index].note(order, success=done)
            if done:
                return True
        return False

    def out_of_memory(self, order: int, migratetype: int) -> bool:
        """Call ``on_out_of_memory``. True when it has freed something, so that a retry makes sense."""
        self.out_of_memory_events += 1
        if self.on_out_of_memory is None:
            return False
        before = self._free_pages()
        return self.on_out_of_memory(order, migratetype) and self._free_pages() > before

    def _free_pages(self) -> int:
        return self._allocator.nr_free_pages() + self._allocator.nr_pcp_pages()


Key = TypeVar("Key", bound=Hashable)


class PageCache(Generic[Key]):
    """Pages that a workload has read and might read again: entries in order of last use, evicted oldest first.

    ``release`` frees the pages of one entry and returns how many they were. Memory pressure reaches a cache only
    when its ``shrink`` is registered as a shrinker.
    """

    def __init__(self, release: Callable[[Key], int]) -> None:
        self._release = release
        self._entries: OrderedDict[Key, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Key) -> bool:
        return key in self._entries

    def touch(self, key: Key) -> None:
        """Enter ``key``, or move it, as the entry used last."""
        self._entries[key] = None
        self._entries.move_to_end(key)

    def shrink(self, nr_pages: int) -> int:
        """Evict entries, the oldest first, until ``nr_pages`` pages are freed; return how many were."""
        freed = 0
        while freed < nr_pages and self._entries:
            key, _ = self._entries.popitem(last=False)
            freed += self._release(key)
        return freed

    def drop(self) -> int:
        """Evict every entry (``drop_caches``); return the number of pages freed."""
        freed = 0
        while self._entries:
            key, _ = self._entries.popitem(last=False)
            freed += self._release(key)
        return freed
