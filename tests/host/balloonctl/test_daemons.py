"""Which sockets are asked, and which machine a name means."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import host.balloonctl.daemons
from host.balloonctl.daemons import Daemon, Daemons, find_sockets, short_names
from host.control.control_server import ControlServer, Perform
from host.control.vm_facts import describe
from host.qmp.qmp import Request
from protocol.errors import BalloonError, UsageError
from protocol.process.listening_socket import OWNER_ALONE, ListeningSocket
from tests.host.control.fake_vm import INFO


def test_sockets_are_found_by_convention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.ctl", "a.ctl", "a.sock"):
        (tmp_path / "vhost-user-balloon").mkdir(exist_ok=True)
        (tmp_path / "vhost-user-balloon" / name).touch()
    convention = (str(tmp_path / "none"), "$XDG_RUNTIME_DIR/vhost-user-balloon")
    monkeypatch.setattr(host.balloonctl.daemons, "CONVENTION", convention)
    found = find_sockets({"XDG_RUNTIME_DIR": str(tmp_path)})
    assert [path.name for path in found] == ["a.ctl", "b.ctl"]
    assert find_sockets({}) == []
    assert find_sockets({"BALLOON_CONTROL": "/x:/y", "XDG_RUNTIME_DIR": str(tmp_path)}) == [Path("/x"), Path("/y")]


def test_names_tell_daemons_apart() -> None:
    paths = [Path("/run/a.ctl"), Path("/run/b/c.ctl"), Path("/run/d/c.ctl")]
    assert list(short_names(paths).values()) == ["a", "/run/b/c.ctl", "/run/d/c.ctl"]


def test_no_socket_is_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host.balloonctl.daemons, "CONVENTION", ())
    monkeypatch.delenv("BALLOON_CONTROL", raising=False)
    with pytest.raises(UsageError, match="no control socket: name one with --control PATH"):
        Daemons([])
    with pytest.raises(BalloonError, match="No such file"):
        Daemons([tmp_path / "none"])
    (tmp_path / "file").touch()
    with Daemons([tmp_path / "none", tmp_path / "file"]) as daemons:
        assert [line.rpartition(": ")[2] for line in daemons.failures] == [
            "No such file or directory",
            "Connection refused",
        ]
        assert list(daemons.machines()) == []


class FakeClient:
    """Answers ``query-vms``."""

    def __init__(self, *machines: tuple[int, str]) -> None:
        described = [describe(number, replace(INFO, name=name), None) for number, name in machines]
        self._entries = json.loads(json.dumps(described))

    def command(self, name: str, /, **arguments: object) -> Any:
        assert (name, arguments) == ("query-vms", {})
        return self._entries


def daemons_with(monkeypatch: pytest.MonkeyPatch, **machines: list[tuple[int, str]]) -> Daemons:
    """Return daemons that have these machines."""
    clients = {Path(name): FakeClient(*entries) for name, entries in machines.items()}
    daemons = Daemons.__new__(Daemons)
    daemons.failures = []
    daemons._names = {path: path.name for path in clients}
    daemons._lost = set()
    daemons.daemons = [Daemon(path.name, path, client) for path, client in clients.items()]  # type: ignore[arg-type]
    return daemons


def test_machines_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    one = daemons_with(monkeypatch, a=[(3, "qemu"), (4, "linux")])
    assert [one.machine(name).number for name in ("3", "linux", "a:3", "a:linux")] == [3, 4, 3, 4]
    assert one.machine("3").label == "3"
    two = daemons_with(monkeypatch, a=[(3, "qemu")], b=[(3, "qemu")])
    assert two.machine("b:3").label == "b:3"
    for daemons, name, text in (
        (one, None, "name one machine of 2: 3, 4"),
        (one, "5", "no machine is called '5'; connected: 3, 4"),
        (two, "qemu", "'qemu' may be a:3, b:3: write the daemon's name and a colon before the number"),
        (daemons_with(monkeypatch, a=[]), None, "no machine is connected"),
    ):
        with pytest.raises(BalloonError) as caught:
            daemons.machine(name)
        assert str(caught.value) == text
    assert daemons_with(monkeypatch, a=[(1, "x")]).machine(None).number == 1


def test_daemon_that_is_started_anew_is_connected_to_again(tmp_path: Path) -> None:
    async def perform(request: Request) -> bytes:
        return request.success([describe(1, INFO, None)])

    async def go() -> None:
        path, other = tmp_path / "a", tmp_path / "b"
        servers = [await started(each, perform) for each in (path, other)]
        with await asyncio.to_thread(Daemons, [path, other]) as daemons:

            def labels() -> list[str]:
                daemons.failures.clear()
                daemons.reconnect()
                return [machine.label for machine in daemons.machines()]

            assert await asyncio.to_thread(labels) == ["a:1", "b:1"]
            await servers[0].close()
            assert await asyncio.to_thread(labels) == ["b:1"]
            assert await asyncio.to_thread(labels) == ["b:1"]
            assert [str(path) in line for line in daemons.failures] == [True]
            servers[0] = await started(path, perform)
            assert await asyncio.to_thread(labels) == ["a:1", "b:1"]
            assert daemons.failures == []
        for server in servers:
            await server.close()

    asyncio.run(go())


async def started(path: Path, perform: Perform) -> ControlServer:
    """Return a control server that listens at ``path``."""
    server = ControlServer(ListeningSocket(path, "--control", OWNER_ALONE), perform, {})
    await server.start()
    return server


def test_sockets_of_instances_are_found(tmp_path: Path) -> None:
    for name in ("vhost-user-balloon/balloon.ctl", "vhost-user-balloon-b/b.ctl", "vhost-user-balloon-a/a.ctl"):
        path = tmp_path / name
        path.parent.mkdir()
        path.touch()
    (tmp_path / "vhost-user-balloon" / "balloon.sock").touch()
    found = [path.name for path in find_sockets({"XDG_RUNTIME_DIR": str(tmp_path)}) if tmp_path in path.parents]
    assert found == ["balloon.ctl", "a.ctl", "b.ctl"]
