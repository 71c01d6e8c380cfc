"""The memory statistics of one guest: asked for once, or at an interval.

To ask is to give back the buffer that the device holds (virtio 1.2, 5.5.6.3, "Memory Statistics"). That is the only
write to a ring on request of the controls, and only while the ring runs (``RingService.give_back_held``).
"""

import asyncio
import math
import time
from dataclasses import dataclass
from typing import Final

from host.control.connection_interface import ConnectionInterface
from protocol.errors import BalloonError
from protocol.virtio import has_feature
from protocol.virtio_balloon import BalloonFeature, BalloonQueue

STATISTICS_TIMEOUT: Final = 5.0
"""Seconds that a guest has to answer a request for statistics. One that thrashes may need longer, or never answer."""


@dataclass(frozen=True, slots=True)
class GuestStatistics:
    """A guest's statistics: ``values`` by the specification's names in lower case, ``taken`` when they arrived
    (CLOCK_MONOTONIC, seconds)."""

    values: dict[str, int]
    taken: float

    @property
    def age(self) -> float:
        """Seconds since they arrived."""
        return time.monotonic() - self.taken


class StatisticsRequests:
    """Asks one guest for statistics and keeps the last that it gave."""

    def __init__(self, connection: ConnectionInterface) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._waiting: set[asyncio.Future[GuestStatistics]] = set()
        self._interval = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._closed: str | None = None
        self._asked: float | None = None
        self.last: GuestStatistics | None = None

    async def fresh(self) -> GuestStatistics:
        """Ask the guest, and return what it answers.

        Raises:
            BalloonError: the driver gives none, does not answer within :data:`STATISTICS_TIMEOUT`, or has gone.
        """
        if self._closed is not None:
            raise BalloonError(self._closed)
        if not has_feature(self._connection.balloon.features, BalloonFeature.STATS_VQ):
            raise BalloonError("the guest's driver gives no statistics: STATS_VQ was not negotiated")
        if not self._ask():
            raise BalloonError("the guest's driver gives no statistics: its statistics queue does not run")
        answer: asyncio.Future[GuestStatistics] = self._loop.create_future()
        self._waiting.add(answer)
        try:
            async with asyncio.timeout(STATISTICS_TIMEOUT):
                return await answer
        except TimeoutError:
            raise BalloonError(f"the guest gave no statistics within {STATISTICS_TIMEOUT:.0f} s") from None
        finally:
            self._waiting.discard(answer)

    def received(self, statistics: GuestStatistics) -> None:
        """Take the guest's answer: every request that waits gets it."""
        self.last, self._asked = statistics, None
        for answer in self._waiting:
            if not answer.done():
                answer.set_result(statistics)

    def forget(self) -> None:
        """Forget the statistics: they are another driver's."""
        self.last = self._asked = None

    @property
    def unanswered(self) -> float:
        """Seconds for which the guest has owed an answer, 0 if it owes none."""
        return 0.0 if self._asked is None else self._loop.time() - self._asked

    @property
    def interval(self) -> float:
        """Seconds between two requests; 0 if statistics are asked for on demand only."""
        return self._interval

    def set_interval(self, seconds: float) -> None:
        """Ask every ``seconds`` from now on; 0 for on demand only.

        Raises:
            BalloonError: a negative or infinite interval.
        """
        if not (math.isfinite(seconds) and seconds >= 0):
            raise BalloonError(f"statistics cannot be taken every {seconds} s")
        self._interval = seconds
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds > 0 and self._closed is None:
            self._timer = self._loop.call_later(seconds, self._on_timer)

    def _on_timer(self) -> None:
        self._ask()
        self._timer = self._loop.call_later(self._interval, self._on_timer)

    def _ask(self) -> bool:
        # A driver that has not answered the last request has no buffer held here, and then this does nothing: requests
        # never pile up.
        queue = self._connection.queue(BalloonQueue.STATS)
        if queue is None or not queue.give_back_held():
            return False
        if self._asked is None:
            self._asked = self._loop.time()
        return True

    def close(self, reason: str) -> None:
        """Ask no more. Every request, those that wait too, fails with ``reason``."""
        self._closed = reason
        self.set_interval(0)
        for answer in self._waiting:
            if not answer.done():
                answer.set_exception(BalloonError(reason))
