"""guest/mm/reporting/page_reporting.py: what all reporters share."""

from collections.abc import Iterator

import pytest

from guest.mm.page_alloc import PageAllocator
from guest.mm.pageblock import NO_ORDER
from guest.mm.reporting.page_reporting import PageReporter, Report, ReportingStatistics, Scatterlist
from guest.mm.reporting.reporters import REPORTERS, make_reporter
from protocol.errors import UsageError
from tests.guest.mm.reporting.reporting import do_nothing, due, entries, reported, run_pass

WHOLE = 1024


@pytest.fixture(params=list(REPORTERS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def allocator() -> PageAllocator:
    return PageAllocator(40 * WHOLE, min_free_kbytes=0)


@pytest.fixture
def reporter(name: str, allocator: PageAllocator) -> Iterator[PageReporter]:
    reporter = make_reporter(name, allocator)
    reporter.register(32, 0.0, do_nothing)
    yield reporter
    allocator.validate()


def run_until_idle(reporter: PageReporter) -> list[Report]:
    reports: list[Report] = []
    while due(reporter) is not None:
        reporter.now = reporter.due or 0.0
        reports += run_pass(reporter)
    return reports


# --- The scatterlist ---


@pytest.mark.parametrize(("from_end", "expected"), [(False, ((1, 9), (5, 10))), (True, ((5, 10), (1, 9)))])
def test_scatterlist_is_filled_from_the_front_or_from_the_end(
    from_end: bool, expected: tuple[tuple[int, int], ...]
) -> None:
    scatterlist = Scatterlist(2, from_end=from_end)
    scatterlist.add(1, 9)
    assert (len(scatterlist), scatterlist.full) == (1, False)
    scatterlist.add(5, 10)
    assert (len(scatterlist), scatterlist.full) == (2, True)
    with pytest.raises(IndexError, match="scatterlist of 2 entries is full"):
        scatterlist.add(6, 9)
    assert scatterlist.take() == expected
    assert len(scatterlist) == 0


def test_report_knows_its_pages() -> None:
    scatterlist = Scatterlist(4, from_end=False)
    scatterlist.add(0, 0)
    scatterlist.add(1024, 10)
    assert Report(scatterlist.take()).pages == 1025


# --- Registration ---


def test_registering_requests_all_memory_after_the_delay(name: str, allocator: PageAllocator) -> None:
    reporter = make_reporter(name, allocator)
    requests: list[float | None] = []
    reporter.register(64, 100.0, lambda: requests.append(reporter.due))
    assert due(reporter) == 100.0 + reporter.delay
    assert requests == [due(reporter)]
    assert sum(report.pages for report in run_until_idle(reporter)) == 40 * WHOLE
    assert reporter.reported_pages() == 40 * WHOLE
    assert len(requests) == reporter.statistics.passes


def test_smaller_capacity_counts(name: str, allocator: PageAllocator) -> None:
    reporter = make_reporter(name, allocator)
    own = reporter.capacity
    reporter.register(own + 1, 0.0, do_nothing)
    assert reporter.capacity == own
    reporter.unregister()
    reporter.register(3, 0.0, do_nothing)
    assert reporter.capacity == 3
    assert {len(report.blocks) for report in run_pass(reporter)} <= {1, 3}


def test_device_without_capacity_is_refused(name: str, allocator: PageAllocator) -> None:
    with pytest.raises(UsageError, match="a device that takes 0 ranges cannot be reported to"):
        make_reporter(name, allocator).register(0, 0.0, do_nothing)
    assert allocator.reporter is None


def test_registered_reporter_excludes_another(reporter: PageReporter, allocator: PageAllocator) -> None:
    for second in (reporter, make_reporter("boundary", allocator)):
        with pytest.raises(UsageError, match="already registered"):
            second.register(32, 0.0, do_nothing)


def test_unregistering_leaves_flags_and_nothing_else(reporter: PageReporter, allocator: PageAllocator) -> None:
    run_until_idle(reporter)
    reporter.unregister()
    assert (due(reporter), allocator.reporter, allocator.zones[0].notify_order) == (None, None, NO_ORDER)
    assert len(reported(allocator)) == 40
    held = [allocator.alloc_pages(10) for _ in range(33)]
    for pfn in held:
        assert pfn is not None
        allocator.free_pages(pfn, 10)
    assert due(reporter) is None
    reporter.unregister()


@pytest.mark.parametrize("second_name", list(REPORTERS))
def test_later_reporter_resumes_where_the_first_stopped(
    reporter: PageReporter, allocator: PageAllocator, second_name: str
) -> None:
    run_until_idle(reporter)
    pfn = allocator.alloc_pages(10)
    assert pfn is not None
    reporter.unregister()
    allocator.free_pages(pfn, 10)
    second = make_reporter(second_name, allocator)
    second.register(32, 50.0, do_nothing)
    assert [report.blocks for report in run_until_idle(second)] == [((pfn, 10),)]


def test_unregistered_reporter_has_nothing_done(name: str, allocator: PageAllocator) -> None:
    reporter = make_reporter(name, allocator)
    assert list(reporter.process(0.0)) == []
    assert reporter.statistics.passes == 0


# --- Time ---


def free_many(allocator: PageAllocator) -> None:
    """A free of enough blocks that every reporter asks for work."""
    held = [allocator.alloc_pages(10) for _ in range(33)]
    for pfn in held:
        assert pfn is not None
        allocator.free_pages(pfn, 10)


def test_request_is_dated_by_the_attribute_now(reporter: PageReporter, allocator: PageAllocator) -> None:
    run_until_idle(reporter)
    reporter.now = 77.0
    free_many(allocator)
    assert due(reporter) == 77.0 + reporter.delay


def test_request_is_dated_by_the_clock_that_was_given(name: str, allocator: PageAllocator) -> None:
    reporter = make_reporter(name, allocator)
    reporter.register(32, 5.0, do_nothing, clock=lambda: 88.0)
    assert due(reporter) == 88.0 + reporter.delay
    reporter.due = None
    run_pass(reporter, now=5.0)
    free_many(allocator)
    assert due(reporter) == 88.0 + reporter.delay


def test_work_that_is_pending_is_not_put_off(reporter: PageReporter, allocator: PageAllocator) -> None:
    run_until_idle(reporter)
    reporter.now = 10.0
    free_many(allocator)
    reporter.now = 10.05
    free_many(allocator)
    assert due(reporter) == 10.0 + reporter.delay


# --- The worker ---


def test_run_excludes_a_second_run(reporter: PageReporter) -> None:
    never_started = reporter.process(1.0)
    worker = reporter.process(1.0)
    next(worker)
    with pytest.raises(UsageError, match="still running"):
        reporter.process(1.0)
    worker.close()
    never_started.close()
    run_pass(reporter, now=2.0)


@pytest.mark.parametrize("ending", ["fail", "close", "throw", "unregister"])
def test_run_that_ends_half_way_leaves_every_block_on_a_list_and_unflagged(
    reporter: PageReporter, allocator: PageAllocator, ending: str
) -> None:
    worker = reporter.process(1.0)
    report = next(worker)
    assert allocator.nr_free_pages() == 40 * WHOLE - report.pages
    if ending == "fail":
        with pytest.raises(StopIteration):
            worker.send(False)
    elif ending == "close":
        worker.close()
    elif ending == "throw":
        with pytest.raises(TimeoutError):
            worker.throw(TimeoutError())
    else:
        reporter.unregister()
    assert allocator.nr_free_pages() == 40 * WHOLE
    assert reported(allocator) == set()
    assert reporter.reported_pages() == 0
    assert reporter.statistics == ReportingStatistics(
        failed_reports=1, passes=1, entries_walked=reporter.statistics.entries_walked
    )
    assert due(reporter) is None


def test_failed_report_loses_nothing(reporter: PageReporter, allocator: PageAllocator) -> None:
    run_pass(reporter, lambda report: False)
    assert due(reporter) is None
    free_many(allocator)
    assert due(reporter) is not None
    run_until_idle(reporter)
    assert reporter.reported_pages() == 40 * WHOLE


def test_run_without_a_request_reports_nothing_twice(reporter: PageReporter) -> None:
    run_until_idle(reporter)
    assert run_pass(reporter, now=99.0) == []


# --- Drain ---


def test_block_that_merges_on_its_return_is_not_marked(name: str, allocator: PageAllocator) -> None:
    assert allocator.alloc_pages(9) == 0
    reporter = make_reporter(name, allocator)
    reporter.register(32, 0.0, do_nothing)

    def free_the_buddy(report: Report) -> bool:
        if (512, 9) in report.blocks:
            allocator.free_pages(0, 9)
        return True

    reports = run_pass(reporter, free_the_buddy)
    assert sum((512, 9) in report.blocks for report in reports) == 1
    assert reporter.statistics.merged_blocks == 1
    run_until_idle(reporter)
    # Rotation goes on to order 10 and reports the whole block; one block is not enough for the high-water mark.
    assert (0 in reported(allocator)) == (name == "rotation")
    assert 512 not in reported(allocator)
    allocator.validate()


def test_split_forgets_both_halves(reporter: PageReporter, allocator: PageAllocator) -> None:
    run_until_idle(reporter)
    first = entries(allocator, 10)[0]
    assert allocator.alloc_pages(9) == first
    assert reported(allocator).isdisjoint({first, first + 512})
    assert reporter.reported_pages() == 39 * WHOLE


def test_merge_forgets_both_buddies(name: str, allocator: PageAllocator) -> None:
    assert allocator.alloc_pages(9) == 0
    reporter = make_reporter(name, allocator)
    reporter.register(32, 0.0, do_nothing)
    run_until_idle(reporter)
    assert 512 in reported(allocator)
    allocator.free_pages(0, 9)
    assert reported(allocator).isdisjoint({0, 512})
    assert allocator.zones[0].reported_pages[9] == 0
    allocator.validate()


def test_returned_blocks_do_not_request_work(reporter: PageReporter) -> None:
    run_until_idle(reporter)
    assert due(reporter) is None


def test_statistics_count_what_was_acknowledged(reporter: PageReporter) -> None:
    reports = run_until_idle(reporter)
    statistics = reporter.statistics
    assert statistics.reports == len(reports)
    assert (statistics.blocks, statistics.pages) == (40, 40 * WHOLE)
    assert (statistics.failed_reports, statistics.merged_blocks) == (0, 0)
