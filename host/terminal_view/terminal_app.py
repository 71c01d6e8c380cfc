"""Shows a view on the terminal and gives it the keys. The only file here that needs Textual (extra ``view``)."""

import asyncio
import re
import signal
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, Final

from rich.segment import Segment
from rich.style import Style as RichStyle
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.events import Key, Resize
from textual.geometry import Region
from textual.pilot import Pilot
from textual.strip import Strip
from textual.widget import Widget

from host.terminal_view.styled_line import Line, Style
from host.terminal_view.view import FRAME_SECONDS, QUIT, View

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

STYLES: Final = {
    Style.PLAIN: RichStyle.null(),
    Style.TITLE: RichStyle(bold=True),
    Style.FAINT: RichStyle(dim=True),
    Style.GOOD: RichStyle(color="green"),
    Style.WARNING: RichStyle(color="yellow", bold=True),
    Style.BAD: RichStyle(color="red", bold=True),
    Style.SELECTED: RichStyle(reverse=True),
    Style.IN_USE: RichStyle(color="blue"),
    Style.FREE: RichStyle(color="yellow"),
    Style.REPORTED: RichStyle(color="green"),
    Style.BALLOON: RichStyle(color="magenta"),
    Style.RESIDENT: RichStyle(color="cyan"),
}
"""The terminal's own colours, so that they suit a light and a dark one."""


class _Canvas(Widget):
    """The lines, as large as the terminal. Only those that have changed are drawn again."""

    DEFAULT_CSS: ClassVar = "_Canvas { width: 1fr; height: 1fr; background: ansi_default; color: ansi_default; }"

    def __init__(self) -> None:
        super().__init__()
        self._lines: Sequence[Line] = ()

    def show(self, lines: Sequence[Line]) -> None:
        before, self._lines = self._lines, lines
        width = self.size.width
        changed = [
            Region(0, y, width, 1) for y in range(max(len(before), len(lines))) if before[y : y + 1] != lines[y : y + 1]
        ]
        if changed:
            self.refresh(*changed)

    def render_line(self, y: int) -> Strip:
        """Return one line as Textual draws it."""
        spans = self._lines[y].spans if y < len(self._lines) else ()
        strip = Strip([Segment(span.text, STYLES[span.style]) for span in spans])
        return strip.adjust_cell_length(self.size.width, RichStyle.null())


class TerminalApp(App[None]):
    """Draws ``view`` every :data:`FRAME_SECONDS`. ``signal_number`` is that of a signal that asked it to end."""

    ENABLE_COMMAND_PALETTE: ClassVar = False
    BINDINGS: ClassVar = [Binding("ctrl+c,ctrl+q", "leave", show=False, priority=True)]
    CSS: ClassVar = "Screen { background: ansi_default; layers: base; overflow: hidden; }"

    def __init__(self, view: View, begin: Callable[[], None] = lambda: None) -> None:
        super().__init__(ansi_color=True)
        self.signal_number: int | None = None
        self._view = view
        self._begin = begin
        self.canvas = _Canvas()

    def compose(self) -> ComposeResult:
        """Return the widgets."""
        yield self.canvas

    def on_mount(self) -> None:
        """Start."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, partial(self._on_signal, number))
        self.set_interval(FRAME_SECONDS, self.draw)
        self._begin()

    def on_unmount(self) -> None:
        """Give the signals back."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.remove_signal_handler(number)

    def _on_signal(self, number: int) -> None:
        self.signal_number = number
        self._view.press(QUIT)

    def draw(self) -> None:
        """Draw what has changed, or end with the view."""
        if self._view.ended:
            self.exit()
            return
        width, height = self.size
        self.canvas.show(self._view.lines(width, height))

    def on_resize(self, event: Resize) -> None:
        """Draw for the new size."""
        self.canvas.show(self._view.lines(event.size.width, event.size.height))
        self.canvas.refresh()

    def on_key(self, event: Key) -> None:
        """Give the key to the view."""
        event.stop()
        self._view.press(event.character if event.is_printable and event.character is not None else event.key)
        self.draw()

    def action_leave(self) -> None:
        """End as the view's own key does."""
        self._view.press(QUIT)


def show(view: View, begin: Callable[[], None] = lambda: None) -> int | None:
    """Show ``view`` until it has ended; return the number of a signal that asked for the end, None without one.

    ``begin`` is called once the terminal is set up. The terminal is given back in every case.
    """
    app = TerminalApp(view, begin)
    app.run(mouse=False)
    return app.signal_number


_WEB_FONTS: Final = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def picture(view: View, columns: int, lines: int, title: str) -> str:
    """Return ``view`` as it is now as an SVG picture of a terminal of this size. It loads nothing from elsewhere: the
    font is the reader's own for text of fixed width."""
    app = TerminalApp(view)
    drawn: list[str] = []

    async def take(pilot: Pilot[None]) -> None:
        app.draw()
        await pilot.pause()
        drawn.append(app.export_screenshot(title=title))
        app.exit()

    app.run(headless=True, size=(columns, lines), mouse=False, auto_pilot=take)
    return _WEB_FONTS.sub("", drawn[0]).replace("Fira Code,", "")
