"""Rotation, rule by rule as in Linux mm/page_reporting.c (5.7, and 6.1 for the putback to the tail)."""

from typing import Any

import pytest

from guest.mm.mmzone import ReportingState, ZoneSpan
from guest.mm.page_alloc import PageAllocator
from guest.mm.pageblock import MigrateType
from guest.mm.reporting.page_reporting import Report
from guest.mm.reporting.rotation import TRANSITIONS, DeviceEvent, Rotation
from tests.guest.mm.reporting.reporting import blocks, do_nothing, due, entries, reported, run_pass

WHOLE = 1024


def guest(count: int) -> PageAllocator:
    return PageAllocator(count * WHOLE, min_free_kbytes=0)


def started(allocator: PageAllocator, **values: Any) -> Rotation:
    reporter = Rotation(allocator, **values)
    reporter.register(32, 0.0, do_nothing)
    return reporter


def whole(*numbers: int) -> list[int]:
    return [number * WHOLE for number in numbers]


def up(first: int, last: int) -> list[int]:
    return whole(*range(first, last + 1))


def down(first: int, last: int) -> list[int]:
    return whole(*range(first, last - 1, -1))


def state(reporter: Rotation) -> ReportingState:
    return reporter.state


# --- Pace ---


@pytest.mark.parametrize(
    ("gib", "calls_per_pass", "passes"),
    [(1, 2, 4), (8, 5, 13), (32, 17, 16), (128, 65, 16)],
    ids=lambda value: str(value),
)
def test_idle_guest_is_reported_within_half_a_minute(gib: int, calls_per_pass: int, passes: int) -> None:
    allocator = PageAllocator(gib << 18)
    reporter = started(allocator)
    calls: list[tuple[float, int]] = []
    while due(reporter) is not None:
        calls.append((reporter.due or 0.0, len(run_pass(reporter))))
    assert [when for when, _ in calls] == [2.0 * number for number in range(1, passes + 1)]
    assert {count for _, count in calls[:-1]} == {calls_per_pass}
    assert calls[-1][1] <= calls_per_pass
    assert reporter.reported_pages() == gib << 18


def test_budget_and_watermark_follow_the_capacity() -> None:
    # ceil(40 / (16 * 2)) = 2, and one more call than that.
    reporter = started(guest(40), capacity=2)
    reports = []
    while due(reporter) is not None:
        reports.append([len(report.blocks) for report in run_pass(reporter)])
    assert reports == [[2, 2, 2]] * 6 + [[2, 2]]


# --- The walk ---


def test_scatterlist_is_filled_from_the_end_and_blocks_return_to_the_tail() -> None:
    allocator = guest(40)
    reports = run_pass(started(allocator))
    assert [blocks(report) for report in reports] == [down(31, 0), down(39, 32)]
    assert entries(allocator, 10) == down(31, 0) + down(39, 32)
    assert len(reported(allocator)) == 40


def test_orders_go_up_and_migratetypes_go_up_within_an_order() -> None:
    allocator = guest(40)
    assert allocator.alloc_pages(9) == 0
    for number, migratetype in (
        (1, MigrateType.CMA),
        (2, MigrateType.UNMOVABLE),
        (3, MigrateType.RECLAIMABLE),
        (4, MigrateType.ISOLATE),
    ):
        allocator.set_pageblock_migratetype(number * WHOLE, migratetype)
    for number in range(6, 40):
        assert allocator.alloc_pages(10) == (number - 1) * WHOLE
    (report,) = run_pass(started(allocator, order=9, capacity=8))
    assert report.blocks[::-1] == ((512, 9), (2048, 10), (39 * WHOLE, 10), (3072, 10), (1024, 10))
    assert 4 * WHOLE not in reported(allocator)


def test_partial_report_is_carried_over_to_the_next_list() -> None:
    allocator = guest(40)
    assert allocator.alloc_pages(9) == 0
    first, second = run_pass(started(allocator))
    assert first.blocks[-1] == (512, 9)
    assert blocks(first)[:-1] == down(31, 1)
    assert blocks(second) == down(39, 32)


def test_first_unreported_block_is_the_head_while_a_report_is_out() -> None:
    allocator = guest(40)
    reporter = started(allocator, capacity=4)
    seen: list[list[int]] = []

    def look(report: Report) -> bool:
        seen.append(entries(allocator, 10)[:2])
        return True

    run_pass(reporter, look)
    assert seen == [whole(4, 5), whole(8, 9)]
    # The budget of ceil(40 / 64) is spent: the next pass will begin at block 8.
    assert entries(allocator, 10) == up(8, 39) + down(3, 0) + down(7, 4)


