"""Machines without pages, beside the emulated ones of the same scenario."""

import dataclasses

import pytest

from guest.workloads.workload_options import parse_workload
from host.policy.observation import Observation
from host.policy.policy import Decision, Reclaim, SetBalloon
from protocol.errors import UsageError
from protocol.units import GIB, MIB
from scripts.scenario.run_record import RunRecord, VmState
from scripts.scenario.scenario import Scenario, VmKind, VmSpec
from scripts.scenario.virtual.demand import demand_of
from scripts.scenario.virtual.fleet import Fleet


def play(
    kind: VmKind, reporter: str | None, workloads: tuple[str, ...], policy: object = None, **more: int
) -> RunRecord:
    spec = VmSpec(name="a", kind=kind, memory_bytes=512 * MIB, reporter=reporter, workloads=workloads, **more)  # type: ignore[arg-type]
    whole = Scenario(name="s", title="s", budget_bytes=GIB, duration=300.0, vms=(spec,), sample_interval=5.0)
    return Fleet(whole, policy).run()  # type: ignore[arg-type]


@pytest.mark.parametrize("reporter", ["boundary", "rotation", None])
def test_a_machine_without_pages_costs_about_what_an_emulated_one_costs(reporter: str | None) -> None:
    workloads = ("memhog:size=256M,hold=60,rest=60,rate=64M,repeat=2", "idle")
    coarse, emulated = (
        play(kind, reporter, workloads, boot_bytes=64 * MIB) for kind in (VmKind.COARSE, VmKind.EMULATED)
    )
    assert coarse.gib_minutes == pytest.approx(emulated.gib_minutes, rel=0.15)
    assert coarse.peak_bytes == pytest.approx(emulated.peak_bytes, rel=0.1)


def test_curves_of_all_workloads() -> None:
    texts = (
        "idle:seconds=10",
        "memhog:size=100M,hold=10",
        "pagecache:size=50M,hold=10",
        "churn:size=10M",
        "build:size=80M",
    )
    demand = demand_of([parse_workload(text) for text in texts], GIB, 1)
    assert demand.at(0.0) == (0, 0)
    assert demand.at(demand.end) == (0, 0)
    sizes = [demand.at(when / 4) for when in range(int(demand.end * 4))]
    assert max(programs for programs, _ in sizes) == pytest.approx(100 * MIB, rel=0.1)
    assert max(cache for _, cache in sizes) == pytest.approx(50 * MIB, rel=0.1)
    assert 80 < demand.end < 110
    assert demand.next_change(demand.end) == float("inf")
    assert 9 <= demand.next_change(0.0) <= 11


def test_curves_follow_the_seed() -> None:
    workload = [parse_workload("memhog:size=100M,hold=10")]
    assert demand_of(workload, GIB, 1).at(5.0) == demand_of(workload, GIB, 1).at(5.0)
    assert demand_of(workload, GIB, 1).at(5.0) != demand_of(workload, GIB, 2).at(5.0)


def test_a_trace_has_no_curve() -> None:
    class Other:
        pass

    with pytest.raises(UsageError, match="trace"):
        demand_of([Other()], GIB, 1)  # type: ignore[list-item]


def test_balloon_takes_cache_and_not_programs() -> None:
    class Squeeze:
        name, interval = "squeeze", 50.0

        def decide(self, seen: Observation) -> Decision:
            return Decision((SetBalloon("a", 400 * MIB if 100 <= seen.now < 200 else 0),), "")

    files = "pagecache:size=300M,hold=230,drop=50,rest=20,repeat=2"
    record = play(VmKind.COARSE, None, (files,), Squeeze(), boot_bytes=64 * MIB)
    by_time = {sample.t: sample.vms["a"] for sample in record.samples}
    assert by_time[90.0].cache_bytes == pytest.approx(300 * MIB, rel=0.1)
    assert 380 * MIB < by_time[190.0].balloon_bytes <= 400 * MIB  # at once by what is free and a quarter of the memory
    assert by_time[190.0].cache_bytes < 64 * MIB
    assert by_time[190.0].resident_bytes <= 132 * MIB
    # There is room again, but what was evicted comes back only when it is read again.
    assert by_time[220.0].cache_bytes == by_time[190.0].cache_bytes
    assert by_time[220.0].stall_seconds == by_time[90.0].stall_seconds
    assert by_time[290.0].cache_bytes > 120 * MIB
    assert record.outcomes["a"].stall_seconds > 0


def test_reclaim_gives_back_kept_memory() -> None:
    class Once:
        name, interval = "once", 100.0

        def decide(self, seen: Observation) -> Decision:
            return Decision((Reclaim("a"),) if seen.now == 100 else (), "")

    record = play(VmKind.COARSE, None, ("memhog:size=200M,hold=10", "idle"), Once())
    by_time = {sample.t: sample.vms["a"].resident_bytes for sample in record.samples}
    assert by_time[95.0] > 170 * MIB
    assert by_time[105.0] == 0


def test_too_large_a_machine_is_killed_and_its_memory_is_free() -> None:
    specs = tuple(
        VmSpec(name=name, kind=VmKind.COARSE, memory_bytes=GIB, start=start, workloads=("memhog:size=700M,hold=200",))
        for name, start in (("a", 0.0), ("b", 50.0))
    )
    whole = Scenario(name="s", title="s", budget_bytes=GIB, duration=100.0, vms=specs, sample_interval=5.0)
    record = Fleet(whole).run()
    assert record.outcomes["a"].state is VmState.OOM_KILLED
    assert record.samples[-1].used_bytes == record.samples[-1].vms["b"].resident_bytes
    assert record.peak_bytes <= GIB
    assert dataclasses.replace(record) == Fleet(whole).run()


def test_demand_beyond_the_machine_fails() -> None:
    record = play(VmKind.COARSE, None, ("memhog:size=2G,hold=100",))
    assert record.outcomes["a"].state is VmState.FAILED
    assert record.outcomes["a"].peak_bytes < 512 * MIB
