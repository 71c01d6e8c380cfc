"""Shows pictures: in place on a terminal four times a second, or as one line a second anywhere else.

The shell around the pure ``view``.
"""

import os
import shutil
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Protocol, Self, TextIO

from host.terminal_view.bars import ASCII, UNICODE
from host.terminal_view.screen import COLOURS, MONOCHROME, Screen, styled
from host.terminal_view.styled_line import Line
from scripts.demonstration.state import Picture
from scripts.demonstration.view import TABLE_NOTE, WIDTH, live_view, table_header, table_row

ROW_SECONDS: Final = 1.0


class Display(Protocol):
    """Shows pictures. A context manager: leaving it restores the terminal."""

    def show(self, picture: Picture) -> None:
        """Show the picture as it is now; called once a tick."""

    def tell(self, seconds: float, text: str) -> None:
        """Show one line of the story, at the moment it happens."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class LiveDisplay:
    """Redraws the picture in place."""

    def __init__(self, stream: TextIO, *, colour: bool) -> None:
        self._screen = Screen(stream, COLOURS if colour else MONOCHROME)
        unicode = (stream.encoding or "").lower().replace("-", "") == "utf8"
        self._symbols = UNICODE if unicode else ASCII

    def show(self, picture: Picture) -> None:
        """Draw over the last picture."""
        # Read each time: the size of the window may have changed.
        columns, rows = shutil.get_terminal_size()
        self._screen.draw(live_view(picture, self._symbols, min(WIDTH, columns - 1), rows), columns, rows)

    def tell(self, seconds: float, text: str) -> None:
        """Do nothing: the picture contains the story."""

    def __enter__(self) -> Self:
        self._screen.enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._screen.leave()


def print_lines(stream: TextIO, lines: Sequence[Line]) -> None:
    """Print ``lines``, in their styles where ``stream`` is a terminal that can show them."""
    colour = stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM", "dumb") != "dumb"
    for line in lines:
        print(styled(line.spans, COLOURS if colour else {}), file=stream)
    stream.flush()


class PlainDisplay:
    """Prints a table with one line a second, and the story between its lines."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._round = ""
        self._next_row = 0.0

    def show(self, picture: Picture) -> None:
        """Print the table's head when a round begins, then a row each second."""
        if picture.round_title != self._round:
            self._round = picture.round_title
            self._next_row = 0.0
            left = f"about {picture.seconds_left} s left"
            self._print("", f"{picture.round_title}; {picture.title}; {left}", TABLE_NOTE, "")
            self._print(*table_header([vm.name for vm in picture.vms]))
        if picture.seconds >= self._next_row:
            self._next_row = max(self._next_row + ROW_SECONDS, picture.seconds)
            self._print(table_row(picture))

    def tell(self, seconds: float, text: str) -> None:
        """Print a line of the story."""
        self._print(f"{seconds:>5.1f}s {text}")

    def _print(self, *lines: str) -> None:
        for line in lines:
            print(line, file=self._stream, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


def choose_display(stream: TextIO, *, plain: bool) -> Display:
    """Return the live view where ``stream`` is a terminal that can show it, otherwise the plain table."""
    if plain or not stream.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        return PlainDisplay(stream)
    return LiveDisplay(stream, colour="NO_COLOR" not in os.environ)