def test_skipped_blocks_are_past_the_tail_before_the_report_goes_out() -> None:
    allocator = guest(40)
    reporter = started(allocator, capacity=4)
    run_pass(reporter)
    allocator.move_to_free_list(allocator.zones[0], 0, 10, MigrateType.MOVABLE)
    assert entries(allocator, 10)[:2] == whole(0, 8)
    worker = reporter.process(4.0)
    assert blocks(next(worker)) == down(11, 8)
    assert (entries(allocator, 10)[0], entries(allocator, 10)[-1]) == (12 * WHOLE, 0)
    worker.close()


def test_spent_budget_asks_for_another_pass() -> None:
    reporter = started(guest(40), capacity=4)
    run_pass(reporter)
    assert (state(reporter), due(reporter)) == (ReportingState.REQUESTED, 4.0)


def test_reported_blocks_at_the_head_are_skipped_and_rotated_away() -> None:
    allocator = guest(40)
    reporter = started(allocator)
    zone = allocator.zones[0]
    zone.watermark_min = 37 * WHOLE
    # Two blocks may be isolated before the minimum watermark refuses the third.
    assert [blocks(report) for report in run_pass(reporter)] == [whole(1, 0)]
    assert entries(allocator, 10) == up(2, 39) + whole(1, 0)
    allocator.move_to_free_list(zone, 0, 10, MigrateType.MOVABLE)
    assert entries(allocator, 10) == whole(0) + up(2, 39) + whole(1)
    zone.watermark_min = 40 * WHOLE
    assert run_pass(reporter, now=9.0) == []
    assert entries(allocator, 10) == up(2, 39) + whole(1, 0)
    assert due(reporter) is None


def test_frees_and_allocations_during_a_report_are_met_by_the_restart_at_the_head() -> None:
    allocator = guest(40)
    assert allocator.alloc_pages(10) == 0
    reporter = started(allocator, capacity=4)
    worker = reporter.process(2.0)
    assert blocks(next(worker)) == down(4, 1)
    assert allocator.alloc_pages(10) == 5 * WHOLE
    allocator.free_pages(0, 10)
    assert blocks(worker.send(True)) == whole(8, 7, 6, 0)
    worker.close()
    allocator.validate()


def test_blocks_of_other_types_become_movable_by_being_reported() -> None:
    allocator = guest(40)
    for pfn in (0, 512):
        allocator.set_pageblock_migratetype(pfn, MigrateType.UNMOVABLE)
    run_pass(started(allocator))
    assert entries(allocator, 10, MigrateType.UNMOVABLE) == []
    assert 0 in entries(allocator, 10)


# --- When a zone is left alone ---


def test_zone_must_have_more_free_than_low_and_32_blocks() -> None:
    allocator = PageAllocator(1 << 18)
    reporter = started(allocator)
    limit = 1286 + (32 << 9)
    held = []
    for order in (10, 0):
        while allocator.nr_free_pages() - (1 << order) >= limit:
            pfn = allocator.alloc_pages(order)
            assert pfn is not None
            held.append((pfn, order))
    assert allocator.nr_free_pages() == limit
    assert run_pass(reporter) == []
    assert due(reporter) is None
    allocator.free_pages(*held.pop())
    # 17 blocks are free, and isolating the last of them would leave less than the minimum.
    assert allocator.zones[0].nr_free[10] == 17
    assert [len(report.blocks) for report in run_pass(reporter, now=9.0)] == [16]


# --- States ---


def test_freed_block_arms_the_delay_and_the_next_does_not_put_it_off() -> None:
    allocator = guest(40)
    reporter = started(allocator)
    run_pass(reporter)
    held = [allocator.alloc_pages(9) for _ in range(4)]
    assert state(reporter) is ReportingState.IDLE
    for now, pfn in enumerate(held):
        assert pfn is not None
        reporter.now = 10.0 + now
        allocator.free_pages(pfn, 9)
        assert (state(reporter), due(reporter)) == (ReportingState.REQUESTED, 12.0)


def test_free_below_the_order_does_not_count() -> None:
    allocator = guest(40)
    reporter = started(allocator)
    run_pass(reporter)
    assert allocator.alloc_pages(0) is not None
    low = allocator.alloc_pages(3)
    assert low is not None
    allocator.free_pages(low, 3)
    assert (state(reporter), due(reporter)) == (ReportingState.IDLE, None)


