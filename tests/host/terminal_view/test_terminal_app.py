"""The application that shows a view, without a terminal: Textual's own pilot."""

import asyncio
import os
import signal
from collections.abc import Sequence

import pytest

from host.terminal_view.styled_line import Line, Span, Style, line

pytest.importorskip("textual", reason="Textual is not installed (extra `view`)")

from host.terminal_view.terminal_app import STYLES, TerminalApp


class Counter:
    """A view of its size and its keys; ``q`` ends it."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.frames = 0

    @property
    def ended(self) -> bool:
        return "q" in self.keys

    def lines(self, width: int, height: int) -> Sequence[Line]:
        self.frames += 1
        return [line(f"{width} by {height}"), line(Span(" ".join(self.keys), Style.BAD)), line("x" * (width + 5))]

    def press(self, key: str) -> None:
        self.keys.append(key)


def shown(app: TerminalApp) -> list[str]:
    return ["".join(segment.text for segment in app.canvas.render_line(y)).rstrip() for y in range(3)]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 16), (200, 50)])
def test_lines_fill_the_terminal_and_follow_its_size(width: int, height: int) -> None:
    async def scene() -> None:
        app = TerminalApp(Counter())
        async with app.run_test(size=(width, height)) as pilot:
            await pilot.pause()
            assert shown(app) == [f"{width} by {height}", "", "x" * width]
            await pilot.resize_terminal(40, 10)
            await pilot.pause()
            assert shown(app) == ["40 by 10", "", "x" * 40]

    asyncio.run(scene())


def test_keys_reach_the_view_and_are_answered_at_once() -> None:
    async def scene() -> None:
        view = Counter()
        app = TerminalApp(view)
        async with app.run_test() as pilot:
            await pilot.press("up", "enter", "pageup", "space", "minus", "?")
            assert view.keys == ["up", "enter", "pageup", " ", "-", "?"]
            assert shown(app)[1].split() == [key for key in view.keys if key != " "]
            await pilot.press("ctrl+c")
            await pilot.pause()
        assert view.ended
        assert app.signal_number is None

    asyncio.run(scene())


def test_application_ends_with_the_view() -> None:
    async def scene() -> None:
        view = Counter()
        app = TerminalApp(view)
        async with app.run_test() as pilot:
            assert app.return_code is None
            await pilot.press("q")
            await pilot.pause()
        assert app.return_code == 0

    asyncio.run(scene())


def test_a_signal_asks_for_the_end() -> None:
    async def scene() -> None:
        view = Counter()
        app = TerminalApp(view)
        async with app.run_test() as pilot:
            os.kill(os.getpid(), signal.SIGTERM)
            await pilot.pause()
        assert view.keys == ["q"]
        assert app.signal_number == signal.SIGTERM

    asyncio.run(scene())


def test_every_style_can_be_shown() -> None:
    assert STYLES.keys() == set(Style)
