"""Two ways to make a guest give up memory that it does not use, once and now.

``inflate``
    Ask how much memory is free, inflate the balloon by that less a reserve, wait, and ask for the old size again. This
    is safe with every driver: a page that was put on the inflate queue must not be used before it is acknowledged
    (virtio 1.2, 5.5.6.1), and it is discarded before that. When the balloon shrinks again the guest gets zeroed pages.
    While it is inflated the guest has little free memory: the reserve, and what DEFLATE_ON_OOM lets it take out again.
    A guest that does take pages out ends the reclaim: to inflate a second time would gain nothing. With limits the
    balloon grows in steps, and the guest's statistics between them say whether it reads back what it gave up.

``hint``
    One round of free page hinting. It leaves the guest its memory except for the moment, but with Linux it is not safe
    while the guest runs short of memory: see :mod:`host.balloon.free_page_hinting` for when blocks may be discarded,
    and what guards that.

At every end of a reclaim (the driver is slow, stops answering, is reset or goes away) the balloon's target is set again
and a hinting round is closed. The wait for a driver that does not answer is bounded; it is not an error.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from host.balloon.free_page_hinting import COMMAND_ID_STOP, FreePageHinting
from host.control.balloon_size import BalloonSize
from host.control.connection_interface import ConnectionInterface
from host.control.guest_statistics import StatisticsRequests
from host.control.latest_value import LatestValue
from host.control.reclaim_progress import (
    LONGEST,
    NO_LIMITS,
    ReclaimLimits,
    ReclaimMethod,
    ReclaimProgress,
    ReclaimResult,
)
from host.ring.turn import ServedChain
from protocol.errors import BalloonError
from protocol.memory import PAGE_SIZE
from protocol.virtio import has_feature
from protocol.virtio_balloon import PFN_SHIFT, BalloonFeature, BalloonQueue

RESERVE_PART: Final = 16
"""One part in so many of the guest's memory is left free when it inflates, so that its kernel need not reclaim."""

RESERVE_BYTES: Final = 16 << 20
"""The least that is left free."""

STEP_SECONDS: Final = 0.25
"""Seconds of one step of a reclaim with a pace, and least seconds between two ``reclaim_progress`` events."""

STEPS: Final = 16
"""Steps of a reclaim that looks for refaults and has no pace."""

REFAULTS_MAX: Final = 64
"""Major faults and pages swapped in, from one step to the next, that a guest may have for reasons of its own."""


