"""Shows a view without Textual: no colours, only the selected line is inverted."""

import os
import re
import select
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from host.terminal_view.screen import Screen
from host.terminal_view.view import FRAME_SECONDS, QUIT, View

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
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


def show(view: View, begin: Callable[[], None] = lambda: None) -> int | None:
    """Show ``view`` until it has ended; return the number of a signal that asked for the end, None without one.

    ``begin`` is called once the terminal is set up. The terminal is given back in every case.
    """
    numbers: list[int] = []

    def end(number: int, _frame: FrameType | None) -> None:
        numbers.append(number)

    screen = Screen(sys.stdout)
    with _raw_terminal(screen), _signals_to(end):
        begin()
        while not view.ended:
            size = shutil.get_terminal_size()
            screen.draw(view.lines(*size), *size)
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
def _raw_terminal(screen: Screen) -> Iterator[None]:
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        screen.enter()
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        screen.leave()


def _keys(seconds: float) -> list[str]:
    # The keys that are pressed within so many seconds, as soon as there are any.
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    if not ready:
        return []
    data = os.read(sys.stdin.fileno(), 1 << 10)
    return list(parse_keys(data.decode(errors="replace"))) if data else [QUIT]  # the terminal has gone
