"""A virtual machine without rings or sockets, for the controls: a device, a driver in the test's hand, and a log."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from host.balloon.balloon_statistics import BalloonStatistics
from host.balloon.virtio_balloon import Outcome, VirtioBalloon
from host.control.vm_control import VmControl
from host.events.metrics import VmMetrics
from host.memory.guest_memory import RegionFile
from host.ring.device_facts import DeviceFacts
from host.ring.turn import ServedChain
from host.vhost_user.device_setup import DeviceSetup, KickMethod, RingFormat
from protocol.virtio_balloon import BalloonQueue, QueueDialect

MIB = 1 << 20
PAGES_PER_MIB = 256


def look_at_once(fds: Iterable[int], action: Callable[[list[int]], int | None]) -> "asyncio.Future[int | None]":
    """Stand for a helper that is done at once."""
    answer: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
    answer.set_result(action(list(fds)))
    return answer


class FakeQueue:
    """A queue whose worker is the test. ``running`` False: the ring is not to be touched."""

    def __init__(self) -> None:
        self.given_back = 0
        self.running = True
        self.on_give_back: Callable[[], None] = lambda: None
        self.busy: asyncio.Event | None = None
        self.awaited = asyncio.Event()
        """Set when the controls wait for a ``busy`` worker."""

    def give_back_held(self) -> bool:
        if self.running:
            self.given_back += 1
            asyncio.get_running_loop().call_soon(self.on_give_back)
        return self.running

    async def settled(self) -> None:
        if self.busy is not None:
            self.awaited.set()
            await self.busy.wait()


class FakeMachine:
    """Stands for the connection. ``on_config`` is the driver's ear for changes of the configuration space."""

    def __init__(self, features: int, memory_bytes: int = 256 * MIB) -> None:
        self.balloon = VirtioBalloon(features=features)
        self.peer_pid = 4711
        self.metrics = VmMetrics()
        self.region_files: list[RegionFile] = []
        self.memory_bytes = memory_bytes
        self.driver_ready = True
        self.disconnected = False
        self.setup = DeviceSetup(RingFormat.SPLIT, QueueDialect.NEGOTIATED, {BalloonQueue.STATS: KickMethod.POLLING})
        self.device_facts = DeviceFacts()
        self.queues = {BalloonQueue.STATS: FakeQueue(), BalloonQueue.FREE_PAGE: FakeQueue()}
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.on_config: Callable[[], None] = lambda: None
        self.free = 160 * MIB
        self.control = VmControl(self, look_at_once)
        self.stats.on_give_back = self.answer

    @property
    def stats(self) -> FakeQueue:
        return self.queues[BalloonQueue.STATS]

    @property
    def free_page(self) -> FakeQueue:
        return self.queues[BalloonQueue.FREE_PAGE]

    def queue(self, queue: BalloonQueue) -> FakeQueue | None:
        return self.queues.get(queue)

    def change_config(self, **fields: int) -> None:
        self.balloon.config = replace(self.balloon.config, **fields)
        asyncio.get_running_loop().call_soon(lambda: self.on_config())

    def disconnect(self) -> None:
        self.disconnected = True

    def emit(self, event: str, **fields: object) -> None:
        self.events.append((event, fields))

    def fields(self, event: str) -> list[dict[str, Any]]:
        """Return the fields of all events of one name."""
        return [fields for name, fields in self.events if name == event]

    # -- the driver -----------------------------------------------------------------------------------------------

    def serve(self, queue: BalloonQueue, outcome: Outcome, discarded: int = 0) -> None:
        """Have the controls hear of a chain."""
        self.control.chain_served(ServedChain(queue, outcome, asyncio.get_running_loop().time(), 0.0, discarded))

    def answer(self, **values: int) -> None:
        """Give statistics."""
        statistics = BalloonStatistics(values or {"memfree": self.free, "memtot": self.memory_bytes})
        self.serve(BalloonQueue.STATS, Outcome(statistics=statistics))

    def inflate(self, mib: int) -> None:
        """Give so many MiB, then say so."""
        outcome = Outcome(pages=mib * PAGES_PER_MIB)
        outcome.plan.bytes = mib * MIB
        self.serve(BalloonQueue.INFLATE, outcome, mib * MIB)
        self.set_actual(self.balloon.config.actual + mib * PAGES_PER_MIB)

    def deflate(self, mib: int) -> None:
        """Take so many MiB back, then say so."""
        self.serve(BalloonQueue.DEFLATE, Outcome(pages=mib * PAGES_PER_MIB))
        self.set_actual(self.balloon.config.actual - mib * PAGES_PER_MIB)

    def set_actual(self, pages: int) -> None:
        """Say how large the balloon is."""
        self.balloon.config = replace(self.balloon.config, actual=pages)
        self.control.config_written()

    def command(self, command_id: int) -> None:
        """Put a command on the free page queue."""
        self.balloon.hinting.take_command(command_id)
        self.serve(BalloonQueue.FREE_PAGE, Outcome(command_id=command_id, hint_id=self.balloon.hinting.driver_id))

    def hint(self, mib: int) -> bool:
        """Give a free block; return whether it may be discarded."""
        accepted = self.balloon.hinting.accepts()
        outcome = Outcome(hint_id=self.balloon.hinting.driver_id)
        outcome.plan.bytes = mib * MIB
        self.serve(BalloonQueue.FREE_PAGE, outcome, mib * MIB if accepted else 0)
        return accepted
