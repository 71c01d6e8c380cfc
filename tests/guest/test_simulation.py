"""guest/simulation.py: a guest in virtual time."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guest.machine import Machine
from guest.mm.errors import CorruptionError
from guest.mm.page_alloc import PageAllocator
from guest.mm.reporting.cause import Cause
from guest.mm.reporting.reporters import REPORTERS, make_reporter
from guest.simulation import DeviceCost, HostMemory, Simulation
from guest.workloads.workload_options import parse_workload
from protocol.errors import UsageError
from protocol.memory import PAGE_SIZE

GIB_PAGES = 1 << 18
FREE = DeviceCost(per_report=0.0, per_range=0.0, per_present_page=0.0)


def simulation(name: str, *workloads: str, pages: int = GIB_PAGES, seed: int = 0, **values: Any) -> Simulation:
    allocator = PageAllocator(pages)
    reporter = None if name == "off" else make_reporter(name, allocator, **values)
    return Simulation(allocator, reporter, [parse_workload(text) for text in workloads], seed=seed)


@dataclass
class Script:
    """A workload that does what it is told, and notes when."""

    delays: list[float]
    seen: list[float] = field(default_factory=list)
    clock: list[Simulation] = field(default_factory=list)

    def run(self, _machine: Machine, _seed: int) -> Iterator[float]:
        for delay in self.delays:
            self.seen.append(self.clock[0].now)
            yield delay
        self.seen.append(self.clock[0].now)


# --- What the host keeps ---


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 60), st.integers(1, 16))))
def test_host_memory_is_exact(steps: list[tuple[bool, int, int]]) -> None:
    host = HostMemory(80)
    present: set[int] = set()
    had: set[int] = set()
    faults = refaults = peak = 0
    for fill, pfn, pages in steps:
        span = set(range(pfn, pfn + pages))
        assert host.count_present(pfn, pages) == len(span & present)
        assert host.count_corrupted(pfn, pages, 0) == len(span - present)
        if fill:
            host.fill(pfn, pages, 0)
            faults += len(span - present)
            refaults += len(span & had - present)
            present |= span
            had |= span
        else:
            host.discard(pfn, pages)
            present -= span
        peak = max(peak, len(present))
        assert (host.present_pages, host.faults, host.refaults, host.peak_pages) == (
            len(present),
            faults,
            refaults,
            peak,
        )


@pytest.mark.long
@pytest.mark.parametrize("name", [*REPORTERS, "off"])
def test_ledger_and_memory_in_use_are_all_that_the_host_has(name: str) -> None:
    """Every page in use was written, so the rest of what is present is free, and the ledger has it."""
    work = "churn:size=200M,seconds=8,lifetime=2,tick=0.1", "pagecache:size=128M,rest=1,repeat=3"
    run = simulation(name, *work, pages=1 << 17)
    for _ in range(50):
        run.run(0.25)
        ledger = run.ledger()
        assert ledger.not_returned_bytes == (run.host.present_pages - run.machine.allocated_pages) * PAGE_SIZE
        assert ledger.free_bytes == ((1 << 17) - run.machine.allocated_pages) * PAGE_SIZE
        inhibited = ledger.held_bytes[Cause.INHIBITED]
        assert inhibited == (ledger.not_returned_bytes if name == "off" else 0)


def test_report_costs_what_is_in_it() -> None:
    cost = DeviceCost()
    assert cost.seconds(32, 0) == pytest.approx(246e-6)
    # 32 blocks of 4 MiB, all touched: what the daemon was seen to need.
    assert cost.seconds(32, 32 * 1024) == pytest.approx(23.2e-3, rel=0.01)


# --- Time ---


def test_workloads_take_turns_in_the_order_of_their_times() -> None:
    first, second = Script([1.0, 0.0, 1.5]), Script([0.5, 2.0])
    simulation = Simulation(PageAllocator(1024), None, [first, second], sample_interval=1.0)
    first.clock.append(simulation)
    second.clock.append(simulation)
    simulation.run(1.0)
    assert (first.seen, second.seen, simulation.running) == ([0.0, 1.0, 1.0], [0.0, 0.5], 2)
    simulation.run(2.0)
    assert (first.seen[3:], second.seen[2:], simulation.running, simulation.now) == ([2.5], [2.5], 0, 3.0)
    assert [sample.time for sample in simulation.samples] == [0.0, 1.0, 2.0, 3.0]


def test_running_in_parts_is_running_at_once() -> None:
    work = "churn:size=200M,seconds=8,lifetime=2,tick=0.1"
    whole, parts = simulation("rotation", work), simulation("rotation", work)
    whole.run(10.0)
    for _ in range(8):
        parts.run(1.25)
    assert parts.reports == whole.reports
    assert parts.samples == whole.samples
    assert parts.footprint_gib_minutes == pytest.approx(whole.footprint_gib_minutes)


@pytest.mark.parametrize("name", list(REPORTERS))
def test_seed_gives_the_same_run_bit_for_bit(name: str) -> None:
    work = "churn:size=300M,seconds=20,lifetime=3,tick=0.1", "memhog:size=200M,hold=3,rest=2,repeat=3"
    first, again, other = (simulation(name, *work, seed=seed) for seed in (7, 7, 8))
    for run in (first, again, other):
        run.run(30.0)
        run.allocator.validate()
    assert first.reports
    assert first.reports == again.reports != other.reports
    assert (first.samples, first.phases) == (again.samples, again.phases)
    assert first.footprint_gib_minutes == again.footprint_gib_minutes
    assert bytes(first.allocator.mem_map) == bytes(again.allocator.mem_map)


# --- The reporter and the device ---


def test_idle_guest_under_rotation_takes_the_passes_of_the_kernel() -> None:
    idle = simulation("rotation", "idle")
    idle.run(60.0)
    assert idle.entries_by_pass() == [[32, 32]] * 4
    begins = [report.begin for report in idle.reports[::2]]
    # The delay runs from the end of one pass to the next: two untouched reports in between.
    cost = 2 * DeviceCost().seconds(32, 0)
    assert begins == pytest.approx([2.0, 4.0 + cost, 6.0 + 2 * cost, 8.0 + 3 * cost])
    assert idle.samples[-1].reported_pages == GIB_PAGES


@pytest.mark.parametrize(("name", "seconds"), [("boundary", 0.1), ("scan", 0.1), ("rotation", 2.0)])
def test_touched_memory_leaves_the_host_when_it_is_acknowledged(name: str, seconds: float) -> None:
    run = simulation(name, "memhog:size=512M,hold=10")
    run.run(10.0)
    # Filled before the first pass: it is in use and stays.
    assert run.host.present_pages == 1 << 17
    run.run(10.0)
    assert run.host.present_pages == 0
    # Half a GiB for ten seconds, and until the one or two passes after that are through.
    assert 10.0 * 0.5 < run.footprint_gib_minutes * 60 < (10.2 + 2 * seconds) * 0.5
    after = [report for report in run.reports if report.present_pages]
    assert after[0].begin == pytest.approx(10.0 + seconds)
    assert sum(report.present_pages for report in after) == 1 << 17
    assert sum(report.seconds for report in run.reports) == run.device_seconds
    assert run.allocated_gib_minutes == pytest.approx(10.0 * 0.5 / 60)


def test_host_gets_nothing_back_without_a_reporter() -> None:
    run = simulation("off", "memhog:size=512M,hold=10")
    run.run(70.0)
    assert (run.reports, run.host.present_pages) == ([], 1 << 17)
    assert run.footprint_gib_minutes == pytest.approx(70 / 60 / 2)


def test_memory_used_again_is_faulted_in_again() -> None:
    run = simulation("rotation", "memhog:size=256M,hold=1,rest=30,repeat=2")
    run.run(100.0)
    assert (run.host.faults, run.host.refaults, run.host.present_pages) == (1 << 17, 1 << 16, 0)


def test_workloads_go_on_while_the_device_works() -> None:
    # A device of half a second a report: the guest allocates what is left, and the pages come back for it.
    allocator = PageAllocator(GIB_PAGES)
    work = parse_workload("memhog:size=900M,hold=1,order=9")
    run = Simulation(
        allocator, make_reporter("boundary", allocator), [work], cost=DeviceCost(per_report=0.5), sample_interval=0.1
    )
    run.run(60.0)
    out = [GIB_PAGES - sample.free_pages - sample.allocated_pages for sample in run.samples]
    assert max(out) == 16 * 1024
    assert (run.out_of_memory, run.running, out[-1]) == ([], 0, 0)
    allocator.validate()


def test_stopped_device_gives_back_what_it_worked_on() -> None:
    allocator = PageAllocator(GIB_PAGES)
    work = parse_workload("memhog:size=512M,hold=1,repeat=9")
    run = Simulation(allocator, make_reporter("scan", allocator), [work], cost=DeviceCost(per_report=5.0))
    run.run(2.0)
    assert allocator.nr_free_pages() + run.machine.allocated_pages == GIB_PAGES - 16 * 1024
    run.stop()
    assert allocator.nr_free_pages() + run.machine.allocated_pages == GIB_PAGES
    run.run(60.0)
    assert (run.reports, run.running, run.samples[-1].reported_pages) == ([], 0, 0)
    allocator.validate()


def test_workload_without_memory_ends_and_the_others_go_on() -> None:
    run = simulation("off", "memhog:size=2G", "idle:seconds=20")
    run.run(30.0)
    assert [reason for _, reason in run.out_of_memory] == ["out of memory: no block of order 9 came free"]
    assert run.running == 0
    assert run.allocator.nr_free_pages() == GIB_PAGES


def test_page_in_use_that_was_discarded_is_a_fault() -> None:
    run = simulation("off", "memhog:size=4M,hold=5")
    run.run(1.0)
    run.host.discard(0, GIB_PAGES)
    with pytest.raises(CorruptionError, match="512 pages in use were discarded in the block of order 9 at pfn "):
        run.run(10.0)


def test_invalid_simulation_is_refused() -> None:
    allocator, other = PageAllocator(1024), PageAllocator(1024)
    with pytest.raises(UsageError, match="the page reporter is that of other memory"):
        Simulation(allocator, make_reporter("scan", other))
    with pytest.raises(UsageError, match="sample interval nan is not a positive number of seconds"):
        Simulation(allocator, None, sample_interval=float("nan"))
    reporter = make_reporter("scan", allocator)
    Simulation(allocator, reporter)
    with pytest.raises(UsageError, match="already registered"):
        Simulation(allocator, reporter)


@pytest.mark.long
def test_large_guest_with_an_hour_of_churn_is_a_matter_of_seconds() -> None:
    # A hundredth of the promised hour with 64 GiB: the same guest, the same pace, fewer turns.
    run = simulation("rotation", "churn:size=16G,seconds=36,lifetime=300,tick=0.1", pages=64 * GIB_PAGES)
    run.run(36.0)
    assert run.reporter is not None
    assert run.reporter.reported_pages() > 32 * GIB_PAGES
    assert run.host.present_pages < 17 * GIB_PAGES
