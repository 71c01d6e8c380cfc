"""The pacing of 2019, shared by ``boundary`` and ``scan``: which zone is processed when (patch 4/6 of "mm / virtio:
Provide support for unused page reporting", v12).

A zone's life cycle (``TRANSITIONS``; v12 has two zone bits, but ACTIVE implies REQUESTED, so they are one state):

    IDLE        no request. A free that brings an order to ``nr_free >= reported + high_water_mark`` requests the zone.
    REQUESTED   the zone is counted in ``_refcnt`` and will be processed; the first such zone schedules the work.
                Frees are ignored.
    ACTIVE      the worker has begun to fill for it. Frees are still ignored. A fill that finds the end of all lists
                cancels to IDLE before its last report goes out, so that a free during that report can request again.
                A reset falls back to REQUESTED; the next fill begins afresh.

The worker goes round the zones for as long as any is requested, and stays with a zone until that is idle, so at most
one zone is ACTIVE. A run is unbounded; closing the generator stops it.

Where this departs from v12, and why: a report can fail (v12 ignores the failure and marks the blocks); it cancels the
zone in work and reschedules those still requested, so requests are kept and a retry waits for the delay. Unregistering
clears all states (in v12 they stay). The count of reported blocks is a fixed array in the zone.
"""

from abc import abstractmethod
from collections.abc import Generator
from enum import Enum, auto
from typing import Final

from guest.mm.errors import CorruptionError
from guest.mm.mmzone import ReportingState, Zone
from guest.mm.page_alloc import PageAllocator
from guest.mm.pageblock import MAX_ORDER, MigrateType
from guest.mm.reporting.cause import Cause
from guest.mm.reporting.page_reporting import PageReporter, Report, Scatterlist
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


IDLE, REQUESTED, ACTIVE = ReportingState.IDLE, ReportingState.REQUESTED, ReportingState.ACTIVE

TRANSITIONS: Final = {
    (IDLE, ZoneEvent.REQUEST): REQUESTED,
    (REQUESTED, ZoneEvent.FILL): ACTIVE,
    (ACTIVE, ZoneEvent.FILL): ACTIVE,
    (ACTIVE, ZoneEvent.RESET): REQUESTED,
    (ACTIVE, ZoneEvent.CANCEL): IDLE,
    (REQUESTED, ZoneEvent.CANCEL): IDLE,
}
"""A missing key is a forbidden transition."""


class ZoneReporter(PageReporter):
    """Processes the zones that asked for it, highest order first, at full speed once started.

    Up to ``high_water_mark - 1`` blocks of each order and zone can stay unreported: too few to request the zone.

    Args:
        order: least order that is reported; None is the order of a pageblock.
        delay: seconds from the first request to the work.
        capacity: blocks in one report.
        high_water_mark: unreported blocks of one order that make a free request the zone.

    Raises:
        UsageError: an invalid value; also a capacity above the high-water mark (-EINVAL in v12).
    """

    def __init__(
        self,
        allocator: PageAllocator,
        *,
        order: int | None = None,
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

    # --- What a subclass adds ---

    @abstractmethod
    def _begin(self, zone: Zone) -> None:
        # The zone is about to become ACTIVE.
        ...

    @abstractmethod
    def _fill_list(self, zone: Zone, order: int, migratetype: int, scatterlist: Scatterlist) -> None:
        # Isolate unreported blocks of one list until it has no more, or the scatterlist no room.
        ...

    # --- Requests ---

    def _notify_free(self, zone: Zone, order: int) -> None:
        # page_reporting_notify_free: the tests in v12's order, the order itself having been checked by the caller.
        if zone.reporting_state is IDLE and zone.nr_free[order] >= zone.reported_pages[order] + self.high_water_mark:
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
            if zone.reporting_state is not IDLE:
                self._cancel(zone)

    def _move(self, zone: Zone, event: ZoneEvent) -> None:
        zone.reporting_state = TRANSITIONS[zone.reporting_state, event]

    # --- The worker ---

    def _process(self) -> Generator[Report, bool, None]:
        # page_reporting_process: round robin over the zones for as long as any is requested.
        in_work: Zone | None = None
        finished = False
        try:
            while self._refcnt:
                for in_work in self.allocator.zones:
                    if in_work.reporting_state is not IDLE and not (yield from self._cycle(in_work)):
                        return
            finished = True
        finally:
            if not finished and in_work is not None:
                self._abandon(in_work)

    def _abandon(self, in_work: Zone) -> None:
        # A report failed, or the worker was closed. The zone in work waits for its next free; the others for the delay.
        if in_work.reporting_state is ACTIVE:
            self._cancel(in_work)
        if self._refcnt:
            self._schedule()

    def _cycle(self, zone: Zone) -> Generator[Report, bool, bool]:
        # page_reporting_cycle: fill, report, drain, until the zone is idle. False when a report failed.
        scatterlist = Scatterlist(self.capacity, from_end=False)
        while zone.reporting_state is not IDLE:
            self._fill(zone, scatterlist)
            if not len(scatterlist):
                break
            if not (yield from self._deliver(zone, scatterlist)):
                return False
        return True

    def _fill(self, zone: Zone, scatterlist: Scatterlist) -> None:
        # page_reporting_fill: always from the top order and the highest type down. When all lists are walked and slots
        # are left, the zone is done, although the collected blocks have still to be reported.
        if zone.reporting_state is not ACTIVE:
            self._begin(zone)
        self._begin_walk(zone)
        self._move(zone, ZoneEvent.FILL)
        for order in range(MAX_ORDER, self.order - 1, -1):
            for migratetype in range(MigrateType.ISOLATE - 1, -1, -1):
                self._fill_list(zone, order, migratetype, scatterlist)
                if scatterlist.full:
                    return
        self._cancel(zone)

    # --- What holds a block ---

    def waiting(self, zone: Zone, order: int, migratetype: int) -> Cause:
        """Return why the unreported blocks of one list are not reported now; see PageReporter.

        A zone that is not IDLE is processed without a further delay once a pass has begun. In an IDLE zone a free that
        finds fewer than ``high_water_mark`` unreported blocks of its order does not request it.
        """
        if migratetype == MigrateType.ISOLATE:
            return Cause.INHIBITED
        if self._is_isolation_refused(zone, order):
            return Cause.WATERMARK
        if zone.reporting_state is not IDLE:
            return Cause.UNACKNOWLEDGED if self.in_flight else Cause.DELAY
        if zone.index in self._failed:
            return Cause.REFUSED
        enough = zone.nr_free[order] >= zone.reported_pages[order] + self.high_water_mark
        return Cause.WATERMARK if enough and zone.index in self._short else Cause.HIGH_RESIDUE

    # --- Checks ---

    def validate(self) -> None:
        """Raise CorruptionError unless the requested zones are those counted and at most one of them is active."""
        zones = self.allocator.zones
        outstanding = sum(zone.reporting_state is not IDLE for zone in zones)
        if outstanding != self._refcnt:
            raise CorruptionError(f"{outstanding} zones are requested, the worker knows of {self._refcnt}")
        active = [zone for zone in zones if zone.reporting_state is ACTIVE]
        if len(active) > 1:
            raise CorruptionError(f"the worker stays with one zone until it is idle, but {active} are active")
