"""The free lists of one machine."""

import pytest

from guest.mm.views.free_lists import FreeListView
from host.terminal_view.bars import UNICODE
from scripts.scenario.view.list_page import list_page, reported_between, strip
from scripts.scenario.view.overview import Pace
from scripts.scenario.view.picture import Picture
from tests.scripts.scenario.view.pictures import BOUNDARY, MIXED, SMALL, picture, texts


def drawn(view: FreeListView, width: int) -> str:
    return "".join(span.text for span in strip(view, width, UNICODE))


def page(shown: Picture, selected: int = 0, offset: int = 0, height: int = 15) -> list[str]:
    return texts(list_page(shown, Pace(speed=1.0), UNICODE, selected, offset, 60, height))


def test_a_list_from_head_to_tail_with_the_boundary_between() -> None:
    assert drawn(BOUNDARY, 21) == "▒▒▒▒▒│░░░░░░░░░░░░░░░"
    assert drawn(FreeListView(zone="N", order=10, migratetype="M", runs=(4,), boundary=4), 20) == "▒▒▒▒│"
    assert drawn(FreeListView(zone="N", order=10, migratetype="M", runs=(0, 4), boundary=0), 20) == "│░░░░"


def test_each_side_of_the_boundary_has_a_column() -> None:
    assert drawn(FreeListView(zone="N", order=10, migratetype="M", runs=(1, 999), boundary=1), 11) == "▒│░░░░░░░░░"
    assert drawn(FreeListView(zone="N", order=10, migratetype="M", runs=(999, 1), boundary=999), 11) == "▒▒▒▒▒▒▒▒▒│░"


def test_reported_flags_of_rotation() -> None:
    assert drawn(MIXED, 20) == "░░░▒░░▒▒"
    assert drawn(MIXED, 4) == "░+░▒"


def test_counting_reported_entries() -> None:
    assert reported_between((0, 3, 1, 2, 2), 0, 8) == 5
    assert [reported_between((0, 3, 1, 2, 2), at, at + 1) for at in range(8)] == [1, 1, 1, 0, 1, 1, 0, 0]


def test_page_has_a_line_for_each_list() -> None:
    lines = page(picture(lists_of="web", lists=(BOUNDARY, MIXED, SMALL)))
    assert lines[1].split() == ["free", "lists", "of", "web:", "build", "3", "reporter", "boundary"]
    assert lines[3] == "Normal  10 Movable       120  480M   90 ▒▒▒▒▒│░░░░░░░░░░░░░░"
    assert lines[4] == "Normal   9 Movable         8   16M    5 ░░░▒░░▒▒"
    assert lines[5].startswith("DMA32    0 Unmovable   4096+   16M    - ▒")
    assert lines[6] == "head to tail: ▒ not reported  ░ reported  + both  │ reported boundary"


def test_page_scrolls_no_further_than_to_the_last_list() -> None:
    shown = picture(lists_of="web", lists=(BOUNDARY, MIXED, SMALL))
    for offset in (1, 50):
        lines = page(shown, offset=offset, height=6)
        assert len(lines) == 6
        assert [entry.split()[1] for entry in lines[3:5]] == ["9", "0"]


@pytest.mark.parametrize(
    ("selected", "lists_of", "text"),
    [
        (0, None, "..."),
        (2, "linux", "It does not tell its free lists."),
        (3, "greedy", "It lives no more."),
        (4, "late", "It has not started."),
    ],
)
def test_why_there_are_no_lists(selected: int, lists_of: str | None, text: str) -> None:
    lines = page(picture(lists_of=lists_of), selected)
    assert lines[2] == text
    assert lines[1].endswith(("reporter boundary", "a real kernel", "reporter rotation", "no reporter"))
    assert lines[1].endswith("a real kernel") == (selected == 2)
