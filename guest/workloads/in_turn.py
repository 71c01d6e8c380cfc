"""Several workloads one after the other, each from the end of the one before."""

from dataclasses import dataclass

from guest.machine import Machine
from guest.workloads.workload import Steps, Workload


@dataclass(frozen=True, slots=True)
class InTurn:
    """Runs ``workloads`` in their order. Number i gets the seed ``seed + i``, as where all begin at once."""

    workloads: tuple[Workload, ...]

    def run(self, machine: Machine, seed: int) -> Steps:
        """Begin with the first."""
        for number, workload in enumerate(self.workloads):
            yield from workload.run(machine, seed + number)
