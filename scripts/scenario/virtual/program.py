"""What a virtual machine does from its start to the end: boot, then its workloads, one after the other."""

from collections.abc import Callable, Sequence
from typing import Final

from guest.machine import Block, Machine
from guest.mm.pageblock import PAGEBLOCK_ORDER, MigrateType
from guest.workloads.workload import RETRY_SECONDS, OutOfMemoryError, Steps, Workload, wait_for_block
from protocol.memory import PAGE_SIZE

_BOOT_TYPES: Final = (MigrateType.UNMOVABLE, MigrateType.MOVABLE, MigrateType.MOVABLE, MigrateType.RECLAIMABLE)


class Program:
    """One workload made of several. Workload i gets the seed plus i.

    ``boot_bytes`` are taken first, by a kernel and its services, and kept. ``take_stall`` returns the seconds that the
    host has let the programs wait since the last call; they go on that much later. A workload that runs out of memory
    ends, and ``on_out_of_memory`` is told its number (-1: the boot) and why; the next one begins. ``on_finished`` is
    called after the last one.
    """

    def __init__(
        self,
        workloads: Sequence[Workload],
        boot_bytes: int,
        *,
        take_stall: Callable[[], float],
        on_out_of_memory: Callable[[int, str], None],
        on_finished: Callable[[], None],
    ) -> None:
        self._workloads = workloads
        self._boot_bytes = boot_bytes
        self._take_stall = take_stall
        self._on_out_of_memory = on_out_of_memory
        self._on_finished = on_finished
        self._boot: list[Block] = []
        self.waited_seconds = 0.0
        """Time that programs waited because the guest itself had no memory free."""

    def run(self, machine: Machine, seed: int) -> Steps:
        """Boot, work, and keep what the boot has taken."""
        try:
            yield from self._boot_up(machine)
        except OutOfMemoryError as error:
            self._on_out_of_memory(-1, str(error))
        for number, workload in enumerate(self._workloads):
            failed = machine.failed_allocations
            try:
                for delay in workload.run(machine, seed + number):
                    if machine.failed_allocations != failed:
                        failed = machine.failed_allocations
                        self.waited_seconds += min(delay, RETRY_SECONDS)
                    yield delay + self._take_stall()
            except OutOfMemoryError as error:
                self._on_out_of_memory(number, str(error))
        self._on_finished()

    def _boot_up(self, machine: Machine) -> Steps:
        machine.phase("boot")
        block_bytes = PAGE_SIZE << PAGEBLOCK_ORDER
        for number in range(-(-self._boot_bytes // block_bytes)):
            kind = _BOOT_TYPES[number % len(_BOOT_TYPES)]
            self._boot.append((yield from wait_for_block(machine, PAGEBLOCK_ORDER, kind)))
        yield self._take_stall()
