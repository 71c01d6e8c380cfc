"""Real processes: two machines by turns on a budget for one, and what becomes of a run whose processes die."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from guest.mm.views.memory_map import LEVELS, decode
from protocol.units import MIB
from scripts.scenario.real.budget import AccountedBudget, Budget, CgroupBudget, make_budget
from scripts.scenario.real.leftovers import run_directory
from scripts.scenario.real.real_machine import RealMachine
from scripts.scenario.real.real_run import RealRun
from scripts.scenario.run_record import RunRecord, VmState
from scripts.scenario.scenario import Scenario, VmSpec

WORK = ("memhog:size=120M,hold=0.5", "idle:seconds=0.5")

BUDGET = 220 * MIB
"""Enough for one of the machines at its peak and for both processes, which a cgroup counts, of some 25 MiB each."""


def turns(reporter: str | None) -> tuple[RunRecord, Budget]:
    """Play two machines by turns on a budget that the kernel keeps, if this user may have a memory cgroup."""
    # 120 MiB are fewer blocks than those that usually start a pass.
    constants = {} if reporter is None else {"high_water_mark": 1}
    first = VmSpec(name="a", memory_bytes=160 * MIB, reporter=reporter, reporting=constants, workloads=WORK)
    vms = (first, replace(first, name="b", expendable=True))
    scenario = Scenario(name="turns", title="by turns", budget_bytes=BUDGET, duration=60.0, vms=vms)

    def is_due(machine: RealMachine) -> bool:
        a = run.machines["a"]
        return machine is a or (a.state is VmState.FINISHED and (reporter is None or a.resident_bytes < 10 * MIB))

    def is_over(run: RealRun) -> bool:
        return run.machines["b"].state not in (VmState.WAITING, VmState.RUNNING)

    with run_directory() as directory, make_budget("auto", BUDGET) as budget:
        run = RealRun(scenario, budget, directory, seed=0, ledger=False, maps=True, is_due=is_due, is_over=is_over)
        return run.play(), budget


@pytest.mark.processes
def test_with_reporting_both_finish() -> None:
    record, _ = turns("boundary")
    assert {name: outcome.state for name, outcome in record.outcomes.items()} == {
        "a": VmState.FINISHED,
        "b": VmState.FINISHED,
    }
    assert not record.interrupted
    assert record.peak_bytes <= BUDGET
    assert all(outcome.corrupted_pages == 0 for outcome in record.outcomes.values())
    assert record.maps is not None
    assert {name for moment in record.maps.rounds for name in moment.maps} == {"a", "b"}
    taken = [moment.maps["a"] for moment in record.maps.rounds if "a" in moment.maps]
    # 120 of 160 MiB were in use and backed, and were given back.
    assert max(decode(one["resident"]).count(LEVELS) for one in taken) > len(decode(taken[0]["resident"])) // 2
    assert decode(taken[-1]["resident"]).count(LEVELS) < decode(taken[-1]["reported"]).count(LEVELS)
    reports = [event for event in record.events if event["event"] == "report" and event["side"] == "host"]
    assert {event["vm"] for event in reports} == {"a", "b"}
    assert [event["t"] for event in record.events if event["event"] == "listening"] == [0.0]
    assert [event["vm"] for event in record.events if event["event"] == "started"] == ["a", "b"]
    assert [event["vm"] for event in record.events if event["event"] == "finished"] == ["a", "b"]


@pytest.mark.processes
def test_without_reporting_the_second_is_killed() -> None:
    record, budget = turns(None)
    assert record.outcomes["a"].state is VmState.FINISHED
    assert record.outcomes["b"].state is VmState.OOM_KILLED
    killer = "the kernel's OOM killer" if isinstance(budget, CgroupBudget) else budget.source
    reason = f"{killer}: the budget does not suffice"
    killed = [event for event in record.events if event["event"] == "oom_killed"]
    assert [(event["vm"], event["reason"]) for event in killed] == [("b", reason)]
    assert record.outcomes["b"].reason == reason
    assert 0 < record.outcomes["b"].peak_bytes < 120 * MIB


@pytest.mark.processes
def test_run_without_a_cgroup_kills_by_its_own_accounting() -> None:
    def is_over(run: RealRun) -> bool:
        return run.machines["b"].is_gone

    vms = (idle("a"), idle("b", expendable=True))
    scenario = Scenario(name="s", title="s", budget_bytes=24 * MIB, duration=60.0, vms=vms)
    with run_directory() as directory:
        run = RealRun(scenario, AccountedBudget(24 * MIB), directory, seed=0, ledger=False, is_over=is_over)
        record = run.play()
    assert {name: outcome.state for name, outcome in record.outcomes.items()} == {
        "a": VmState.RUNNING,
        "b": VmState.OOM_KILLED,
    }
    assert record.outcomes["b"].reason == "this script's accounting: the budget does not suffice"
    assert run.machines["b"].resident_bytes == 0


def idle(name: str, **fields: Any) -> VmSpec:
    """Return a small machine that uses 16 MiB until the end."""
    return VmSpec(name=name, memory_bytes=32 * MIB, workloads=("memhog:size=16M,hold=600",), **fields)


def run_of(vms: tuple[VmSpec, ...], directory: Path, on_look: Callable[[RealRun], bool]) -> RealRun:
    """Return a run of ``vms`` that is over when ``on_look`` says so."""
    scenario = Scenario(name="s", title="s", budget_bytes=256 * MIB, duration=60.0, vms=vms, sample_interval=0.05)
    budget = AccountedBudget(scenario.budget_bytes)
    return RealRun(scenario, budget, directory, seed=0, ledger=False, is_over=on_look)


def holds(run: RealRun, name: str) -> bool:
    return run.machines[name].resident_bytes >= 16 * MIB


def kill(run: RealRun, name: str) -> None:
    child = run.machines[name].child
    assert child is not None
    child.process.kill()


@pytest.mark.processes
def test_machine_that_is_killed_from_outside_fails_alone_and_frees_what_it_had() -> None:
    def kill_one(run: RealRun) -> bool:
        if holds(run, "a") and holds(run, "b") and not run.machines["a"].is_gone:
            kill(run, "a")
        return run.machines["a"].is_gone

    with run_directory() as directory:
        run = run_of((idle("a"), idle("b")), directory, kill_one)
        record = run.play()
    assert (record.outcomes["a"].state, record.outcomes["b"].state) == (VmState.FAILED, VmState.RUNNING)
    assert record.outcomes["a"].reason == "vm a ended (killed by SIGKILL): no message"
    assert [event["vm"] for event in record.events if event["event"] == "failed"] == ["a"]
    assert 16 * MIB <= run.used_bytes < 32 * MIB
    assert not record.interrupted
    assert run.machines["b"].pid is not None
    assert not Path(f"/proc/{run.machines['b'].pid}").exists()


@pytest.mark.processes
def test_daemon_that_ends_ends_the_run_with_what_there_was() -> None:
    def kill_the_daemon(run: RealRun) -> bool:
        if holds(run, "a"):
            run.daemon.process.kill()
        return False

    with run_directory() as directory:
        record = run_of((idle("a"),), directory, kill_the_daemon).play()
    assert record.interrupted
    assert record.problem == "the daemon ended (killed by SIGKILL): no message"
    assert record.events[-1]["event"] == "daemon_ended"
    assert record.samples
    assert set(record.outcomes) == {"a"}
