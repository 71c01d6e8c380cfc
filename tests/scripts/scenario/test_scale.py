"""Scenarios at another scale."""

import pytest

from protocol.errors import UsageError
from protocol.units import GIB, MIB
from scripts.scenario.run_record import VmState
from scripts.scenario.scale import fitting, scaled
from scripts.scenario.scenario import Scenario, VmSpec
from scripts.scenario.scenario_file import find_scenario, load_scenario
from scripts.scenario.virtual.fleet import Fleet

WORKLOADS = ("memhog:size=100M,rate=8M,hold=3", "build", "churn:size=0", "trace:x=1")
VM = VmSpec(name="a", memory_bytes=GIB, boot_bytes=64 * MIB, overhead_bytes=8 * MIB, workloads=WORKLOADS)
SCENARIO = Scenario(name="s", title="s", budget_bytes=2 * GIB, swap_bytes=GIB, duration=1.0, vms=(VM,))


def test_sizes_and_rates_change_and_times_do_not() -> None:
    small = scaled(SCENARIO, 0.25)
    assert (small.budget_bytes, small.swap_bytes, small.duration) == (GIB // 2, GIB // 4, 1.0)
    (vm,) = small.vms
    assert (vm.memory_bytes, vm.boot_bytes, vm.overhead_bytes) == (256 * MIB, 16 * MIB, 2 * MIB)
    assert vm.workloads == (f"memhog:size={25 * MIB},rate={2 * MIB},hold=3", "build", "churn:size=0", "trace:x=1")
    assert scaled(SCENARIO, 0.0157).vms[0].memory_bytes == 16 * MIB


def test_a_scenario_is_made_to_fit_by_a_power_of_two() -> None:
    assert fitting(SCENARIO, 2 * GIB) is SCENARIO
    assert fitting(SCENARIO, 2 * GIB - 1).budget_bytes == GIB
    assert fitting(SCENARIO, 600 * MIB).budget_bytes == 512 * MIB


@pytest.mark.parametrize("factor", [0.0, -1.0, float("inf"), float("nan"), 0.001, 1e300, 1e5])
def test_wrong_scales(factor: float) -> None:
    with pytest.raises(UsageError):
        scaled(SCENARIO, factor)
    with pytest.raises(UsageError):
        fitting(SCENARIO, 0)


@pytest.mark.parametrize(("name", "guests"), [("how-many-5g-guests", 6), ("how-many-5g-guests-without-reporting", 2)])
def test_the_number_of_guests_that_fit_is_the_same_at_a_quarter(name: str, guests: int) -> None:
    record = Fleet(scaled(load_scenario(find_scenario(name)), 0.25)).run()
    alive = sum(outcome.state is not VmState.OOM_KILLED for outcome in record.outcomes.values())
    assert alive == guests
