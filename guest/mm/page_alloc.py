"""The buddy allocator (Linux mm/page_alloc.c as of 6.1, with the three hooks that page reporting needs).

The fast paths of allocation and free. The lists themselves are in ``buddy``; a request that cannot be served at once
goes to ``alloc_slowpath``. ``alloc_pages`` and ``free_pages`` run once for every page of every workload, so they check
as little as possible, and repeat the body of a function where a call would cost as much.
"""

from collections.abc import Sequence
from functools import partial

from guest.mm import mm_init, page_check
from guest.mm.alloc_slowpath import alloc_pages_slowpath
from guest.mm.buddy import ALLOCATED_AS, Buddy, Reporter
from guest.mm.mmzone import Zone, ZoneSpan, ZoneType, highest_zone_type
from guest.mm.page_flags import (
    ABSENT,
    ALLOCATED_ORDER,
    PCP,
)
from guest.mm.pageblock import MAX_ORDER, MIGRATE_TYPES, PAGEBLOCK_ORDER, MigrateType
from guest.mm.pcp import PAGE_ALLOC_COSTLY_ORDER, PageList
from guest.mm.shuffle import SHUFFLE_ORDER, Shuffle
from guest.mm.vmscan import VmScan
from guest.mm.watermark import AllocFlags
from protocol.errors import UsageError


