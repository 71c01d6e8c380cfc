"""The control socket of a real daemon, as QEMU's own client, a command line and rude programs use it."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import ExecuteError, QMPClient
from qemu.qmp.message import Message

from host.guest_name import guest_name
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_payloads import DeviceConfig
from tests.harness.processes import DEADLINE, ROOT, DaemonProcess, ProgramProcess, open_fds, until
from tests.harness.virtual_machine import DATA_AT, VirtualMachine

NAME = Path("/proc/self/comm").read_text().strip()
"""What the process of the tests is called."""

PAGE = 4096

UNTOUCHED: Any = {
    "acknowledge": {"counts": [0] * 15, "seconds": 0.0},
    "discard": {"counts": [0] * 15, "seconds": 0.0},
    "discard-error": None,
    "descriptors-seen": True,
    "inflated-bytes": 0,
    "deflated-bytes": 0,
    "hinted-bytes": 0,
    "refaulted-bytes": 0,
    "front-end": "running",
    "health": [],
    "inhibited": None,
    "keeps-pages": None,
    "mean-range": 0,
    "page-size": PAGE,
    "queues": {
        name: {"number": number, "state": "running", "set-up": True, "why": None}
        for number, name in enumerate(("inflate", "deflate", "reporting"))
    },
    "refused-bytes": {},
    "statistics": {},
    "statistics-age": None,
    "statistics-unanswered": 0.0,
    "status": None,
}
"""What `query-vms` has of a machine without traffic."""


class ControlledDaemon(DaemonProcess):
    """A daemon with a control socket."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.control_path = directory / "control"
        super().__init__(directory, "--control", str(self.control_path), *options)

    def ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the daemon's own client."""
        return subprocess.run(
            [sys.executable, "-m", "host", "--ask", str(self.control_path), *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[QMPClient]:
        """Connect QEMU's client."""
        client = QMPClient("test")
        async with asyncio.timeout(DEADLINE):
            await client.connect(str(self.control_path))
        try:
            yield client
        finally:
            await client.disconnect()


def tell_actual(machine: VirtualMachine, pages: int) -> None:
    """Have the machine's driver write the size that its balloon has."""
    config = DeviceConfig(offset=4, flags=0, data=pages.to_bytes(4, "little"))
    assert machine.ask(FrontendRequest.SET_CONFIG, config) == 0


async def next_event(client: QMPClient) -> Message:
    """Wait for the next event."""
    async with asyncio.timeout(DEADLINE):
        return await client.events.get()


async def next_named(client: QMPClient, name: str) -> Message:
    """Wait for the next event of this name."""
    while (event := await next_event(client))["event"] != name:
        pass
    return event


async def heard(client: QMPClient, name: str) -> Any:
    """Wait for an event of this name; return its data."""
    return (await next_named(client, name))["data"]


@pytest.mark.asyncio
async def test_qemus_own_client(tmp_path: Path) -> None:
    with ControlledDaemon(tmp_path) as daemon:
        async with daemon.client() as client:
            version: Any = await client.execute("query-version")
            assert version["package"].startswith("vhost-user-balloon ")
            with pytest.raises(ExecuteError) as caught:
                await client.execute("query-balloon")
            assert caught.value.error_class == "DeviceNotActive"
            with VirtualMachine(daemon.socket_path) as machine:
                memory = machine.region.size
                assert await client.execute("query-balloon") == {"actual": memory}
                assert await client.execute("balloon", {"value": memory - 3 * PAGE}) == {}
                config = machine.ask(FrontendRequest.GET_CONFIG, DeviceConfig(offset=0, flags=0, data=bytes(4)))
                assert isinstance(config, DeviceConfig)
                assert int.from_bytes(config.data, "little") == 3
                tell_actual(machine, 2)
                assert await client.execute("query-balloon") == {"actual": memory - 2 * PAGE}
                answer: Any = await client.execute("query-vms")
                (vm,) = answer
                assert vm.pop("features")
                assert vm.pop("age") > 0
                assert vm.pop("host-backed") > 0
                assert vm.pop("name") == NAME
                assert vm.pop("offered")
                for queue in vm["queues"].values():
                    assert queue.pop("running-for") >= 0
                assert vm == {
                    **UNTOUCHED,
                    "vm": 1,
                    "pid": os.getpid(),
                    "memory": memory,
                    "guest-memory": memory,
                    "guest-target": memory - 3 * PAGE,
                    "guest-actual": memory - 2 * PAGE,
                    "balloon-requested": 3 * PAGE,
                    "balloon-target": 3 * PAGE,
                    "balloon-actual": 2 * PAGE,
                    "driver-ready": True,
                    "ring": "split",
                    "queue-numbers": "negotiated",
                    "kicks": dict.fromkeys(("inflate", "deflate", "reporting"), "eventfd"),
                    "reports": 0,
                    "reported-bytes": 0,
                    "discarded-bytes": 0,
                    "refused": {},
                    "last-report": None,
                }
                machine.check_alive()


@pytest.mark.asyncio
async def test_operators_commands(tmp_path: Path) -> None:
    """QEMU's client inhibits discards and allows them again, and hears of both; the daemon tells how it is."""
    with ControlledDaemon(tmp_path) as daemon, VirtualMachine(daemon.socket_path) as machine:
        machine.ram.touch(DATA_AT, 4 * PAGE)
        async with daemon.client() as client:
            status: Any = await client.execute("query-status")
            assert (status["pid"], status["vms"], status["sessions"]) == (daemon.pid, 1, 1)
            assert status["log-level"] == "warning"
            assert await client.execute("set-log-level", {"level": "error"}) == {}
            changed: Any = await client.execute("query-status")
            assert changed["log-level"] == "error"
            assert await client.execute("inhibit", {"why": "a snapshot"}) == {}
            assert await heard(client, "VM_INHIBITED") == {"vm": 1, "by": "operator", "why": "a snapshot"}
            machine.report((DATA_AT, 4 * PAGE))
            assert len(machine.ram.pages()) == 4
            assert (await heard(client, "VM_REFUSED"))["reason"] == "inhibited"
            assert await client.execute("allow") == {"vm": 1, "inhibited": None}
            assert await heard(client, "VM_ALLOWED") == {"vm": 1}
            machine.report((DATA_AT, 4 * PAGE))
            assert not machine.ram.pages()
            assert (await heard(client, "VM_TRAFFIC"))["reports"] >= 1
            answer: Any = await client.execute("query-vms")
            assert answer[0]["refused-bytes"] == {"inhibited": 4 * PAGE}
            assert (answer[0]["discarded-bytes"], sum(answer[0]["discard"]["counts"])) == (4 * PAGE, 2)


@pytest.mark.asyncio
async def test_events_of_a_balloon_that_moves(tmp_path: Path) -> None:
    """The first change is told at once and the last one always, with a second between them."""
    with ControlledDaemon(tmp_path) as daemon:
        async with daemon.client() as client:
            with VirtualMachine(daemon.socket_path) as machine:
                connected = await next_event(client)
                name = guest_name("pid", os.getpid(), "")
                assert connected["event"] == "VM_CONNECTED"
                assert connected["data"] == {"vm": 1, "pid": os.getpid(), "name": name}
                for pages in range(1, 20):
                    tell_actual(machine, pages)
                first, last = [await next_named(client, "BALLOON_CHANGE") for _ in range(2)]
                for event, pages in ((first, 1), (last, 19)):
                    size = machine.region.size - pages * PAGE
                    assert (event["event"], event["data"]) == ("BALLOON_CHANGE", {"actual": size, "vm": 1})
                first_at, last_at = (moment(event) for event in (first, last))
                assert last_at - first_at > 0.9
            assert (await heard(client, "VM_DISCONNECTED"))["vm"] == 1


def moment(event: Message) -> float:
    """Return when an event was, in seconds."""
    stamp: Any = event["timestamp"]
    return float(stamp["seconds"]) + float(stamp["microseconds"]) / 1e6


def test_command_line_asks(tmp_path: Path) -> None:
    with ControlledDaemon(tmp_path) as daemon, VirtualMachine(daemon.socket_path) as machine:
        with VirtualMachine(daemon.socket_path) as second:
            assert daemon.ask("balloon", "vm=2", f"value={machine.region.size - (1 << 20)}").returncode == 0
            vms = json.loads(daemon.ask("query-vms").stdout)
            assert [(vm["vm"], vm["balloon-target"]) for vm in vms] == [(1, 0), (2, 1 << 20)]
            which = daemon.ask("query-balloon")
            assert (which.returncode, which.stdout) == (1, "")
            assert which.stderr == ("vhost-user-balloon: parameter 'vm' is missing: 2 virtual machines are connected\n")
            second.check_alive()
        path = "path=/machine/peripheral/vm1"
        daemon.settled(2)
        assert daemon.ask("qom-set", path, "property=guest-stats-polling-interval", "value=7").returncode == 0
        assert daemon.ask("qom-get", path, "property=guest-stats-polling-interval").stdout == "7\n"
        stats = json.loads(daemon.ask("qom-get", path, "property=guest-stats").stdout)
        assert (stats["last-update"], stats["stats"]["stat-free-memory"]) == (0, (1 << 64) - 1)
        refused = daemon.ask("query-guest-statistics")
        assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
        assert "statistics" in refused.stderr


@pytest.mark.parametrize("method", ["hint", "inflate"])
def test_guest_gives_up_what_it_does_not_use(tmp_path: Path, method: str) -> None:
    """An emulated guest that has touched half of its memory, freed it, and reports nothing by itself."""
    memory, used = 128 << 20, 64 << 20
    with ControlledDaemon(tmp_path, "--features", "free-page-hint=on") as daemon:
        options = ("--memory", "128M", "--reporter", "off", "--workload", "memhog:size=64M,hold=0", "--hold")
        with ProgramProcess("guest", "--socket-path", str(daemon.socket_path), *options) as guest:
            guest.events.wait("finished")
            statistics = json.loads(daemon.ask("query-guest-statistics").stdout)["statistics"]
            assert used < statistics["memfree"] <= statistics["memtot"] == memory
            result = json.loads(daemon.ask("reclaim", f"method={method}").stdout)
            assert (result["vm"], result["method"], result["complete"]) == (1, method, True)
            assert used <= result["discarded-bytes"] <= result["offered-bytes"] <= memory
            until(lambda: json.loads(daemon.ask("query-balloon").stdout) == {"actual": memory}, "an empty balloon")
            assert daemon.events.all("reclaim")[0]["discarded_bytes"] == result["discarded-bytes"]


def test_interval_is_the_operators(tmp_path: Path) -> None:
    with ControlledDaemon(tmp_path, "--statistics-interval", "30") as daemon, VirtualMachine(daemon.socket_path):
        path, name = "path=/machine/peripheral/vm1", "property=guest-stats-polling-interval"
        assert daemon.ask("qom-get", path, name).stdout == "30\n"


def test_rude_clients_do_not_affect_others(tmp_path: Path) -> None:
    with ControlledDaemon(tmp_path) as daemon, VirtualMachine(daemon.socket_path) as machine:
        before = open_fds(daemon.pid)
        rude = []
        for words in (
            b"",
            b"\xff\x00{{{{",
            b'{"execute": "' + b"x" * 100_000,
            b'{"execute": "qmp_capabilities"}' * 5000,
        ):
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(daemon.control_path))
            client.setblocking(False)
            with contextlib.suppress(OSError):
                client.send(words)
            rude.append(client)
        machine.check_alive()
        assert json.loads(daemon.ask("query-balloon").stdout) == {"actual": machine.region.size}
        for client in rude:
            client.close()
        until(lambda: open_fds(daemon.pid) == before, "the clients' descriptors given up")
        machine.check_alive()
        assert daemon.stderr() == ""


def test_end_of_a_daemon_with_clients(tmp_path: Path) -> None:
    with ControlledDaemon(tmp_path) as daemon, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(daemon.control_path))
        assert client.recv(1 << 16).startswith(b'{"QMP": ')
        assert daemon.stop() == 0
        assert client.recv(1) == b""
    assert not daemon.control_path.exists()
    assert not daemon.socket_path.exists()


