"""One free block on its way: notify, boundary, report, acknowledge, drain, as printed by a tiny guest.

``free-block.md`` beside this file shows this output; a test keeps the two in step."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

from guest.mm.mmzone import Zone
from guest.mm.page_alloc import PageAllocator
from guest.mm.page_flags import page_reported
from guest.mm.pageblock import MAX_ORDER, NO_ORDER, MigrateType
from guest.mm.reporting.page_reporting import Report
from guest.mm.reporting.reported_boundary import ReportedBoundary
from guest.simulation import HostMemory
from protocol.memory import PAGE_SIZE
from protocol.units import MIB

_MEMORY: Final = 16 * MIB
_DEVICE_CAPACITY: Final = 32


class _Watched(ReportedBoundary):
    # Notes the return of each report: nothing else can be observed between it and the next walk.
    drained: Callable[[], None]

    def _drain(self, zone: Zone, report: Report, acknowledged: bool) -> None:
        super()._drain(zone, report, acknowledged)
        self.drained()


class TinyGuest:
    """16 MiB, the reporter of v12 with two blocks for a high-water mark and for a report, and the host's memory."""

    def __init__(self) -> None:
        self.allocator = PageAllocator(_MEMORY // PAGE_SIZE)
        self.reporter = _Watched(self.allocator, capacity=2, high_water_mark=2)
        self.reporter.drained = lambda: self.after_drain.append(self.show())
        self.after_drain: list[str] = []
        self.host = HostMemory(self.allocator.end_pfn)
        self.requests: list[float] = []
        self.now = 0.0
        self.reporter.register(_DEVICE_CAPACITY, 0.0, self._on_request, clock=lambda: self.now)

    @property
    def zone(self) -> Zone:
        """The only zone."""
        return self.allocator.zones[0]

    def _on_request(self) -> None:
        assert self.reporter.due is not None
        self.requests.append(self.reporter.due)

    def lists(self) -> str:
        """Return the free lists that are reported from, a line each: R is reported, | is the boundary."""
        lines = []
        for order in range(MAX_ORDER, self.reporter.order - 1, -1):
            entries = [
                f"{pfn}{'R' if page_reported(self.allocator.mem_map, pfn) else ''}" if pfn >= 0 else "|"
                for pfn in self._with_boundary(order)
            ]
            lines.append(f"order {order:>2}: head  {'  '.join(entries) or '-'}  tail")
        return "\n".join(lines)

    def _with_boundary(self, order: int) -> Iterator[int]:
        # The entries of the MOVABLE list, and -1 where the boundary is: everything after it is reported.
        zone = self.zone
        boundary = None
        if zone.reported_boundary_order != NO_ORDER:
            index = (order - zone.reported_boundary_order) * len(MigrateType) + MigrateType.MOVABLE
            boundary = zone.reported_boundary[index]
        for pfn in zone.free_list.entries(order, MigrateType.MOVABLE):
            if pfn == boundary:
                yield -1
            yield pfn
        if boundary is not None and boundary < 0:
            yield -1

    def state(self) -> str:
        """Return the state of the zone's reporting, and what the host keeps."""
        return (
            f"zone {self.zone.reporting_state.name}, {self.zone.reported_pages[MAX_ORDER]} blocks of order {MAX_ORDER}"
            f" reported, host keeps {self.host.present_pages} pages"
        )

    def show(self) -> str:
        """Return lists and state."""
        return f"{self.lists()}\n{self.state()}"


def _ranges(report: Report) -> str:
    return "\n".join(
        f"range: guest physical address {pfn * PAGE_SIZE:#09x}, {(PAGE_SIZE << order) // MIB} MiB"
        f" (pfn {pfn}, order {order})"
        for pfn, order in report.blocks
    )


def sections() -> Iterator[tuple[str, str]]:
    """Yield the name of each step and the state of the guest after it."""
    guest = TinyGuest()
    reporter, allocator = guest.reporter, guest.allocator
    yield "boot", f"{guest.show()}\nwork is due at {guest.requests[0]:.1f} s"

    held = [allocator.alloc_pages(MAX_ORDER) for _ in range(3)]
    for pfn in held:
        assert pfn is not None
        guest.host.fill(pfn, 1 << MAX_ORDER, 0)
    guest.now = 0.1
    for report in reporter.process(guest.now):
        raise AssertionError(f"{report} takes the last block, without which the zone would be below its watermark")
    yield "in use", f"allocated: {held}\n{guest.show()}"

    guest.now = 1.0
    lines = []
    for pfn in held:
        assert pfn is not None
        allocator.free_pages(pfn, MAX_ORDER)
        lines.append(f"free({pfn}): {guest.zone.nr_free[MAX_ORDER]} free, zone {guest.zone.reporting_state.name}")
    lines.append(f"work is due at {guest.requests[-1]:.1f} s")
    yield "notify", "\n".join([*lines, guest.show()])

    guest.now = 1.1
    worker = reporter.process(guest.now)
    report = next(worker)
    yield "report", f"{_ranges(report)}\n{guest.show()}"

    for pfn, order in report.blocks:
        guest.host.discard(pfn, 1 << order)
    yield "acknowledge", guest.show()
    second = worker.send(True)
    yield "drain", guest.after_drain[-1]
    yield "boundary", f"{_ranges(second)}\n{guest.show()}"

    for pfn, order in second.blocks:
        guest.host.discard(pfn, 1 << order)
    with suppress(StopIteration):
        worker.send(True)
    yield "end", f"{guest.show()}\nentries walked: {reporter.statistics.entries_walked}"


def text() -> str:
    """Return the whole walk as it is printed."""
    return "\n\n".join(f"--- {name}\n{output}" for name, output in sections())
