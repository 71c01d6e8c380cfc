"""What a person or a program can ask of one virtual machine's balloon: facts, a new size, statistics, reclaiming.

Everything runs on the event loop. The only ring that is written on request is the statistics queue's, by giving back
the buffer that is held, and only while that ring runs (``RingService.give_back_held``).
"""

import asyncio
import math
from collections.abc import Callable
from typing import Final, Protocol

from host.balloon.free_page_hinting import COMMAND_ID_STOP, FreePageHinting
from host.balloon.virtio_balloon import VirtioBalloon
from host.control.latest_value import LatestValue
from host.control.reclaim import Progress, ReclaimMethod, ReclaimResult, reclaim_by_hint, reclaim_by_inflate
from host.control.vm_facts import GuestStatistics, VmInfo
from host.ring.ring_service import ServedChain
from host.vhost_user.device_setup import DeviceSetup
from protocol.errors import BalloonError
from protocol.virtio import has_feature
from protocol.virtio_balloon import NUM_PAGES_MAX, PFN_SHIFT, BalloonConfig, BalloonFeature, BalloonQueue

STATISTICS_TIMEOUT: Final = 5.0
"""Seconds that a guest has to answer a request for statistics. One that thrashes may need longer, or never answer."""

BALLOON_INTERVAL: Final = 0.05
"""Least seconds between two ``balloon`` events of one virtual machine: a driver can write ``actual`` all the time."""


class Queue(Protocol):
    """What is needed of a running queue: see :class:`host.ring.ring_service.RingService`."""

    def give_back_held(self) -> bool:
        """Give the held chain back. Return False if the ring is not to be touched."""

    async def settled(self) -> None:
        """Return when no chain is in hand that was taken before."""


class Machine(Protocol):
    """What is needed of the virtual machine: see :class:`host.connection.Connection`."""

    @property
    def balloon(self) -> VirtioBalloon:
        """The device."""

    @property
    def peer_pid(self) -> int:
        """Process id of the front-end."""

    @property
    def memory_bytes(self) -> int:
        """Bytes of all memory regions."""

    def queue(self, queue: BalloonQueue) -> Queue | None:
        """Return a queue if it runs."""

    @property
    def driver_ready(self) -> bool:
        """Whether a driver is at work."""

    @property
    def setup(self) -> DeviceSetup:
        """How the driver has set the device up."""

    def change_config(self, **fields: int) -> None:
        """Set fields of the configuration space, and tell the driver."""

    def emit(self, event: str, **fields: object) -> None:
        """Write one event."""


