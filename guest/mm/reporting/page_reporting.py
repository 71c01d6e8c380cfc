"""Free page reporting: what all reporters share (Linux mm/page_reporting.c and .h; v12 4/6).

Time is an argument, ``now`` in seconds.

The path of one block: a free ends in ``_notify_free`` -> the reporter schedules its work (``due``, ``on_request``) ->
the owner of the reporter runs ``process`` -> the reporter isolates blocks into a scatterlist -> the generator yields
them as a ``Report``; here the kernel drops the zone lock, so anything may be allocated and freed meanwhile -> the
answer is sent back -> drain: every block returns to the tail of a list, and is marked reported if the device
acknowledged the report and the block did not merge.

::

    reporter = make_reporter("boundary", allocator)
    reporter.register(device_capacity=32, now=0.0, on_request=arm_timer)
    ...                                       # at reporter.due
    worker = reporter.process(now)
    report = next(worker, None)
    while report is not None:
        try:
            report = worker.send(device_discards(report.blocks))
        except StopIteration:
            break

Time. A free has no argument for the time, but a request made from inside a free needs it. The reporter calls the
``clock`` given to ``register``; without one it uses its attribute ``now``, which ``register`` and ``process`` set and
which a simulation sets as its time advances. Either is read once per request.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from dataclasses import dataclass
from inspect import GEN_SUSPENDED, getgeneratorstate
from typing import ClassVar

from guest.mm.mmzone import Pfn, Zone
from guest.mm.page_alloc import PageAllocator
from guest.mm.page_flags import BUDDY, REPORTED
from guest.mm.pageblock import MAX_ORDER, NO_ORDER, NR_PAGE_ORDERS
from guest.mm.reporting.cause import Cause
from protocol.errors import UsageError

Block = tuple[Pfn, int]
"""First page frame and order."""


@dataclass(frozen=True, slots=True)
class Report:
    """One call to the device: isolated blocks as (pfn, order), in the order of the scatterlist."""

    blocks: tuple[Block, ...]

    @property
    def pages(self) -> int:
        """The number of 4 KiB pages in it."""
        return sum(1 << order for _, order in self.blocks)


@dataclass(slots=True)
class ReportingStatistics:
    """Totals of a reporter since it was made. A report counts once it is answered."""

    reports: int = 0
    """Reports that the device acknowledged."""
    failed_reports: int = 0
    """Reports that failed or were abandoned; their blocks are not counted below."""
    blocks: int = 0
    """Blocks in acknowledged reports."""
    pages: int = 0
    """4 KiB pages in acknowledged reports."""
    merged_blocks: int = 0
    """Blocks in acknowledged reports that merged on their return: the larger block is still to be reported."""
    entries_walked: int = 0
    """List entries that the reporter looked at: the cost of finding blocks."""
    passes: int = 0
    """Runs of the worker."""


class Scatterlist:
    """The blocks of one report, at most ``capacity``.

    With ``from_end`` it is filled from the last slot down, as in merged Linux: a list that is partly full is a run at
    the end, and a report names the block isolated last first.
    """

    __slots__ = ("_blocks", "_capacity", "_from_end")

    def __init__(self, capacity: int, *, from_end: bool) -> None:
        self._capacity = capacity
        self._from_end = from_end
        self._blocks: list[Block] = []

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def full(self) -> bool:
        """Whether every slot is used."""
        return len(self._blocks) >= self._capacity

    def add(self, pfn: int, order: int) -> None:
        """Fill the next slot.

        Raises:
            IndexError: it is full.
        """
        if self.full:
            raise IndexError(f"scatterlist of {self._capacity} entries is full")
        self._blocks.append((Pfn(pfn), order))

    def take(self) -> tuple[Block, ...]:
        """Return the blocks from the first used slot to the last, and empty the list."""
        blocks = self._blocks[::-1] if self._from_end else self._blocks
        self._blocks = []
        return tuple(blocks)


def mark_page_reported(allocator: PageAllocator, zone: Zone, pfn: int, order: int) -> None:
    """Mark a free block as one that the host was told about (v13 3/6, ``mark_page_reported``).

    Its boundary index is 0 until the scanner walks past it (``page->index = 0``).
    """
    allocator.mem_map[pfn] = BUDDY | REPORTED | order
    zone.reported_pages[order] += 1
    if order >= zone.reported_boundary_order:
        zone.reported_index[pfn >> zone.reported_boundary_order] = 0


class PageReporter(ABC):
    """A reporter for all zones of one allocator: scheduling, reports and drain. Subclasses add the walk and the pacing.

    Args:
        order: blocks of at least this order are reported; None is the order of a pageblock.
        delay: seconds between a request and the work.
        capacity: blocks in one report, unless the device takes fewer.

    Raises:
        UsageError: an invalid value.
    """

    name: ClassVar[str]

    def __init__(self, allocator: PageAllocator, *, order: int | None, delay: float, capacity: int) -> None:
        if order is None:
            order = allocator.pageblock_order
        if not 0 <= order <= MAX_ORDER:
            raise UsageError(f"reporting order {order} is not within 0 and {MAX_ORDER}")
        if not 0 <= delay < float("inf"):
            raise UsageError(f"reporting delay {delay} is not a number of seconds")
        if capacity < 1:
            raise UsageError(f"reporting capacity {capacity} is not at least 1")
        self.allocator = allocator
        self.order = order
        self.delay = delay
        self.own_capacity = capacity
        self.capacity = capacity
        """Blocks in one report: the smaller of the reporter's own and the device's, once registered."""
        self.statistics = ReportingStatistics()
        self.due: float | None = None
        """Absolute time in seconds at which the delayed work is to run; None while none is scheduled."""
        self.now = 0.0
        """The time of a request in seconds, used when ``register`` was given no clock."""
        self._clock: Callable[[], float] | None = None
        self._on_request: Callable[[], None] = _ignore
        self._worker: Generator[Report, bool, None] | None = None
        self.in_flight: tuple[Block, ...] = ()
        """The isolated blocks: those of the report that waits for the device's answer."""
        self._zone_in_flight: Zone | None = None
        self._short: set[int] = set()  # zones, by index, of which a watermark has kept the last walk from a block
        self._failed: set[int] = set()  # zones whose last pass ended with a report that failed

    # --- Life ---

    @property
    def registered(self) -> bool:
        """Whether this reporter is the allocator's."""
        return self.allocator.reporter is self

    def register(
        self,
        device_capacity: int,
        now: float,
        on_request: Callable[[], None],
        *,
        clock: Callable[[], float] | None = None,
        device_order: int | None = None,
    ) -> None:
        """Start: request all zones, then listen to frees (``page_reporting_register``).

        Args:
            device_capacity: entries that the device takes in one report.
            now: the current time, in seconds.
            on_request: called each time work has been scheduled, also from inside a free and from in here. ``due`` is
                set then. It must not allocate or free.
            clock: returns the current time; None means the attribute ``now``.
            device_order: the least order that the device asks for, None without a preference. Only ``Rotation`` heeds
                it: the designs of 2019 have no such parameter.

        Raises:
            UsageError: ``device_capacity`` is below 1 (-EINVAL), or a reporter is already registered (-EBUSY).
        """
        if device_capacity < 1:
            raise UsageError(f"a device that takes {device_capacity} ranges cannot be reported to")
        if self.allocator.reporter is not None:
            raise UsageError("a page reporter is already registered with this memory")
        self.capacity = min(device_capacity, self.own_capacity)
        self.now = now
        self._clock = clock
        self._on_request = on_request
        self.allocator.reporter = self
        self._short.clear()
        self._failed.clear()
        self._choose_order(device_order)
        self._request_all()
        for zone in self.allocator.zones:
            zone.notify = self._notify_free
            zone.notify_order = self.order

    def unregister(self) -> None:
        """Stop: a running pass is closed, its blocks go back unflagged. Flags of earlier reports stay.

        A later reporter resumes where this one stopped, as in the kernel (Documentation/mm/free_page_reporting.rst).
        Unlike in v12, all other state is cleared. Without effect when not registered.
        """
        if not self.registered:
            return
        for zone in self.allocator.zones:
            zone.notify_order = NO_ORDER
        self._on_request = _ignore
        if self._worker is not None:
            self._worker.close()
        self._cancel_all()
        self.due = None
        self.allocator.reporter = None

    # --- Work ---

    def process(self, now: float) -> Generator[Report, bool, None]:
        """Run the worker once. Yields one report at a time; send True when the device has acknowledged it, else False.

        Until the answer is sent, the blocks of the report belong to the device. Anything may be allocated and freed
        meanwhile; ``clock`` or ``now`` has to follow the time that passes. After False the run ends. Closing the
        generator, or an exception thrown into it, puts the blocks back unflagged, as a failure does.

        Raises:
            UsageError: an earlier run is still waiting for an answer.
        """
        if self._worker is not None:
            if getgeneratorstate(self._worker) == GEN_SUSPENDED:
                raise UsageError("the page reporting worker is still running")
            self._worker.close()  # a run that was created and not started must not start beside the new one
        self.now = now
        self._worker = self._work()
        return self._worker

    def _work(self) -> Generator[Report, bool, None]:
        if not self.registered:
            return
        self.due = None
        self.statistics.passes += 1
        yield from self._process()

    def reported_pages(self) -> int:
        """Return the number of 4 KiB pages in free blocks that are marked reported."""
        zones = self.allocator.zones
        return sum(zone.reported_pages[order] << order for zone in zones for order in range(NR_PAGE_ORDERS))

    @abstractmethod
    def waiting(self, zone: Zone, order: int, migratetype: int) -> Cause:
        """Return why the unreported blocks of one list, of at least ``self.order``, are not reported now.

        Only while registered. All that depends on the device's answers, beyond their failure, is the caller's to know.
        """

    def page_reporting_free_area_release(self, zone: Zone, order: int, migratetype: int) -> None:  # noqa: B027
        """Forget the place reached in one list, whose order has changed (v12 3/6). The base class keeps no place."""

    def page_reporting_reset(self, zone: Zone) -> None:  # noqa: B027
        """Forget the places reached in all lists of a zone. The base class keeps no place."""

    def validate(self) -> None:  # noqa: B027
        """Raise CorruptionError when the reporter's state contradicts the lists. The base class has no such state."""

    def _choose_order(self, device_order: int | None) -> None:  # noqa: B027
        # Settle `order` before the first request. In the base class the constructor has settled it.
        pass

    @abstractmethod
    def _notify_free(self, zone: Zone, order: int) -> None:
        # A free has ended in a block of `order`, which is at least self.order. Must be cheap.
        ...

    @abstractmethod
    def _request_all(self) -> None:
        # Ask for every populated zone to be processed.
        ...

    @abstractmethod
    def _cancel_all(self) -> None:
        # Bring every state back to idle; no pass is running.
        ...

    @abstractmethod
    def _process(self) -> Generator[Report, bool, None]:
        # One run of the worker.
        ...

    # --- What subclasses build on ---

    def _schedule(self) -> None:
        # schedule_delayed_work: without effect while work is pending.
        if self.due is None:
            self.due = (self.now if self._clock is None else self._clock()) + self.delay
            self._on_request()

    def _deliver(self, zone: Zone, scatterlist: Scatterlist) -> Generator[Report, bool, bool]:
        # Hand the scatterlist to the device, wait, drain. Every block goes back to a list, also after an exception.
        report = Report(scatterlist.take())
        self.in_flight, self._zone_in_flight = report.blocks, zone
        acknowledged = False
        try:
            acknowledged = bool((yield report))
            if not acknowledged:
                self._failed.add(zone.index)
        finally:
            self.in_flight, self._zone_in_flight = (), None
            self._drain(zone, report, acknowledged)
        return acknowledged

    def _begin_walk(self, zone: Zone) -> None:
        # The zone is walked anew: what kept earlier walks from its blocks does not count any more.
        self._short.discard(zone.index)
        self._failed.discard(zone.index)

    def _isolate(self, zone: Zone, pfn: int, order: int) -> bool:
        # isolate_free_page; notes a refusal.
        isolated = self.allocator.isolate_free_page(zone, pfn, order)
        if not isolated:
            self._short.add(zone.index)
        return isolated

    def _unreserved_pages(self, zone: Zone) -> int:
        # What the watermarks are compared with, once the report in flight is back.
        in_flight = sum(1 << order for _, order in self.in_flight) if zone is self._zone_in_flight else 0
        return zone.free_pages + in_flight - zone.unusable_highatomic

    def _is_isolation_refused(self, zone: Zone, order: int) -> bool:
        # Whether isolate_free_page would refuse a block of `order` now.
        return self._unreserved_pages(zone) <= zone.watermark_min + (1 << order)

    def _drain(self, zone: Zone, report: Report, acknowledged: bool) -> None:
        # page_reporting_drain. A block that merged is not marked: the larger one has to be reported itself.
        allocator = self.allocator
        statistics = self.statistics
        for pfn, order in report.blocks:
            alone = allocator.putback_isolated_page(zone, pfn, order)
            if acknowledged and alone:
                mark_page_reported(allocator, zone, pfn, order)
            elif acknowledged:
                statistics.merged_blocks += 1
        if acknowledged:
            statistics.reports += 1
            statistics.blocks += len(report.blocks)
            statistics.pages += report.pages
        else:
            statistics.failed_reports += 1


def _ignore() -> None:
    # on_request of a reporter that was never registered.
    pass
