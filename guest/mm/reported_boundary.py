"""The reported boundary: patches 3/6 and 4/6 of "mm / virtio: Provide support for unused page reporting", v12, 2019.

Must not know what the device does with a report. ``page_alloc`` carries the three rules that concern every free and
allocation (where a tail insertion goes, what happens when a reported block leaves a list, whom to notify).

Theory. Reported blocks gather at the tail of their list. For each list from the reporting order up, a *boundary* points
at the uppermost entry of the run of reported blocks at the tail that the scanner has walked over; at first it is the
list head itself. The scanner goes from the boundary toward the head and never looks below it again. To keep it so, tail
insertions go just above the boundary, and the boundary moves one entry toward the tail when its block leaves. It moves
up only when the scanner walks over reported entries. So while a zone is ACTIVE, everything from the boundary to the
tail is reported; also after a reset, which brings it back to the list head: there it has nothing below.

A zone's life cycle (``TRANSITIONS``; v12 has two zone bits, but ACTIVE implies REQUESTED, so they are one state):

    IDLE        nobody waits. A free that brings an order to ``nr_free >= reported + high_water_mark`` requests it.
    REQUESTED   the zone is counted in ``_refcnt`` and will be processed; the first such zone schedules the work.
                Frees are ignored. Boundaries are not valid.
    ACTIVE      the worker has begun to fill for it. Boundaries are valid, frees are still ignored. A fill that finds
                the end of all lists cancels to IDLE before its last report goes out, so that a free during that report
                can request again. The coarse reset falls back to REQUESTED; the next fill resets all boundaries.

One array of boundaries serves all zones, because the worker stays with a zone until that zone is idle, so no two zones
are ACTIVE at once.

Where this departs from v12, and why: a report can fail (there it cannot, and a failed one marked its blocks); failure
cancels the zone in work and reschedules those still requested, so no request is lost and nothing retries at full speed.
Unregistering clears all states (there they stay). The count of reported blocks is a fixed array in the zone.
"""

from collections.abc import Generator
from enum import Enum, auto
from typing import ClassVar, Final

from guest.mm.errors import CorruptionError
from guest.mm.free_list import LIST_HEADS
from guest.mm.mmzone import MAX_ORDER, MIGRATE_TYPES, NO_ORDER, PAGEBLOCK_ORDER, MigrateType, ReportingState, Zone
from guest.mm.page_alloc import PageAllocator
from guest.mm.page_flags import REPORTED, page_reported
from guest.mm.page_reporting import PageReporter, Report, Scatterlist
from protocol.errors import UsageError

DELAY: Final = 0.1
"""HZ/10: at most ten runs a second."""
CAPACITY: Final = 16
"""VIRTIO_BALLOON_VRING_HINTS_MAX, the most that v12's balloon driver puts into one report."""
HIGH_WATER_MARK: Final = 32
"""PAGE_REPORTING_HWM, in blocks of the order in question."""


class ZoneEvent(Enum):
    """What moves a zone's state."""

    REQUEST = auto()
    FILL = auto()
    RESET = auto()
    CANCEL = auto()


_IDLE, _REQUESTED, _ACTIVE = ReportingState.IDLE, ReportingState.REQUESTED, ReportingState.ACTIVE

TRANSITIONS: Final = {
    (_IDLE, ZoneEvent.REQUEST): _REQUESTED,
    (_REQUESTED, ZoneEvent.FILL): _ACTIVE,
    (_ACTIVE, ZoneEvent.FILL): _ACTIVE,
    (_ACTIVE, ZoneEvent.RESET): _REQUESTED,
    (_ACTIVE, ZoneEvent.CANCEL): _IDLE,
    (_REQUESTED, ZoneEvent.CANCEL): _IDLE,
}
"""What is not here must not happen."""