class PageAllocator(Buddy):
    """Physical memory of the guest: ``total_pages`` pages of 4 KiB from ``start_pfn`` on, at first free and MOVABLE.

    >>> allocator = PageAllocator(1 << 18)
    >>> pfn = allocator.alloc_pages(9)
    >>> allocator.free_pages(pfn, 9)

    Args:
        total_pages: size, in pages.
        start_pfn: first page frame. The map begins at pfn 0 nevertheless: it has one byte for each page below, too.
        zones: several zones instead of one called Normal, ascending from ``start_pfn`` on, of ``total_pages`` pages
            together. All but the first begin at multiples of 1024 pages; a gap between two zones is a hole.
            ``x86.zones.x86_64_zones`` makes those of a real machine.
        min_free_kbytes: ``vm.min_free_kbytes``, None for the kernel's own value.
        move_to_tail: blocks that change their migratetype go to the tail of the new list, as since Linux 5.10, and not
            to the head as in v12.
        claims_pageblocks: types take from each other as in Linux 7.2: a whole pageblock or, where that is not to be
            had, the one block (``fallback``); a pageblock that merges takes over the type of the block it joins; and
            the HIGHATOMIC reserve is that of 7.2 (``highatomic``).
            ``zoneinfo`` is written as by that release, too.
        pageblock_order: 9 with transparent or other huge pages of 2 MiB, 10 (MAX_ORDER) where there are none, as in
            User Mode Linux.
        nr_cpus: processors with page lists of their own (``pcp``); 0 sends every free straight to the buddy lists.
        cma_pages: size of a contiguous memory area: whole pageblocks at the end of the highest zone but Movable.
        shuffle_seed: shuffle the blocks of MAX_ORDER (``page_alloc.shuffle=1``), the same way for the same seed.

    Raises:
        UsageError: an invalid size or zone.
    """

    def __init__(
        self,
        total_pages: int,
        *,
        start_pfn: int = 0,
        zones: Sequence[ZoneSpan] | None = None,
        min_free_kbytes: int | None = None,
        move_to_tail: bool = False,
        claims_pageblocks: bool = False,
        pageblock_order: int = PAGEBLOCK_ORDER,
        nr_cpus: int = 0,
        cma_pages: int = 0,
        shuffle_seed: int | None = None,
    ) -> None:
        spans = mm_init.check_spans(total_pages, start_pfn, zones)
        if not 1 <= pageblock_order <= MAX_ORDER:
            raise UsageError(f"pageblock order {pageblock_order} is not within 1 and {MAX_ORDER}")
        if nr_cpus < 0:
            raise UsageError(f"{nr_cpus} processors cannot have page lists")
        self.start_pfn = start_pfn
        self.end_pfn = spans[-1].end_pfn
        self.total_pages = total_pages
        self.move_to_tail = move_to_tail
        self.claims_pageblocks = claims_pageblocks
        self.pageblock_order = pageblock_order
        self.pageblock_nr_pages = 1 << pageblock_order
        self.reporter: Reporter | None = None
        self.kswapd_wanted = False
        self.reclaiming = False
        self.vmscan = VmScan(self)
        self.mem_map = mm_init.make_mem_map(spans)
        nr_pageblocks = len(self.mem_map) >> pageblock_order
        self.pageblock_migratetype = bytearray([MigrateType.MOVABLE]) * nr_pageblocks
        self.zones: tuple[Zone, ...] = mm_init.make_zones(spans, min_free_kbytes)
        for zone in self.zones:
            zone.keeps_free_highatomic = claims_pageblocks
        # Highest zone first, as in the kernel's zonelist: the low ones are precious.
        by_type = [highest_zone_type(migratetype) for migratetype in MigrateType]
        self.zonelists = tuple(tuple(z for z in self.zones[::-1] if z.type <= highest) for highest in by_type)
        # Memory that is Movable alone has no zone for other requests: fast_mark sends those to the slow path.
        self._preferred_zone = tuple((zonelist or self.zones)[0] for zonelist in self.zonelists)
        self.no_fragment = {ZoneType.DMA32, ZoneType.NORMAL} <= {zone.type for zone in self.zones}
        self.pageblock_zone = [self.zones[0]] * nr_pageblocks if len(spans) == 1 else self._map_zones(nr_pageblocks)
        self.shuffle = None
        self._free_all(mm_init.cma_area(self, cma_pages), shuffle_seed)
        # Orders 0 to 3 have per-CPU lists anyway, and without huge pages those are all.
        thp_order = pageblock_order if PAGE_ALLOC_COSTLY_ORDER < pageblock_order < MAX_ORDER else None
        for zone in self.zones if nr_cpus else ():
            mm_init.make_pcps(zone, nr_cpus, thp_order)

    def _free_all(self, cma_area: range, shuffle_seed: int | None) -> None:
        # In the order of boot: memblock_free_all, then shuffling, then the initcall that frees the contiguous area.
        for zone in self.zones:
            mm_init.free_pages_core(self, zone, cma_area)
        if shuffle_seed is not None:
            self.shuffle = Shuffle(shuffle_seed)
            self.shuffle_zones(self.shuffle)
        mm_init.free_cma_area(self, cma_area)

    def _map_zones(self, nr_pageblocks: int) -> list[Zone]:
        zone_of = [self.zones[0]] * nr_pageblocks
        for zone in self.zones:
            first, last = zone.start_pfn >> self.pageblock_order, (zone.end_pfn - 1) >> self.pageblock_order
            zone_of[first : last + 1] = [zone] * (last + 1 - first)
        return zone_of

    # --- What a workload calls ---

    def alloc_pages(
        self, order: int, migratetype: MigrateType = MigrateType.MOVABLE, flags: AllocFlags = AllocFlags.NONE
    ) -> int | None:
        """Take a block of ``1 << order`` pages and return its first page, or None when no zone can give one.

        The highest zone that is above its low watermark comes first (``__alloc_pages``); its per-CPU list before its
        own lists, those before the lists of other migratetypes. When all zones are short, ``alloc_slowpath`` decides.

        Raises:
            UsageError: an unknown order or migratetype, or ISOLATE.
        """
        if not 0 <= order <= MAX_ORDER:
            raise UsageError(f"order {order} is not within 0 and {MAX_ORDER}")
        if not 0 <= migratetype < MIGRATE_TYPES:
            raise UsageError(f"there is no migratetype {migratetype}")
        zone = self._preferred_zone[migratetype]
        if zone.free_pages - (1 << order) >= zone.fast_mark[migratetype]:
            pcp = zone.pcp
            pages = None if pcp is None else pcp.for_alloc[migratetype][order]
            if pcp is None or pages is None:
                pfn = self.rmqueue_smallest(zone, order, migratetype)
                if pfn >= 0:
                    self.mem_map[pfn] = ALLOCATED_AS[migratetype] | order
                    return pfn
            elif pages:
                pcp.count -= 1 << order
                pcp.free_factor >>= 1
                pfn = pages.pop()
                self.mem_map[pfn] = ALLOCATED_AS[migratetype] | order
                return pfn
        return alloc_pages_slowpath(self, order, migratetype, flags)

    def free_pages(self, pfn: int, order: int) -> None:
        """Give back the block of ``1 << order`` pages that ``alloc_pages`` returned as ``pfn``.

        Raises:
            DoubleFreeError, NotAllocatedError, WrongOrderError: it is not such a block; nothing was changed.
        """
        try:
            state = self.mem_map[pfn]
        except IndexError:
            state = ABSENT
        if ALLOCATED_ORDER[state] != order or pfn < 0:
            raise page_check.bad_page(self.mem_map, pfn, order)
        block = pfn >> self.pageblock_order
        zone = self.pageblock_zone[block]
        migratetype = self.pageblock_migratetype[block]
        pcp = zone.pcp
        if pcp is not None:
            pages = pcp.for_free[migratetype][order]
            if pages is not None:
                self.mem_map[pfn] = PCP | order
                pages.append(pfn)
                pcp.count += 1 << order
                if pcp.count >= pcp.high or (order and pcp.free_factor) or self.reclaiming:
                    self._free_pcppages(zone, pcp.excess(order, reclaiming=self.reclaiming), pages)
                return
        self.free_one_page(zone, pfn, order, migratetype)

    def nr_free_pages(self) -> int:
        """Return the number of free pages on the lists of all zones.

        Blocks that a reporter has isolated and pages on per-CPU lists (:meth:`nr_pcp_pages`) do not count.
        """
        return sum(zone.free_pages for zone in self.zones)

    def nr_pcp_pages(self) -> int:
        """Return the number of pages on per-CPU lists."""
        return sum(pcp.count for zone in self.zones for pcp in zone.pcps)

    def run_on_cpu(self, cpu: int) -> None:
        """Run what follows on another processor: its per-CPU lists are used from now on.

        Raises:
            UsageError: an unknown processor.
        """
        if not 0 <= cpu < len(self.zones[0].pcps):
            raise UsageError(f"there is no processor {cpu} with page lists")
        for zone in self.zones:
            zone.pcp = zone.pcps[cpu]

    def drain_all_pages(self) -> None:
        """Return all pages on per-CPU lists to the buddy lists, CPU by CPU (``drain_all_pages``)."""
        for zone in self.zones:
            for pcp in zone.pcps:
                for pfn, order in pcp.take_cold(pcp.count):
                    self._free_from_pcp(zone, pfn, order)

    def _free_pcppages(self, zone: Zone, nr_pages: int, first: PageList) -> None:
        # free_pcppages_bulk, for the CPU that runs.
        if zone.pcp is not None:
            for pfn, order in zone.pcp.take_cold(nr_pages, first):
                self._free_from_pcp(zone, pfn, order)

    def _free_from_pcp(self, zone: Zone, pfn: int, order: int) -> None:
        self.free_one_page(zone, pfn, order, self.pageblock_migratetype[pfn >> self.pageblock_order])

    def shuffle_zones(self, shuffle: Shuffle) -> None:
        """Shuffle the blocks of MAX_ORDER of every zone. A reporter forgets its place in each list that changes."""

        def on_reordered(zone: Zone, migratetype: int) -> None:
            if self.reporter is not None:
                self.reporter.page_reporting_free_area_release(zone, SHUFFLE_ORDER, migratetype)

        for zone in self.zones:
            shuffle.shuffle_zone(zone, partial(on_reordered, zone))

    def validate(self) -> None:
        """Walk every list and every page and compare them with each other and with all counters.

        Raises:
            CorruptionError: naming the first disagreement.
        """
        page_check.validate(self)
        if self.reporter is not None:
            self.reporter.validate()
