"""``churn``: blocks of random sizes with random lifetimes."""

import heapq
import itertools
import random
from dataclasses import dataclass
from typing import Final

from guest.machine import Block, Machine
from guest.workloads.workload import Steps
from protocol.memory import PAGE_SIZE

_CHURN_ORDERS: Final = (0, 0, 0, 0, 1, 1, 2, 3, 4, 6, 9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Churn:
    """Allocates blocks of random orders with random lifetimes for ``seconds``, holding about ``size`` bytes
    (0: half of what is free).

    ``lifetime`` is the mean life of a block in seconds, ``tick`` the seconds between bursts of work.
    """

    size: int = 0
    seconds: float = 10.0
    lifetime: float = 1.0
    tick: float = 0.01

    def run(self, machine: Machine, seed: int) -> Steps:
        """Allocate and free until the time is over; then free all that is left."""
        machine.phase("churn")
        chance = random.Random(seed)
        size = self.size or machine.free_bytes // 2
        serial = itertools.count()
        held: list[tuple[float, int, Block]] = []
        held_bytes = 0
        for tick in range(int(self.seconds / self.tick)):
            now = tick * self.tick
            while held and held[0][0] <= now:
                _, _, block = heapq.heappop(held)
                machine.free(block)
                held_bytes -= PAGE_SIZE << block.order
            while held_bytes < size:
                order = chance.choice(_CHURN_ORDERS)
                new = machine.allocate(order)
                if new is None:
                    break
                held_bytes += PAGE_SIZE << order
                heapq.heappush(held, (now + chance.expovariate(1 / self.lifetime), next(serial), new))
            yield self.tick
        machine.phase("free")
        for _, _, block in held:
            machine.free(block)
