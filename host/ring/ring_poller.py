"""Looks at a ring whose driver gave no kick descriptor (bit 8 of SET_VRING_KICK: polling). On the event loop."""

import asyncio
from collections.abc import Callable
from typing import Final

POLL_INTERVAL: Final = 0.005
"""Seconds between two looks at a ring that has chains."""

POLL_INTERVAL_MAX: Final = 0.64
"""The same for a ring that has long been empty: the interval doubles with each look that finds nothing. A front-end may
have hundreds of such rings, and each look takes a worker's turn."""


class RingPoller:
    """Calls ``look`` again and again, from :meth:`start` until :meth:`stop`."""

    def __init__(self, look: Callable[[], None]) -> None:
        self._look = look
        self._interval = POLL_INTERVAL
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Look at once."""
        self._timer = asyncio.get_running_loop().call_later(self._interval, self.start)
        self._look()

    def found(self, chains: bool) -> None:
        """Take note of whether a turn found chains: then the next look comes soon."""
        if self._timer is None:
            return
        if not chains:
            self._interval = min(2 * self._interval, POLL_INTERVAL_MAX)
        elif self._interval > POLL_INTERVAL:
            self._interval = POLL_INTERVAL
            self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(self._interval, self.start)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
