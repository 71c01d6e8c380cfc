"""The reported boundary: patch 3/6 of "mm / virtio: Provide support for unused page reporting", v12, 2019.

``buddy`` implements the three rules that concern every free and allocation: where a tail insertion goes, how the
boundary moves when a reported block leaves a list, and when to notify the reporter.

Theory. Reported blocks gather at the tail of their list. For each list from the reporting order up, a *boundary* points
at the uppermost entry of the run of reported blocks at the tail that the scanner has walked over; at first it is the
list head itself. The scanner walks from the boundary toward the head and does not look below it again. For that to be
right, tail insertions go just above the boundary, and the boundary moves one entry toward the tail when its block
leaves. It moves up only when the scanner walks over reported entries. So while a zone is ACTIVE, every entry from the
boundary to the tail is reported. A reset returns the boundary to the list head, with an empty range below it.

Boundaries are valid while their zone is ACTIVE (``zone_reporting`` has the life cycle of a zone). A coarse reset makes
it REQUESTED again, and the next fill resets all boundaries. One array of boundaries serves all zones, because no two of
them are ACTIVE at once.
"""

from typing import ClassVar

from guest.mm.errors import CorruptionError
from guest.mm.free_list import LIST_HEADS
from guest.mm.mmzone import Zone
from guest.mm.page_alloc import PageAllocator
from guest.mm.page_flags import REPORTED, page_reported
from guest.mm.pageblock import MAX_ORDER, MIGRATE_TYPES, NO_ORDER
from guest.mm.reporting.page_reporting import Scatterlist
from guest.mm.reporting.zone_reporting import ACTIVE, DELAY, HIGH_WATER_MARK, ZoneEvent, ZoneReporter


class ReportedBoundary(ZoneReporter):
    """Reports from the boundary toward the head and visits each reported block once. Arguments as ZoneReporter's."""

    name: ClassVar[str] = "boundary"

    def __init__(
        self,
        allocator: PageAllocator,
        *,
        order: int | None = None,
        delay: float = DELAY,
        capacity: int | None = None,
        high_water_mark: int = HIGH_WATER_MARK,
    ) -> None:
        super().__init__(allocator, order=order, delay=delay, capacity=capacity, high_water_mark=high_water_mark)
        self._boundary = [0] * ((MAX_ORDER + 1 - self.order) * MIGRATE_TYPES)
        self._index = bytearray(len(allocator.mem_map) >> self.order)

    def _move(self, zone: Zone, event: ZoneEvent) -> None:
        # Boundaries are valid exactly while the zone is ACTIVE; reported_boundary_order tells page_alloc so.
        super()._move(zone, event)
        zone.reported_boundary_order = self.order if zone.reporting_state is ACTIVE else NO_ORDER

    # --- Resets from outside ---

    def page_reporting_free_area_release(self, zone: Zone, order: int, migratetype: int) -> None:
        """Bring one boundary back to its list head. Without effect below the order or unless ACTIVE.

        Compaction calls this after it has moved entries of a list about (v12 3/6, mm/compaction.c).
        """
        if order >= zone.reported_boundary_order:
            self._boundary[self._reporting_index(order, migratetype)] = LIST_HEADS[migratetype][order]

    def page_reporting_reset(self, zone: Zone) -> None:
        """Clear ACTIVE: the next fill resets all boundaries. Without effect unless ACTIVE."""
        if zone.reporting_state is ACTIVE:
            self._move(zone, ZoneEvent.RESET)

    def _reporting_index(self, order: int, migratetype: int) -> int:
        # get_reporting_index
        return (order - self.order) * MIGRATE_TYPES + migratetype

    # --- The walk ---

    def _begin(self, zone: Zone) -> None:
        for order in range(self.order, MAX_ORDER + 1):
            for migratetype in range(MIGRATE_TYPES):
                self._boundary[self._reporting_index(order, migratetype)] = LIST_HEADS[migratetype][order]
        zone.reported_boundary = self._boundary
        zone.reported_index = self._index

    def _fill_list(self, zone: Zone, order: int, migratetype: int, scatterlist: Scatterlist) -> None:
        while not scatterlist.full and (pfn := self._get_unreported_page(zone, order, migratetype)) >= 0:
            scatterlist.add(pfn, order)

    def _get_unreported_page(self, zone: Zone, order: int, migratetype: int) -> int:
        # get_unreported_page: walk from the boundary toward the head, over reported entries, to the first that is not,
        # and isolate it. -1 at the head of the list, or when the watermark forbids.
        index = self._reporting_index(order, migratetype)
        head = LIST_HEADS[migratetype][order]
        toward_head = zone.free_list.prev
        mem_map = self.allocator.mem_map
        boundary = self._boundary[index]
        entry = toward_head[boundary]
        walked = 0
        while entry != head and mem_map[entry] & REPORTED:
            self._index[entry >> self.order] = index
            boundary = entry
            entry = toward_head[entry]
            walked += 1
        self._boundary[index] = boundary
        self.statistics.entries_walked += walked
        if entry == head:
            return -1
        self.statistics.entries_walked += 1
        return entry if self._isolate(zone, entry, order) else -1

    # --- Checks ---

    def validate(self) -> None:
        """Raise CorruptionError as ZoneReporter does, or when an entry from a boundary to the tail is not reported."""
        super().validate()
        for zone in self.allocator.zones:
            if zone.reporting_state is ACTIVE:
                for order in range(self.order, MAX_ORDER + 1):
                    for migratetype in range(MIGRATE_TYPES):
                        self._validate_list(zone, order, migratetype)

    def _validate_list(self, zone: Zone, order: int, migratetype: int) -> None:
        index = self._reporting_index(order, migratetype)
        head = LIST_HEADS[migratetype][order]
        entry = self._boundary[index]
        if entry != head and entry not in zone.free_list.entries(order, migratetype):
            raise CorruptionError(f"the boundary of order {order} type {migratetype} is pfn {entry}, not on that list")
        while entry != head:
            if not page_reported(self.allocator.mem_map, entry):
                raise CorruptionError(f"pfn {entry} of order {order} is below the boundary, but not reported")
            if self._index[entry >> self.order] != index:
                raise CorruptionError(f"pfn {entry} of order {order} is below the boundary, but was not walked over")
            entry = zone.free_list.next[entry]
