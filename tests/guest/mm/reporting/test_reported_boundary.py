"""The reported boundary, rule by rule as in v12 (kernel.org, 22 October 2019, patches 3/6 and 4/6)."""

from collections.abc import Generator

import pytest

from guest.mm.free_list import LIST_HEADS
from guest.mm.mmzone import ReportingState, ZoneSpan
from guest.mm.page_alloc import PageAllocator
from guest.mm.pageblock import MIGRATE_TYPES, MigrateType
from guest.mm.reporting.page_reporting import Report
from guest.mm.reporting.reported_boundary import ReportedBoundary
from guest.mm.reporting.zone_reporting import TRANSITIONS, ZoneEvent
from tests.guest.mm.reporting.reporting import blocks, do_nothing, due, entries, reported, run_pass

WHOLE = 1024
MOVABLE, RECLAIMABLE = MigrateType.MOVABLE, MigrateType.RECLAIMABLE


def guest(count: int) -> PageAllocator:
    return PageAllocator(count * WHOLE, min_free_kbytes=0)


def started(allocator: PageAllocator, **values: int) -> ReportedBoundary:
    reporter = ReportedBoundary(allocator, **values)
    reporter.register(32, 0.0, do_nothing)
    return reporter


def whole(*numbers: int) -> list[int]:
    return [number * WHOLE for number in numbers]


def down(first: int, last: int) -> list[int]:
    return whole(*range(first, last - 1, -1))


def boundary(allocator: PageAllocator, order: int = 10, migratetype: int = MOVABLE) -> int:
    zone = allocator.zones[0]
    return zone.reported_boundary[(order - zone.reported_boundary_order) * MIGRATE_TYPES + migratetype]


def state(allocator: PageAllocator) -> ReportingState:
    return allocator.zones[0].reporting_state


def free(allocator: PageAllocator, *numbers: int) -> None:
    for number in numbers:
        allocator.free_pages(number * WHOLE, 10)


