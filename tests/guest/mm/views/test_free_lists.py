"""The free lists in their order, with the reported boundary."""

import pytest

from guest.mm.page_alloc import PageAllocator
from guest.mm.reporting.page_reporting import Report
from guest.mm.reporting.reported_boundary import ReportedBoundary
from guest.mm.reporting.rotation import Rotation
from guest.mm.views import free_lists as views
from guest.mm.views.free_lists import FreeListView, free_lists, free_lists_text, parse_free_lists
from tests.guest.mm.reporting.reporting import do_nothing, run_pass

WHOLE = 1024


def guest(count: int) -> PageAllocator:
    return PageAllocator(count * WHOLE, min_free_kbytes=0)


def test_fresh_memory_is_one_list() -> None:
    (view,) = free_lists(guest(8))
    assert view == FreeListView(zone="Normal", order=10, migratetype="Movable", runs=(8,))
    assert (view.blocks, view.reported_blocks) == (8, 0)


def test_lists_come_from_the_highest_order_and_only_with_entries() -> None:
    allocator = guest(4)
    allocator.alloc_pages(7)
    lists = [(view.order, view.runs) for view in free_lists(allocator)]
    assert lists == [(10, (3,)), (9, (1,)), (8, (1,)), (7, (1,))]


def test_boundary_moves_toward_the_head_with_each_report_and_is_told_while_it_is_valid() -> None:
    allocator = guest(96)
    reporter = ReportedBoundary(allocator)
    reporter.register(32, 0.0, do_nothing)
    seen: list[FreeListView] = []

    def device(_report: Report) -> bool:
        seen.extend(free_lists(allocator)[:1])
        return True

    run_pass(reporter, device)
    assert len(seen) > 2
    lengths = [view.blocks for view in seen]
    above = [view.boundary for view in seen if view.boundary is not None]
    assert len(above) == len(seen)
    assert above == sorted(above, reverse=True)
    assert above[0] == lengths[0]  # the first report is with the device: nothing was walked over yet
    for view, boundary in zip(seen[1:], above[1:], strict=True):
        assert view.runs == (boundary, view.blocks - boundary)
    (after,) = free_lists(allocator)
    assert (after.runs, after.boundary) == ((0, 96), None)


def test_rotation_has_no_boundary() -> None:
    allocator = guest(128)
    reporter = Rotation(allocator)
    reporter.register(32, 0.0, do_nothing)
    run_pass(reporter)
    (view,) = free_lists(allocator)
    assert (view.boundary, view.blocks, view.reported_blocks) == (None, 128, 64)


def test_a_long_list_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "MOST_ENTRIES", 5)
    (view,) = free_lists(guest(8))
    assert (view.runs, view.is_cut) == ((5,), True)
    (view,) = free_lists(guest(5))
    assert (view.runs, view.is_cut) == ((5,), False)


def test_text_is_read_back() -> None:
    allocator = guest(4)
    allocator.alloc_pages(3)
    assert parse_free_lists(free_lists_text(allocator)) == free_lists(allocator)
    for text in ('[{"zone": "Normal"}]', '[{"runs": [1], "what": 2}]', "[", "[3]", "3"):
        with pytest.raises(ValueError, match=r"."):
            parse_free_lists(text)
