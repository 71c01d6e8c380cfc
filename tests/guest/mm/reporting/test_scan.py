"""``scan``: what the walk costs without a boundary. All else is held by the tests of every reporter."""

from guest.mm.mmzone import Zone
from guest.mm.page_alloc import PageAllocator
from guest.mm.pageblock import MigrateType
from guest.mm.reporting.page_reporting import Report
from guest.mm.reporting.reported_boundary import ReportedBoundary
from guest.mm.reporting.scan import Scan
from guest.mm.reporting.zone_reporting import ZoneReporter
from tests.guest.mm.reporting.reporting import blocks, do_nothing, due, entries, reported, run_pass

WHOLE = 1024


def started(kind: type[ZoneReporter], count: int) -> ZoneReporter:
    reporter = kind(PageAllocator(count * WHOLE, min_free_kbytes=0))
    reporter.register(32, 0.0, do_nothing)
    return reporter


def entries_per_block(kind: type[ZoneReporter], count: int) -> float:
    reporter = started(kind, count)
    run_pass(reporter)
    assert reporter.statistics.blocks == count
    return reporter.statistics.entries_walked / count


def test_scan_reports_from_the_tail_and_starts_there_again_for_every_batch() -> None:
    reporter = started(Scan, 40)
    walked: list[int] = []

    def look(_report: Report) -> bool:
        walked.append(reporter.statistics.entries_walked)
        return True

    reports = run_pass(reporter, look)
    numbers = [[pfn // WHOLE for pfn in blocks(report)] for report in reports]
    assert numbers == [list(range(39, 23, -1)), list(range(23, 7, -1)), list(range(7, -1, -1))]
    # Each walk passes what was reported before it: 16, 16 + 16, 32 + 8.
    assert walked == [16, 48, 88]
    assert due(reporter) is None
    assert len(reported(reporter.allocator)) == 40


def test_cost_of_a_block_grows_with_the_list_but_not_with_a_boundary() -> None:
    gibibytes = (1, 4, 16)
    scan = [entries_per_block(Scan, gib * 256) for gib in gibibytes]
    boundary = [entries_per_block(ReportedBoundary, gib * 256) for gib in (*gibibytes, 64)]
    # Batch k passes 16 * k entries, and the last walk, which finds nothing, all of them.
    assert scan == [gib * 256 / 32 + 1.5 for gib in gibibytes]
    assert max(boundary) <= 1.1 * min(boundary)


def test_walk_ends_at_the_watermark() -> None:
    reporter = started(Scan, 40)
    zone: Zone = reporter.allocator.zones[0]
    zone.watermark_min = 37 * WHOLE
    (report,) = run_pass(reporter)
    assert blocks(report) == [39 * WHOLE, 38 * WHOLE]
    assert entries(reporter.allocator, 10)[-2:] == [39 * WHOLE, 38 * WHOLE]


def test_reported_blocks_in_the_midst_of_a_list_are_passed_over() -> None:
    reporter = started(Scan, 40)
    allocator = reporter.allocator
    run_pass(reporter)
    allocator.move_to_free_list(allocator.zones[0], 0, 10, MigrateType.MOVABLE)
    held = [allocator.alloc_pages(10) for _ in range(33)]
    for pfn in held:
        assert pfn is not None
        allocator.free_pages(pfn, 10)
    assert sum(len(report.blocks) for report in run_pass(reporter)) == 33
    assert reporter.statistics.merged_blocks == 0
    allocator.validate()
