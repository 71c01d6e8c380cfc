"""Rotation: free page reporting as merged in Linux 5.7 (mm/page_reporting.c), with the later order parameter.

The allocator only notifies it of frees and keeps the reported flag.

Theory. The order of the list is the only record of progress. The walk starts at the head and skips reported blocks.
Before each report, during which the lists may change, the list is rotated so that the first unreported block becomes
its head: the next walk starts there, and the skipped blocks are at the tail. Blocks return to the tail. Each list has a
budget per pass, ``ceil(nr_free / (16 * capacity))`` reports and one more, so that an idle system is reported in about
half a minute of passes two seconds apart; a list whose budget is spent requests another pass.

States, one for the device (``TRANSITIONS``):

    IDLE        no request. The free of one large enough block requests, and schedules the work.
    REQUESTED   work is scheduled; frees are ignored.
    ACTIVE      the worker runs. A free, or a spent budget, makes it REQUESTED, and the worker sees that at its end and
                schedules the next pass. Otherwise it becomes IDLE.

A report that fails ends the whole pass, with all zones that would have followed. Its blocks wait for the next free.
"""

from collections.abc import Generator
from enum import Enum, auto
from typing import ClassVar, Final

from guest.mm.free_list import LIST_HEADS
from guest.mm.mmzone import ReportingState, Zone
from guest.mm.page_alloc import PageAllocator
from guest.mm.page_flags import REPORTED
from guest.mm.pageblock import MAX_ORDER, NO_ORDER, MigrateType
from guest.mm.reporting.cause import Cause
from guest.mm.reporting.page_reporting import PageReporter, Report, Scatterlist
from guest.mm.watermark import low_wmark_pages

DELAY: Final = 2.0
"""PAGE_REPORTING_DELAY, 2 * HZ."""
CAPACITY: Final = 32
"""PAGE_REPORTING_CAPACITY. The kernel wants a power of two; nothing here depends on it."""
BUDGET_SHARE: Final = 16
"""A pass over a list makes one report per this many capacities of free blocks, rounded up, and one more."""


class DeviceEvent(Enum):
    """What moves the device's state."""

    REQUEST = auto()
    START = auto()
    END = auto()


_IDLE, _REQUESTED, _ACTIVE = ReportingState.IDLE, ReportingState.REQUESTED, ReportingState.ACTIVE

TRANSITIONS: Final = {
    (_IDLE, DeviceEvent.REQUEST): _REQUESTED,
    (_REQUESTED, DeviceEvent.REQUEST): _REQUESTED,
    (_ACTIVE, DeviceEvent.REQUEST): _REQUESTED,
    (_IDLE, DeviceEvent.START): _ACTIVE,
    (_REQUESTED, DeviceEvent.START): _ACTIVE,
    (_ACTIVE, DeviceEvent.END): _IDLE,
    (_REQUESTED, DeviceEvent.END): _REQUESTED,
}
"""A missing key is a forbidden transition. A worker may start while IDLE, without a request: that is harmless."""


Place = tuple[int, int, int]
"""A list by the index of its zone, its order and its migratetype: a pass walks lists in ascending order."""


