"""A machine of a real run: its command, and what its events make of it."""

import csv
from pathlib import Path

import pytest

from guest.command_line import make_parser
from host.netlink import ProcessCost
from protocol.errors import BalloonError
from protocol.units import MIB
from scripts.scenario.real.real_machine import (
    RealMachine,
    control_socket,
    event_file,
    guest_command,
    why_costs_are_unknown,
)
from scripts.scenario.results import LEDGER, SAMPLES, write_results
from scripts.scenario.run_record import RunRecord, Sample, VmState
from scripts.scenario.scenario import Scenario, VmKind, VmSpec


def test_command_of_an_emulated_machine_is_understood_by_the_guest() -> None:
    spec = VmSpec(
        name="a",
        memory_bytes=512 * MIB,
        reporter="rotation",
        reporting={"order": 9, "delay": 0.5, "capacity": 16},
        workloads=("memhog:size=100M,hold=1", "idle:seconds=2"),
        cpus=2,
        profile="6.1",
    )
    argv = guest_command(spec, Path("/run/x"), Path("/run/x/socket"), 7, ledger=False)
    arguments = make_parser().parse_args(argv[argv.index("guest") + 1 :])
    assert (arguments.memory, arguments.reporter, arguments.reporting_order) == (512 * MIB, "rotation", 9)
    assert (arguments.reporting_delay, arguments.seed, arguments.cpus, arguments.hold) == (0.5, 7, 2, True)
    assert len(arguments.workload) == 2
    assert arguments.in_turn


def test_no_name_of_a_machine_is_that_of_another_file_of_the_run() -> None:
    names = ("host", "host.out", "socket", "control", "web", "web.ctl", "web.events", "web.events.out")
    files = [event_file(VmSpec(name=name, memory_bytes=64 * MIB)) for name in names]
    run = {"host", "host.out", "host.err", "socket", "control"}
    ends = ("", ".out", ".err")
    controls = [str(control_socket(VmSpec(name=name, memory_bytes=64 * MIB), Path("/"))).lstrip("/") for name in names]
    taken = [*run, *controls, *(file + end for file in files for end in ends)]
    assert len(set(taken)) == len(taken)


def test_machine_that_reports_nothing_has_no_reporter() -> None:
    spec = VmSpec(name="a", memory_bytes=MIB, reporter=None)
    argv = guest_command(spec, Path("/run/x"), Path("/run/x/socket"), 0, ledger=False)
    assert argv[argv.index("--reporter") + 1] == "off"


def test_real_kernel_runs_its_command() -> None:
    spec = VmSpec(name="l", memory_bytes=256 * MIB, kind=VmKind.LINUX, command="echo hello")
    argv = guest_command(spec, Path("/run/x"), Path("/run/x/socket"), 0, ledger=False)
    assert argv[-4:] == ["--", "sh", "-c", "echo hello"]


def test_coarse_machine_has_no_process() -> None:
    spec = VmSpec(name="c", memory_bytes=MIB, kind=VmKind.COARSE)
    with pytest.raises(BalloonError, match="vm c: a coarse machine has no process: it needs --virtual"):
        guest_command(spec, Path("/run/x"), Path("/run/x/socket"), 0, ledger=False)


def machine() -> RealMachine:
    return RealMachine(spec=VmSpec(name="a", memory_bytes=64 * MIB), state=VmState.RUNNING)


def test_figures_of_the_guest_are_in_the_sample() -> None:
    vm = machine()
    vm.apply(
        {
            "event": "memory",
            "t": 1.0,
            "free_bytes": 40 * MIB,
            "reported_bytes": 30 * MIB,
            "allocated_bytes": 20 * MIB,
            "balloon_bytes": 4 * MIB,
            "ledger": {"pcp": 4096, "delay": 8192},
            "page_cache_bytes": MIB,
        },
        1.0,
    )
    sample = vm.sample()
    assert (sample.free_bytes, sample.reported_bytes, sample.balloon_bytes) == (40 * MIB, 30 * MIB, 4 * MIB)
    assert sample.ledger is not None
    assert (sample.ledger.not_returned_bytes, sample.ledger.page_cache_bytes) == (12288, MIB)


