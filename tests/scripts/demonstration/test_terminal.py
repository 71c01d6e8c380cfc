"""Where pictures go: in place on a terminal and back to what was there, or as a table."""

import io

import pytest

from host.terminal_view.screen import ENTER, LEAVE
from scripts.demonstration.terminal import LiveDisplay, PlainDisplay, choose_display
from tests.scripts.demonstration.examples import picture, vm


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_terminal_is_given_back_even_after_an_interrupt() -> None:
    stream = Terminal()

    def interrupted() -> None:
        with LiveDisplay(stream, colour=True) as display:
            display.show(picture(vm()))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert stream.getvalue().startswith(ENTER)
    assert stream.getvalue().endswith(LEAVE)


def test_picture_is_drawn_over_the_last_one_in_the_size_of_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "5")
    stream = Terminal()
    LiveDisplay(stream, colour=False).show(picture(vm()))
    lines = stream.getvalue().removesuffix("\x1b[K").split("\x1b[K")
    assert [line[:6] for line in lines] == [f"\x1b[{row};1H" for row in range(1, 6)]
    lines = [line[6:] for line in lines]
    assert max(map(len, lines)) <= 39
    assert "\x1b" not in "".join(lines)


def test_terminal_without_unicode_gets_plain_characters() -> None:
    stream = Terminal()
    stream.encoding = "ascii"
    LiveDisplay(stream, colour=True).show(picture(vm()))
    assert stream.getvalue().isascii()


def test_table_has_a_row_a_second_and_the_story_at_once() -> None:
    stream = io.StringIO()
    display = PlainDisplay(stream)
    shown = picture(vm())
    for tick in range(10):
        shown.seconds = tick / 4
        display.show(shown)
    display.tell(2.5, "VM A starts")
    shown.round_title = "2 of 2"
    shown.seconds = 0.0
    display.show(shown)
    lines = stream.getvalue().splitlines()
    assert [line.split()[0] for line in lines if "MiB" not in line and "s " in line[:8]] == [
        "0.0s",
        "1.0s",
        "2.0s",
        "2.5s",
        "0.0s",
    ]
    assert sum("phase" in line for line in lines) == 2
    assert sum("as the guest told up to 0.25 s before" in line for line in lines) == 2
    assert "\x1b" not in stream.getvalue()


def test_live_view_is_for_terminals_that_can_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(choose_display(Terminal(), plain=False), LiveDisplay)
    assert isinstance(choose_display(Terminal(), plain=True), PlainDisplay)
    assert isinstance(choose_display(io.StringIO(), plain=False), PlainDisplay)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(choose_display(Terminal(), plain=False), PlainDisplay)
