"""Two machines by turns on a budget for one, with real processes: with reporting both finish."""

from dataclasses import replace
from pathlib import Path

import pytest

from guest.mm.views.memory_map import LEVELS, decode
from protocol.units import MIB
from scripts.demonstration.budget import AccountedBudget
from scripts.demonstration.leftovers import round_directory
from scripts.scenario.real.real_run import RealRun
from scripts.scenario.run_record import RunRecord, VmState
from scripts.scenario.scenario import Scenario, VmSpec

WORK = ("memhog:size=60M,hold=0.5", "idle:seconds=0.5")


def play(reporter: str | None) -> RunRecord:
    # Sixty MiB are fewer blocks than those that usually start a pass.
    constants = {} if reporter is None else {"high_water_mark": 1}
    first = VmSpec(name="a", memory_bytes=96 * MIB, reporter=reporter, reporting=constants, workloads=WORK)
    vms = (first, replace(first, name="b", start=6.0, expendable=True))
    scenario = Scenario(name="turns", title="by turns", budget_bytes=100 * MIB, duration=60.0, vms=vms)

    def end_when_decided(record: RunRecord) -> None:
        if record.samples[-1].vms["b"].state not in (VmState.WAITING, VmState.RUNNING):
            raise KeyboardInterrupt

    with round_directory() as directory:
        budget = AccountedBudget(scenario.budget_bytes)
        run = RealRun(scenario, budget, Path(directory), seed=0, ledger=False, maps=True, on_sample=end_when_decided)
        return run.play()


@pytest.mark.processes
def test_with_reporting_both_finish() -> None:
    record = play("boundary")
    assert {name: outcome.state for name, outcome in record.outcomes.items()} == {
        "a": VmState.FINISHED,
        "b": VmState.FINISHED,
    }
    assert record.interrupted
    assert record.peak_bytes <= 100 * MIB
    assert all(outcome.corrupted_pages == 0 for outcome in record.outcomes.values())
    assert record.maps is not None
    assert {name for moment in record.maps.rounds for name in moment.maps} == {"a", "b"}
    taken = [moment.maps["a"] for moment in record.maps.rounds if "a" in moment.maps]
    # Sixty of 96 MiB were in use and backed, and were given back.
    assert max(decode(one["resident"]).count(LEVELS) for one in taken) > len(decode(taken[0]["resident"])) // 2
    assert decode(taken[-1]["resident"]).count(LEVELS) < decode(taken[-1]["reported"]).count(LEVELS)
    reports = [event for event in record.events if event["event"] == "report" and event["side"] == "host"]
    assert {event["vm"] for event in reports} == {"a", "b"}
    assert [event["vm"] for event in record.events if event["event"] == "started"] == ["a", "b"]


@pytest.mark.processes
def test_without_reporting_the_second_is_killed() -> None:
    record = play(None)
    assert record.outcomes["a"].state is VmState.FINISHED
    assert record.outcomes["b"].state is VmState.OOM_KILLED
    assert "budget does not suffice" in record.outcomes["b"].reason
    assert [event["vm"] for event in record.events if event["event"] == "oom_killed"] == ["b"]
    assert record.samples[-1].vms["b"].resident_bytes == 0
