"""A view without Textual: keys as a terminal sends them, lines as it is sent them."""

from host.terminal_view.plain_terminal import frame, parse_keys
from host.terminal_view.styled_line import Span, Style, line


def test_keys() -> None:
    sent = "a\x1b[A\x1bOB\r\x1b[5~\x1b[6~\x1b[1;5Hz\x1b\x03\u00e9"
    assert list(parse_keys(sent)) == ["a", "up", "down", "enter", "pageup", "pagedown", "z", "escape", "q", "\u00e9"]


def test_frame_is_as_large_as_the_terminal() -> None:
    lines = [line("plain ", Span("bad", Style.BAD)), line(Span("chosen", Style.SELECTED))]
    assert frame(lines, 8, 3) == ["plain ba\x1b[K", "\x1b[7mchosen\x1b[0m\x1b[K", "\x1b[K"]
    assert frame(lines, 8, 1) == ["plain ba\x1b[K"]
