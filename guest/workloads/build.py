"""``build``: the staircase of a large compilation."""

import random
from dataclasses import dataclass
from typing import Final

from guest.machine import Block, Machine
from guest.mm.pageblock import MigrateType
from guest.workloads.workload import Steps, free_all, killed_when_out_of_memory, together, wait_for_block
from protocol.memory import PAGE_SIZE

_BASE_SHARE: Final = 0.5
_LINKER_SHARE: Final = 0.5
"""Shares of ``size``: the cache at the end, and the linker. The compilers of a step share the linker's part."""
_LINK_TIME: Final = 0.2
"""Share of a step in which the linker runs."""
_COMPILERS: Final = 8
"""Compilers that one job runs in a step, on average."""
_TURNOVER: Final = 0.5
"""Share of its memory that a compiler or the linker gives back and takes anew every second."""

_CACHE_TYPES: Final = (MigrateType.MOVABLE,) * 14 + (MigrateType.RECLAIMABLE, MigrateType.UNMOVABLE)
_COMPILER_ORDERS: Final = (0,) * 12 + (1, 1, 2, 3)
_LINKER_ORDERS: Final = (9, 9, 9, 0, 0, 0, 0, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """Builds for ``seconds`` with ``jobs`` compilers at a time, in ``steps`` steps, with ``size`` bytes at the peak
    (0: half of what is free), and cleans up. ``tick`` is the seconds between two bursts of work.
    """

    size: int = 0
    seconds: float = 60.0
    jobs: int = 4
    steps: int = 4
    tick: float = 0.05

    def run(self, machine: Machine, seed: int) -> Steps:
        """Build. Raises :class:`~guest.workloads.workload.OutOfMemoryError` when the machine has too little."""
        pages = (self.size or machine.free_bytes // 2) // PAGE_SIZE
        cache: list[Block] = []
        private: list[list[Block]] = [[] for _ in range(self.jobs)]
        step_ticks = max(1, int(self.seconds / self.steps / self.tick))
        link_ticks = max(1, int(step_ticks * _LINK_TIME))
        work = self._work(machine, seed, pages, cache, private, (max(1, step_ticks - link_ticks), link_ticks))
        yield from killed_when_out_of_memory(machine, [*private, cache], work)
        machine.phase("clean")
        free_all(machine, cache)
        yield 0.0

    def _work(
        self,
        machine: Machine,
        seed: int,
        pages: int,
        cache: list[Block],
        private: list[list[Block]],
        ticks: tuple[int, int],
    ) -> Steps:
        linker_pages = int(pages * _LINKER_SHARE)
        for step in range(1, self.steps + 1):
            # A generator of random numbers for each task: the order of their turns must not change what they do.
            chances = [random.Random(f"{seed} {step} {task}") for task in range(self.jobs + 2)]
            machine.phase(f"compile {step}")
            cache_pages = int(pages * _BASE_SHARE * step / self.steps)
            tasks = [self._cache(machine, chances[0], cache, cache_pages, ticks[0])]
            for held, chance in zip(private, chances[2:], strict=True):
                tasks.append(self._job(machine, chance, held, linker_pages // self.jobs, ticks[0]))
            yield from together(machine, tasks)
            machine.phase(f"link {step}")
            growing = linker_pages * step // self.steps
            yield from self._process(machine, chances[1], private[0], growing, ticks[1], _LINKER_ORDERS)

    def _cache(self, machine: Machine, chance: random.Random, cache: list[Block], pages: int, ticks: int) -> Steps:
        # Evenly up to `pages`, one page at a time; it is not given back before the end.
        begin = len(cache)
        for tick in range(1, ticks + 1):
            for _ in range(begin + (pages - begin) * tick // ticks - len(cache)):
                cache.append((yield from wait_for_block(machine, 0, chance.choice(_CACHE_TYPES))))
            yield self.tick

    def _job(self, machine: Machine, chance: random.Random, held: list[Block], pages: int, ticks: int) -> Steps:
        # One compiler after the other until the step is over; the last one is cut short by that.
        left = ticks
        while left > 0:
            life = min(left, 1 + int(chance.expovariate(_COMPILERS / ticks)))
            peak = int(pages * chance.uniform(0.2, 1.0))
            yield from self._process(machine, chance, held, peak, life, _COMPILER_ORDERS)
            left -= life

    def _process(
        self,
        machine: Machine,
        chance: random.Random,
        held: list[Block],
        pages: int,
        ticks: int,
        orders: tuple[int, ...],
    ) -> Steps:
        # Grows evenly to its peak, giving back a share of what it has all the time; exits after `ticks`.
        turnover = min(1.0, _TURNOVER * self.tick)
        held_pages = 0
        for tick in range(1, ticks + 1):
            for _ in range(int(len(held) * turnover)):
                place = chance.randrange(len(held))
                held[place], held[-1] = held[-1], held[place]
                block = held.pop()
                held_pages -= 1 << block.order
                machine.free(block)
            while held_pages < pages * tick // ticks:
                order = chance.choice(orders)
                held.append((yield from wait_for_block(machine, order)))
                held_pages += 1 << order
            yield self.tick
        free_all(machine, held)
