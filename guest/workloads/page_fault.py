"""``page_fault1`` and ``page_fault2``: the two tests of will-it-scale that free page reporting was measured with.

Each task maps a region, touches every page of it, unmaps it, and begins again."""

import random
from dataclasses import dataclass
from typing import Final

from guest.machine import Block, Machine
from guest.mm.pageblock import PAGEBLOCK_ORDER
from guest.workloads.workload import Steps, free_in_turns, killed_when_out_of_memory, together, wait_for_block
from protocol.memory import PAGE_SIZE

REGION: Final = 128 << 20
"""Bytes that a task of will-it-scale maps."""

_TURN_PAGES: Final = 1 << PAGEBLOCK_ORDER


@dataclass(frozen=True, slots=True, kw_only=True)
class PageFault:
    """``tasks`` tasks each take ``size`` bytes in blocks of ``order``, touch them and free them, ``repeat`` times.

    ``rate`` limits each task to touching so many bytes a second (0: as fast as it goes). With several tasks each begins
    after a random part of a round, so that they do not all free at the same moment.
    """

    order: int
    size: int = REGION
    tasks: int = 1
    repeat: int = 10
    rate: int = 0

    def run(self, machine: Machine, seed: int) -> Steps:
        """Fault and free. Raises :class:`.OutOfMemoryError` when the machine has too little."""
        machine.phase("fault")
        chance = random.Random(seed)
        blocks = -(-self.size // (PAGE_SIZE << self.order))
        blocks_per_turn = max(1, _TURN_PAGES >> self.order)
        turns = -(-blocks // blocks_per_turn)
        holdings: list[list[Block]] = [[] for _ in range(self.tasks)]
        tasks = [
            self._task(machine, held, blocks, blocks_per_turn, chance.randrange(turns) if self.tasks > 1 else 0)
            for held in holdings
        ]
        yield from killed_when_out_of_memory(machine, holdings, together(machine, tasks))
        machine.phase("done")

    def _task(self, machine: Machine, held: list[Block], blocks: int, blocks_per_turn: int, late: int) -> Steps:
        pause = min(blocks_per_turn, blocks) * (PAGE_SIZE << self.order) / self.rate if self.rate else 0.0
        for _ in range(late):
            yield pause
        for _ in range(self.repeat):
            for number in range(1, blocks + 1):
                block = machine.allocate(self.order)
                held.append(block if block is not None else (yield from wait_for_block(machine, self.order)))
                if number % blocks_per_turn == 0 or number == blocks:
                    yield pause
            yield from free_in_turns(machine, held, blocks_per_turn)
