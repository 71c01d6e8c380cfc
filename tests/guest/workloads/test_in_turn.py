"""Workloads one after the other."""

from guest.machine import Machine
from guest.mm.page_alloc import PageAllocator
from guest.simulation import Simulation
from guest.workloads.in_turn import InTurn
from guest.workloads.memhog import Idle, Memhog
from guest.workloads.workload import Steps
from protocol.units import MIB


class Noting:
    def __init__(self, seeds: list[int]) -> None:
        self._seeds = seeds

    def run(self, _machine: Machine, seed: int, /) -> Steps:
        self._seeds.append(seed)
        yield 1.0


def test_each_begins_where_the_one_before_has_ended() -> None:
    seeds: list[int] = []
    hog = Memhog(size=8 * MIB, hold=2.0)
    simulation = Simulation(
        PageAllocator(16 << 8), None, [InTurn((Noting(seeds), hog, Idle(seconds=3.0), Noting(seeds)))], seed=7
    )
    simulation.run(20.0)
    assert seeds == [7, 10]
    times = {name: time for time, name in simulation.phases}
    assert (times["fill"], times["free"], times["idle"]) == (1.0, 3.0, 3.0)
    assert simulation.running == 0


def test_without_any_it_ends_at_once() -> None:
    simulation = Simulation(PageAllocator(16 << 8), None, [InTurn(())])
    simulation.run(1.0)
    assert simulation.running == 0
