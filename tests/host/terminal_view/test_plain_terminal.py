"""A view without Textual: keys as a terminal sends them, lines as it is sent them."""

import io

from host.terminal_view.plain_terminal import parse_keys
from host.terminal_view.screen import COLOURS, Screen, frame
from host.terminal_view.styled_line import Span, Style, line


def test_keys() -> None:
    sent = "a\x1b[A\x1bOB\r\x1b[5~\x1b[6~\x1b[1;5Hz\x1b\x03\u00e9"
    assert list(parse_keys(sent)) == ["a", "up", "down", "enter", "pageup", "pagedown", "z", "escape", "q", "\u00e9"]


def test_frame_is_as_large_as_the_terminal() -> None:
    lines = [line("plain ", Span("bad", Style.BAD)), line(Span("chosen", Style.SELECTED))]
    assert frame(lines, 8, 3) == ["plain ba\x1b[K", "\x1b[7mchosen\x1b[0m\x1b[K", "\x1b[K"]
    assert frame(lines, 8, 1) == ["plain ba\x1b[K"]


def test_only_the_rows_that_have_changed_are_sent() -> None:
    stream = io.StringIO()
    screen = Screen(stream, COLOURS)
    screen.draw([line(Span("title", Style.TITLE)), line("1")], 8, 2)
    assert stream.getvalue() == "\x1b[1;1H\x1b[1mtitle\x1b[0m\x1b[K\x1b[2;1H1\x1b[K"
    screen.draw([line(Span("title", Style.TITLE)), line("2")], 8, 2)
    assert stream.getvalue().endswith("\x1b[2;1H1\x1b[K\x1b[2;1H2\x1b[K")
    sent = len(stream.getvalue())
    screen.draw([line(Span("title", Style.TITLE)), line("2")], 8, 2)
    assert len(stream.getvalue()) == sent
    screen.draw([line(Span("title", Style.TITLE)), line("2")], 7, 2)  # a resized window may show anything
    assert stream.getvalue()[sent:].count("\x1b[K") == 2
