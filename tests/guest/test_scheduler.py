"""guest/scheduler.py: the CPU of each task, and the page lists that it uses."""

from collections.abc import Iterator

import pytest

from guest.machine import Machine
from guest.mm.page_alloc import PageAllocator
from guest.mm.views.vmstat import VIEWS
from guest.simulation import Simulation
from guest.workloads.workload import OutOfMemoryError, together
from guest.workloads.workload_options import parse_workload
from tests.guest.workloads.workloads import NoContent

PAGES = 1 << 16


def machine(nr_cpus: int, pages: int = PAGES) -> Machine:
    return Machine(PageAllocator(pages, nr_cpus=nr_cpus), NoContent(), print, print)


def running_cpu(guest: Machine) -> int:
    zone = guest.allocator.zones[0]
    return next(cpu for cpu, pcp in enumerate(zone.pcps) if pcp is zone.pcp)


def task(guest: Machine, seen: list[int], steps: int) -> Iterator[float]:
    for _ in range(steps):
        seen.append(running_cpu(guest))
        yield 1.0


def test_tasks_go_to_the_cpu_with_the_fewest_and_stay_there() -> None:
    guest = machine(3)
    seen: list[list[int]] = [[], [], [], []]
    running = [guest.scheduler.run(task(guest, mine, steps)) for mine, steps in zip(seen, (4, 1, 4, 4), strict=True)]
    for steps in running:
        next(steps)
        assert running_cpu(guest) == 0
    assert guest.scheduler.tasks == (2, 1, 1)
    assert list(running[1]) == []
    late: list[int] = []
    assert list(guest.scheduler.run(task(guest, late, 1))) == [1.0]
    for steps in (running[0], running[2], running[3]):
        assert list(steps) == [1.0] * 3
    assert seen == [[0] * 4, [1], [2] * 4, [0] * 4]
    assert late == [1]
    assert guest.scheduler.tasks == (0, 0, 0)


def test_task_that_waits_for_its_tasks_leaves_its_cpu_to_them() -> None:
    guest = machine(2)
    seen: list[list[int]] = [[], []]
    after: list[int] = []

    def parent() -> Iterator[float]:
        yield from together(guest, [task(guest, mine, 2) for mine in seen])
        after.extend((running_cpu(guest), *guest.scheduler.tasks))
        yield 0.0

    steps = guest.scheduler.run(parent())
    next(steps)
    assert guest.scheduler.tasks == (1, 1)
    list(steps)
    assert (seen, after, guest.scheduler.tasks) == ([[0, 0], [1, 1]], [0, 1, 0], (0, 0))


def test_task_that_runs_out_of_memory_ends_the_others_on_all_cpus() -> None:
    guest = machine(2, pages=4096)
    with pytest.raises(OutOfMemoryError, match="no block of order 9 came free"):
        for _ in guest.scheduler.run(parse_workload("page_fault1:tasks=3,size=12M").run(guest, 0)):
            pass
    assert guest.scheduler.tasks == (0, 0)
    assert guest.allocated_pages == 0


@pytest.mark.parametrize("nr_cpus", [0, 1])
def test_machine_with_one_cpu_runs_all_tasks_there(nr_cpus: int) -> None:
    guest = machine(nr_cpus)
    steps = [guest.scheduler.run(iter([0.0])) for _ in range(3)]
    assert [next(each) for each in steps] == [0.0] * 3
    assert guest.scheduler.tasks == (3,)


@pytest.mark.parametrize("workload", ["page_fault2:tasks=4,size=1M,repeat=2", "build:jobs=3,seconds=1,size=64M"])
def test_pages_are_freed_to_the_list_of_the_cpu_that_freed_them(workload: str) -> None:
    guest = machine(4)
    used: set[int] = set()
    for _ in guest.scheduler.run(parse_workload(workload).run(guest, 0)):
        used |= {cpu for cpu, pcp in enumerate(guest.allocator.zones[0].pcps) if pcp.count}
    assert used == {0, 1, 2, 3}
    guest.allocator.validate()


def test_workloads_beside_each_other_run_on_different_cpus() -> None:
    allocator = PageAllocator(PAGES, nr_cpus=2)
    simulation = Simulation(allocator, None, [parse_workload("churn:seconds=5,size=32M") for _ in range(2)])
    used: set[int] = set()
    for _ in range(100):
        simulation.run(0.01)
        used |= {cpu for cpu, pcp in enumerate(allocator.zones[0].pcps) if pcp.count}
    assert simulation.machine.scheduler.tasks == (1, 1)
    assert used == {0, 1}


@pytest.mark.long
def test_seed_gives_the_same_lists_on_several_cpus() -> None:
    views = []
    for _ in range(2):
        allocator = PageAllocator(PAGES, nr_cpus=3)
        Simulation(allocator, None, [parse_workload("build:jobs=5,seconds=2,size=64M")], seed=7).run(1.5)
        views.append([view(allocator) for view in VIEWS.values()])
    assert views[0] == views[1]
