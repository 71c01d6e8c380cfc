"""Recording and replaying with a page reporter at work: the same memory, the same reports, at the same times."""

import pytest

from guest.mm.page_alloc import PageAllocator
from guest.mm.reporting.reporters import REPORTERS, make_reporter
from guest.mm.views.vmstat import VIEWS
from guest.mm.x86.zones import x86_64_zones
from guest.simulation import Simulation
from guest.workloads.allocation_trace import TraceWriter, parse_trace
from guest.workloads.replay import Replay
from guest.workloads.workload import Workload
from guest.workloads.workload_options import parse_workload

PAGES = 1 << 16


def simulate(reporter: str, workload: Workload, *, real_machine: bool) -> tuple[Simulation, str]:
    """Run for ten virtual seconds; return the simulation and the recording of it."""
    zones = x86_64_zones(PAGES) if real_machine else None
    allocator = PageAllocator(PAGES, zones=zones, nr_cpus=2 if real_machine else 0)
    simulation = Simulation(allocator, make_reporter(reporter, allocator, capacity=4), [workload], seed=11)
    lines: list[str] = []
    simulation.machine.recorder = TraceWriter(lines.append, lambda: simulation.now)
    simulation.run(10.0)
    allocator.validate()
    return simulation, "".join(lines)


@pytest.mark.long
@pytest.mark.parametrize("real_machine", [False, True], ids=["one-zone", "x86-64"])
@pytest.mark.parametrize("reporter", REPORTERS)
def test_replay_has_the_same_views_and_the_same_reports(reporter: str, real_machine: bool) -> None:
    churn = parse_workload("churn:size=96M,seconds=3600,lifetime=1,tick=0.05")
    recorded, trace = simulate(reporter, churn, real_machine=real_machine)
    replay = Replay(events=parse_trace(trace.splitlines(), "trace"))
    replayed, again = simulate(reporter, replay, real_machine=real_machine)
    assert again == trace
    assert len(recorded.reports) > 3
    assert replayed.reports == recorded.reports
    for view in VIEWS.values():
        assert view(replayed.allocator) == view(recorded.allocator)
