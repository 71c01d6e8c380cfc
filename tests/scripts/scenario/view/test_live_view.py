"""The keys, and the pages that they show."""

import pytest

from host.terminal_view.bars import ASCII, UNICODE
from scripts.scenario.view.live_view import LiveView
from scripts.scenario.view.run_clock import RunClock
from scripts.scenario.view.watcher import Watcher
from tests.scripts.scenario.view.pictures import BOUNDARY, MIXED, SCENARIO, SMALL, picture, texts


class Front:
    """A view of the picture of this folder."""

    def __init__(self, speed: float | None = 1.0) -> None:
        self.clock = RunClock(speed)
        self.watcher = Watcher(self.clock)
        self.watcher.picture = picture()
        self.view = LiveView(SCENARIO, self.watcher, self.clock, UNICODE)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.view.press(key)

    def wanted(self) -> str | None:
        return self.watcher.wanted

    def is_paused(self) -> bool:
        return self.clock.is_paused

    def shown(self, width: int = 80, height: int = 24) -> list[str]:
        lines = list(self.view.lines(width, height))
        assert len(lines) == height
        return texts(lines)

    def selected(self) -> list[str]:
        return [entry.split()[1] for entry in self.shown() if entry.startswith("> ")]


def test_selection_goes_up_and_down_and_ends_with_all_together() -> None:
    front = Front()
    assert front.selected() == []
    front.press("down", "j")
    assert front.selected() == ["batch?[31m"]
    front.press("up", "k", "up")
    assert front.selected() == []
    front.press("pagedown")
    assert front.selected() == ["late"]


def test_enter_shows_the_lists_of_the_selected_machine_and_goes_back() -> None:
    front = Front()
    front.press("down", "down", "enter")
    assert front.wanted() == "batch\x1b[31m"
    front.watcher.picture = picture(lists_of="batch\x1b[31m", lists=(BOUNDARY, MIXED))
    assert front.shown()[1].startswith("free lists of batch?[31m: finished")
    assert front.shown()[3].startswith("Normal  10 Movable")
    front.press("up")
    assert front.wanted() == "web"
    assert front.shown()[2] == "..."
    front.press("up")
    assert front.wanted() == "web"
    front.press("enter")
    assert front.wanted() is None
    assert front.selected() == ["web"]


def test_enter_without_a_selection_takes_the_first_machine() -> None:
    front = Front()
    front.press("enter")
    assert front.wanted() == "web"
    front.press("escape")
    assert front.wanted() is None


def test_lists_scroll() -> None:
    front = Front()
    front.press("enter", "pagedown")
    front.watcher.picture = picture(lists_of="web", lists=(BOUNDARY, MIXED, SMALL))
    assert front.shown(80, 7)[3].startswith("Normal   9")
    front.press("pageup")
    assert front.shown(80, 7)[3].startswith("Normal  10")


def test_help_names_every_key_and_goes_away() -> None:
    front = Front()
    front.press("?")
    shown = "\n".join(front.shown(60, 16))
    assert all(key.shown in shown and key.meaning in shown for key in front.view.keys)
    assert "resident: what the host holds" in shown
    front.press("escape")
    assert front.shown()[0].startswith("night-shift")
    front.press("?", "?")
    assert front.shown()[0].startswith("night-shift")


@pytest.mark.parametrize("key", [" ", "space"])
def test_pause_and_steps(key: str) -> None:
    front = Front()
    front.press(key)
    assert front.is_paused()
    assert "PAUSED (1x)" in front.shown()[0]
    front.press(key)
    assert not front.is_paused()
    for step in (".", "n"):
        front.press(step)
        assert front.is_paused()


def test_speed() -> None:
    front = Front()
    front.press("+", "=")
    assert " 5x " in front.shown()[0]
    front.press("-")
    assert " 2x " in front.shown()[0]


def test_real_run_goes_on_while_the_picture_is_kept() -> None:
    front = Front(None)
    assert "freeze" in front.shown()[-1]
    assert "step" not in front.shown()[-1]
    front.press(" ")
    front.watcher.picture = picture(policy="another")
    assert "policy ours" in front.shown()[0]
    assert "PAUSED (real time)" in front.shown()[0]
    front.press(" ")
    assert "policy another" in front.shown()[0]


def test_q_asks_the_run_to_end_and_the_view_ends_with_it() -> None:
    front = Front()
    front.press("q")
    assert front.clock.is_leaving
    assert "ENDING" in front.shown()[0]
    assert not front.view.ended
    front.clock.end()
    assert front.view.ended


def test_other_keys_do_nothing() -> None:
    front = Front()
    before = front.shown()
    front.press("x", "f5", "left", "")
    assert front.shown() == before


def test_before_the_first_picture() -> None:
    front = Front()
    front.watcher.picture = None
    assert front.shown()[0] == "The run begins ..."
    front.press("down", "enter", "?")
    assert front.wanted() == "web"


@pytest.mark.parametrize(("width", "keys"), [(60, "q quit  ? help  Space pause  . step  Enter lists"), (20, "q quit")])
def test_footer_has_the_keys_that_fit(width: int, keys: str) -> None:
    assert Front().shown(width, 16)[-1].startswith(keys)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (2, 2), (10, 3), (40, 5), (60, 16), (300, 100)])
def test_every_size_is_kept(width: int, height: int) -> None:
    front = Front()
    for key in ("down", "enter", "?"):
        front.press(key)
        assert max(map(len, front.shown(width, height))) <= width


def test_ascii_terminal_has_words_for_keys() -> None:
    clock = RunClock(1.0)
    watcher = Watcher(clock)
    watcher.picture = picture(lists_of="web", lists=(BOUNDARY,))
    view = LiveView(SCENARIO, watcher, clock, ASCII)
    for key in ("down", "enter", "?"):
        assert all(entry.text.isascii() for entry in view.lines(80, 24))
        view.press(key)
    assert all(entry.text.isascii() for entry in view.lines(80, 24))
