"""The free lists of a guest that is a process: asked for at its control socket, on a thread, since it may take long."""

import threading
from pathlib import Path

from guest.control import ask
from guest.mm.views.free_lists import FREE_LISTS, FreeListView, parse_free_lists
from protocol.errors import BalloonError


class GuestLists:
    """Asks one guest at a time."""

    def __init__(self) -> None:
        self._asking: threading.Thread | None = None
        self._answer: tuple[Path, tuple[FreeListView, ...] | None] | None = None

    def latest(self, control: Path) -> tuple[FreeListView, ...] | None:
        """Return what the guest at ``control`` answered last, None before that; and ask it again."""
        if self._asking is None or not self._asking.is_alive():
            self._asking = threading.Thread(target=self._ask, args=(control,), daemon=True, name="free lists")
            self._asking.start()
        answer = self._answer
        return answer[1] if answer is not None and answer[0] == control else None

    def _ask(self, control: Path) -> None:
        try:
            self._answer = control, parse_free_lists(ask(control, FREE_LISTS))
        except (BalloonError, ValueError):  # it ends, or has not begun
            self._answer = control, None