def test_machine_that_was_killed_has_no_memory_in_the_files(tmp_path: Path) -> None:
    vm = machine()
    sizes = {"allocated_bytes": MIB, "free_bytes": 40 * MIB, "reported_bytes": 30 * MIB, "balloon_bytes": 4 * MIB}
    told = {"event": "memory", "t": 1.0, **sizes, "ledger": {"pcp": 4096}, "page_cache_bytes": MIB}
    vm.apply(told, 1.0)
    vm.target_bytes = vm.resident_bytes = 8 * MIB
    samples = [Sample(t=1.0, used_bytes=8 * MIB, vms={"a": vm.sample()})]
    vm.went(VmState.OOM_KILLED, "the budget does not suffice")
    # Its last words may be read only after that.
    for event in (told, {"event": "finished", "t": 1.5, "verified_pages": 5, "corrupted_pages": 0}):
        vm.apply(event, 2.0)
    samples.append(Sample(t=2.0, used_bytes=0, vms={"a": vm.sample()}))
    scenario = Scenario(name="s", title="s", budget_bytes=MIB, duration=2.0, vms=(vm.spec,))
    record = RunRecord(scenario=scenario, policy="none", seed=0, is_virtual=False, samples=samples)
    record.outcomes["a"] = vm.outcome()
    write_results(record, tmp_path)
    alive, gone = csv.DictReader((tmp_path / SAMPLES).read_text(encoding="utf-8").splitlines())
    columns = [column for column in gone if column.endswith("_bytes")]
    assert alive["free_bytes"] == str(40 * MIB)
    assert gone["state"] == "oom-killed"
    assert {column: gone[column] for column in columns} == dict.fromkeys(columns, "0")
    assert [line.split(",")[0] for line in (tmp_path / LEDGER).read_text(encoding="utf-8").splitlines()] == ["t", "1.0"]


@pytest.mark.parametrize(
    ("events", "state", "reason"),
    [
        ([], VmState.FINISHED, ""),
        ([{"event": "out_of_memory", "t": 1.0}], VmState.FAILED, "a workload ran out of the guest's memory"),
    ],
)
def test_machine_whose_workloads_end(events: list[dict[str, object]], state: VmState, reason: str) -> None:
    vm = machine()
    for event in [*events, {"event": "finished", "t": 3.0, "verified_pages": 5, "corrupted_pages": 0}]:
        vm.apply(event, 3.0)
    outcome = vm.outcome()
    assert (outcome.state, outcome.reason, outcome.finished_at, outcome.verified_pages) == (state, reason, 3.0, 5)


def test_machine_that_lost_pages_has_failed() -> None:
    vm = machine()
    vm.apply({"event": "finished", "t": 3.0, "verified_pages": 5, "corrupted_pages": 2}, 3.0)
    assert vm.outcome().state is VmState.FAILED
    assert vm.outcome().reason == "2 pages lost their content"


def test_discards_and_their_time_are_counted() -> None:
    vm = machine()
    vm.apply_host({"event": "report", "t": 1.0, "discarded_bytes": 4 * MIB, "seconds": 0.01})
    vm.apply_host({"event": "inflate", "t": 1.0, "discarded_bytes": MIB, "seconds": 0.02})
    vm.apply_host({"event": "connected", "t": 1.0, "pid": 1})
    assert vm.discarded_bytes == 5 * MIB
    assert vm.outcome().reclaim_cpu_seconds == pytest.approx(0.03)


def test_a_guest_tells_the_map_of_its_memory() -> None:
    spec = VmSpec(name="a", memory_bytes=64 * MIB)
    argv = guest_command(spec, Path("/run/x"), Path("/run/x/socket"), 0, ledger=False, map_interval=0.5)
    assert make_parser().parse_args(argv[argv.index("guest") + 1 :]).memory_map == 0.5
    vm = machine()
    vm.apply({"event": "memory_map", "t": 1.0, "time": "now", "cell_bytes": MIB, "free": "i64"}, 1.0)
    assert vm.latest_map == {"t": 1.0, "cell_bytes": MIB, "free": "i64"}
    assert vm.take_memory_map(64) is None  # without a process


def test_reclaim_for_its_own_allocations_is_part_of_the_cost() -> None:
    vm = machine()
    vm.discard_seconds = 0.25
    vm.cost = ProcessCost(
        source="taskstats v16",
        pid=1,
        peak_resident_bytes=70 * MIB,
        minor_faults=0,
        major_faults=0,
        direct_reclaim_seconds=0.5,
        thrashing_seconds=2.0,
        compaction_seconds=0.125,
    )
    outcome = vm.outcome()
    assert (outcome.reclaim_cpu_seconds, outcome.stall_seconds) == (0.875, 2.5)
    assert outcome.process_peak_bytes == 70 * MIB


@pytest.mark.parametrize(
    ("source", "is_enabled", "why"),
    [
        ("taskstats v16", True, None),
        ("taskstats v16", False, "the sysctl kernel.task_delayacct is 0"),
        ("/proc (taskstats: Operation not permitted)", True, "taskstats: Operation not permitted"),
    ],
)
def test_why_the_kernel_does_not_tell_what_a_process_waited(
    source: str, is_enabled: bool, why: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost = ProcessCost(source=source, pid=1, peak_resident_bytes=1, minor_faults=0, major_faults=0)
    monkeypatch.setattr("scripts.scenario.real.real_machine.process_cost", lambda pid: cost)
    monkeypatch.setattr("scripts.scenario.real.real_machine.delay_accounting_enabled", lambda: is_enabled)
    assert why_costs_are_unknown() == why