class Rotation(PageReporter):
    """Reports from the head of each list, lowest order first, a bounded part of it in each pass.

    Args:
        order: ``page_reporting_order``, from 0 up. None is the kernel's -1: the first device to register decides.
        delay: seconds from the first free to the pass, and from one pass to the next.
        capacity: blocks in a report; the budget and the watermark rule depend on it as well.
        keeps_order: whether an order that is set stays, as in Linux 7.2. In 6.1 every further registration sets it
            to the device's, or a pageblock's.
    """

    name: ClassVar[str] = "rotation"

    def __init__(
        self,
        allocator: PageAllocator,
        *,
        order: int | None = None,
        delay: float = DELAY,
        capacity: int = CAPACITY,
        keeps_order: bool = True,
    ) -> None:
        super().__init__(allocator, order=order, delay=delay, capacity=capacity)
        self.page_reporting_order = order
        """The module parameter: the order asked for, else the one that a registration settled."""
        self._keeps_order = keeps_order
        self._registrations = 0
        self.state = _IDLE
        self._place: Place | None = None  # the list that the running pass walks
        self._spent: set[Place] = set()  # lists whose last walk ended with the budget

    def _choose_order(self, device_order: int | None) -> None:
        # page_reporting_register. In 7.2 a device's order counts from 0 to MAX_ORDER, while the parameter is unset. In
        # 6.1 an order of 0 says nothing, and each registration sets the parameter; `order` stands for a write to it
        # after the first.
        written = self.page_reporting_order is not None and self._registrations == 0
        if self.page_reporting_order is None or not (self._keeps_order or written):
            least = 0 if self._keeps_order else 1
            usable = device_order is not None and least <= device_order <= MAX_ORDER
            self.page_reporting_order = device_order if usable else self.allocator.pageblock_order
        assert self.page_reporting_order is not None
        self.order = self.page_reporting_order
        self._registrations += 1

    # --- Requests ---

    def _notify_free(self, zone: Zone, order: int) -> None:
        # __page_reporting_notify: no threshold, one freed block is enough.
        if self.state is not _REQUESTED:
            self._request_all()

    def _request_all(self) -> None:
        previous = self.state
        self._move(DeviceEvent.REQUEST)
        if previous is _IDLE:
            self._schedule()

    def _cancel_all(self) -> None:
        # Registration begins with a new state (page_reporting_register).
        self.state = _IDLE
        self._spent.clear()

    def _move(self, event: DeviceEvent) -> None:
        self.state = TRANSITIONS[self.state, event]

    # --- The worker ---

    def _process(self) -> Generator[Report, bool, None]:
        # page_reporting_process
        self._move(DeviceEvent.START)
        try:
            for zone in self.allocator.zones:
                if not (yield from self._process_zone(zone)):
                    self._failed.update(zone.index for zone in self.allocator.zones)
                    break
        finally:
            self._place = None
            self._move(DeviceEvent.END)
            if self.state is _REQUESTED:
                self._schedule()

    def _process_zone(self, zone: Zone) -> Generator[Report, bool, bool]:
        # page_reporting_process_zone. False when a report failed. A zone that is short of memory is left alone: a
        # report takes up to a capacity of blocks away from it.
        self._begin_walk(zone)
        self._spent = {place for place in self._spent if place[0] != zone.index}
        if self._is_short(zone):
            self._short.add(zone.index)
            return True
        scatterlist = Scatterlist(self.capacity, from_end=True)
        for order in range(self.order, MAX_ORDER + 1):
            for migratetype in range(MigrateType.ISOLATE):
                if not (yield from self._cycle(zone, order, migratetype, scatterlist)):
                    return False
        self._place = (zone.index, NO_ORDER, 0)
        if len(scatterlist):
            return (yield from self._deliver(zone, scatterlist))
        return True

    def _is_short(self, zone: Zone) -> bool:
        return self._unreserved_pages(zone) <= low_wmark_pages(zone) + (self.capacity << self.order)

    def _cycle(
        self, zone: Zone, order: int, migratetype: int, scatterlist: Scatterlist
    ) -> Generator[Report, bool, bool]:
        # page_reporting_cycle: one list. The scatterlist comes with what earlier lists left in it, and is handed on the
        # same way. False when a report failed.
        mem_map = self.allocator.mem_map
        toward_tail = zone.free_list.next
        head = LIST_HEADS[migratetype][order]
        place = self._place = (zone.index, order, migratetype)
        budget = -(-zone.nr_free[order] // (self.capacity * BUDGET_SHARE))
        acknowledged = True
        entry = toward_tail[head]
        while entry != head and acknowledged:
            self.statistics.entries_walked += 1
            following = toward_tail[entry]
            if not mem_map[entry] & REPORTED:
                if budget < 0:
                    self._move(DeviceEvent.REQUEST)
                    break
                if scatterlist.full:
                    # The lists may change now. From here on the walk goes on at the head.
                    zone.free_list.rotate_to_front(entry, head)
                    if budget == 0:
                        self._spent.add(place)  # nothing more of this list in this pass
                    acknowledged = yield from self._deliver(zone, scatterlist)
                    budget -= 1
                    following = toward_tail[head]
                elif self._isolate(zone, entry, order):
                    scatterlist.add(entry, order)
                else:
                    break
            entry = following
        if entry == head or not acknowledged:
            self._spent.discard(place)
        if entry != head:
            zone.free_list.rotate_to_front(entry, head)
        return acknowledged

    # --- What holds a block ---

    def waiting(self, zone: Zone, order: int, migratetype: int) -> Cause:
        """Return why the unreported blocks of one list are not reported now; see PageReporter.

        A running pass still takes the list that it walks and those after it. Without a request the last pass has seen
        every block: what a watermark has not kept from it was in a report once, and a split took the mark away.
        """
        place = (zone.index, order, migratetype)
        if migratetype == MigrateType.ISOLATE:
            return Cause.INHIBITED
        begun = self._place is not None and self._place[0] == zone.index
        if self._is_isolation_refused(zone, order) or (not begun and self._is_short(zone)):
            return Cause.WATERMARK
        if place in self._spent and (self._place is None or place <= self._place):
            return Cause.BUDGET
        if self._place is not None and place >= self._place:
            return Cause.UNACKNOWLEDGED
        if self.state is _REQUESTED:
            return Cause.DELAY
        stopped_short = zone.index in self._short and zone.index not in self._failed
        return Cause.WATERMARK if stopped_short else Cause.REFUSED
