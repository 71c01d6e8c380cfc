"""A virtual machine for tests of the control socket: it has the controls, and nothing behind them."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from protocol.errors import BalloonError


@dataclass
class Facts:
    """See :class:`host.controlled_vm.VmFacts`."""

    pid: int = 4711
    memory_bytes: int = 1 << 30
    num_pages: int = 0
    actual: int = 0
    features: int = 1 << 5 | 1 << 34
    driver_ready: bool = True


@dataclass
class Statistics:
    """See :class:`host.controlled_vm.Statistics`."""

    values: Mapping[str, int]
    age: float


@dataclass
class Reclaimed:
    """See :class:`host.controlled_vm.Reclaimed`."""

    method: str
    hinted_bytes: int = 3 << 20
    discarded_bytes: int = 2 << 20
    seconds: float = 0.25
    complete: bool = True


@dataclass
class FakeVm:
    """See :class:`host.controlled_vm.ControlledVm`. Reclaiming takes until :attr:`release` is set."""

    facts: Facts = field(default_factory=Facts)
    last_statistics: Statistics | None = None
    statistics_interval: float = 0
    fresh: Statistics | None = None
    release: asyncio.Event = field(default_factory=asyncio.Event)
    reclaiming: asyncio.Event = field(default_factory=asyncio.Event)

    def info(self) -> Facts:
        return self.facts

    def set_num_pages(self, num_pages: int) -> None:
        self.facts.num_pages = num_pages

    async def statistics(self) -> Statistics:
        if self.fresh is None:
            raise BalloonError("the guest gave no statistics within 5 s")
        return self.fresh

    def set_statistics_interval(self, seconds: float) -> None:
        self.statistics_interval = seconds

    async def reclaim(self, method: str | None = None) -> Reclaimed:
        self.reclaiming.set()
        await self.release.wait()
        return Reclaimed(method or "hint")
