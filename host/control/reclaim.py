"""Two ways to make a guest give up memory that it does not use, once and now.

``inflate``
    Ask how much memory is free, inflate the balloon by that less a reserve, wait, and wish for the old size again. This
    is safe with every driver: a page that was put on the inflate queue must not be used before it is acknowledged
    (virtio 1.2, 5.5.6.1), and it is discarded before that. When the balloon shrinks again the guest gets zeroed pages.
    While it lasts the guest has little free memory; the reserve and DEFLATE_ON_OOM are what it lives on. When it has to
    take pages out again for want of memory, that is the end of it: nothing is gained by taking them a second time.

``hint``
    One round of free page hinting. It leaves the guest its memory except for the moment, but with Linux it is not safe
    while the guest runs short of memory: see :mod:`host.balloon.free_page_hinting` for when blocks may be discarded,
    and what guards that.

However a reclaim ends (the driver is slow, stops answering, is reset or goes away) the old target is wished for again
and the round is closed and then done. A driver that gives no answer costs bounded time, not an error.
"""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, Protocol

from host.balloon.free_page_hinting import FreePageHinting
from host.memory.discard_plan import Refusal
from host.ring.ring_service import ServedChain
from protocol.errors import BalloonError
from protocol.virtio_balloon import NUM_PAGES_MAX, PFN_SHIFT, BalloonQueue

if TYPE_CHECKING:
    from host.control.vm_facts import GuestStatistics, VmInfo

STALL: Final = 3.0
"""Seconds without any progress after which a driver is not waited for any longer."""

LONGEST: Final = 60.0
"""Most seconds that one reclaim waits, however often the driver makes a little progress."""

RESERVE_PART: Final = 16
"""One part in so many of the guest's memory is left free when it inflates, so that its kernel need not reclaim."""

RESERVE_BYTES: Final = 16 << 20
"""The least that is left free."""


class ReclaimMethod(Enum):
    """How memory is reclaimed."""

    HINT = "hint"
    INFLATE = "inflate"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReclaimResult:
    """What a reclaim brought.

    ``offered_bytes`` is what the driver offered (by hinting or by inflating) and ``discarded_bytes`` what was discarded
    of it. ``complete`` False means that the driver did not do all that was asked: it stalled, was reset, was given
    another target, had less memory than it said, or ran short of it meanwhile.
    """

    method: ReclaimMethod
    offered_bytes: int
    discarded_bytes: int
    seconds: float
    complete: bool


class Progress:
    """What is known of a reclaim that is under way. ``now`` is the event loop's time in seconds."""

    def __init__(self, method: ReclaimMethod, now: float) -> None:
        self.method = method
        self._begin = now
        self._queue = BalloonQueue.FREE_PAGE if method is ReclaimMethod.HINT else BalloonQueue.INFLATE
        self._offered = 0
        self._discarded = 0
        self._moved = asyncio.Event()
        self._short = False
        self._target_shown = math.inf
        self._inflated = math.inf
        self._error: str | None = None

    def count(self, chain: ServedChain) -> None:
        """Take a served chain into account."""
        if chain.queue is not self._queue:
            # For want of memory: a driver that has begun to inflate knows of no wish for less. The times are compared
            # since of two queues the later chain may be heard of first.
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
        """The driver can see from ``now`` on that it is to inflate; pages that it takes out after that it needs."""
        self._target_shown = now

    def moved(self) -> None:
        """Something happened: the driver is not stalled."""
        self._moved.set()

    def cut_short(self) -> None:
        """Wait no longer."""
        self._short = True
        self._moved.set()

    def end(self, reason: str) -> None:
        """Have whoever waits fail."""
        self._error = reason
        self._moved.set()

    def result(self, now: float, *, complete: bool) -> ReclaimResult:
        """Return the sums."""
        return ReclaimResult(
            method=self.method,
            offered_bytes=self._offered,
            discarded_bytes=self._discarded,
            seconds=now - self._begin,
            complete=complete,
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


class Guest(Protocol):
    """What a reclaim asks for, see :class:`host.control.vm_control.VmControl`."""

    @property
    def hinting(self) -> FreePageHinting:
        """The rounds of free page hinting."""

    def show_command_id(self, state: str) -> None:
        """Let the driver see the command id that is current."""

    async def end_hinting(self) -> None:
        """Close the round, let no worker be in the middle of it, and show DONE."""

    def info(self) -> "VmInfo":
        """Return what is known at once."""

    async def statistics(self) -> "GuestStatistics":
        """Ask the guest for fresh statistics."""

    async def settle(self, queue: BalloonQueue) -> None:
        """Return when every chain of ``queue`` that was served has been counted."""

    def inflate_to(self, num_pages: int) -> None:
        """Have the balloon inflated for now."""

    def restore_target(self) -> None:
        """Wish for what was wished for last."""


async def reclaim_by_hint(guest: Guest, progress: Progress) -> bool:
    """Carry out one round; return whether the driver ended it.

    Raises:
        BalloonError: no round can begin, or the virtual machine goes away.
    """
    hinting = guest.hinting
    command_id = hinting.start()
    guest.show_command_id("start")
    try:
        await progress.wait(lambda: hinting.ended_id == command_id or hinting.command_id != command_id)
        complete = hinting.ended_id == command_id
        if not complete and hinting.command_id == command_id:
            hinting.stop()  # "any time that it will not be able to make use of the hints"
            guest.show_command_id("stop")
    finally:
        await guest.end_hinting()
    return complete


async def reclaim_by_inflate(guest: Guest, progress: Progress) -> bool:
    """Inflate by what is free, then wish for the old target again; return whether the driver inflated all of it.

    Raises:
        BalloonError: the guest does not say how much memory is free, or goes away.
    """
    values = (await guest.statistics()).values
    if "memfree" not in values:
        raise BalloonError("the guest's driver does not say how much memory is free")
    info = guest.info()
    reserve = max(RESERVE_BYTES, values.get("memtot", info.memory_bytes) // RESERVE_PART)
    spare = min(values["memfree"], info.memory_bytes) - reserve  # the guest's word, which may be anything
    target = min(info.actual + (spare >> PFN_SHIFT), info.memory_bytes >> PFN_SHIFT, NUM_PAGES_MAX)
    if spare <= 0 or target <= max(info.actual, info.num_pages):
        return True  # nothing to be had, or the balloon is to grow further anyway
    guest.inflate_to(target)
    progress.target_shown(asyncio.get_running_loop().time())
    try:
        complete = await progress.wait(lambda: guest.info().actual >= target)
        await guest.settle(BalloonQueue.INFLATE)  # the driver's word may come before the last chains are counted
        return complete
    finally:
        guest.restore_target()
