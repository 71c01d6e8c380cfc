"""The doctor of an unmodified kernel: it works, its driver leaves, and it comes back."""

from pathlib import Path

import pytest

import host.doctor.diagnosis
import host.doctor.shortage
from host.doctor.diagnosis import diagnose
from host.doctor.facts import read_facts
from host.doctor.finding import Cause
from host.qmp.qmp_client import QmpClient
from protocol.units import MIB
from tests.harness.linux_guest import INSMOD, RMMOD, LinuxGuest
from tests.harness.processes import DaemonProcess, until

pytestmark = [pytest.mark.real_kernel, pytest.mark.usefixtures("kernel_release")]


def test_kernel_is_healthy_while_its_driver_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.doctor.diagnosis, "PATIENCE", 0.0)
    control = tmp_path / "control"
    with (
        DaemonProcess(tmp_path, "--control", str(control)) as daemon,
        LinuxGuest(daemon, tmp_path, memory=256 * MIB) as guest,
        QmpClient(control) as client,
    ):

        def causes() -> list[Cause]:
            (entry,) = client.command("query-vms")
            return [finding.cause for finding in diagnose(read_facts(entry))]

        daemon.events.wait("report", deadline=60)
        until(lambda: client.command("query-vms")[0]["discarded-bytes"] > 64 * MIB, "memory comes back", deadline=60)
        client.command("query-guest-statistics")
        assert causes() == []
        guest.run(RMMOD)
        until(lambda: causes() == [Cause.NO_DRIVER], "the driver is missed")
        guest.run(INSMOD)
        until(lambda: causes() == [], "the driver is back")
        guest.power_off()


def test_kernel_that_is_too_small_for_one_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.doctor.shortage, "PATIENCE", 0.0)
    control = tmp_path / "control"
    with (
        DaemonProcess(tmp_path, "--control", str(control)) as daemon,
        LinuxGuest(daemon, tmp_path, memory=96 * MIB) as guest,
        QmpClient(control) as client,
    ):
        client.command("query-guest-statistics")
        (entry,) = client.command("query-vms")
        (found,) = diagnose(read_facts(entry))
        assert found.cause is Cause.ORDER_TOO_LARGE
        assert "page_reporting_order" in found.remedy
        guest.power_off()
