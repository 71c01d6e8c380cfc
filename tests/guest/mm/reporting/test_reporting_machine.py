"""Any sequence of allocations, frees, reports, failures, moves and resets, with every reporter.

A small guest with a low reporting order, so that blocks split, merge and run out all the time. After every step
``validate()`` compares lists, map, counters and boundaries; the machine keeps what only an observer can know: which
blocks the workload holds, which the device has, and which the host was told about.
"""

from collections.abc import Generator, Iterable
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from guest.mm.errors import BadPageError
from guest.mm.mmzone import ZoneSpan
from guest.mm.page_alloc import PageAllocator
from guest.mm.page_flags import page_reported
from guest.mm.pageblock import MigrateType
from guest.mm.reporting.page_reporting import PageReporter, Report
from guest.mm.reporting.reporters import REPORTERS, make_reporter
from tests.guest.mm.reporting.reporting import do_nothing

PAGES = 3072
ALLOCATABLE = st.sampled_from([MigrateType.UNMOVABLE, MigrateType.MOVABLE, MigrateType.RECLAIMABLE])
# Orders around the reporting order, and those of pageblocks.
ORDERS = st.sampled_from([0, 1, 3, 4, 5, 6, 8, 9, 10])
PFNS = st.integers(0, PAGES - 1)


