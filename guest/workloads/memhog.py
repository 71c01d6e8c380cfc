"""``idle`` does nothing; ``memhog`` fills memory, holds it and frees it."""

from dataclasses import dataclass
from typing import Final

from guest.machine import Block, Machine
from guest.mm.pageblock import PAGEBLOCK_ORDER
from guest.workloads.workload import Steps, free_in_turns, killed_when_out_of_memory, wait_for_block
from protocol.memory import PAGE_SIZE

_PERCENT_OF_MEMORY: Final = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """Does nothing for ``seconds`` (0: until the machine is stopped)."""

    seconds: float = 0.0

    def run(self, machine: Machine, _seed: int) -> Steps:
        """Let time pass."""
        machine.phase("idle")
        if self.seconds > 0:
            yield self.seconds
            return
        while True:
            yield 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Memhog:
    """Fills ``size`` bytes (0: 90 % of what is free) in blocks of ``order``, holds them, frees them; ``repeat`` times.

    ``hold`` and ``rest`` are seconds after filling and after freeing; ``rate`` limits filling to so many bytes a second
    (0: as fast as it goes).
    """

    size: int = 0
    order: int = PAGEBLOCK_ORDER
    hold: float = 1.0
    rest: float = 0.0
    rate: int = 0
    repeat: int = 1

    def run(self, machine: Machine, _seed: int) -> Steps:
        """Fill and free. Raises :class:`~guest.workloads.workload.OutOfMemoryError` when the machine has too little."""
        size = self.size or machine.free_bytes * _PERCENT_OF_MEMORY // 100
        held: list[Block] = []
        for _ in range(self.repeat):
            yield from killed_when_out_of_memory(machine, [held], self._round(machine, size, held))

    def _round(self, machine: Machine, size: int, held: list[Block]) -> Steps:
        block_bytes = PAGE_SIZE << self.order
        pause = block_bytes / self.rate if self.rate else 0.0
        machine.phase("fill")
        for _ in range(-(-size // block_bytes)):
            held.append((yield from wait_for_block(machine, self.order)))
            yield pause
        machine.phase("hold")
        yield self.hold
        machine.phase("free")
        yield from free_in_turns(machine, held, 1)
        machine.phase("rest")
        yield self.rest
