"""Driving a reporter by hand: what the tests of this folder share."""

from collections.abc import Callable

from guest.mm.page_alloc import PageAllocator
from guest.mm.page_flags import page_reported
from guest.mm.reporting.page_reporting import PageReporter, Report


def do_nothing() -> None:
    """An ``on_request`` for tests that look at ``due`` instead."""


def acknowledge(report: Report) -> bool:
    """A device to which nothing happens."""
    return True


def due(reporter: PageReporter) -> float | None:
    """Return ``reporter.due``: a call, so that a type checker does not take its value for lasting."""
    return reporter.due


def run_pass(
    reporter: PageReporter, device: Callable[[Report], bool] = acknowledge, *, now: float | None = None
) -> list[Report]:
    """Run the worker once, at ``now`` or when it is due, and return its reports."""
    if now is None:
        assert reporter.due is not None, "no work is scheduled"
        now = reporter.due
    worker = reporter.process(now)
    reports: list[Report] = []
    report = next(worker, None)
    while report is not None:
        reports.append(report)
        try:
            report = worker.send(device(report))
        except StopIteration:
            break
    return reports


def entries(allocator: PageAllocator, order: int, migratetype: int = 1) -> list[int]:
    """Return one free list of the first zone, from head to tail; MOVABLE by default."""
    return list(allocator.zones[0].free_list.entries(order, migratetype))


def reported(allocator: PageAllocator) -> set[int]:
    """Return the first pages of all blocks marked reported, by looking at every page."""
    return {pfn for pfn in range(allocator.start_pfn, allocator.end_pfn) if page_reported(allocator.mem_map, pfn)}


def blocks(report: Report) -> list[int]:
    """Return the first pages of the blocks of a report, in its order."""
    return [pfn for pfn, _ in report.blocks]