class VmControl:
    """The controls of one virtual machine. ``on_balloon_change`` hears of each new ``actual``, in pages."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._loop = asyncio.get_running_loop()
        self._wish = machine.balloon.config.num_pages
        self._actual = machine.balloon.config.actual
        self._sizes = LatestValue(BALLOON_INTERVAL, self._tell_size)
        self._asking: set[asyncio.Future[GuestStatistics]] = set()
        self._interval = 0.0
        self._poller: asyncio.TimerHandle | None = None
        self._progress: Progress | None = None
        self._gone = False
        self.last_statistics: GuestStatistics | None = None
        self.on_balloon_change: Callable[[int], None] = lambda _actual: None

    def info(self) -> VmInfo:
        """Return what is known at once."""
        machine = self._machine
        config = machine.balloon.config
        return VmInfo(
            pid=machine.peer_pid,
            memory_bytes=machine.memory_bytes,
            num_pages=config.num_pages,
            actual=config.actual,
            features=machine.balloon.features,
            driver_ready=machine.driver_ready,
            setup=machine.setup,
        )

    # -- what the connection tells ----------------------------------------------------------------------------------

    def config_written(self) -> None:
        """The driver wrote to the configuration space: tell of ``actual`` if it is a new one."""
        config = self._machine.balloon.config
        if config.actual == self._actual:
            return
        self._actual = config.actual
        self._sizes.change((self._loop.time(), config))
        self.on_balloon_change(config.actual)
        if self._progress is not None:
            self._progress.moved()

    def _tell_size(self, written: tuple[float, BalloonConfig]) -> None:
        when, config = written
        sizes = {"actual_bytes": config.actual << PFN_SHIFT, "target_bytes": config.num_pages << PFN_SHIFT}
        self._emit("balloon", t=round(when, 6), **sizes)

    def chain_served(self, chain: ServedChain) -> None:
        """A chain was served: statistics are an answer, hints and inflated pages are progress."""
        statistics = chain.outcome.statistics
        if statistics is not None:
            self.last_statistics = GuestStatistics(statistics.values, chain.finished)
            for answer in self._asking:
                if not answer.done():
                    answer.set_result(self.last_statistics)
        if self._progress is not None:
            self._progress.count(chain)

    def close(self) -> None:
        """The virtual machine has gone: whoever waits for it gets an error."""
        self._sizes.flush()
        self._sizes.close()
        self._gone = True
        self.set_statistics_interval(0)
        for answer in self._asking:
            if not answer.done():
                answer.set_exception(BalloonError("the virtual machine has gone"))
        if self._progress is not None:
            self._progress.end("the virtual machine has gone")

    # -- the balloon's size -----------------------------------------------------------------------------------------

    def set_num_pages(self, num_pages: int) -> None:
        """Wish for a balloon of ``num_pages`` 4096-byte pages, and tell the driver if there is one.

        A reclaim that inflates is ended by this: the new wish counts.

        Raises:
            BalloonError: no balloon can be that large.
        """
        if not 0 <= num_pages <= NUM_PAGES_MAX:
            raise BalloonError(f"a balloon has 0 to {NUM_PAGES_MAX} pages, not {num_pages}")
        self._wish = num_pages
        self._set_target(num_pages)
        if self._progress is not None and self._progress.method is ReclaimMethod.INFLATE:
            self._progress.cut_short()

    def _set_target(self, num_pages: int) -> None:
        changed = num_pages != self._machine.balloon.config.num_pages
        self._machine.change_config(num_pages=num_pages)
        if changed:
            self._emit("target", bytes=num_pages << PFN_SHIFT)

    @property
    def wish(self) -> int:
        """The size that the balloon should have, in pages, leaving out what a reclaim inflates it to for a while."""
        return self._wish

    def restore(self, num_pages: int, actual: int) -> None:
        """Go on from the sizes that another daemon has left."""
        self._wish, self._actual = num_pages, actual

    # -- statistics -------------------------------------------------------------------------------------------------

    async def statistics(self) -> GuestStatistics:
        """Ask the guest for fresh statistics.

        Raises:
            BalloonError: the driver gives none, does not answer within :data:`STATISTICS_TIMEOUT`, or goes away.
        """
        self._check_present()
        if not has_feature(self._machine.balloon.features, BalloonFeature.STATS_VQ):
            raise BalloonError("the guest's driver gives no statistics: STATS_VQ was not negotiated")
        if not self._ask_for_statistics():
            raise BalloonError("the guest's driver gives no statistics: its statistics queue does not run")
        answer: asyncio.Future[GuestStatistics] = self._loop.create_future()
        self._asking.add(answer)
        try:
            async with asyncio.timeout(STATISTICS_TIMEOUT):
                return await answer
        except TimeoutError:
            raise BalloonError(f"the guest gave no statistics within {STATISTICS_TIMEOUT:.0f} s") from None
        finally:
            self._asking.discard(answer)

    @property
    def statistics_interval(self) -> float:
        """Seconds between two requests for statistics; 0 for only when wanted."""
        return self._interval

    def set_statistics_interval(self, seconds: float) -> None:
        """Ask for statistics every ``seconds`` from now on; 0 for only when wanted.

        Raises:
            BalloonError: a negative or infinite interval.
        """
        if not (math.isfinite(seconds) and seconds >= 0):
            raise BalloonError(f"statistics cannot be taken every {seconds} s")
        self._interval = seconds
        if self._poller is not None:
            self._poller.cancel()
            self._poller = None
        if seconds > 0 and not self._gone:
            self._poller = self._loop.call_later(seconds, self._poll_statistics)

    def _poll_statistics(self) -> None:
        self._ask_for_statistics()
        self._poller = self._loop.call_later(self._interval, self._poll_statistics)

    def _ask_for_statistics(self) -> bool:
        # A driver that still owes its last answer has nothing held, and then this does nothing: no request piles up.
        queue = self._machine.queue(BalloonQueue.STATS)
        return queue is not None and queue.give_back_held()

    # -- reclaiming -------------------------------------------------------------------------------------------------

    async def reclaim(self, method: ReclaimMethod | str | None = None) -> ReclaimResult:
        """Make the guest give up memory that it does not use, once. See :mod:`host.control.reclaim` for the two
        methods; the
        default is hinting if it was negotiated.

        Raises:
            BalloonError: one is under way already, the driver cannot do it, or the virtual machine goes away.
        """
        self._check_present()
        if self._progress is not None:
            raise BalloonError("memory is being reclaimed from this virtual machine already")
        features = self._machine.balloon.features
        if method is None:
            hints = has_feature(features, BalloonFeature.FREE_PAGE_HINT)
            method = ReclaimMethod.HINT if hints else ReclaimMethod.INFLATE
        try:
            method = ReclaimMethod(method)
        except ValueError:
            raise BalloonError(f"memory is reclaimed by hint or by inflate, not by {method}") from None
        self._check_useful(method)
        self._progress = Progress(method, self._loop.time())
        # A task of its own: whoever asked may go away, but a round has to be closed in order.
        task = self._loop.create_task(self._reclaim(self._progress))
        task.add_done_callback(_retrieve)
        return await asyncio.shield(task)

    async def _reclaim(self, progress: Progress) -> ReclaimResult:
        try:
            if progress.method is ReclaimMethod.HINT:
                complete = await reclaim_by_hint(self, progress)
            else:
                complete = await reclaim_by_inflate(self, progress)
        finally:
            self._progress = None
        result = progress.result(self._loop.time(), complete=complete)
        self._emit(
            "reclaim",
            method=result.method.value,
            offered_bytes=result.offered_bytes,
            discarded_bytes=result.discarded_bytes,
            seconds=round(result.seconds, 6),
            complete=result.complete,
        )
        return result

    def _emit(self, event: str, **fields: object) -> None:
        if not self._gone:
            self._machine.emit(event, **fields)

    def _check_present(self) -> None:
        if self._gone:
            raise BalloonError("the virtual machine has gone")

    def _check_useful(self, method: ReclaimMethod) -> None:
        balloon = self._machine.balloon
        if not self._machine.driver_ready:
            raise BalloonError("the guest's driver is not ready")
        if (reason := balloon.keeps_pages) is not None:
            raise BalloonError(f"nothing can be reclaimed: no page of this guest is discarded ({reason.value})")
        # Whether the free page queue runs says nothing: with kicks in-band a ring starts with its first kick, which
        # comes with the driver's answer to a command id.
        if method is ReclaimMethod.HINT and not has_feature(balloon.features, BalloonFeature.FREE_PAGE_HINT):
            raise BalloonError("the guest's driver cannot hint: FREE_PAGE_HINT was not negotiated")

    # -- what host.reclaim asks for ---------------------------------------------------------------------------------

    @property
    def hinting(self) -> FreePageHinting:
        """The rounds of free page hinting."""
        return self._machine.balloon.hinting

    def show_command_id(self, state: str) -> None:
        """Let the driver see the command id that is current."""
        command_id = self.hinting.command_id
        self._machine.change_config(free_page_hint_cmd_id=command_id)
        self._emit("hinting", state=state, command_id=command_id)

    async def end_hinting(self) -> None:
        """Close the round and let the driver have its blocks back, when no worker can be discarding one of them."""
        self.hinting.stop()
        await self.settle(BalloonQueue.FREE_PAGE)
        if self.hinting.command_id == COMMAND_ID_STOP:
            self.hinting.done()
            self.show_command_id("done")

    async def settle(self, queue: BalloonQueue) -> None:
        """Return when every chain of ``queue`` that was served has been counted."""
        service = self._machine.queue(queue)
        if service is not None:
            await service.settled()

    def inflate_to(self, num_pages: int) -> None:
        """Have the balloon inflated for now; :meth:`restore_target` takes that back."""
        self._set_target(num_pages)

    def restore_target(self) -> None:
        """Wish for what was wished for last."""
        self._set_target(self._wish)


def _retrieve(task: "asyncio.Task[ReclaimResult]") -> None:
    # Nobody may be left to hear of the error; that is no fault to be logged.
    if not task.cancelled():
        task.exception()