def hold(allocator: PageAllocator, count: int) -> list[int]:
    held = [allocator.alloc_pages(10) for _ in range(count)]
    return [pfn // WHOLE for pfn in held if pfn is not None]


def in_second_report(
    allocator: PageAllocator, reporter: ReportedBoundary
) -> tuple[Generator[Report, bool, None], Report]:
    """Run the worker up to where its second report is with the device."""
    worker = reporter.process(0.1)
    next(worker)
    return worker, worker.send(True)


# --- The walk ---


def test_worker_goes_from_the_tail_to_the_head_in_batches_of_16() -> None:
    allocator = guest(40)
    reports = run_pass(started(allocator))
    assert [blocks(report) for report in reports] == [down(39, 24), down(23, 8), down(7, 0)]
    # The last batch returns after the zone was cancelled, so it goes to the real tail; the others above the boundary.
    assert entries(allocator, 10) == down(23, 8) + down(39, 24) + down(7, 0)
    assert len(reported(allocator)) == 40


def test_orders_go_down_and_migratetypes_go_down_within_an_order() -> None:
    allocator = guest(6)
    assert allocator.alloc_pages(9) == 0
    for number, migratetype in ((1, MigrateType.CMA), (2, MigrateType.UNMOVABLE), (3, RECLAIMABLE)):
        allocator.set_pageblock_migratetype(number * WHOLE, migratetype)
    allocator.set_pageblock_migratetype(4 * WHOLE, MigrateType.ISOLATE)
    (report,) = run_pass(started(allocator))
    assert report.blocks == ((1024, 10), (3072, 10), (5120, 10), (2048, 10), (512, 9))
    assert 4 * WHOLE not in reported(allocator)


def test_fill_starts_again_at_the_top_order() -> None:
    allocator = guest(4)
    allocator.zones[0].watermark_min = -1
    assert allocator.alloc_pages(9) == 0
    reporter = started(allocator, capacity=3, high_water_mark=3)
    (held,) = hold(allocator, 1)
    worker = reporter.process(0.1)
    report = next(worker)
    assert report.blocks == ((3072, 10), (2048, 10), (512, 9))
    free(allocator, held)
    assert worker.send(True).blocks == ((held * WHOLE, 10),)


def test_reported_blocks_are_visited_once_more_and_never_again() -> None:
    walked = {}
    for count in (64, 512, 4096):
        reporter = started(guest(count))
        run_pass(reporter)
        assert reporter.statistics.blocks == count
        walked[count] = reporter.statistics.entries_walked / count
    assert walked == {64: 2.0, 512: 2.0, 4096: 2.0}


def test_watermark_ends_the_walk() -> None:
    allocator = guest(8)
    allocator.zones[0].watermark_min = 5 * WHOLE
    reporter = started(allocator)
    assert [blocks(report) for report in run_pass(reporter)] == [down(7, 6)]
    assert state(allocator) is ReportingState.IDLE
    assert due(reporter) is None


def test_blocks_of_other_types_become_movable_by_being_reported() -> None:
    allocator = guest(2)
    for pfn in (0, 512):
        allocator.set_pageblock_migratetype(pfn, RECLAIMABLE)
    assert entries(allocator, 10, RECLAIMABLE) == [0]
    run_pass(started(allocator))
    assert entries(allocator, 10, RECLAIMABLE) == []
    assert set(entries(allocator, 10)) == {0, WHOLE}


# --- The boundary ---


def test_boundary_is_the_uppermost_walked_block() -> None:
    allocator = guest(6)
    reporter = started(allocator, capacity=2, high_water_mark=2)
    worker = reporter.process(0.1)
    assert blocks(next(worker)) == whole(5, 4)
    assert boundary(allocator) == LIST_HEADS[MOVABLE][10]
    assert blocks(worker.send(True)) == whole(3, 2)
    assert entries(allocator, 10) == whole(0, 1, 5, 4)
    assert boundary(allocator) == 5 * WHOLE
    assert blocks(worker.send(True)) == whole(1, 0)
    assert entries(allocator, 10) == whole(3, 2, 5, 4)
    assert boundary(allocator) == 3 * WHOLE
    allocator.validate()


def test_boundary_moves_toward_the_tail_when_its_block_is_allocated() -> None:
    allocator = guest(6)
    reporter = started(allocator, capacity=2, high_water_mark=2)
    worker, _ = in_second_report(allocator, reporter)
    expected = [5 * WHOLE, 5 * WHOLE, 4 * WHOLE, LIST_HEADS[MOVABLE][10]]
    for number, entry in zip((0, 1, 5, 4), expected, strict=True):
        assert hold(allocator, 1) == [number]
        assert boundary(allocator) == entry
        allocator.validate()
    assert allocator.zones[0].reported_pages[10] == 0
    with pytest.raises(StopIteration):
        worker.send(True)


def test_boundary_moves_when_its_block_changes_lists_and_the_block_stays_reported() -> None:
    allocator = guest(6)
    reporter = started(allocator, capacity=2, high_water_mark=2)
    worker, _ = in_second_report(allocator, reporter)
    allocator.set_pageblock_migratetype(5 * WHOLE, RECLAIMABLE)
    assert boundary(allocator) == 4 * WHOLE
    assert entries(allocator, 10, RECLAIMABLE) == [5 * WHOLE]
    assert allocator.zones[0].reported_pages[10] == 2
    allocator.validate()
    # The scanner meets it there, and takes it for that list's boundary. It is not reported again.
    assert blocks(worker.send(True)) == whole(1, 0)
    assert boundary(allocator, 10, RECLAIMABLE) == 5 * WHOLE
    allocator.validate()


def eighth(number: int) -> int:
    return number * 8


def of_order_three() -> tuple[PageAllocator, ReportedBoundary, Generator[Report, bool, None]]:
    """Free blocks of order 3, two of them reported, two with the device. Low orders can be freed to the tail."""
    allocator = guest(1)
    while allocator.alloc_pages(3) is not None:
        pass
    for number in (0, 8, 16, 24, 34, 35, 38, 39):
        allocator.free_pages(eighth(number), 3)
    reporter = started(allocator, order=3, capacity=3, high_water_mark=3)
    worker = reporter.process(0.1)
    assert next(worker).blocks == ((eighth(34), 4), (eighth(38), 4), (eighth(0), 3))
    assert worker.send(True).blocks == ((eighth(8), 3), (eighth(16), 3), (eighth(24), 3))
    assert entries(allocator, 3) == [eighth(0)]
    assert boundary(allocator, 3) == eighth(0)
    return allocator, reporter, worker


def test_tail_insertion_goes_above_the_boundary() -> None:
    allocator, _, worker = of_order_three()
    allocator.free_pages(eighth(32), 3)
    assert entries(allocator, 3) == [eighth(32), eighth(0)]
    # A head insertion is as always.
    allocator.free_pages(eighth(64), 3)
    assert entries(allocator, 3) == [eighth(64), eighth(32), eighth(0)]
    allocator.validate()
    # The returning blocks go above the boundary too, below what was freed to the tail before them.
    report = worker.send(True)
    assert blocks(report) == [eighth(32), eighth(64)]
    assert entries(allocator, 3) == [eighth(8), eighth(16), eighth(24), eighth(0)]


def test_block_moved_to_the_tail_goes_above_the_boundary() -> None:
    allocator, _, _ = of_order_three()
    for number in (64, 72):
        allocator.free_pages(eighth(number), 3)
    allocator.move_to_tail = True
    allocator.move_to_free_list(allocator.zones[0], eighth(72), 3, MOVABLE)
    assert entries(allocator, 3) == [eighth(64), eighth(72), eighth(0)]
    allocator.validate()


def test_fine_reset_brings_one_boundary_back_to_its_list_head() -> None:
    allocator, reporter, worker = of_order_three()
    zone = allocator.zones[0]
    upper = boundary(allocator, 4)
    reporter.page_reporting_free_area_release(zone, 2, MOVABLE)
    reporter.page_reporting_free_area_release(zone, 3, MOVABLE)
    assert boundary(allocator, 3) == LIST_HEADS[MOVABLE][3]
    assert boundary(allocator, 4) == upper
    allocator.free_pages(eighth(32), 3)
    assert entries(allocator, 3) == [eighth(0), eighth(32)]
    allocator.validate()
    # Nothing is reported twice for that.
    assert blocks(worker.send(True)) == [eighth(32)]
    allocator.validate()


def test_coarse_reset_makes_the_next_fill_begin_anew() -> None:
    allocator, reporter, worker = of_order_three()
    zone = allocator.zones[0]
    reporter.page_reporting_reset(zone)
    assert state(allocator) is ReportingState.REQUESTED
    allocator.free_pages(eighth(32), 3)
    assert entries(allocator, 3) == [eighth(0), eighth(32)]
    allocator.validate()
    assert blocks(worker.send(True)) == [eighth(32)]
    with pytest.raises(StopIteration):
        worker.send(True)
    allocator.validate()


def test_resets_do_nothing_while_the_zone_is_not_active() -> None:
    allocator = guest(4)
    reporter = started(allocator)
    zone = allocator.zones[0]
    for _ in range(2):
        before = state(allocator)
        reporter.page_reporting_free_area_release(zone, 10, MOVABLE)
        reporter.page_reporting_reset(zone)
        assert state(allocator) is before
        if due(reporter) is not None:
            run_pass(reporter)


def test_merge_with_a_reported_block_below_the_boundary_keeps_the_rest_in_place() -> None:
    allocator, _, _ = of_order_three()
    allocator.free_pages(eighth(1), 3)
    assert entries(allocator, 3) == []
    assert boundary(allocator, 3) == LIST_HEADS[MOVABLE][3]
    assert 0 in entries(allocator, 4)
    assert 0 not in reported(allocator)
    allocator.validate()


# --- Requests and the life cycle of a zone ---


def test_32nd_unreported_block_of_an_order_requests_the_zone() -> None:
    allocator = guest(64)
    reporter = started(allocator)
    run_pass(reporter)
    held = hold(allocator, 40)
    assert allocator.zones[0].reported_pages[10] == 24
    free(allocator, *held[:31])
    assert (due(reporter), state(allocator)) == (None, ReportingState.IDLE)
    reporter.now = 7.0
    free(allocator, held[31])
    assert (due(reporter), state(allocator)) == (7.1, ReportingState.REQUESTED)


def test_up_to_31_blocks_of_each_order_stay_unreported() -> None:
    allocator = guest(64)
    reporter = started(allocator)
    run_pass(reporter)
    held = hold(allocator, 31)
    halves = [allocator.alloc_pages(9) for _ in range(62)]
    free(allocator, *held)
    for half in halves[::2]:
        assert half is not None
        allocator.free_pages(half, 9)
    assert due(reporter) is None
    assert allocator.zones[0].nr_free[9] == 31
    unreported = allocator.nr_free_pages() - reporter.reported_pages()
    assert unreported * 4096 == (62 + 124) << 20


def test_frees_while_the_zone_is_requested_or_active_do_not_request_again() -> None:
    allocator = guest(8)
    reporter = ReportedBoundary(allocator, capacity=2, high_water_mark=2)
    requests: list[None] = []
    reporter.register(32, 0.0, lambda: requests.append(None))
    held = hold(allocator, 4)
    free(allocator, *held)
    worker = reporter.process(0.1)
    held = hold(allocator, 3)
    next(worker)
    free(allocator, *held)
    assert (state(allocator), due(reporter), len(requests)) == (ReportingState.ACTIVE, None, 1)
    worker.close()


def test_block_freed_during_the_last_report_is_requested_and_done_in_the_same_run() -> None:
    allocator = guest(5)
    reporter = started(allocator, capacity=2, high_water_mark=2)
    held = hold(allocator, 2)
    worker, last = in_second_report(allocator, reporter)
    assert len(last.blocks) == 1
    assert state(allocator) is ReportingState.IDLE
    reporter.now = 3.0
    free(allocator, held[0])
    assert due(reporter) is None
    free(allocator, held[1])
    assert (state(allocator), due(reporter)) == (ReportingState.REQUESTED, 3.1)
    assert sorted(blocks(worker.send(True))) == whole(*held)
    with pytest.raises(StopIteration):
        worker.send(True)
    # The delayed work is still scheduled, and finds nothing to do.
    assert due(reporter) == 3.1
    assert run_pass(reporter) == []
    assert due(reporter) is None


def test_failed_report_cancels_its_zone_and_reschedules_the_others() -> None:
    spans = [
        ZoneSpan(name="DMA32", start_pfn=0, end_pfn=4 * WHOLE),
        ZoneSpan(name="Normal", start_pfn=4 * WHOLE, end_pfn=8 * WHOLE),
    ]
    allocator = PageAllocator(8 * WHOLE, zones=spans, min_free_kbytes=0)
    reporter = started(allocator)
    reporter.now = 1.0
    assert len(run_pass(reporter, lambda report: False, now=1.0)) == 1
    # The failed report was the zone's last, so the zone was idle already. A zone never gives away its last block.
    assert [zone.reporting_state for zone in allocator.zones] == [ReportingState.IDLE, ReportingState.REQUESTED]
    assert due(reporter) == 1.1
    assert [blocks(report) for report in run_pass(reporter)] == [down(7, 5)]
    assert due(reporter) is None
    allocator.validate()


def test_zones_are_done_one_after_the_other() -> None:
    spans = [
        ZoneSpan(name="DMA32", start_pfn=0, end_pfn=20 * WHOLE),
        ZoneSpan(name="Normal", start_pfn=20 * WHOLE, end_pfn=40 * WHOLE),
    ]
    allocator = PageAllocator(40 * WHOLE, zones=spans, min_free_kbytes=0)
    reporter = started(allocator)
    worker = reporter.process(0.1)
    assert blocks(next(worker)) == down(19, 4)
    assert [zone.reporting_state for zone in allocator.zones] == [ReportingState.ACTIVE, ReportingState.REQUESTED]
    allocator.validate()
    assert blocks(worker.send(True)) == down(3, 0)
    assert blocks(worker.send(True)) == down(39, 24)
    assert [zone.reporting_state for zone in allocator.zones] == [ReportingState.IDLE, ReportingState.ACTIVE]
    allocator.validate()
    assert blocks(worker.send(True)) == down(23, 20)


@pytest.mark.parametrize("event", list(ZoneEvent))
@pytest.mark.parametrize("before", list(ReportingState))
def test_life_cycle_has_these_transitions_and_no_others(before: ReportingState, event: ZoneEvent) -> None:
    idle, requested, active = ReportingState
    drawn = {
        idle: {ZoneEvent.REQUEST: requested},
        requested: {ZoneEvent.FILL: active, ZoneEvent.CANCEL: idle},
        active: {ZoneEvent.FILL: active, ZoneEvent.RESET: requested, ZoneEvent.CANCEL: idle},
    }
    assert TRANSITIONS.get((before, event)) is drawn[before].get(event)
