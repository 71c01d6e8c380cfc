"""The screen of ``top``, and what its keys do."""

from typing import Any

import pytest

from host.balloonctl.top_screen import Action, Row, TopState, bar, rates, screen
from host.terminal_view.bars import ASCII
from host.terminal_view.styled_line import Line, Style
from tests.host.balloonctl.test_table import entry

GIB = 1 << 30


def row(label: str, rate: float = 0.0, **members: Any) -> Row:
    """Return a machine."""
    return Row(label, entry(**members), rate)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"host-backed": GIB // 4}, "#####..............."),
        ({"host-backed": GIB // 2, "statistics": {"memfree": 3 * GIB // 4}}, "#####%%%%%.........."),
        ({"host-backed": GIB // 4, "balloon-actual": GIB // 2}, "#####.....oooooooooo"),
        ({"host-backed": 2 * GIB, "balloon-actual": GIB // 4}, "###############ooooo"),
        ({"host-backed": None}, "...................."),
        ({"guest-memory": 0}, " " * 20),
    ],
)
def test_bars(members: dict[str, Any], expected: str) -> None:
    assert Line(bar(entry(**members), ASCII)).text == expected


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 16), (20, 3)])
def test_screen_fits(width: int, height: int) -> None:
    rows = [row(str(number), health=["ring-broken", "page-cache"]) for number in range(40)]
    state = TopState(explains=True, message="x" * 100)
    lines = screen(rows, state, "12:00:00", width, height)
    assert len(lines) <= height
    assert max(len(line.text) for line in lines) <= width


def test_selected_machine_is_always_shown() -> None:
    rows = [row(str(number)) for number in range(40)]
    state = TopState()
    screen(rows, state, "", 80, 24)
    for _ in range(30):
        state.press("down")
    lines = screen(rows, state, "", 80, 24)
    selected = [line.text.split()[0] for line in lines if line.spans and line.spans[0].style is Style.SELECTED]
    assert selected == ["30", "up/down"]
    assert state.press("k") is None
    assert state.selected == "29"


def test_keys() -> None:
    rows = [row("1", 5.0), row("2", 9.0, health=["inhibited"])]
    state = TopState()
    assert [state.press(key) for key in "qriax"] == [Action.QUIT, Action.RECLAIM, Action.INHIBIT, Action.ALLOW, None]
    title = screen(rows, state, "12:00:00", 120, 24)[0]
    assert title.text == "12:00:00  2 machines, 1 not healthy; host holds 10M of 2G; 14B/s back; by number"
    narrow = screen(rows, state, "12:00:00", 74, 24)[0]
    assert narrow.text == "12:00:00  2 machines, 1 not healthy; host holds 10M of 2G; 14B/s back"
    state.press("s")
    state.press("s")
    screen(rows, state, "", 80, 24)
    assert (state.sort, state.labels) == ("rate", ["2", "1"])
    state.press("d")
    assert any("nothing is wrong" in line.text for line in screen(rows[:1], state, "", 80, 24))


def test_rates() -> None:
    before, now = {"1": entry(), "2": entry()}, {"1": entry(**{"discarded-bytes": 10 << 20}), "3": entry()}
    assert rates(before, now, 0.5) == {"1": 4 << 20}
    assert rates(before, now, 0.0) == {"1": 0.0}


def test_no_machine() -> None:
    lines = screen([], TopState(), "12:00:00", 80, 24)
    assert lines[0].text.startswith("12:00:00  0 machines")
    assert len(lines) == 24


def test_words_of_a_daemon_do_not_reach_the_terminal() -> None:
    hostile = "\x1b]0;a\x07\n\u202e\u754c\x9b"
    rows = [row(hostile, name=hostile, health=[hostile]), row("2")]
    for line in screen(rows, TopState(explains=True, message=hostile), "12:00:00", 80, 24):
        assert line.text.isprintable()
        assert len(line.text) <= 80
        assert "\u754c" not in line.text