class Reporting(RuleBasedStateMachine):
    """The machine; subclasses say which reporter."""

    reporter_name: ClassVar[str]

    allocator: PageAllocator
    reporter: PageReporter

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, int] = {}
        self.told: dict[int, int] = {}
        self.worker: Generator[Report, bool, None] | None = None
        self.report = Report(())

    @initialize(order=st.sampled_from([3, 5, 9]), capacity=st.integers(1, 3), tail=st.booleans(), two=st.booleans())
    def boot(self, order: int, capacity: int, tail: bool, two: bool) -> None:
        zones = [
            ZoneSpan(name="DMA32", start_pfn=0, end_pfn=1024),
            ZoneSpan(name="Normal", start_pfn=1024, end_pfn=PAGES),
        ]
        self.allocator = PageAllocator(PAGES, zones=zones if two else None, min_free_kbytes=40, move_to_tail=tail)
        self.reporter = make_reporter(
            self.reporter_name,
            self.allocator,
            order=order,
            capacity=capacity,
            high_water_mark=None if self.reporter_name == "rotation" else capacity,
        )
        self.reporter.register(32, 0.0, do_nothing)

    # --- The workload ---

    @rule(order=ORDERS, migratetype=ALLOCATABLE, count=st.sampled_from([1, 1, 2, 7, 200]))
    def allocate(self, order: int, migratetype: MigrateType, count: int) -> None:
        for _ in range(count):
            pfn = self.allocator.alloc_pages(order, migratetype)
            if pfn is None:
                break
            assert pfn % (1 << order) == 0
            assert not overlaps(pfn, order, self.held.items())
            assert not overlaps(pfn, order, self.report.blocks)
            self.held[pfn] = order

    @precondition(lambda self: self.held)
    @rule(choice=st.integers(0, 10**6), count=st.sampled_from([1, 1, 3, 64]), stride=st.integers(1, 3))
    def free(self, choice: int, count: int, stride: int) -> None:
        pfns = sorted(self.held)
        for pfn in pfns[choice % len(pfns) :: stride][:count]:
            self.allocator.free_pages(pfn, self.held.pop(pfn))

    @rule(pfn=PFNS, order=ORDERS)
    def free_wrongly(self, pfn: int, order: int) -> None:
        if self.held.get(pfn) != order:
            before = bytes(self.allocator.mem_map)
            with pytest.raises(BadPageError, match=f"pfn {pfn} order {order}"):
                self.allocator.free_pages(pfn, order)
            assert self.allocator.mem_map == before

    @rule(pfn=PFNS, migratetype=st.sampled_from(list(MigrateType)))
    def move_pageblock(self, pfn: int, migratetype: MigrateType) -> None:
        self.allocator.set_pageblock_migratetype(pfn, migratetype)

    # --- Compaction ---

    @rule(order=st.integers(0, 10), migratetype=st.sampled_from(list(MigrateType)), coarse=st.booleans())
    def compaction(self, order: int, migratetype: MigrateType, coarse: bool) -> None:
        for zone in self.allocator.zones:
            if coarse:
                self.reporter.page_reporting_reset(zone)
            else:
                self.reporter.page_reporting_free_area_release(zone, order, migratetype)

    # --- The device ---

    @precondition(lambda self: self.worker is None and self.reporter.due is not None)
    @rule()
    def start(self) -> None:
        flagged = self.flagged()
        self.worker = self.reporter.process(self.reporter.due or 0.0)
        self.take(next(self.worker, None), flagged)

    @precondition(lambda self: self.worker is not None)
    @rule(acknowledged=st.sampled_from([True, True, True, False]))
    def answer(self, acknowledged: bool) -> None:
        assert self.worker is not None
        flagged = self.flagged()
        if acknowledged:
            self.told |= self.report.blocks
            flagged |= dict(self.report.blocks)
        try:
            self.take(self.worker.send(acknowledged), flagged)
        except StopIteration:
            self.take(None, flagged)

    @precondition(lambda self: self.worker is not None)
    @rule(how=st.sampled_from(["close", "throw", "unregister"]))
    def break_off(self, how: str) -> None:
        assert self.worker is not None
        if how == "close":
            self.worker.close()
        elif how == "throw":
            with pytest.raises(ConnectionError):
                self.worker.throw(ConnectionError())
        else:
            self.reporter.unregister()
            self.reporter.register(2, self.reporter.now, do_nothing)
        self.take(None, {})

    def take(self, report: Report | None, flagged: dict[int, int]) -> None:
        # What the worker has just brought: nothing allocated, nothing that was reported and has not left its list.
        self.report = report or Report(())
        if report is None:
            self.worker = None
        else:
            assert 1 <= len(report.blocks) <= self.reporter.capacity
        for pfn, order in self.report.blocks:
            assert order >= self.reporter.order
            assert not overlaps(pfn, order, self.held.items())
            assert flagged.get(pfn) != order, "reported twice"

    # --- What always holds ---

    def flagged(self) -> dict[int, int]:
        mem_map = self.allocator.mem_map
        return {pfn: mem_map[pfn] & 0x0F for pfn in range(PAGES) if mem_map[pfn] and page_reported(mem_map, pfn)}

    @invariant()
    def lists_and_arrays_agree(self) -> None:
        if hasattr(self, "allocator"):
            self.allocator.validate()

    @invariant()
    def every_page_is_somewhere(self) -> None:
        if hasattr(self, "allocator"):
            held = sum(1 << order for order in self.held.values())
            assert held + self.report.pages + self.allocator.nr_free_pages() == PAGES

    @invariant()
    def the_flag_is_only_on_what_the_host_was_told(self) -> None:
        if hasattr(self, "allocator"):
            flagged = self.flagged()
            assert flagged.items() <= self.told.items()
            self.told = flagged
            assert self.reporter.reported_pages() == sum(1 << order for order in flagged.values())

    def teardown(self) -> None:
        if hasattr(self, "allocator"):
            self.reporter.unregister()
            self.allocator.validate()
            for pfn, order in self.held.items():
                self.allocator.free_pages(pfn, order)
            assert self.allocator.nr_free_pages() == PAGES


def overlaps(pfn: int, order: int, blocks: Iterable[tuple[int, int]]) -> bool:
    """Return whether a block shares a page with any of ``blocks``, an iterable of (pfn, order)."""
    end = pfn + (1 << order)
    return any(pfn < other + (1 << size) and other < end for other, size in blocks)


@pytest.mark.long
@pytest.mark.parametrize("name", list(REPORTERS))
def test_reporter_survives_any_sequence_of_events(name: str) -> None:
    machine = type(f"Reporting_{name}", (Reporting,), {"reporter_name": name})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=120, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
        ),
    )
