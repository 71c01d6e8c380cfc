"""An unmodified kernel behind the proxy of ``balloon-check``, which without a script passes everything."""

from pathlib import Path

import pytest

from protocol.units import MIB
from tests.harness.linux_guest import LinuxGuest
from tests.harness.processes import DaemonProcess, until
from tests.scripts.check.faults.proxy_process import ProxyProcess

pytestmark = [pytest.mark.real_kernel, pytest.mark.usefixtures("kernel_release")]


def test_linux_does_not_notice_the_proxy(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path) as daemon, ProxyProcess(tmp_path, daemon.socket_path) as proxy:
        with LinuxGuest(proxy, tmp_path) as guest:
            before = guest.ram.resident_bytes()
            guest.fill(64 * MIB)
            guest.free()
            until(lambda: guest.ram.resident_bytes() < before + 8 * MIB, "the memory is the host's")
            guest.power_off()
        proxy.events.wait("disconnected")
        assert sum(event["discarded_bytes"] for event in daemon.events.all("report")) >= 56 * MIB
