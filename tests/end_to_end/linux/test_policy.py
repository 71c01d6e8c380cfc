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


def test_idle_kernel_gives_back_what_it_freed(tmp_path: Path) -> None:
    control = tmp_path / "control"
    options = ("steady", "--control", str(control), "--budget", "8G", "--interval", "1", "--set", "idle_after=3")
    with (
        DaemonProcess(tmp_path, "--control", str(control), "--features", "page-reporting=off") as daemon,
        LinuxGuest(daemon, tmp_path, memory=MEMORY) as guest,
    ):
        guest.fill(FILLED)
        guest.free()
        resident = guest.ram.resident_bytes()
        with ProgramProcess("host.policy.live", *options) as run:
            done = daemon.events.wait("reclaim", deadline=60)
            assert done["complete"]
            assert done["discarded_bytes"] > 0.8 * FILLED
            assert resident - guest.ram.resident_bytes() > 0.8 * FILLED
            assert [event for event in run.events.all("decision") if "problem" in event] == []
            reasons = [event["reason"] for event in run.events.all("decision") if event["actions"]]
            assert "reclaim about" in reasons[0]
        assert guest.run("echo alive") == "alive\n"
        guest.power_off()


def test_idle_kernel_gives_up_page_cache_down_to_the_floor(tmp_path: Path) -> None:
    """Page cache of a file that stays open: hostfs drops the cache of others by itself."""
    control, file = tmp_path / "control", tmp_path / "file"
    file.write_bytes(os.urandom(160 * MIB))
    options = ("steady", "--control", str(control), "--budget", "8G", "--interval", "0.5", "--set", "idle_after=2")
    try:
        with (
            DaemonProcess(tmp_path, "--control", str(control)) as daemon,
            LinuxGuest(daemon, tmp_path, memory=MEMORY) as guest,
        ):
            guest.run(f"exec 3</run/host{file}; cat <&3 >/dev/null")
            resident = guest.ram.resident_bytes()
            assert guest.meminfo()["Cached"] > 150 * MIB
            at_once = ("--set", "pace=1", "--set", "cache_idle_after=2")
            with ProgramProcess("host.policy.live", *options, *at_once) as run:
                until(lambda: resident - guest.ram.resident_bytes() > 64 * MIB, "the host has memory", deadline=60)
                run.events.wait("decision")
            assert guest.meminfo()["Cached"] > 40 * MIB  # the floor is 64 MiB, and a kernel gives a little more
            assert guest.run(f"cksum </run/host{file} | cut -d' ' -f2").strip() == str(160 * MIB)
            guest.power_off(may_complain=True)  # a balloon that has to wait for cache says so
    finally:
        file.unlink()