def test_control_socket_that_cannot_be_bound_leaves_no_socket(tmp_path: Path) -> None:
    with ControlledDaemon(tmp_path) as daemon:
        second = subprocess.run(
            [sys.executable, "-m", "host", "--socket-path", str(tmp_path / "s"), "--control", str(daemon.control_path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        assert (second.returncode, second.stdout) == (1, "")
        assert second.stderr == f"vhost-user-balloon: --control {daemon.control_path}: another process listens there\n"
        assert not (tmp_path / "s").exists()
        assert daemon.ask("query-vms").stdout == "[]\n"


def test_disconnect_ends_one_session_and_no_other(tmp_path: Path) -> None:
    with (
        ControlledDaemon(tmp_path) as daemon,
        VirtualMachine(daemon.socket_path) as good,
        VirtualMachine(daemon.socket_path) as other,
    ):
        other.client.send(bytes(5))  # in the middle of a message, which the daemon waits for
        assert daemon.ask("disconnect", "vm=2").returncode == 0
        assert daemon.events.wait("disconnected", vm=2)["reason"] == "disconnected by command"
        assert other.client.is_closed_by_peer()
        assert daemon.ask("disconnect", "vm=2").stderr == "vhost-user-balloon: vm 2 is not connected\n"
        good.check_alive()
        assert daemon.ask("disconnect").returncode == 0
        assert daemon.events.wait("disconnected", vm=1)["reason"] == "disconnected by command"
        assert json.loads(daemon.ask("query-vms").stdout) == []
