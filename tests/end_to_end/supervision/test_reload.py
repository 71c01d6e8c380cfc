"""A daemon that reads its file of sockets again, under guests that go on."""

import os
import signal
from pathlib import Path

import pytest

from host.qmp.qmp_client import QmpClient
from tests.harness.processes import DaemonProcess, until
from tests.harness.virtual_machine import VirtualMachine

VM = """
[[vm]]
socket-path = "{path}"
name = "{name}"
"""


@pytest.mark.parametrize("workers", ["0", "vm"])
def test_sockets_come_and_go_while_guests_stay(tmp_path: Path, workers: str) -> None:
    first, second, file = tmp_path / "first", tmp_path / "second", tmp_path / "vms.toml"
    file.write_text(VM.format(path=first, name="one") + "features = { packed = true, event-idx = false }\n")
    options = ("--config", str(file), "--control", str(tmp_path / "ctl"), "--workers", workers)
    with DaemonProcess(tmp_path, *options) as daemon, VirtualMachine(first, packed=True) as machine:
        assert daemon.events.wait("connected", vm=1)["name"] == "one"
        file.write_text(VM.format(path=second, name="two") + "balloon = 5\nx = 1\n")
        os.kill(daemon.pid, signal.SIGHUP)
        mistakes = daemon.events.wait("reload_refused")["mistakes"]
        assert [line.removeprefix(f"{file}: vm[0].").partition(" ")[0] for line in mistakes] == ["balloon:", "x:"]
        until(lambda: daemon.stderr().count("\n") == 2, "a line for each mistake")
        daemon.forget_stderr()
        file.write_text(VM.format(path=second, name="two"))
        os.kill(daemon.pid, signal.SIGHUP)
        told = daemon.events.wait("reloaded")
        assert (told["added"], told["removed"], told["changed"]) == ([str(second)], [str(first)], [])
        assert not first.exists()
        machine.check_alive()
        with VirtualMachine(second) as other, QmpClient(tmp_path / "ctl") as client:
            other.check_alive()
            entries = client.command("query-vms")
            assert [(entry["vm"], entry["name"]) for entry in entries] == [(1, "one"), (2, "two")]
            assert ["packed" in entry["offered"] for entry in entries] == [True, False]
            sockets = client.command("query-status")["sockets"]
            assert sockets[1] == {"path": str(second), "name": "two"}
