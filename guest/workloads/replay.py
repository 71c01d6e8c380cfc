"""``trace:FILE``: replays a trace."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, nextafter

from guest.machine import Block, Machine
from guest.workloads.allocation_trace import Alloc, Free, Phase, TraceEvent
from guest.workloads.workload import OutOfMemoryError, Steps, free_all, wait_for_block


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Allocates and frees as ``events`` say, each at its time. Blocks that they do not free stay allocated.

    An allocation that has to wait for memory delays everything after it by as much.
    """

    events: Sequence[TraceEvent]

    def run(self, machine: Machine, _seed: int) -> Steps:
        """Replay. Raises :class:`~guest.workloads.workload.OutOfMemoryError` when the machine has too little."""
        blocks: dict[int, Block] = {}
        try:
            yield from self._replay(machine, blocks)
        except OutOfMemoryError:
            free_all(machine, list(blocks.values()))
            raise

    def _replay(self, machine: Machine, blocks: dict[int, Block]) -> Steps:
        now = 0.0
        for event in self.events:
            if event.time > now:
                seconds = seconds_between(now, event.time)
                yield seconds
                now += seconds
            match event:
                case Alloc(number=number, order=order, migratetype=migratetype):
                    block = machine.allocate(order, migratetype)
                    blocks[number] = block or (yield from wait_for_block(machine, order, migratetype))
                case Free(number=number):
                    machine.free(blocks.pop(number))
                case Phase(name=name):
                    machine.phase(name)


def seconds_between(now: float, then: float) -> float:
    """Return the number that added to ``now`` gives exactly ``then``; the rounded difference may miss it.

    So a clock that adds up what a replay yields shows the times of the recording to the last bit. Where ``then`` cannot
    be reached, the sum is the number before it.
    """
    seconds = then - now
    while now + seconds < then:
        seconds = nextafter(seconds, inf)
    while now + seconds > then:
        seconds = nextafter(seconds, 0.0)
    return seconds