class ReportedBoundary(PageReporter):
    """Reports from the boundary toward the head, highest order first, at full speed once started.

    Up to ``high_water_mark - 1`` blocks of each order and zone can stay unreported for good: nothing asks for them.

    Args:
        high_water_mark: unreported blocks of one order that make a free request the zone.

    Raises:
        UsageError: a value that cannot be; also a capacity above the high-water mark (-EINVAL in v12).
    """

    name: ClassVar[str] = "boundary"

    def __init__(
        self,
        allocator: PageAllocator,
        *,
        order: int = PAGEBLOCK_ORDER,
        delay: float = DELAY,
        capacity: int | None = None,
        high_water_mark: int = HIGH_WATER_MARK,
    ) -> None:
        if high_water_mark < 1:
            raise UsageError(f"high-water mark {high_water_mark} is not at least 1")
        super().__init__(
            allocator,
            order=order,
            delay=delay,
            capacity=min(CAPACITY, high_water_mark) if capacity is None else capacity,
        )
        if self.own_capacity > high_water_mark:
            raise UsageError(f"reporting capacity {capacity} is above the high-water mark of {high_water_mark}")
        self.high_water_mark = high_water_mark
        self._refcnt = 0  # zones with a request outstanding
        self._boundary = [0] * ((MAX_ORDER + 1 - order) * MIGRATE_TYPES)
        self._index = bytearray(len(allocator.mem_map) >> order)

    # --- Requests ---

    def _notify_free(self, zone: Zone, order: int) -> None:
        # page_reporting_notify_free: the tests in v12's order, the order itself having been checked by the caller.
        if zone.reporting_state is _IDLE and zone.nr_free[order] >= zone.reported_pages[order] + self.high_water_mark:
            self._request(zone)

    def _request(self, zone: Zone) -> None:
        # __page_reporting_request: only the first zone schedules; the worker then finds the others.
        self._move(zone, ZoneEvent.REQUEST)
        self._refcnt += 1
        if self._refcnt == 1:
            self._schedule()

    def _request_all(self) -> None:
        for zone in self.allocator.zones:
            self._request(zone)

    def _cancel(self, zone: Zone) -> None:
        self._move(zone, ZoneEvent.CANCEL)
        self._refcnt -= 1

    def _cancel_all(self) -> None:
        for zone in self.allocator.zones:
            if zone.reporting_state is not _IDLE:
                self._cancel(zone)

    def _move(self, zone: Zone, event: ZoneEvent) -> None:
        # Boundaries are valid exactly while the zone is ACTIVE: page_alloc goes by reported_boundary_order.
        zone.reporting_state = TRANSITIONS[zone.reporting_state, event]
        zone.reported_boundary_order = self.order if zone.reporting_state is _ACTIVE else NO_ORDER

    # --- Resets from outside ---

    def page_reporting_free_area_release(self, zone: Zone, order: int, migratetype: int) -> None:
        """Bring one boundary back to its list head. Without effect below the order or unless ACTIVE.

        Compaction calls this after it has moved entries of a list about (v12 3/6, mm/compaction.c).
        """
        if order >= zone.reported_boundary_order:
            self._boundary[self._reporting_index(order, migratetype)] = LIST_HEADS[migratetype][order]

    def page_reporting_reset(self, zone: Zone) -> None:
        """Clear ACTIVE: the next fill resets all boundaries. Without effect unless ACTIVE."""
        if zone.reporting_state is _ACTIVE:
            self._move(zone, ZoneEvent.RESET)

    def _reporting_index(self, order: int, migratetype: int) -> int:
        # get_reporting_index
        return (order - self.order) * MIGRATE_TYPES + migratetype

    # --- The worker ---

    def _process(self) -> Generator[Report, bool, None]:
        # page_reporting_process: round robin over the zones for as long as any is requested. There is no limit; closing
        # the generator is the way to stop it.
        in_work: Zone | None = None
        finished = False
        try:
            while self._refcnt:
                for in_work in self.allocator.zones:
                    if in_work.reporting_state is not _IDLE and not (yield from self._cycle(in_work)):
                        return
            finished = True
        finally:
            if not finished and in_work is not None:
                self._abandon(in_work)

    def _abandon(self, in_work: Zone) -> None:
        # A report failed, or the worker was closed. The zone in work waits for its next free; the others for the delay.
        if in_work.reporting_state is _ACTIVE:
            self._cancel(in_work)
        if self._refcnt:
            self._schedule()

    def _cycle(self, zone: Zone) -> Generator[Report, bool, bool]:
        # page_reporting_cycle: fill, report, drain, until the zone is idle. False when a report failed.
        scatterlist = Scatterlist(self.capacity, from_end=False)
        while zone.reporting_state is not _IDLE:
            self._fill(zone, scatterlist)
            if not len(scatterlist):
                break
            if not (yield from self._deliver(zone, scatterlist)):
                return False
        return True

    def _fill(self, zone: Zone, scatterlist: Scatterlist) -> None:
        # page_reporting_fill: from the top order and the highest type down, always from the start. Everything seen and
        # room left: the zone is done, although what was collected has still to be reported.
        if zone.reporting_state is not _ACTIVE:
            self._reset_boundaries(zone)
        self._move(zone, ZoneEvent.FILL)
        for order in range(MAX_ORDER, self.order - 1, -1):
            for migratetype in range(MigrateType.ISOLATE - 1, -1, -1):
                while not scatterlist.full and (pfn := self._get_unreported_page(zone, order, migratetype)) >= 0:
                    scatterlist.add(pfn, order)
                if scatterlist.full:
                    return
        self._cancel(zone)

    def _reset_boundaries(self, zone: Zone) -> None:
        for order in range(self.order, MAX_ORDER + 1):
            for migratetype in range(MIGRATE_TYPES):
                self._boundary[self._reporting_index(order, migratetype)] = LIST_HEADS[migratetype][order]
        zone.reported_boundary = self._boundary
        zone.reported_index = self._index

    def _get_unreported_page(self, zone: Zone, order: int, migratetype: int) -> int:
        # get_unreported_page: walk from the boundary toward the head, over reported entries, to the first that is not,
        # and isolate it. -1 when there is none, or the watermark forbids.
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
        return entry if self.allocator.isolate_free_page(zone, entry, order) else -1

    # --- Checks ---

    def validate(self) -> None:
        """Raise CorruptionError unless the counts of zones agree and all is reported from each boundary to the tail."""
        zones = self.allocator.zones
        outstanding = sum(zone.reporting_state is not _IDLE for zone in zones)
        if outstanding != self._refcnt:
            raise CorruptionError(f"{outstanding} zones are requested, the worker knows of {self._refcnt}")
        active = [zone for zone in zones if zone.reporting_state is _ACTIVE]
        if len(active) > 1:
            raise CorruptionError(f"the boundaries are those of one zone, but {active} are active")
        for zone in active:
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
