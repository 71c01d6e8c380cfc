"""Kick, call and error descriptors whose use is recorded."""

from collections.abc import Callable, Iterable

from host.ring.kick_file import KickFile
from host.ring.queue_files import CallFile


class RecordedKickFile(KickFile):
    """Calls ``on_kick`` for each time that kicks were taken."""

    def __init__(self, fd: int, close: Callable[[Iterable[int]], None], on_kick: Callable[[], None]) -> None:
        super().__init__(fd, close)
        self._on_kick = on_kick

    def take(self) -> bool:
        """Read the pending kicks. Return whether the driver has kicked.

        Raises:
            VirtqueueError: it cannot be read, for a reason other than the driver's end.
        """
        taken = super().take()
        if taken:
            self._on_kick()
        return taken


def _ignore(_failure: str) -> None:
    pass


class RecordedCallFile(CallFile):
    """Calls ``on_signal`` for each signal."""

    def __init__(self, fd: int, on_signal: Callable[[], None]) -> None:
        super().__init__(fd)
        self._on_signal = on_signal

    def signal(self, on_failure: Callable[[str], None] = _ignore) -> None:
        """Signal the driver once, see :meth:`CallFile.signal`."""
        self._on_signal()  # before: the driver may answer at once
        super().signal(on_failure)
