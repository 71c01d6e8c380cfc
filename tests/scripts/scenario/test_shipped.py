"""What the shipped scenarios show, played in virtual time."""

import dataclasses

import pytest

from protocol.units import GIB
from scripts.scenario.run_record import RunRecord, VmState
from scripts.scenario.scenario_file import find_scenario, load_scenario
from scripts.scenario.virtual.fleet import Fleet


def play(name: str) -> RunRecord:
    return Fleet(load_scenario(find_scenario(name))).run()


def alive(record: RunRecord) -> int:
    return sum(outcome.state is not VmState.OOM_KILLED for outcome in record.outcomes.values())


def test_two_machines_take_turns_only_with_reporting() -> None:
    record = play("taking-turns")
    assert alive(record) == 2
    assert all(outcome.state is VmState.FINISHED for outcome in record.outcomes.values())
    assert play("taking-turns-without-reporting").outcomes["b"].state is VmState.OOM_KILLED


@pytest.mark.long
@pytest.mark.parametrize(("name", "guests"), [("how-many-5g-guests", 6), ("how-many-5g-guests-without-reporting", 2)])
def test_guests_of_5_gb_that_fit_as_published(name: str, guests: int) -> None:
    """Nitesh Lal, v11, 10 July 2019: "6" with his bitmap and with Duyck's v1, "2" unmodified."""
    record = play(name)
    assert alive(record) == guests
    assert record.peak_bytes <= record.scenario.budget_bytes


@pytest.mark.long
def test_the_third_memhog_waits_for_swap_only_without_reporting() -> None:
    """Published: 157 s instead of 21 to 27 s, and 3.7 GB in swap."""
    with_reporting, without = play("third-memhog"), play("third-memhog-without-reporting")
    assert [outcome.stall_seconds for outcome in with_reporting.outcomes.values()] == [0.0, 0.0, 0.0]
    first, second, third = without.outcomes.values()
    assert first.stall_seconds == second.stall_seconds == 0.0
    assert 110 < third.stall_seconds < 150
    assert third.finished_at is not None
    assert 140 < third.finished_at - 80.0 < 175
    assert all(outcome.state is VmState.FINISHED for outcome in without.outcomes.values())


def test_a_noisy_neighbour_costs_the_calm_ones_memory() -> None:
    record = play("noisy-neighbour")
    assert alive(record) == 3
    calm = [sample.vms["calm-1"] for sample in record.samples]
    assert any(vm.allocated_bytes > vm.resident_bytes for vm in calm)  # some of it is in swap


def test_before_a_snapshot_freed_memory_is_back() -> None:
    record = play("snapshot-preparation")
    peak, last = record.outcomes["vm"].peak_bytes, record.samples[-1].vms["vm"]
    assert peak > GIB // 2
    assert last.resident_bytes < 200 << 20


def test_a_short_night_of_the_idle_fleet() -> None:
    scenario = load_scenario(find_scenario("idle-fleet-overnight"))
    short = dataclasses.replace(scenario, duration=3600.0, vms=scenario.vms[:3])
    record = Fleet(short).run()
    assert alive(record) == 3
    assert record.samples[-1].used_bytes < 3 * 320 << 20