def test_free_during_the_pass_is_seen_at_its_end() -> None:
    allocator = guest(40)
    assert allocator.alloc_pages(10) == 0
    reporter = started(allocator)
    worker = reporter.process(2.0)
    next(worker)
    assert state(reporter) is ReportingState.ACTIVE
    allocator.free_pages(0, 10)
    assert (state(reporter), due(reporter)) == (ReportingState.REQUESTED, None)
    reporter.now = 2.5
    worker.send(True)
    reporter.now = 3.0
    with pytest.raises(StopIteration):
        worker.send(True)
    assert (state(reporter), due(reporter)) == (ReportingState.REQUESTED, 5.0)


def test_error_ends_the_whole_pass() -> None:
    spans = [
        ZoneSpan(name="DMA32", start_pfn=0, end_pfn=40 * WHOLE),
        ZoneSpan(name="Normal", start_pfn=40 * WHOLE, end_pfn=80 * WHOLE),
    ]
    allocator = PageAllocator(80 * WHOLE, zones=spans, min_free_kbytes=0)
    reporter = started(allocator)
    reports = run_pass(reporter, lambda report: False)
    assert [blocks(report) for report in reports] == [down(31, 0)]
    assert (state(reporter), due(reporter), reporter.reported_pages()) == (ReportingState.IDLE, None, 0)
    assert entries(allocator, 10) == up(32, 39) + down(31, 0)
    allocator.validate()


def test_zones_each_get_their_turn_and_their_own_left_over() -> None:
    spans = [
        ZoneSpan(name="DMA32", start_pfn=0, end_pfn=40 * WHOLE),
        ZoneSpan(name="Normal", start_pfn=40 * WHOLE, end_pfn=80 * WHOLE),
    ]
    allocator = PageAllocator(80 * WHOLE, zones=spans, min_free_kbytes=0)
    reports = run_pass(started(allocator))
    assert [blocks(report) for report in reports] == [down(31, 0), down(39, 32), down(71, 40), down(79, 72)]


def test_order_zero_reports_single_pages() -> None:
    allocator = guest(2)
    for _ in range(512):
        allocator.alloc_pages(0)
    reporter = started(allocator, order=0, capacity=1)
    while due(reporter) is not None:
        run_pass(reporter)
    assert reporter.reported_pages() == 1536
    allocator.free_pages(5, 0)
    assert due(reporter) is not None
    assert [report.blocks for report in run_pass(reporter)] == [((5, 0),)]
    allocator.free_pages(4, 0)
    assert [report.blocks for report in run_pass(reporter)] == [((4, 1),)]
    allocator.validate()


@pytest.mark.parametrize(
    ("parameter", "device_order", "order"),
    [
        (None, None, 9),
        (None, 4, 4),
        (None, 10, 10),
        (None, 0, 0),
        (None, 11, 9),
        (None, -1, 9),
        (0, 4, 0),
        (7, None, 7),
    ],
)
def test_parameter_decides_the_order_else_the_device_else_the_pageblock(
    parameter: int | None, device_order: int | None, order: int
) -> None:
    allocator = guest(2)
    reporter = Rotation(allocator, order=parameter)
    reporter.register(32, 0.0, do_nothing, device_order=device_order)
    assert (reporter.order, allocator.zones[0].notify_order) == (order, order)


def test_order_that_the_first_device_settled_sticks() -> None:
    allocator = guest(2)
    reporter = Rotation(allocator)
    for device_order in (5, 3, None):
        reporter.register(32, 0.0, do_nothing, device_order=device_order)
        assert (reporter.page_reporting_order, reporter.order) == (5, 5)
        reporter.unregister()


def test_order_is_set_anew_by_each_registration_but_the_first_where_it_is_not_kept() -> None:
    reporter = Rotation(guest(2), order=7, keeps_order=False)
    for device_order, expected in ((5, 7), (3, 3), (0, 9), (None, 9)):
        reporter.register(32, 0.0, do_nothing, device_order=device_order)
        assert (reporter.page_reporting_order, reporter.order) == (expected, expected)
        reporter.unregister()


@pytest.mark.parametrize("event", list(DeviceEvent))
@pytest.mark.parametrize("before", list(ReportingState))
def test_states_have_these_transitions_and_no_others(before: ReportingState, event: DeviceEvent) -> None:
    idle, requested, active = ReportingState
    drawn = {
        DeviceEvent.REQUEST: {idle: requested, requested: requested, active: requested},
        DeviceEvent.START: {idle: active, requested: active},
        DeviceEvent.END: {active: idle, requested: requested},
    }
    assert TRANSITIONS.get((before, event)) is drawn[event].get(before)
