"""guest/mm/reporting/reporters.py: names and defaults."""

from typing import Any

import pytest

from guest.mm.page_alloc import PageAllocator
from guest.mm.reporting.reported_boundary import ReportedBoundary
from guest.mm.reporting.reporters import REPORTERS, make_reporter
from guest.mm.reporting.rotation import Rotation
from guest.mm.reporting.scan import Scan
from protocol.errors import UsageError


def test_defaults_are_those_of_each_design() -> None:
    allocator = PageAllocator(1024)
    boundary = make_reporter("boundary", allocator)
    assert isinstance(boundary, ReportedBoundary)
    assert (boundary.order, boundary.delay, boundary.capacity, boundary.high_water_mark) == (9, 0.1, 16, 32)
    rotation = make_reporter("rotation", allocator)
    assert isinstance(rotation, Rotation)
    assert (rotation.order, rotation.delay, rotation.capacity) == (9, 2.0, 32)
    scan = make_reporter("scan", allocator)
    assert isinstance(scan, Scan)
    assert (scan.order, scan.delay, scan.capacity, scan.high_water_mark) == (9, 0.1, 16, 32)
    assert list(REPORTERS) == ["boundary", "rotation", "scan"]


def test_constants_can_all_be_given() -> None:
    reporter = make_reporter("boundary", PageAllocator(1024), order=0, delay=1, capacity=4, high_water_mark=5)
    assert isinstance(reporter, ReportedBoundary)
    assert (reporter.order, reporter.delay, reporter.capacity, reporter.high_water_mark) == (0, 1, 4, 5)


def test_low_mark_takes_the_default_capacity_with_it() -> None:
    assert make_reporter("boundary", PageAllocator(1024), high_water_mark=8).capacity == 8


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("v12", {}, r"no page reporter is called 'v12' \(there are boundary, rotation, scan\)"),
        ("rotation", {"high_water_mark": 32}, "the rotation reporter has no high-water mark"),
        ("boundary", {"high_water_mark": 0}, "high-water mark 0 is not at least 1"),
        ("scan", {"capacity": 33}, "reporting capacity 33 is above the high-water mark of 32"),
        ("boundary", {"capacity": 33}, "reporting capacity 33 is above the high-water mark of 32"),
        ("boundary", {"capacity": 0}, "reporting capacity 0 is not at least 1"),
        ("rotation", {"order": 11}, "reporting order 11 is not within 0 and 10"),
        ("rotation", {"order": -1}, "reporting order -1 is not within 0 and 10"),
        ("rotation", {"delay": -0.5}, "reporting delay -0.5 is not a number of seconds"),
        ("rotation", {"delay": float("nan")}, "reporting delay nan is not a number of seconds"),
    ],
)
def test_values_that_cannot_be_are_refused(name: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_reporter(name, PageAllocator(1024), **values)