class Reclaimer:
    """Reclaims memory from one guest, one reclaim at a time. ``emit`` writes an event."""

    def __init__(
        self,
        connection: ConnectionInterface,
        size: BalloonSize,
        statistics: StatisticsRequests,
        emit: Callable[..., None],
    ) -> None:
        self._connection = connection
        self._size = size
        self._statistics = statistics
        self._emit = emit
        self._loop = asyncio.get_running_loop()
        self._progress: ReclaimProgress | None = None
        self._limits = NO_LIMITS
        self._told: LatestValue[ReclaimProgress] | None = None
        self._closed: str | None = None

    async def reclaim(self, method: ReclaimMethod | str | None, limits: ReclaimLimits = NO_LIMITS) -> ReclaimResult:
        """Reclaim once, by hinting if ``method`` is None, there are no limits and hinting was negotiated, otherwise by
        inflating.

        Raises:
            BalloonError: a reclaim is under way, the driver cannot do it, or the virtual machine goes away.
        """
        if self._closed is not None:
            raise BalloonError(self._closed)
        if self._progress is not None:
            raise BalloonError("memory is being reclaimed from this virtual machine already")
        if method is None:
            hints = has_feature(self._connection.balloon.features, BalloonFeature.FREE_PAGE_HINT)
            method = ReclaimMethod.HINT if hints and limits == NO_LIMITS else ReclaimMethod.INFLATE
        try:
            method = ReclaimMethod(method)
        except ValueError:
            raise BalloonError(f"memory is reclaimed by hint or by inflate, not by {method}") from None
        if method is ReclaimMethod.HINT and limits != NO_LIMITS:
            raise BalloonError("a floor, a pace and a stop on refaults need a reclaim by inflating")
        self._check_possible(method)
        self._progress, self._limits = ReclaimProgress(method, self._loop.time()), limits
        self._told = LatestValue(STEP_SECONDS, self._tell)
        # A task of its own: a client may disconnect, but a round has to be closed in order.
        task = self._loop.create_task(self._run(self._progress))
        task.add_done_callback(_retrieve)
        return await asyncio.shield(task)

    def _check_possible(self, method: ReclaimMethod) -> None:
        balloon = self._connection.balloon
        if not self._connection.driver_ready:
            raise BalloonError("the guest's driver is not ready")
        if (reason := balloon.keeps_pages) is not None:
            raise BalloonError(f"nothing can be reclaimed: no page of this guest is discarded ({reason.value})")
        sizes = [file.page_size for file in self._connection.region_files]
        tells = has_feature(balloon.features, BalloonFeature.MUST_TELL_HOST)
        if method is ReclaimMethod.INFLATE and min(sizes, default=PAGE_SIZE) > PAGE_SIZE and not tells:
            raise BalloonError(
                f"nothing can be reclaimed by inflating: the guest's memory is in huge pages of {min(sizes)} bytes, "
                "and smaller pages are collected only with MUST_TELL_HOST (--features must-tell-host=on)"
            )
        # The free page queue need not run yet: with kicks in-band a ring starts with its first kick, which comes with
        # the driver's answer to a command id.
        if method is ReclaimMethod.HINT and not has_feature(balloon.features, BalloonFeature.FREE_PAGE_HINT):
            raise BalloonError("the guest's driver cannot hint: FREE_PAGE_HINT was not negotiated")

    async def _run(self, progress: ReclaimProgress) -> ReclaimResult:
        try:
            if progress.method is ReclaimMethod.HINT:
                complete = await self._hint(progress)
            else:
                complete = await self._inflate(progress)
        finally:
            self._progress = None
            if self._told is not None:
                self._told.close()
        result = progress.result(self._loop.time(), complete=complete)
        self._emit(
            "reclaim",
            method=result.method.value,
            offered_bytes=result.offered_bytes,
            discarded_bytes=result.discarded_bytes,
            seconds=round(result.seconds, 6),
            complete=result.complete,
            stopped_by=None if result.stopped_by is None else result.stopped_by.value,
        )
        return result

    def _tell(self, progress: ReclaimProgress) -> None:
        self._emit(
            "reclaim_progress",
            method=progress.method.value,
            offered_bytes=progress.offered_bytes,
            discarded_bytes=progress.discarded_bytes,
        )

    # -- what happens meanwhile -------------------------------------------------------------------------------------

    def chain_served(self, chain: ServedChain) -> None:
        """Take a served chain into account: hints and inflated pages are progress."""
        if self._progress is not None:
            before = self._progress.offered_bytes
            self._progress.count(chain)
            if self._told is not None and self._progress.offered_bytes != before:
                self._told.change(self._progress)

    def size_changed(self) -> None:
        """Take note that the driver has written another ``actual``."""
        if self._progress is not None:
            self._progress.moved()

    def target_changed(self) -> None:
        """End a reclaim that inflates: the balloon has another target now."""
        if self._progress is not None and self._progress.method is ReclaimMethod.INFLATE:
            self._progress.cut_short()

    def driver_left(self) -> None:
        """End the reclaim under way: the driver that it was asked of has gone."""
        if self._progress is not None:
            self._progress.cut_short()

    def close(self, reason: str) -> None:
        """Have every reclaim, one that is under way too, fail with ``reason``."""
        self._closed = reason
        if self._progress is not None:
            self._progress.end(reason)

    # -- inflating --------------------------------------------------------------------------------------------------

    async def _inflate(self, progress: ReclaimProgress) -> bool:
        # Returns whether the driver inflated all of what was asked.
        values = (await self._statistics.fresh()).values
        if "memfree" not in values:
            raise BalloonError("the guest's driver does not say how much memory is free")
        memory_bytes, config = self._connection.memory_bytes, self._connection.balloon.config
        reserve = max(RESERVE_BYTES, values.get("memtot", memory_bytes) // RESERVE_PART)
        spare = min(values["memfree"], memory_bytes) - reserve  # the guest may send any value
        most = max(self._size.ram.bytes - self._limits.floor, 0) >> PFN_SHIFT
        target = min(config.actual + (spare >> PFN_SHIFT), self._size.ram.pages, most)
        if spare <= 0 or target <= max(config.actual, config.num_pages):
            return True  # nothing to gain, or the balloon is to grow further anyway
        try:
            if self._limits.in_steps:
                complete = await self._inflate_in_steps(progress, target, values)
            else:
                complete = await self._inflate_to(progress, target)
            await self._settle(BalloonQueue.INFLATE)  # `actual` may be written before the last chains are counted
            return complete
        finally:
            self._size.restore_target()

    async def _inflate_to(self, progress: ReclaimProgress, target: int) -> bool:
        self._size.inflate_to(target)
        progress.target_shown(self._loop.time())
        return await progress.wait(lambda: self._connection.balloon.config.actual >= target)

    async def _inflate_in_steps(self, progress: ReclaimProgress, target: int, values: Mapping[str, int]) -> bool:
        limits, config = self._limits, self._connection.balloon.config
        pages = target - config.actual
        step, seconds = pace_step(limits.pace) if limits.pace else (max(pages // STEPS, 1), 0.0)
        end = self._loop.time() + LONGEST + pages * seconds / step
        shown = config.actual
        while shown < target:
            begin = self._loop.time()
            shown = min(shown + step, target)
            if begin > end or not await self._inflate_to(progress, shown):
                return False
            if limits.stop_on_refault:
                before, values = values, (await self._statistics.fresh()).values
                if _refaults(values) - _refaults(before) > REFAULTS_MAX:
                    progress.refaulted = True
                    return False
            if shown < target:
                await progress.rest(begin + seconds - self._loop.time())
        return True

    # -- hinting ----------------------------------------------------------------------------------------------------

    async def _hint(self, progress: ReclaimProgress) -> bool:
        # Returns whether the driver ended the round.
        hinting = self._hinting
        command_id = hinting.start()
        self.show_command_id("start")
        try:
            await progress.wait(lambda: hinting.ended_id == command_id or hinting.command_id != command_id)
            complete = hinting.ended_id == command_id
            if not complete and hinting.command_id == command_id:
                hinting.stop()  # "any time that it will not be able to make use of the hints"
                self.show_command_id("stop")
        finally:
            await self._end_hinting()
        return complete

    async def _end_hinting(self) -> None:
        # Closes the round. The driver has its blocks back (DONE) once no worker can be discarding one of them.
        hinting = self._hinting
        hinting.stop()
        await self._settle(BalloonQueue.FREE_PAGE)
        if hinting.command_id == COMMAND_ID_STOP:
            hinting.done()
            self.show_command_id("done")

    @property
    def _hinting(self) -> FreePageHinting:
        return self._connection.balloon.hinting

    def show_command_id(self, state: str) -> None:
        """Write the current command id to the configuration space; ``state`` names it in the event."""
        command_id = self._hinting.command_id
        self._connection.change_config(free_page_hint_cmd_id=command_id)
        self._emit("hinting", state=state, command_id=command_id)

    async def _settle(self, queue: BalloonQueue) -> None:
        # Returns when every chain of the queue that was served has been counted.
        service = self._connection.queue(queue)
        if service is not None:
            await service.settled()


def pace_step(pace: int) -> tuple[int, float]:
    """Return the pages of one step with a pace of ``pace`` bytes a second, and the seconds that it takes: about
    :data:`STEP_SECONDS`, and longer where not even one page may be taken in that time."""
    pages = max(int(pace * STEP_SECONDS) >> PFN_SHIFT, 1)
    return pages, (pages << PFN_SHIFT) / pace


def _refaults(values: Mapping[str, int]) -> int:
    # "The amount of memory that has been swapped in (in bytes)" (virtio 1.2, 5.5.6.4).
    return values.get("majflt", 0) + (values.get("swap_in", 0) >> PFN_SHIFT)


def _retrieve(task: "asyncio.Task[ReclaimResult]") -> None:
    # The client may have gone. The loop must not log its error as one that was never retrieved.
    if not task.cancelled():
        task.exception()
