"""A guest in virtual time: memory manager, reporter, workloads and a modelled device, without processes or memory.

An hour of a 64 GiB guest takes seconds, and the same seed gives the same run bit for bit.

Theory. There is one queue of events, ordered by time and, at equal times, by the order of insertion. The guest's own
work takes no virtual time: an allocation, a fault or a walk over a list costs 0 (walks are counted, see
``ReportingStatistics``); the CPU of a task decides only which per-CPU lists it uses. Time passes in delays that a
workload or a reporter asks for, and in the device: it works on one report at a time, for as long as
:class:`DeviceCost` says, and meanwhile the workloads go on. A report's pages leave the host when it is acknowledged, as
with the daemon.

::

    allocator = PageAllocator(64 << 18)
    reporter = make_reporter("rotation", allocator)
    simulation = Simulation(allocator, reporter, [parse_workload("churn:seconds=3600,lifetime=300,tick=1")])
    simulation.run(3600.0)
    print(simulation.footprint_gib_minutes, simulation.host.refaults, simulation.device_seconds)
"""

import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

from guest.ledger.ledger import Ledger, take_ledger
from guest.machine import Machine
from guest.mm.errors import CorruptionError
from guest.mm.page_alloc import PageAllocator
from guest.mm.reporting.page_reporting import PageReporter, Report
from guest.workloads.workload import OutOfMemoryError, Workload
from protocol.errors import UsageError
from protocol.memory import PAGE_SIZE
from protocol.units import GIB

DEVICE_CAPACITY: Final = 32
"""Ranges that the device takes in one report: the least ring that Linux accepts."""
SAMPLE_INTERVAL: Final = 60.0
"""Seconds between two samples."""

_UNTOUCHED, _PRESENT, _DISCARDED = 0, 1, 2
_ONE_PRESENT: Final = bytes([_PRESENT])
_ONE_DISCARDED: Final = bytes([_DISCARDED])


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCost:
    """What a report costs the device, in seconds.

    The defaults were measured with this project's daemon and guest memory in tmpfs: the way there and back, the call
    that discards a range, and each present page of 4 KiB that the host's kernel has to free. A range without a present
    page costs the call alone.
    """

    per_report: float = 150e-6
    per_range: float = 3e-6
    per_present_page: float = 0.7e-6

    def seconds(self, ranges: int, present_pages: int) -> float:
        """Return how long a report of so many ranges takes, in which so many pages are present."""
        return self.per_report + ranges * self.per_range + present_pages * self.per_present_page


class HostMemory:
    """The pages of the guest that the host holds memory for, one byte a page; their content is not modelled.

    It serves as the content of a :class:`Machine`: a write makes a page present, and a page in use that is not present
    has been lost.
    """

    def __init__(self, end_pfn: int) -> None:
        self._pages = bytearray(end_pfn)
        self.present_pages = 0
        self.peak_pages = 0
        """The most pages that were ever present at once."""
        self.faults = 0
        """Pages that the host had to provide."""
        self.refaults = 0
        """Pages among them that had been present before and were discarded."""

    @property
    def residency(self) -> bytearray:
        """One byte a page: 1 for one that is present, another even number for all others. Not to be written."""
        return self._pages

    def fill(self, pfn: int, pages: int, _stamp: int) -> None:
        """Touch ``pages`` pages from ``pfn``: those not present become so."""
        end = pfn + pages
        missing = pages - self._pages.count(_PRESENT, pfn, end)
        if missing:
            self.faults += missing
            self.refaults += self._pages.count(_DISCARDED, pfn, end)
            self._pages[pfn:end] = _ONE_PRESENT * pages
            self.present_pages += missing
            self.peak_pages = max(self.peak_pages, self.present_pages)

    def count_corrupted(self, pfn: int, pages: int, _stamp: int) -> int:
        """Return how many of these pages, all written before, are no longer present."""
        return pages - self._pages.count(_PRESENT, pfn, pfn + pages)

    def count_present(self, pfn: int, pages: int) -> int:
        """Return how many of these pages are present."""
        return self._pages.count(_PRESENT, pfn, pfn + pages)

    def discard(self, pfn: int, pages: int) -> None:
        """Take the memory of these pages away."""
        present = self.count_present(pfn, pages)
        if present == pages:
            self._pages[pfn : pfn + pages] = _ONE_DISCARDED * pages
        elif present:
            self._pages[pfn : pfn + pages] = self._pages[pfn : pfn + pages].replace(_ONE_PRESENT, _ONE_DISCARDED)
        self.present_pages -= present


