"""What is observed of an emulated machine: kept while it does not change, and exact whenever it is looked at."""

from collections.abc import Callable

import pytest

from guest.simulation import Simulation
from host.policy.observation import Observation
from host.policy.policy import Action, Decision, Reclaim, SetBalloon
from protocol.units import MIB
from scripts.scenario.run_record import LedgerEntry
from scripts.scenario.scenario import Scenario, VmSpec
from scripts.scenario.virtual.emulated import EmulatedVm
from scripts.scenario.virtual.fleet import Fleet
from scripts.scenario.virtual.ledger import ledger_entry
from scripts.scenario.watched import Watched

WORK = ("memhog:size=96M,hold=1,rest=2,rate=64M", "build:size=32M,seconds=5,tick=0.25", "pagecache:size=64M,hold=1")


class Ask:
    """A policy that moves balloons up and down, and reclaims now and then."""

    name = "ask"
    interval = 1.0

    def decide(self, seen: Observation) -> Decision:
        number = int(seen.now)
        actions: tuple[Action, ...] = (SetBalloon("a", (number % 3) * 48 * MIB),)
        return Decision(actions if number % 4 < 3 else (*actions, Reclaim("b", None)), "because")


def fleet(reporter: str | None, swap: int, ledger: Callable[[Simulation, int | None], LedgerEntry]) -> Fleet:
    vms = tuple(
        VmSpec(name=name, memory_bytes=160 * MIB, boot_bytes=16 * MIB, workloads=WORK, reporter=reporter, start=start)
        for name, start in (("a", 0.0), ("b", 1.5))
    )
    scenario = Scenario(
        name="s",
        title="s",
        budget_bytes=400 * MIB - 3 * swap,
        swap_bytes=swap,
        duration=10.0,
        vms=vms,
        sample_interval=0.25,
    )
    return Fleet(scenario, Ask(), ledger=ledger)


@pytest.mark.parametrize(("reporter", "swap"), [("boundary", 0), ("rotation", 64 * MIB)], ids=str)
def test_what_is_kept_or_known_is_what_counting_all_finds(reporter: str | None, swap: int) -> None:
    known = 0

    def ledger(simulation: Simulation, backed_free_pages: int | None) -> LedgerEntry:
        nonlocal known
        known += backed_free_pages is not None
        entry = ledger_entry(simulation, backed_free_pages)
        assert entry == ledger_entry(simulation, None)
        return entry

    kept = steps = 0

    def watch(run: Watched) -> None:
        nonlocal kept, steps
        steps += 1
        if steps % 4:
            return
        for machine in run.vms.values() if isinstance(run, Fleet) else ():
            assert isinstance(machine, EmulatedVm)
            before = machine._sampled
            sample = machine.sample()
            kept += before is not None and sample is before[1]
            assert sample == machine._take_sample()

    record = fleet(reporter, swap, ledger).run(watch=watch)
    assert min(known, kept) > 10
    assert all(decision.error is None and decision.actions for decision in record.decisions)
    assert {event["event"] for event in record.events} >= {"started", "phase", "reclaimed"}
    assert any(vm.ledger is not None and vm.ledger.not_returned_bytes for s in record.samples for vm in s.vms.values())


def test_a_map_is_taken_again_only_of_a_machine_that_has_changed() -> None:
    vms = (VmSpec(name="a", memory_bytes=64 * MIB, boot_bytes=16 * MIB, workloads=("memhog:size=8M,hold=3",)),)
    scenario = Scenario(name="s", title="s", budget_bytes=200 * MIB, duration=8.0, vms=vms, sample_interval=0.25)
    record = Fleet(scenario, maps=True).run()
    assert record.maps is not None
    maps = [taken.maps["a"] for taken in record.maps.rounds]
    distinct = [taken for last, taken in zip([None, *maps], maps, strict=False) if taken is not last]
    assert len(maps) > 30
    assert 2 <= len(distinct) < 10
    assert distinct[0] != distinct[1]
