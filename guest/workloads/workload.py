"""The parts of workloads: steps in time, waiting for memory, several tasks at once.

A workload is a generator: it acts on a :class:`~guest.machine.Machine` and yields the seconds to let pass before it
goes on, zero to let others have a turn. It has no clock: the same seed gives the same sequence, in real time as in
virtual time."""

import heapq
import itertools
from collections.abc import Generator, Iterable, Iterator
from typing import Final, Protocol

from guest.machine import Block, Machine
from guest.mm.pageblock import MigrateType
from protocol.errors import BalloonError

Steps = Iterator[float]
"""Seconds to let pass, one number after the other."""


class Workload(Protocol):
    """A sequence of allocations and frees for a machine, the same for the same seed."""

    def run(self, machine: Machine, seed: int, /) -> Steps:
        """Begin; each number yielded is the seconds to let pass before the next step."""


RETRY_SECONDS: Final = 0.05
RETRIES: Final = 40
"""Seconds that a workload waits for memory before it gives up: blocks being reported return within milliseconds."""


class OutOfMemoryError(BalloonError):
    """A workload asked for more than the machine has; what it held was freed, as the kernel's OOM killer would do."""


def wait_for_block(
    machine: Machine, order: int, migratetype: MigrateType = MigrateType.MOVABLE
) -> Generator[float, None, Block]:
    """Allocate a block, giving the reporter time to return blocks that are being reported.

    Raises:
        OutOfMemoryError: none came free. The caller runs in :func:`killed_when_out_of_memory`, which frees the rest.
    """
    for _ in range(RETRIES):
        block = machine.allocate(order, migratetype)
        if block is not None:
            return block
        yield RETRY_SECONDS
    raise OutOfMemoryError(f"out of memory: no block of order {order} came free")


def killed_when_out_of_memory(machine: Machine, holdings: Iterable[list[Block]], steps: Steps) -> Steps:
    """Run ``steps``; when they run out of memory, free all ``holdings`` before the exception goes on."""
    try:
        yield from steps
    except OutOfMemoryError:
        for held in holdings:
            free_all(machine, held)
        raise


def free_all(machine: Machine, held: list[Block]) -> None:
    """Free all blocks, first to last, and leave the list empty."""
    for block in held:
        machine.free(block)
    held.clear()


def free_in_turns(machine: Machine, held: list[Block], blocks_per_turn: int) -> Steps:
    """Free all blocks, first to last, with a turn for others after each ``blocks_per_turn``; the list ends empty."""
    for count, block in enumerate(held, 1):
        machine.free(block)
        if count % blocks_per_turn == 0:
            yield 0.0
    held.clear()


def together(machine: Machine, tasks: Iterable[Steps]) -> Steps:
    """Run several tasks at the same time, each at its own pace and on its own CPU, and wait for all of them.

    Those that are due at one time take turns.
    """
    running = [machine.scheduler.run(task) for task in tasks]
    with machine.scheduler.waiting():
        try:
            yield from _in_turns(running)
        finally:
            for task in running:  # one that ran out of memory ends the others
                task.close()


def _in_turns(tasks: Iterable[Steps]) -> Steps:
    serial = itertools.count()
    waiting = [(0.0, next(serial), task) for task in tasks]
    now = 0.0
    while waiting:
        due, _, task = heapq.heappop(waiting)
        if due > now:
            yield due - now
            now = due
        seconds = next(task, None)
        if seconds is not None:
            heapq.heappush(waiting, (now + seconds, next(serial), task))
            if seconds == 0:
                yield 0.0