class ReportRecord(NamedTuple):
    """One acknowledged report: when the device got it, in which pass of the reporter, and its content."""

    begin: float
    pass_number: int
    entries: int
    pages: int
    present_pages: int
    seconds: float


class Sample(NamedTuple):
    """The guest at one moment. Pages of 4 KiB; blocks that the device holds are neither free nor allocated."""

    time: float
    free_pages: int
    reported_pages: int
    allocated_pages: int
    present_pages: int


class Simulation:
    """One guest and its device from time 0 on. Workload number i gets the seed ``seed + i``, as in ``balloon-guest``.

    Args:
        allocator: the guest's memory, in any state.
        reporter: not registered yet; it is registered at time 0. None reports nothing.
        workloads: all begin at time 0.
        seed: of the first workload.
        cost: what reports cost the device.
        device_capacity: ranges that the device takes in one report.
        sample_interval: seconds between two entries of ``samples``, the first at time 0.
        host: what the host holds for the guest, all of ``allocator``; None for a host of its own.

    Raises:
        UsageError: a reporter of other memory, one that is already registered, or an invalid interval.
    """

    def __init__(
        self,
        allocator: PageAllocator,
        reporter: PageReporter | None,
        workloads: Sequence[Workload] = (),
        *,
        seed: int = 0,
        cost: DeviceCost = DeviceCost(),
        device_capacity: int = DEVICE_CAPACITY,
        sample_interval: float = SAMPLE_INTERVAL,
        host: HostMemory | None = None,
    ) -> None:
        if reporter is not None and reporter.allocator is not allocator:
            raise UsageError("the page reporter is that of other memory")
        if not 0 < sample_interval < float("inf"):
            raise UsageError(f"sample interval {sample_interval} is not a positive number of seconds")
        self.now = 0.0
        self.allocator = allocator
        self.reporter = reporter
        self.cost = cost
        self.host = HostMemory(allocator.end_pfn) if host is None else host
        self.machine = Machine(allocator, self.host, self._on_phase, self._on_corruption)
        self.reports: list[ReportRecord] = []
        self.samples: list[Sample] = []
        self.phases: list[tuple[float, str]] = []
        self.out_of_memory: list[tuple[float, str]] = []
        """Time and message of each workload that ran out of memory and ended."""
        self.running = len(workloads)
        """Workloads that have not ended."""
        self.events = 0
        """Events so far. Between two of them the guest does not change."""
        self._sample_interval = sample_interval
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count()
        self._end = 0.0
        self._worker: Iterator[Report] | None = None
        self._present_page_seconds = 0.0
        self._allocated_page_seconds = 0.0
        if reporter is not None:
            reporter.register(device_capacity, 0.0, self._on_request, clock=lambda: self.now)
        for number, workload in enumerate(workloads):
            self.at(0.0, partial(self._step, self.machine.scheduler.run(workload.run(self.machine, seed + number))))
        self.at(0.0, self._sample)

    # --- Results ---

    @property
    def footprint_gib_minutes(self) -> float:
        """Memory of the host that the guest kept, over time."""
        return self._present_page_seconds * PAGE_SIZE / GIB / 60

    @property
    def allocated_gib_minutes(self) -> float:
        """The same for memory that workloads held: the least footprint possible."""
        return self._allocated_page_seconds * PAGE_SIZE / GIB / 60

    @property
    def device_seconds(self) -> float:
        """CPU time of the device."""
        return sum(report.seconds for report in self.reports)

    def entries_by_pass(self) -> list[list[int]]:
        """Return the entries of each report, pass by pass; passes that reported nothing are left out."""
        passes = itertools.groupby(self.reports, key=lambda report: report.pass_number)
        return [[report.entries for report in reports] for _, reports in passes]

    def ledger(self, backed_free_pages: int | None = None) -> Ledger:
        """Return what holds each free page that the host still backs; how many these are may be known already."""
        return take_ledger(self.allocator, self.reporter, self.host.residency, backed_free_pages=backed_free_pages)

    # --- Time ---

    def run(self, seconds: float) -> None:
        """Let ``seconds`` of virtual time pass. Another call goes on from there.

        Raises:
            CorruptionError: a page in use lost its memory; this is a fault of the reporter.
            UsageError: not a number of seconds.
        """
        if not 0 <= seconds < float("inf"):
            raise UsageError(f"{seconds} is not a number of seconds")
        self._end = self.now + seconds
        queue = self._queue
        while queue and queue[0][0] <= self._end:
            when, _, action = heapq.heappop(queue)
            self._advance(when)
            self.events += 1
            action()
        self._advance(self._end)

    def stop(self) -> None:
        """Remove the device: the report in work goes back to the free lists, unreported; workloads may go on."""
        if self.reporter is not None:
            self.reporter.unregister()
            self._worker = None

    @property
    def next_event(self) -> float:
        """When something happens next, infinity for never."""
        return self._queue[0][0] if self._queue else float("inf")

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Have ``action`` called at the time ``when``, which is not before now."""
        heapq.heappush(self._queue, (when, next(self._serial), action))

    def _advance(self, when: float) -> None:
        passed = when - self.now
        if passed > 0:
            self._present_page_seconds += passed * self.host.present_pages
            self._allocated_page_seconds += passed * self.machine.allocated_pages
            self.now = when

    def _sample(self) -> None:
        machine, reporter = self.machine, self.reporter
        self.samples.append(
            Sample(
                self.now,
                self.allocator.nr_free_pages(),
                0 if reporter is None else reporter.reported_pages(),
                machine.allocated_pages,
                self.host.present_pages,
            )
        )
        # Computed from the count, so that rounding errors do not add up.
        self.at(len(self.samples) * self._sample_interval, self._sample)

    # --- Workloads ---

    def _step(self, steps: Iterator[float]) -> None:
        # Run a workload for as long as nothing else is due before or at the time of its next step.
        queue = self._queue
        try:
            for delay in steps:
                when = self.now + delay
                if when > self._end or (queue and queue[0][0] <= when):
                    self.at(when, partial(self._step, steps))
                    return
                self._advance(when)
        except OutOfMemoryError as error:
            self.out_of_memory.append((self.now, str(error)))
        self.running -= 1

    def _on_phase(self, name: str) -> None:
        self.phases.append((self.now, name))

    def _on_corruption(self, pfn: int, order: int, pages: int) -> None:
        raise CorruptionError(f"{pages} pages in use were discarded in the block of order {order} at pfn {pfn}")

    # --- The reporter and the device ---

    def _on_request(self) -> None:
        assert self.reporter is not None
        if self.reporter.due is not None:
            self.at(self.reporter.due, self._start_pass)

    def _start_pass(self) -> None:
        # While a pass is running, work that is due waits for its end, as a work item does.
        reporter = self.reporter
        assert reporter is not None
        if self._worker is None and reporter.due is not None and reporter.due <= self.now:
            worker = self._worker = reporter.process(self.now)
            self._deliver(next(worker, None), worker.send)

    def _deliver(self, report: Report | None, answer: Callable[[bool], Report]) -> None:
        assert self.reporter is not None
        if report is None:
            self._worker = None
            if self.reporter.due is not None:
                self.at(max(self.now, self.reporter.due), self._start_pass)
            return
        present = sum(self.host.count_present(pfn, 1 << order) for pfn, order in report.blocks)
        record = ReportRecord(
            self.now,
            self.reporter.statistics.passes,
            len(report.blocks),
            report.pages,
            present,
            self.cost.seconds(len(report.blocks), present),
        )
        self.at(self.now + record.seconds, partial(self._acknowledge, report, record, answer))

    def _acknowledge(self, report: Report, record: ReportRecord, answer: Callable[[bool], Report]) -> None:
        if self._worker is None:
            return  # stopped meanwhile
        for pfn, order in report.blocks:
            self.host.discard(pfn, 1 << order)
        self.reports.append(record)
        try:
            following: Report | None = answer(True)
        except StopIteration:
            following = None
        self._deliver(following, answer)
