"""A scenario with a real kernel and an emulated guest: both are in the samples and in the ledger, with real figures."""

import csv
import json
from pathlib import Path

import pytest

from protocol.units import MIB
from scripts.scenario.real.budget import AccountedBudget
from scripts.scenario.real.leftovers import run_directory
from scripts.scenario.real.real_run import RealRun
from scripts.scenario.results import LEDGER, SAMPLES, SUMMARY, write_results
from scripts.scenario.run_record import RunRecord, VmState
from scripts.scenario.scenario import Scenario, VmKind, VmSpec

pytestmark = [pytest.mark.real_kernel, pytest.mark.usefixtures("kernel_release")]

COMMAND = "echo phase fill; head -c 80M /dev/zero > /tmp/zeros; sleep 1.5; rm /tmp/zeros; echo phase rest; sleep 5"


def test_real_and_emulated_machine_share_a_host(tmp_path: Path) -> None:
    linux = VmSpec(name="real", kind=VmKind.LINUX, memory_bytes=256 * MIB, command=COMMAND)
    emulated = VmSpec(name="emulated", memory_bytes=64 * MIB, workloads=("memhog:size=32M,hold=1",))
    scenario = Scenario(
        name="mixed", title="Mixed", budget_bytes=512 * MIB, duration=120.0, vms=(linux, emulated), sample_interval=0.2
    )

    def end_with_the_kernel(record: RunRecord) -> None:
        if record.samples[-1].vms["real"].state is not VmState.RUNNING and record.samples[-1].t > 1:
            raise KeyboardInterrupt

    with run_directory() as directory:
        budget = AccountedBudget(scenario.budget_bytes)
        record = RealRun(scenario, budget, Path(directory), seed=0, on_sample=end_with_the_kernel).play()
    write_results(record, tmp_path)

    summary = json.loads((tmp_path / SUMMARY).read_text())
    assert {name: vm["state"] for name, vm in summary["vms"].items()} == {"real": "finished", "emulated": "finished"}
    with (tmp_path / SAMPLES).open() as file:
        samples = [row for row in csv.DictReader(file) if row["vm"] == "real"]
    allocated = [int(row["allocated_bytes"]) for row in samples]
    free = [int(row["free_bytes"]) for row in samples]
    assert max(allocated) > 80 * MIB
    assert max(free) > 180 * MIB
    assert all(int(row["cache_bytes"]) for row in samples if int(row["free_bytes"]))
    with (tmp_path / LEDGER).open() as file:
        entries = list(csv.DictReader(file))
    assert {row["vm"] for row in entries} == {"real", "emulated"}
    # Some time after the file is gone, and before the kernel reports its pages.
    assert max(int(row["not_returned_bytes"]) for row in entries if row["vm"] == "real") > 60 * MIB
    phases = [event["name"] for event in record.events if event["event"] == "phase" and event["vm"] == "real"]
    assert phases == ["fill", "rest"]
    assert any(event["event"] == "features" and event.get("vm") == "real" for event in record.events)
