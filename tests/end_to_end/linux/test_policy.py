"""A living kernel obeys a policy: ``balloon-policy`` sets its balloon's target, and the host has the memory."""

import os
from pathlib import Path

import pytest

from host.qmp.qmp_client import QmpClient
from protocol.units import MIB
from tests.harness.linux_guest import LinuxGuest
from tests.harness.processes import ROOT, DaemonProcess, ProgramProcess, until

pytestmark = [pytest.mark.real_kernel, pytest.mark.usefixtures("kernel_release")]

MEMORY = 512 * MIB
FILLED = 300 * MIB

HALF = """
from host.policy.policy import Decision, SetBalloon

class Half:
    name = "half"
    interval = 0.5
    def decide(self, seen):
        return Decision(tuple(SetBalloon(vm.name, vm.memory_bytes // 2) for vm in seen.vms.values()), "half of all")
"""


def test_kernel_obeys_a_policy(tmp_path: Path) -> None:
    control = tmp_path / "control"
    (tmp_path / "half.py").write_text(HALF)
    environment = {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    with (
        DaemonProcess(tmp_path, "--control", str(control), "--features", "page-reporting=off") as daemon,
        LinuxGuest(daemon, tmp_path, memory=MEMORY) as guest,
        QmpClient(control) as client,
    ):
        guest.fill(FILLED)
        guest.free()
        resident = guest.ram.resident_bytes()

        def balloon(field: str) -> int:
            [vm] = client.command("query-vms")
            return int(vm[f"balloon-{field}"])

        with ProgramProcess("host.policy.live", "half:Half", "--control", str(control), environment=environment) as run:
            until(lambda: balloon("requested") > 0.45 * MEMORY, "the kernel is asked for half", deadline=60)
            until(lambda: balloon("actual") == balloon("requested"), "it gives half", deadline=60)
            assert resident - guest.ram.resident_bytes() > 0.8 * FILLED
            decision = run.events.wait("decision")
            [seen] = decision["inputs"]["vms"].values()
            assert seen["free_bytes"] > FILLED // 2
            assert seen["total_bytes"] == pytest.approx(guest.meminfo()["MemTotal"], rel=0.05)
        until(lambda: balloon("actual") == 0, "all of it", deadline=60)
        guest.power_off()
