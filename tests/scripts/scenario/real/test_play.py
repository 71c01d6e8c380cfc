"""``balloon-lab run`` without ``--virtual``: real processes, the policy through the control socket, and the results."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.errors import BalloonError
from protocol.units import MIB
from scripts.laboratory.__main__ import main
from scripts.scenario.real.budget import AccountedBudget
from scripts.scenario.real.play import play
from scripts.scenario.run_record import LEDGER_CAUSES, RunRecord
from scripts.scenario.scenario import Scenario, VmKind, VmSpec
from scripts.scenario.scenario_file import load_scenario
from scripts.scenario.score import score_of
from tests.harness.processes import DEADLINE, ROOT, processes_with, until

SMALL = """\
title = "One machine that frees what it had"
duration = "8s"

[host]
memory = "160M"

[policy]
name = "proxmox"
interval = 1.0

[[vm]]
name = "a"
memory = "128M"
reporting = { high_water_mark = 1 }
workloads = ["memhog:size=64M,hold=1", "idle:seconds=1"]
"""


def test_a_coarse_machine_has_no_processes() -> None:
    vm = VmSpec(name="c", memory_bytes=64 * MIB, kind=VmKind.COARSE)
    scenario = Scenario(name="s", title="s", budget_bytes=64 * MIB, duration=1.0, vms=(vm,))
    with pytest.raises(BalloonError, match="c is a coarse machine, which only --virtual has"):
        play(scenario, policy="reporting", seed=0)


def test_what_the_kernel_does_not_offer_is_said_once_and_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("scripts.scenario.real.budget.candidates", lambda own, mounts: [])
    monkeypatch.setattr("scripts.scenario.real.budget.memory_for_us", lambda: 1024 * MIB)
    monkeypatch.setattr("scripts.scenario.real.play.why_costs_are_unknown", lambda: "taskstats: not permitted")
    monkeypatch.setattr(AccountedBudget, "pressure_file", Path("/missing/memory"))
    scenario = Scenario(name="s", title="s", budget_bytes=MIB, duration=1.0, vms=(VmSpec(name="a", memory_bytes=MIB),))
    record = RunRecord(scenario=scenario, policy="reporting", seed=0, is_virtual=False)
    monkeypatch.setattr("scripts.scenario.real.real_run.RealRun.play", lambda run: record)
    assert play(scenario, policy="reporting", seed=0) is record
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "balloon-lab run: no memory cgroup can be made here: the run adds up what machines have, and stops one itself",
        "balloon-lab run: /missing/memory: this kernel does not tell its pressure on memory (PSI)",
        "balloon-lab run: stall time and the processor time of reclaim leave out what the kernel does for a process: "
        "taskstats: not permitted",
    ]


@pytest.mark.processes
def test_a_scenario_is_played_and_its_results_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "small.toml", tmp_path / "out"
    file.write_text(SMALL)
    assert main(["run", str(file), "--out", str(out)]) == 0
    assert "a        finished" in capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["virtual"], summary["policy"]) == (False, "proxmox")
    assert summary["vms"]["a"]["corrupted_pages"] == 0
    assert summary["vms"]["a"]["process_peak_bytes"] > summary["vms"]["a"]["peak_bytes"] > 0
    assert summary["score"]["daemon_cpu_seconds"] > 0
    header, *rows = (out / "ledger.csv").read_text().splitlines()
    assert header.split(",") == ["t", "vm", "not_returned_bytes", *LEDGER_CAUSES, "page_cache_bytes"]
    assert rows
    for row in rows:
        _, _, total, *causes = row.split(",")
        assert sum(map(int, causes[:-1])) == int(total)
    decisions = [json.loads(line) for line in (out / "decisions.jsonl").read_text().splitlines()]
    assert decisions
    assert decisions[-1]["policy"] == "proxmox"
    assert decisions[-1]["inputs"]["vms"]["a"]["memory_bytes"] == 128 * MIB


@pytest.mark.processes
def test_virtual_and_real_run_agree(tmp_path: Path) -> None:
    from host.policy.registry import make_policy
    from scripts.scenario.scale import scaled
    from scripts.scenario.scenario_file import find_scenario
    from scripts.scenario.virtual.fleet import Fleet

    scenario = scaled(load_scenario(find_scenario("taking-turns-without-reporting")), 0.25)
    record = play(scenario, policy="reporting", seed=0)
    # A machine boots in no time in virtual time. A real one boots late on a busy system.
    booted = {event["vm"]: event["t"] for event in record.events if event["event"] == "booted"}
    vms = tuple(replace(vm, start=booted[vm.name]) for vm in scenario.vms)
    fleet = Fleet(replace(scenario, vms=vms), make_policy("reporting", {}), policy_name="reporting", seed=0)
    real, virtual = score_of(record), score_of(fleet.run())
    assert real.host_gib_minutes == pytest.approx(virtual.host_gib_minutes, rel=0.1)
    assert real.oom_events == virtual.oom_events == 1


@pytest.mark.processes
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_a_run_whose_results_so_far_are_kept(number: int, status: int, tmp_path: Path) -> None:
    file, out = tmp_path / "small.toml", tmp_path / "out"
    file.write_text(SMALL.replace("hold=1", "hold=100").replace("8s", "100s"))
    command = [sys.executable, "-m", "scripts.laboratory", "run", str(file), "--out", str(out)]
    with tempfile.TemporaryDirectory(prefix="run-") as scratch:
        environment = {**os.environ, "TMPDIR": scratch}
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as process:
            until(lambda: any(Path(scratch).glob("balloon-run-*/vm-a.events")), "the machine has started")
            process.send_signal(number)
            _, errors = process.communicate(timeout=DEADLINE)
        assert process.returncode == status
        assert "Traceback" not in errors
        assert list(Path(scratch).iterdir()) == []
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["interrupted"], summary["problem"], set(summary["vms"])) == (True, "", {"a"})
    assert list(Path("/sys/fs/cgroup").rglob(f"vhost-user-balloon-run-{process.pid}")) == []
    assert processes_with(scratch) == {}
