"""A scenario in virtual time: budget, OOM killer, swap, balloon, policy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guest.mm.views.memory_map import LEVELS, decode
from host.policy.observation import Observation
from host.policy.policy import Decision, Reclaim, SetBalloon
from protocol.errors import UsageError
from protocol.memory import PAGE_SIZE
from protocol.units import GIB, MIB
from scripts.scenario.run_record import LEDGER_CAUSES, RunRecord, VmState
from scripts.scenario.scenario import Scenario, VmKind, VmSpec
from scripts.scenario.scenario_file import parse_scenario
from scripts.scenario.virtual.fleet import Fleet

FILL = "memhog:size=192M,hold=2"


class Ask:
    """A policy that is a function."""

    name = "ask"
    interval = 1.0

    def __init__(self, answer: Callable[[Observation], Any]) -> None:
        self._answer = answer

    def decide(self, seen: Observation) -> Decision:
        answer: Decision = self._answer(seen)
        return answer


def scenario(*vms: VmSpec, budget: int = GIB, duration: float = 20.0, **more: Any) -> Scenario:
    more.setdefault("sample_interval", 1.0)
    return Scenario(name="s", title="s", budget_bytes=budget, duration=duration, vms=vms, **more)


def vm(name: str, *workloads: str, **more: Any) -> VmSpec:
    return VmSpec(name=name, memory_bytes=more.pop("memory", 256 * MIB), workloads=workloads, **more)


def turns(reporter: str | None, **more: Any) -> RunRecord:
    machines = (vm("a", FILL, reporter=reporter), vm("b", FILL, reporter=reporter, start=6.0))
    return Fleet(scenario(*machines, budget=320 * MIB, **more)).run()


def events(record: RunRecord, name: str) -> list[str]:
    return [str(event["vm"]) for event in record.events if event["event"] == name]


def test_two_machines_take_turns_with_reporting() -> None:
    record = turns("boundary")
    assert {name: outcome.state for name, outcome in record.outcomes.items()} == {
        "a": VmState.FINISHED,
        "b": VmState.FINISHED,
    }
    assert record.peak_bytes == 192 * MIB
    assert record.gib_minutes == sum(outcome.gib_minutes for outcome in record.outcomes.values())
    assert [sample.t for sample in record.samples] == [float(t) for t in range(21)]
    assert record.samples[-1].used_bytes == 0
    assert record.seconds == 20.0
    assert events(record, "finished") == ["a", "b"]


def test_guests_of_two_releases_play_in_one_scenario(tmp_path: Path) -> None:
    """An unmovable page is asked for where every pageblock is mostly movable: Linux 6.1 moves all free pages of one to
    the unmovable lists; 7.2 takes that page alone."""
    blocks, singles = range(12), range(100, 100 + 3 * 1024)
    trace = ["balloon-trace 1", *(f"0 alloc {number} 10" for number in blocks)]
    trace += [f"0 alloc {number} 0" for number in singles]
    trace += [f"0.1 free {number}" for number in singles[::4]]
    trace += ["0.2 alloc 50 10", "0.3 alloc 51 0 unmovable"]
    (tmp_path / "mixed").write_text("\n".join(trace) + "\n", encoding="ascii")
    machine = (
        '[[vm]]\nname = "{}"\nprofile = "{}"\nmemory = "64M"\nreporter = "rotation"\nworkloads = ["trace:mixed"]\n'
    )
    text = 'duration = "1s"\n[host]\nmemory = "1G"\n' + machine.format("old", "6.1") + machine.format("new", "7.2")
    fleet = Fleet(parse_scenario(text, "two-releases", tmp_path))
    assert {outcome.state for outcome in fleet.run().outcomes.values()} == {VmState.FINISHED}
    free = {name: [view for view in fleet.free_lists(name) or () if view.order == 0] for name in ("old", "new")}
    blocks_by_type = {name: {view.migratetype: view.blocks for view in views} for name, views in free.items()}
    assert set(blocks_by_type["old"]) == {"Unmovable", "Movable"}
    assert set(blocks_by_type["new"]) == {"Movable"}
    assert sum(blocks_by_type["old"].values()) == sum(blocks_by_type["new"].values())


def test_without_reporting_the_largest_is_killed() -> None:
    record = turns(None)
    assert record.outcomes["a"].state is VmState.OOM_KILLED
    assert record.outcomes["b"].state is VmState.FINISHED
    assert "b needs" in record.outcomes["a"].reason
    assert events(record, "oom_killed") == ["a"]
    assert record.samples[-1].vms["a"].resident_bytes == 0
    assert record.samples[-1].used_bytes == 192 * MIB
    assert record.peak_bytes <= 320 * MIB


def test_the_expendable_one_is_killed_first_also_when_it_is_the_one_that_needs_memory() -> None:
    machines = (vm("a", FILL, reporter=None), vm("b", FILL, reporter=None, start=6.0, expendable=True))
    record = Fleet(scenario(*machines, budget=320 * MIB)).run()
    assert record.outcomes["a"].state is VmState.FINISHED
    assert record.outcomes["b"].state is VmState.OOM_KILLED


def test_a_process_that_does_not_fit_is_killed_at_its_start() -> None:
    record = Fleet(scenario(vm("a", FILL, overhead_bytes=GIB), budget=GIB // 2)).run()
    assert record.outcomes["a"].state is VmState.OOM_KILLED
    assert record.outcomes["a"].gib_minutes == 0 or record.samples[-1].used_bytes == 0


def test_with_swap_the_second_machine_waits_instead() -> None:
    record = turns(None, swap_bytes=GIB)
    assert record.outcomes["a"].state is record.outcomes["b"].state is VmState.FINISHED
    assert record.outcomes["b"].stall_seconds == pytest.approx(64 * MIB / 28e6, rel=0.05)
    finished = record.outcomes["b"].finished_at
    assert finished is not None
    assert finished == pytest.approx(8.0 + record.outcomes["b"].stall_seconds, abs=0.1)
    assert record.samples[-1].used_bytes == 320 * MIB


def test_same_seed_same_record_other_seed_other_record() -> None:
    build = scenario(vm("a", "build:size=16M,seconds=5,tick=0.5", reporter="rotation"), duration=10.0)
    first, again, other = (Fleet(build, seed=seed).run() for seed in (1, 1, 2))
    assert first == again
    assert first.samples != other.samples


def test_boot_memory_and_overhead_stay() -> None:
    record = Fleet(scenario(vm("a", FILL, boot_bytes=32 * MIB, overhead_bytes=10 * MIB))).run()
    assert record.samples[-1].vms["a"].resident_bytes == 42 * MIB
    assert record.samples[-1].vms["a"].allocated_bytes == 32 * MIB
    assert record.peak_bytes == 234 * MIB


def test_a_guest_that_runs_out_of_its_own_memory_has_failed_and_goes_on() -> None:
    record = Fleet(scenario(vm("a", "memhog:size=300M", "memhog:size=16M"))).run()
    outcome = record.outcomes["a"]
    assert outcome.state is VmState.FAILED
    assert outcome.reason.startswith("memhog:size=300M: out of memory")
    assert outcome.finished_at is not None
    assert outcome.stall_seconds == pytest.approx(2.0, abs=0.2)


def test_a_machine_that_starts_after_the_end_waits() -> None:
    record = Fleet(scenario(vm("a", FILL, start=60.0))).run()
    assert record.outcomes["a"].state is VmState.WAITING
    assert record.samples[-1].vms["a"].state is VmState.WAITING


def test_a_balloon_takes_what_is_free_and_not_what_is_used() -> None:
    policy = Ask(lambda seen: Decision((SetBalloon("a", 192 * MIB if seen.now < 10 else 0),), "squeeze"))
    record = Fleet(scenario(vm("a", "memhog:size=128M,hold=60", reporter=None)), policy).run()
    at_nine, last = record.samples[9].vms["a"], record.samples[-1].vms["a"]
    # At once by what is free and a quarter of the memory, which is 192 MiB but for some pages.
    assert 191 * MIB < at_nine.target_bytes <= 192 * MIB
    assert 110 * MIB < at_nine.balloon_bytes < 128 * MIB
    assert at_nine.free_bytes < 16 * MIB
    assert at_nine.resident_bytes == 128 * MIB
    assert (last.balloon_bytes, last.target_bytes) == (0, 0)
    assert 127 * MIB < last.free_bytes <= 128 * MIB  # the rest is on per-CPU lists
    assert record.outcomes["a"].reclaim_cpu_seconds > 0


def test_reclaim_gives_back_what_is_free_but_a_reserve() -> None:
    policy = Ask(lambda seen: Decision((Reclaim("a"),) if seen.now == 10 else (), ""))
    record = Fleet(scenario(vm("a", FILL, reporter=None)), policy).run()
    before, after = record.samples[10].vms["a"], record.samples[15].vms["a"]
    assert before.resident_bytes == 192 * MIB
    assert after.resident_bytes <= 32 * MIB
    assert after.balloon_bytes == 0
    reclaimed = [event for event in record.events if event["event"] == "reclaimed"]
    assert [event["discarded_bytes"] for event in reclaimed] == [before.resident_bytes - after.resident_bytes]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (lambda seen: 1 // 0, "ZeroDivisionError"),
        (lambda seen: None, "not a Decision"),
        (lambda seen: Decision((SetBalloon("z", 1),)), "z"),
    ],
)
def test_a_policy_that_fails_is_contained(answer: Callable[[Observation], Any], problem: str) -> None:
    def first_well(seen: Observation) -> Any:
        return Decision((SetBalloon("a", 32 * MIB),), "well") if seen.now == 0 else answer(seen)

    record = Fleet(scenario(vm("a", FILL), duration=3.0), Ask(first_well)).run()
    assert [decision.error is None for decision in record.decisions] == [True, False, False, False]
    assert all(problem in (decision.error or "") for decision in record.decisions[1:])
    assert record.decisions[-1].actions == (SetBalloon("a", 32 * MIB),)
    assert record.samples[-1].vms["a"].balloon_bytes == 32 * MIB
    assert [event["event"] for event in record.events].count("policy_fault") == 1
    assert record.outcomes["a"].state is VmState.FINISHED


def test_decisions_have_their_inputs() -> None:
    record = Fleet(scenario(vm("a", FILL), duration=2.0), Ask(lambda seen: Decision((), "nothing to do"))).run()
    last = record.decisions[-1]
    assert (last.t, last.policy, last.reason) == (2.0, "ask", "nothing to do")
    assert last.inputs["host"]["budget_bytes"] == GIB
    assert last.inputs["vms"]["a"]["memory_bytes"] == 256 * MIB


@pytest.mark.long
@pytest.mark.parametrize("reporter", ["boundary", "rotation", None])
def test_the_ledger_adds_up_to_the_byte_at_every_sample(reporter: str | None) -> None:
    """What the host holds is what programs hold, and the free memory that the ledger books to a cause."""
    policy = Ask(lambda seen: Decision((SetBalloon("a", 64 * MIB if 5 <= seen.now < 12 else 0), Reclaim("b"))))
    machines = (
        vm(
            "a",
            "memhog:size=128M,hold=2",
            "pagecache:size=16M,hold=2,drop=60,repeat=2",
            reporter=reporter,
            boot_bytes=MIB,
        ),
        vm("b", "build:size=16M,seconds=8,tick=1", reporter=reporter, memory=64 * MIB, overhead_bytes=0),
    )
    record = Fleet(scenario(*machines, sample_interval=0.25), policy).run()
    held = 0
    for sample in record.samples:
        for entry in sample.vms.values():
            assert entry.ledger is not None
            assert set(entry.ledger.causes) <= set(LEDGER_CAUSES)
            assert entry.resident_bytes == entry.allocated_bytes + entry.ledger.not_returned_bytes
            assert entry.ledger.page_cache_bytes == entry.cache_bytes
            held += entry.ledger.not_returned_bytes
    assert held > 0


def test_maps_show_what_the_samples_say() -> None:
    specs = vm("a", "memhog:size=128M,hold=8"), vm("b", start=2.0)
    record = Fleet(scenario(*specs), maps=True).run()
    assert record.maps is not None
    rounds = {moment.t: moment.maps for moment in record.maps.rounds}
    assert list(rounds[0.0]) == ["a"]
    assert list(rounds[4.0]) == ["a", "b"]
    sample = next(sample for sample in record.samples if sample.t == 4.0).vms["a"]
    found = rounds[4.0]["a"]
    resident = sum(decode(found["resident"])) * found["cell_bytes"] / LEVELS
    assert resident == pytest.approx(sample.resident_bytes, rel=0.05)
    free = sum(count << order for order, count in enumerate(found["free_blocks"])) * PAGE_SIZE
    assert free == pytest.approx(sample.free_bytes, abs=MIB)
    assert Fleet(scenario(*specs)).run().maps is None


def test_a_run_may_keep_no_ledger() -> None:
    record = Fleet(scenario(vm("a", FILL), duration=2.0), ledger=None).run()
    assert [sample.vms["a"].ledger for sample in record.samples] == [None] * 3


def test_cache_that_a_balloon_evicted_is_read_again() -> None:
    def answer(seen: Observation) -> Decision:
        return Decision((SetBalloon("a", 32 * MIB if 2 <= seen.now < 6 else 0),), "")

    workload = "pagecache:size=32M,hold=8,drop=10,repeat=2"
    machine = vm("a", workload, memory=64 * MIB, reporter=None)
    calm = Fleet(scenario(machine), Ask(lambda seen: Decision())).run()
    squeezed = Fleet(scenario(machine), Ask(answer)).run()
    assert calm.outcomes["a"].stall_seconds < squeezed.outcomes["a"].stall_seconds
    assert squeezed.outcomes["a"].state is VmState.FINISHED


def test_a_real_kernel_is_refused() -> None:
    with pytest.raises(UsageError, match="a is a real kernel"):
        Fleet(scenario(vm("a", kind=VmKind.LINUX)))


def test_interrupted_runs_keep_what_they_have() -> None:
    def interrupt(sample: Any) -> None:
        if sample.t >= 3:
            raise KeyboardInterrupt

    record = Fleet(scenario(vm("a", FILL))).run(interrupt)
    assert record.interrupted
    assert (len(record.samples), record.seconds) == (4, 3.0)
    assert record.outcomes["a"].peak_bytes == 192 * MIB
