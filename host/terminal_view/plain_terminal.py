"""Shows a view without Textual: no colours, only the selected line is inverted."""

import os
import re
import select
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Final

from host.terminal_view.styled_line import Line, Style, clipped
from host.terminal_view.view import FRAME_SECONDS, QUIT, View

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ENTER: Final = "\x1b[?1049h\x1b[?25l"
_LEAVE: Final = "\x1b[?25h\x1b[?1049l"
_KEY: Final = re.compile(r"\x1b[\[O]([A-D]|[56]~)|\x1b\[[0-9;]*[@-~]|.", re.DOTALL)
_NAMES: Final = {"A": "up", "B": "down", "C": "right", "D": "left", "5~": "pageup", "6~": "pagedown"}
_CONTROLS: Final = {"\r": "enter", "\n": "enter", "\x1b": "escape", "\x03": QUIT, "\x11": QUIT}


def parse_keys(text: str) -> Iterator[str]:
    """Yield the keys that a terminal sent as ``text``; sequences of other keys are left out."""
    for match in _KEY.finditer(text):
        if match[1] is not None:
            yield _NAMES[match[1]]
        elif len(match[0]) == 1:
            yield _CONTROLS.get(match[0], match[0])


def frame(lines: Sequence[Line], width: int, height: int) -> list[str]:
    """Return the rows of a screen, as they are sent to the terminal."""
    rows = []
    for line in lines[:height]:
        spans = clipped(line.spans, width)
        text = "".join(f"\x1b[7m{each.text}\x1b[0m" if each.style is Style.SELECTED else each.text for each in spans)
        rows.append(f"{text}\x1b[K")
    return rows + ["\x1b[K"] * (height - len(rows))


class _Screen:
    """The terminal, of which only the rows that have changed are sent."""

    def __init__(self) -> None:
        self._shown: list[str] = []
        self._size = os.terminal_size((0, 0))

    def draw(self, view: View) -> None:
        size = shutil.get_terminal_size()
        if size != self._size:
            self._shown, self._size = [], size
        rows = frame(view.lines(*size), *size)
        changed = [f"\x1b[{at};1H{row}" for at, row in enumerate(rows, 1) if self._shown[at - 1 : at] != [row]]
        if changed:
            sys.stdout.write("".join(changed))
            sys.stdout.flush()
        self._shown = rows


def show(view: View, begin: Callable[[], None] = lambda: None) -> int | None:
    """Show ``view`` until it has ended; return the number of a signal that asked for the end, None without one.

    ``begin`` is called once the terminal is set up. The terminal is given back in every case.
    """
    numbers: list[int] = []

    def end(number: int, _frame: FrameType | None) -> None:
        numbers.append(number)

    screen = _Screen()
    with _raw_terminal(), _signals_to(end):
        begin()
        while not view.ended:
            screen.draw(view)
            for key in _keys(FRAME_SECONDS):
                view.press(key)
            if numbers:
                view.press(QUIT)
    return numbers[0] if numbers else None


@contextmanager
def _signals_to(end: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, end) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _raw_terminal() -> Iterator[None]:
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        sys.stdout.write(_ENTER)
        sys.stdout.flush()
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()


def _keys(seconds: float) -> list[str]:
    # The keys that are pressed within so many seconds, as soon as there are any.
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    if not ready:
        return []
    data = os.read(sys.stdin.fileno(), 1 << 10)
    return list(parse_keys(data.decode(errors="replace"))) if data else [QUIT]  # the terminal has gone
