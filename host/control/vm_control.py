"""The controls of one virtual machine's balloon: its facts, a new size, statistics, reclaiming.

They stand between two interfaces: commands reach them through :mod:`host.control.vm_interface`, and they reach the
session through :mod:`host.control.connection_interface`. Everything runs on the event loop.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any

from host.control.backed_memory import BackedMemory, Look
from host.control.balloon_size import BalloonSize
from host.control.connection_interface import ConnectionInterface
from host.control.guest_statistics import GuestStatistics, StatisticsRequests
from host.control.reclaim import Reclaimer
from host.control.reclaim_progress import NO_LIMITS, ReclaimLimits, ReclaimMethod, ReclaimResult
from host.control.vm_facts import VmInfo
from host.events.notices import Notices
from host.inhibition.discard_gate import DiscardGate
from host.inhibition.inhibition import Inhibition
from host.ring.turn import ServedChain
from protocol.memory import PAGE_SIZE
from protocol.virtio_balloon import BalloonQueue

_GONE = "the virtual machine has gone"
_DISCARDING = (BalloonQueue.REPORTING, BalloonQueue.INFLATE, BalloonQueue.FREE_PAGE)


class VmControl:
    """The controls of one virtual machine, whose files are examined by ``look``. ``on_balloon_change`` is called with
    each new ``actual``, in pages, ``on_change`` when what :meth:`write_down` returns has changed without a chain."""

    def __init__(
        self, connection: ConnectionInterface, look: Look, on_change: Callable[[], None] = lambda: None
    ) -> None:
        self._connection = connection
        self._on_change = on_change
        self._gone = False
        self.name = ""
        self._began = time.monotonic()
        self._reported: float | None = None
        self._backed = BackedMemory(look)
        self._gate = DiscardGate(look, self._inhibition_changed)
        self.notices = Notices(connection.metrics)
        self._statistics = StatisticsRequests(connection)
        self.size = BalloonSize(connection, self._emit)
        self.reclaimer = Reclaimer(connection, self.size, self._statistics, self._emit)
        self.on_balloon_change: Callable[[int], None] = lambda _actual: None

    def info(self) -> VmInfo:
        """Return what is known without asking the guest."""
        connection = self._connection
        config, traffic, now = connection.balloon.config, connection.metrics, time.monotonic()
        kept, last = connection.balloon.keeps_pages, self._statistics.last
        return VmInfo(
            pid=connection.peer_pid,
            name=self.name,
            age=now - self._began,
            memory_bytes=connection.memory_bytes,
            guest_bytes=self.size.ram.bytes,
            num_pages=config.num_pages,
            target_pages=self.size.target_pages,
            actual=config.actual,
            features=connection.balloon.features,
            driver_ready=connection.driver_ready,
            setup=connection.setup,
            now=now,
            reports=traffic.reports,
            reported_bytes=traffic.reported_bytes,
            mean_range=traffic.reported_bytes // max(traffic.reported_ranges, 1),
            discarded_bytes=traffic.discarded_bytes,
            inflated_pages=traffic.inflated_pages,
            deflated_pages=traffic.deflated_pages,
            hinted_bytes=traffic.hinted_bytes,
            refused=dict(traffic.refused),
            refused_bytes=dict(traffic.refused_bytes),
            acknowledge=traffic.acknowledge,
            discard=traffic.discard,
            last_report=None if self._reported is None else now - self._reported,
            device=connection.device_facts,
            page_size=max((file.page_size for file in connection.region_files), default=PAGE_SIZE),
            keeps_pages=None if kept is None else kept.value,
            inhibition=self._gate.current,
            signs=self._gate.signs,
            refaulted_bytes=self._backed.refaults.bytes,
            statistics={} if last is None else last.values,
            statistics_age=None if last is None else last.age,
            unanswered=self._statistics.unanswered,
        )

    async def backed_bytes(self) -> int | None:
        """Return how much memory the host holds for the guest's memory, None if its files do not answer."""
        await self._gate.look()  # it comes with what is asked about the machine
        files = self._connection.region_files
        at_once = all(file.answers_at_once for file in files)
        refaulted = self._backed.refaults.bytes
        backed = await self._backed.measure([file.fd for file in files], at_once=at_once)
        if self._backed.refaults.bytes != refaulted:
            self._on_change()
        return backed

    # -- called by the connection -----------------------------------------------------------------------------------

    def config_written(self) -> None:
        """Take note that the driver wrote to the configuration space."""
        if self.size.config_written():
            self.on_balloon_change(self._connection.balloon.config.actual)
            self.reclaimer.size_changed()

    def memory_changed(self) -> None:
        """Take note that the machine has another memory table."""
        self.size.refresh()
        self._gate.watch(self._connection.peer_pid, self._connection.memory_bytes)

    def looking_first(self, workers: Executor) -> Executor:
        """Return ``workers`` that serve a ring only once it is known whether something inhibits discards."""
        return self._gate.before(workers)

    def look_again(self, pid: int) -> None:
        """Take note that there is something new about process ``pid``, which may be the front-end's."""
        if pid == self._connection.peer_pid:
            self._gate.look_again()

    def driver_left(self) -> None:
        """Take note that another driver comes: forget the last one's statistics, and end its reclaim."""
        self.config_written()
        self._statistics.forget()
        self.size.statistics_received(None)
        self.reclaimer.driver_left()

    def chain_served(self, chain: ServedChain) -> None:
        """Take note that a chain was served."""
        if chain.queue is BalloonQueue.REPORTING:
            self._reported = chain.finished
        statistics = chain.outcome.statistics
        if statistics is not None:
            self._statistics.received(GuestStatistics(statistics.values, chain.finished))
            self.size.statistics_received(statistics.values.get("memtot"))
        self.reclaimer.chain_served(chain)
        self._gate.chain_served(chain.finished)
        self.notices.chain_served()

    def close(self) -> None:
        """Take note that the virtual machine has gone: every command that waits for it fails."""
        self.size.close()
        self.notices.close()
        self._gate.close()
        self._gone = True
        self._statistics.close(_GONE)
        self.reclaimer.close(_GONE)

    def write_down(self) -> dict[str, Any]:
        """Return what a device's state leaves out, for another process of this machine. Times are CLOCK_MONOTONIC."""
        last = self._statistics.last
        return {
            "inhibition": self._gate.write_down(),
            "began": self._began,
            "reported": self._reported,
            "total": self.size.ram.total,
            "refaults": self._backed.refaults.write_down(),
            "statistics": None if last is None else [last.values, last.taken],
        }

    def resume(self, written: Mapping[str, Any]) -> None:
        """Go on from what another process has written down."""
        self._gate.resume(written["inhibition"])
        self._began, self._reported = written["began"], written["reported"]
        self.size.ram.total = written["total"]
        self._backed.refaults.resume(written.get("refaults", (0, None, 0)))
        if written["statistics"] is not None:
            self._statistics.last = GuestStatistics(*written["statistics"])

    def _emit(self, event: str, **fields: object) -> None:
        if not self._gone:
            self._connection.emit(event, **fields)

    def _inhibition_changed(self, inhibition: Inhibition | None) -> None:
        self._connection.balloon.inhibited = inhibition is not None
        self._on_change()
        if inhibition is None:
            self._emit("allowed")
        else:
            self._emit("inhibited", by=inhibition.by.value, why=inhibition.why)

    # -- called by the control socket -------------------------------------------------------------------------------

    def set_num_pages(self, num_pages: int) -> None:
        """Ask for a balloon of ``num_pages`` 4096-byte pages, which ends a reclaim that inflates.

        Raises:
            BalloonError: see :meth:`BalloonSize.set_target`.
        """
        self.size.set_target(num_pages)
        self.reclaimer.target_changed()

    def state_memory(self, guest_bytes: int, reserve: int | None = None) -> None:
        """Set the guest's memory as stated by the operator, 0 if that is not stated, and the reserve that its balloon
        leaves it."""
        self.size.ram.stated = guest_bytes
        if reserve is not None:
            self.size.ram.reserve = reserve
        self.size.refresh()

    @property
    def last_statistics(self) -> GuestStatistics | None:
        """The statistics that arrived last, if any have."""
        return self._statistics.last

    async def statistics(self) -> GuestStatistics:
        """Ask the guest for fresh statistics.

        Raises:
            BalloonError: see :meth:`StatisticsRequests.fresh`.
        """
        return await self._statistics.fresh()

    @property
    def statistics_interval(self) -> float:
        """Seconds between two requests for statistics; 0 if they are asked for on demand only."""
        return self._statistics.interval

    def set_statistics_interval(self, seconds: float) -> None:
        """Ask for statistics every ``seconds`` from now on; 0 for on demand only.

        Raises:
            BalloonError: a negative or infinite interval.
        """
        self._statistics.set_interval(seconds)

    async def inhibit(self, why: str) -> None:
        """Acknowledge reports without discarding from now on, until :meth:`allow`.

        When this returns no discard is under way any more.
        """
        self._gate.inhibit(why)
        running = [self._connection.queue(queue) for queue in _DISCARDING]
        await asyncio.gather(*(queue.settled() for queue in running if queue is not None))

    async def allow(self, *, force: bool = False) -> Inhibition | None:
        """Discard again. Return what inhibits it still: what the daemon finds counts unless ``force``."""
        self._gate.allow(force=force)
        await self._gate.look()
        return self._gate.current

    def disconnect(self) -> None:
        """End the session. Rings are stopped first, as when a front-end goes away."""
        self._connection.disconnect()

    async def reclaim(
        self, method: ReclaimMethod | str | None = None, limits: ReclaimLimits = NO_LIMITS
    ) -> ReclaimResult:
        """Make the guest give up memory that it does not use, once.

        Raises:
            BalloonError: see :meth:`Reclaimer.reclaim`.
        """
        return await self.reclaimer.reclaim(method, limits)
