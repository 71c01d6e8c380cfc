"""What varies with the seed, and by how much."""

from pathlib import Path

import pytest

from protocol.errors import UsageError
from protocol.units import MIB
from scripts.scenario.jitter import jittered
from scripts.scenario.real.budget import AccountedBudget
from scripts.scenario.real.real_run import RealRun
from scripts.scenario.scenario import Scenario, VmSpec
from scripts.scenario.scenario_file import load_scenario, parse_scenario, shipped_scenarios
from scripts.scenario.virtual.fleet import Fleet

WORKLOADS = ("memhog:size=100M,hold=10,rate=8M", "trace:x=1", "idle", "churn:size=0,seconds=20,tick=1")
VMS = tuple(
    VmSpec(name=f"vm-{number}", memory_bytes=256 * MIB, start=10.0 * (number // 2), workloads=WORKLOADS)
    for number in range(6)
)
SCENARIO = Scenario(name="s", title="s", budget_bytes=1 << 30, duration=60.0, vms=VMS, jitter=0.1)


def values(workload: str) -> dict[str, str]:
    return dict(item.partition("=")[::2] for item in workload.partition(":")[2].split(","))


@pytest.mark.parametrize("seed", [1, 2, 77])
def test_starts_sizes_and_durations_vary_by_the_stated_amount(seed: int) -> None:
    played = jittered(SCENARIO, seed)
    starts = [vm.start for vm in played.vms]
    assert starts[0] == starts[1] == 0.0
    assert starts == sorted(starts)
    assert all(9 <= later - earlier <= 11 for earlier, later in zip(starts[1::2], starts[2::2], strict=False))
    sizes, holds = set(), set()
    for vm in played.vms:
        hog, trace, idle, churn = vm.workloads
        assert (trace, idle) == WORKLOADS[1:3]
        found = values(hog)
        assert 90 * MIB <= int(found["size"]) <= 110 * MIB
        assert 9 <= float(found["hold"]) <= 11
        assert found["rate"] == "8M"
        assert 18 <= float(values(churn)["seconds"]) <= 22
        assert (values(churn)["size"], values(churn)["tick"]) == ("0", "1")
        sizes.add(found["size"])
        holds.add(found["hold"])
    assert len(sizes) == len(holds) == len(VMS)
    assert jittered(SCENARIO, seed) == played
    assert jittered(played, seed) == played


def test_seed_0_plays_what_the_file_says() -> None:
    assert jittered(SCENARIO, 0).vms == VMS
    assert jittered(SCENARIO, 1).vms != jittered(SCENARIO, 2).vms != VMS


def test_a_workload_that_fits_its_machine_still_does() -> None:
    workloads = ("memhog:size=230M", "memhog:size=250M", "page_fault1:size=110M,tasks=2")
    vm = VmSpec(name="a", memory_bytes=256 * MIB, workloads=workloads)
    scenario = Scenario(name="s", title="s", budget_bytes=1 << 30, duration=60.0, vms=(vm,), jitter=0.5)
    for seed in range(1, 30):
        first, second, third = jittered(scenario, seed).vms[0].workloads
        assert int(values(first)["size"]) <= 231 * MIB
        assert int(values(second)["size"]) <= 250 * MIB
        assert int(values(third)["size"]) <= 116 * MIB


def test_both_kinds_of_run_play_the_same_scenario() -> None:
    virtual = Fleet(SCENARIO, seed=5).record
    real = RealRun(SCENARIO, AccountedBudget(1 << 30), directory=Path(), seed=5).record
    assert virtual.scenario.vms == real.scenario.vms == jittered(SCENARIO, 5).vms


def test_every_shipped_scenario_varies() -> None:
    for path in shipped_scenarios().values():
        scenario = load_scenario(path)
        assert 0 < scenario.jitter <= 0.1, path.stem
        if len(scenario.vms) < 100:
            assert jittered(scenario, 1).vms != scenario.vms, path.stem


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('"a tenth"', "not a share"),
        ('"60%"', "60% is not from 0% to 50%"),
        ("-0.1", "-10% is not from 0%"),
        ("true", "a share"),
    ],
)
def test_a_jitter_that_is_not_a_share(value: str, message: str) -> None:
    text = f'duration = "1s"\njitter = {value}\n[host]\nmemory = "1G"\n[[vm]]\nmemory = "64M"\n'
    with pytest.raises(UsageError, match=f"^jitter: .*{message}"):
        parse_scenario(text, "s", Path())
