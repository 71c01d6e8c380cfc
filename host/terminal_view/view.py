"""What a terminal shows: the interface of a view, and how often it is drawn."""

from collections.abc import Sequence
from typing import Final, Protocol

from host.terminal_view.styled_line import Line

FRAME_SECONDS: Final = 0.25
"""Seconds between two frames; after a key the next one is drawn at once."""

QUIT: Final = "q"
"""The key of the view that Ctrl-C, Ctrl-Q and signals stand for."""


class View(Protocol):
    """What is shown. All methods are called in the thread of the terminal."""

    @property
    def ended(self) -> bool:
        """Whether there is no more to show: the application ends."""

    def lines(self, width: int, height: int) -> Sequence[Line]:
        """Return the view as it is now, at most ``height`` lines; what is wider than ``width`` is cut."""

    def press(self, key: str) -> None:
        """Take a key: the character itself, or ``up``, ``down``, ``enter``, ``escape``, ``pageup``, ``pagedown``."""
