"""Draws lines in place on a terminal that has no library for it: of a picture only the rows that have changed."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TextIO

from host.terminal_view.styled_line import Line, Span, Style, clipped

ENTER: Final = "\x1b[?1049h\x1b[?25l\x1b[2J"
LEAVE: Final = "\x1b[?25h\x1b[?1049l"
"""Alternate screen without a cursor, and back."""

Styles = Mapping[Style, str]
"""What is sent before a text of a style; one that is left out looks like any other text."""

MONOCHROME: Final[Styles] = {Style.SELECTED: "\x1b[7m"}
COLOURS: Final[Styles] = {
    **MONOCHROME,
    Style.TITLE: "\x1b[1m",
    Style.FAINT: "\x1b[2m",
    Style.WARNING: "\x1b[1;31m",
}

_RESET: Final = "\x1b[0m"
_REST_OF_ROW: Final = "\x1b[K"


def styled(spans: Iterable[Span], styles: Styles) -> str:
    """Return the text of ``spans`` as it is sent to a terminal."""
    return "".join(f"{styles[span.style]}{span.text}{_RESET}" if span.style in styles else span.text for span in spans)


def frame(lines: Sequence[Line], width: int, height: int, styles: Styles = MONOCHROME) -> list[str]:
    """Return the rows of a screen, as they are sent to the terminal."""
    rows = [f"{styled(clipped(line.spans, width), styles)}{_REST_OF_ROW}" for line in lines[:height]]
    return rows + [_REST_OF_ROW] * (height - len(rows))


class Screen:
    """The terminal that ``stream`` is, between :meth:`enter` and :meth:`leave`."""

    def __init__(self, stream: TextIO, styles: Styles = MONOCHROME) -> None:
        self._stream = stream
        self._styles = styles
        self._shown: list[str] = []
        self._size = (0, 0)

    def enter(self) -> None:
        """Keep what is on the terminal, and clear it."""
        self._send(ENTER)

    def leave(self) -> None:
        """Give the terminal back."""
        self._send(LEAVE)

    def draw(self, lines: Sequence[Line], width: int, height: int) -> None:
        """Show ``lines``, in one write, so that nothing flickers. A window of another size is drawn anew."""
        if (width, height) != self._size:
            self._shown, self._size = [], (width, height)
        rows = frame(lines, width, height, self._styles)
        changed = [f"\x1b[{at};1H{row}" for at, row in enumerate(rows, 1) if self._shown[at - 1 : at] != [row]]
        if changed:
            self._send("".join(changed))
        self._shown = rows

    def _send(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
