"""A virtual machine for tests of the control socket: controls without a guest."""

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

from host.control.guest_statistics import GuestStatistics
from host.control.reclaim_progress import NO_LIMITS, ReclaimLimits, ReclaimMethod, ReclaimResult
from host.control.vm_facts import VmInfo
from host.inhibition.inhibition import Inhibition, Inhibitor
from host.ring.device_facts import DeviceFacts, QueueStatus
from host.vhost_user.device_setup import DeviceSetup, KickMethod, RingFormat
from host.vhost_user.vring import RingState
from protocol.errors import BalloonError
from protocol.virtio_balloon import BalloonQueue, QueueDialect

INFO = VmInfo(
    pid=4711,
    name="qemu",
    age=12.5,
    memory_bytes=1 << 30,
    guest_bytes=1 << 30,
    num_pages=0,
    target_pages=0,
    actual=0,
    features=1 << 5 | 1 << 34,
    driver_ready=True,
    setup=DeviceSetup(
        RingFormat.PACKED,
        QueueDialect.OFFERED,
        {BalloonQueue.INFLATE: KickMethod.EVENTFD, BalloonQueue.REPORTING: KickMethod.IN_BAND},
    ),
    now=100.0,
    device=DeviceFacts(1 << 5 | 1 << 34, 7, {"reporting": QueueStatus(2, RingState.RUNNING, True, None, 97.5)}),
    reports=3,
    mean_range=4 << 20,
    refused_bytes={"unaligned": 1 << 20},
    reported_bytes=12 << 20,
    discarded_bytes=8 << 20,
    refused={"unaligned": 2},
    last_report=1.25,
)


@dataclass
class FakeVm:
    """See :class:`host.control.vm_interface.VmInterface`. Reclaiming takes until :attr:`release` is set."""

    facts: VmInfo = field(default_factory=lambda: INFO)
    last_statistics: GuestStatistics | None = None
    statistics_interval: float = 0
    disconnected: bool = False
    limits: ReclaimLimits = NO_LIMITS
    found: Inhibition | None = None
    fresh: GuestStatistics | None = None
    release: asyncio.Event = field(default_factory=asyncio.Event)
    reclaiming: asyncio.Event = field(default_factory=asyncio.Event)

    def info(self) -> VmInfo:
        return self.facts

    async def backed_bytes(self) -> int | None:
        return 5 << 20

    def set_num_pages(self, num_pages: int) -> None:
        self.facts = replace(self.facts, num_pages=num_pages, target_pages=num_pages)

    def state_memory(self, guest_bytes: int) -> None:
        self.facts = replace(self.facts, guest_bytes=guest_bytes or self.facts.memory_bytes)

    async def statistics(self) -> GuestStatistics:
        if self.fresh is None:
            raise BalloonError("the guest gave no statistics within 5 s")
        return self.fresh

    def set_statistics_interval(self, seconds: float) -> None:
        self.statistics_interval = seconds

    def disconnect(self) -> None:
        self.disconnected = True

    async def inhibit(self, why: str) -> None:
        self.facts = replace(self.facts, inhibition=Inhibition(Inhibitor.OPERATOR, why), keeps_pages="inhibited")

    async def allow(self, *, force: bool = False) -> Inhibition | None:
        found = None if force else self.found
        self.facts = replace(self.facts, inhibition=found, keeps_pages=None if found is None else "inhibited")
        return found

    async def reclaim(self, method: ReclaimMethod | None = None, limits: ReclaimLimits = NO_LIMITS) -> ReclaimResult:
        self.limits = limits
        self.reclaiming.set()
        await self.release.wait()
        return ReclaimResult(
            method=method or ReclaimMethod.HINT,
            offered_bytes=3 << 20,
            discarded_bytes=2 << 20,
            seconds=0.25,
            complete=True,
        )


def fake(**facts: Any) -> FakeVm:
    """Return a virtual machine with other facts than :data:`INFO`."""
    if "memory_bytes" in facts:
        facts.setdefault("guest_bytes", facts["memory_bytes"])
    return FakeVm(replace(INFO, **facts))
