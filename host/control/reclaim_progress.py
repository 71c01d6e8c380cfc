"""One reclaim that is under way: what the driver has given so far, and how long it is waited for."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from host.memory.discard_plan import Refusal
from host.ring.turn import ServedChain
from protocol.errors import BalloonError
from protocol.virtio_balloon import BalloonQueue

STALL: Final = 5.0
"""Seconds without progress after which the driver counts as stalled."""

LONGEST: Final = 60.0
"""Time limit of one reclaim in seconds, also for a driver that makes slow progress."""


class ReclaimMethod(Enum):
    """How memory is reclaimed."""

    HINT = "hint"
    INFLATE = "inflate"


class StoppedBy(Enum):
    """Why a reclaim ended before it had all that was asked."""

    STALL = "stall"
    """The driver did nothing for :data:`STALL` seconds, or took longer than :data:`LONGEST` in all."""
    GUEST = "guest"
    """The guest took pages back, its driver has gone, or the balloon was given another target."""
    REFAULT = "refault"
    """The guest began to read back what it had given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReclaimLimits:
    """How gentle a reclaim by inflating is: it leaves the guest ``floor`` bytes, takes at most ``pace`` bytes a second
    (0: as fast as the driver gives them), and with ``stop_on_refault`` ends when the guest reads pages back."""

    floor: int = 0
    pace: int = 0
    stop_on_refault: bool = False

    @property
    def in_steps(self) -> bool:
        """Whether the balloon grows in steps."""
        return self.pace > 0 or self.stop_on_refault


NO_LIMITS: Final = ReclaimLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReclaimResult:
    """The result of a reclaim.

    ``offered_bytes`` is what the driver offered (by hinting or by inflating) and ``discarded_bytes`` what was discarded
    of it. ``complete`` False means that the driver did not do all that was asked: it stalled, was reset, was given
    another target, had less memory than it said, or ran short of it meanwhile: ``stopped_by`` says which.
    """

    method: ReclaimMethod
    offered_bytes: int
    discarded_bytes: int
    seconds: float
    complete: bool
    stopped_by: StoppedBy | None = None


class ReclaimProgress:
    """The sums of a reclaim that is under way. Every ``now`` is the event loop's time in seconds."""

    def __init__(self, method: ReclaimMethod, now: float) -> None:
        self.method = method
        self._begin = now
        self._queue = BalloonQueue.FREE_PAGE if method is ReclaimMethod.HINT else BalloonQueue.INFLATE
        self._offered = 0
        self._discarded = 0
        self._moved = asyncio.Event()
        self._short = False
        self.refaulted = False
        self._target_shown = math.inf
        self._inflated = math.inf
        self._error: str | None = None

    def count(self, chain: ServedChain) -> None:
        """Take a served chain into account."""
        if chain.queue is not self._queue:
            # The guest is short of memory: a driver that has begun to inflate was not asked to deflate. The times are
            # compared because the chains of two queues may be reported here in another order than they were served.
            if chain.queue is BalloonQueue.DEFLATE and chain.finished > self._inflated:
                self.cut_short()
            return
        if chain.finished >= self._target_shown:
            self._inflated = min(self._inflated, chain.finished)
        stale = sum(each.bytes for each in chain.refused if each.reason in (Refusal.STALE_HINT, Refusal.BAD_COMMAND))
        self._offered += chain.outcome.plan.bytes - stale
        self._discarded += chain.discarded_bytes
        self.moved()

    def target_shown(self, now: float) -> None:
        """The driver can see from ``now`` on that it is to inflate. It needs the pages that it deflates after that."""
        self._target_shown = now

    def moved(self) -> None:
        """Take note that the driver has done something: it is not stalled."""
        self._moved.set()

    def cut_short(self) -> None:
        """End :meth:`wait`: the sums are final."""
        self._short = True
        self._moved.set()

    def end(self, reason: str) -> None:
        """Have :meth:`wait` fail with ``reason``."""
        self._error = reason
        self._moved.set()

    @property
    def offered_bytes(self) -> int:
        """What the driver has offered so far."""
        return self._offered

    @property
    def discarded_bytes(self) -> int:
        """What was discarded of it so far."""
        return self._discarded

    @property
    def is_short(self) -> bool:
        """Whether :meth:`cut_short` was called."""
        return self._short

    def _stopped_by(self) -> StoppedBy:
        if self.refaulted:
            return StoppedBy.REFAULT
        return StoppedBy.GUEST if self._short else StoppedBy.STALL

    async def rest(self, seconds: float) -> None:
        """Wait so long, or until the reclaim is cut short or ended."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while not self._short and self._error is None and loop.time() < end:
            self._moved.clear()
            try:
                async with asyncio.timeout_at(end):
                    await self._moved.wait()
            except TimeoutError:
                return

    def result(self, now: float, *, complete: bool) -> ReclaimResult:
        """Return the sums."""
        return ReclaimResult(
            method=self.method,
            offered_bytes=self._offered,
            discarded_bytes=self._discarded,
            seconds=now - self._begin,
            complete=complete,
            stopped_by=None if complete else self._stopped_by(),
        )

    async def wait(self, condition: Callable[[], bool]) -> bool:
        """Wait until ``condition`` holds, the driver stalls, or time is up; return whether it holds.

        Raises:
            BalloonError: the reclaim was ended.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + LONGEST
        while True:
            if self._error is not None:
                raise BalloonError(self._error)
            if condition():
                return True
            if self._short:
                return False
            self._moved.clear()
            try:
                async with asyncio.timeout_at(min(loop.time() + STALL, deadline)):
                    await self._moved.wait()
            except TimeoutError:
                return condition()
