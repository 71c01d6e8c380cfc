"""How a policy stands against the others, and the tables about it."""

import pytest

from scripts.scenario.compare.all_scenarios import MOST_MACHINES, Comparison, in_virtual_time, markdown, smaller
from scripts.scenario.compare.verdict import Standing, counts, verdict
from scripts.scenario.scenario import VmKind
from scripts.scenario.scenario_file import load_scenario, shipped_scenarios
from scripts.scenario.score import Score
from tests.scripts.scenario.compare.scores import score

ALONE = [score(10.0, 1.0), score(11.0, 2.0), score(12.0, 3.0)]


def less(by: float, stall: float = 0.0, oom: int = 0) -> list[Score]:
    return [score(one.host_gib_minutes - by, one.stall_seconds + stall, oom) for one in ALONE]


@pytest.mark.parametrize(
    ("ours", "other", "text"),
    [
        (less(2), less(1), "fewest"),
        (less(1), less(1), "as few as other"),
        (less(1), less(2), "more than other"),
        (less(1), less(2, stall=0.5), "fewest"),
        (less(1), less(2, oom=1), "fewest"),
        (less(3, stall=0.5), less(1), "costs"),
        (less(0), less(-1), "as few as reporting"),
    ],
)
def test_fewest_gib_minutes_at_no_more_than_reporting_costs(ours: list[Score], other: list[Score], text: str) -> None:
    assert str(verdict({"steady": ours, "reporting": ALONE, "other": other})) == text


def test_stall_time_counts_as_far_as_the_spread_tells_it_apart() -> None:
    assert not counts(less(1, stall=0.001), ALONE)  # the same with every seed
    assert counts([score(1.0, 5.0), score(1.0, 0.0), score(1.0, 2.0)], ALONE)
    assert not counts([score(1.0, 1.1)], ALONE[:1])  # a single seed has no spread


def test_what_costs_too_much_is_named() -> None:
    found = verdict({"steady": less(1), "reporting": ALONE, "other": less(5, oom=1)})
    assert (found.standing, found.left_out) == (Standing.FEWEST, ("other",))


def test_a_real_kernel_is_left_out_of_virtual_time() -> None:
    shipped = {name: load_scenario(path) for name, path in shipped_scenarios().items()}
    left_out = shipped.keys() - {scenario.name for scenario in in_virtual_time(shipped.values())}
    assert left_out == {"linux-beside-emulated"}
    scenario = shipped["linux-beside-emulated"]
    assert {vm.profile for vm in scenario.vms if vm.kind is VmKind.EMULATED} == {"6.1", "7.2"}
    assert scenario.duration <= 40


def test_large_scenarios_are_compared_smaller() -> None:
    played = {name: smaller(load_scenario(path)) for name, path in shipped_scenarios().items()}
    assert played["noisy-neighbour"] == (load_scenario(shipped_scenarios()["noisy-neighbour"]), "")
    fleet, how = played["ten-thousand"]
    assert (len(fleet.vms), how) == (MOST_MACHINES, "100 of 10000 machines")
    third, how = played["third-memhog"]
    assert (third.vms[0].memory_bytes, how) == (384 << 20, "sizes times 1/16")
    guests, how = played["how-many-5g-guests"]
    assert (guests.vms[0].memory_bytes, how) == (640 << 20, "sizes times 1/8")
    night, how = played["idle-fleet-overnight"]
    assert (len(night.vms), how) == (5, "5 of 20 machines, sizes times 1/4")


def test_markdown_has_a_row_for_each_scenario_and_policy() -> None:
    scenario = load_scenario(shipped_scenarios()["noisy-neighbour"])
    scores = {"steady": less(1), "reporting": ALONE, "esx": less(5, oom=1)}
    text = markdown([Comparison(scenario=scenario, scale="", scores=scores)], 20)
    assert "| noisy-neighbour (3 seeds) | 11 ± 1 | 2 ± 1 | 10 ± 1 | 2 ± 1 | fewest |" in text
    assert "| esx | 6 ± 1 | 2 ± 1 | 1 ± 0 | costs more than reporting |" in text
