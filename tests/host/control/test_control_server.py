"""The control socket with real connections: many clients, clients that do not read, events, and the end."""

import asyncio
import contextlib
import errno
import json
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import protocol.process.accept_loop
from host.control import control_server as control
from host.control.control_commands import ControlCommands
from host.control.control_server import ControlServer
from protocol.process.listening_socket import ListeningSocket
from tests.harness.processes import open_fds
from tests.host.control.fake_vm import FakeVm

DEADLINE = 20.0
VERSION = {"qemu": {"major": 0, "minor": 1, "micro": 0}, "package": "test"}


class Talker:
    """A client that reads line by line."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def receive(self) -> Any:
        async with asyncio.timeout(DEADLINE):
            return json.loads(await self.reader.readline())

    async def ask(self, name: str, **arguments: Any) -> Any:
        self.send(json.dumps({"execute": name, "arguments": arguments}).encode())  # and no newline
        return await self.receive()

    async def at_end(self) -> bool:
        async with asyncio.timeout(DEADLINE):
            with contextlib.suppress(ConnectionResetError):
                while await self.reader.read(1 << 16):
                    pass
        return True


class Room:
    """A server, and the clients that a test lets in."""

    def __init__(self, path: Path, vms: dict[int, FakeVm]) -> None:
        self.path = path
        commands = ControlCommands(vms, lambda: 0.0, VERSION)
        self.server = ControlServer(ListeningSocket(path, "--control"), commands.perform, VERSION)
        self._clients: list[Talker] = []

    async def connect(self, *, negotiate: bool = True) -> Talker:
        client = Talker(*await asyncio.open_unix_connection(self.path))
        self._clients.append(client)
        if negotiate:
            assert "QMP" in await client.receive()
            assert await client.ask("qmp_capabilities") == {"return": {}}
        return client

    def check_file_is_gone(self) -> None:
        assert not self.path.exists()

    async def close(self) -> None:
        await self.server.close()
        for client in self._clients:
            client.writer.close()
            with contextlib.suppress(OSError):
                await client.writer.wait_closed()


@contextlib.asynccontextmanager
async def serving(path: Path, vms: dict[int, FakeVm]) -> AsyncIterator[Room]:
    """Run a server; afterwards the socket file is gone."""
    room = Room(path, vms)
    await room.server.start()
    try:
        yield room
    finally:
        await room.close()
        room.check_file_is_gone()


@pytest.mark.asyncio
async def test_long_command_delays_no_other_client(tmp_path: Path) -> None:
    vm = FakeVm()
    async with serving(tmp_path / "c", {1: vm}) as room:
        first, second = await room.connect(), await room.connect()
        first.send(b'{"execute": "reclaim", "id": 1}{"execute": "query-balloon", "id": 2}')
        await vm.reclaiming.wait()
        assert (await second.ask("query-balloon"))["return"] == {"actual": 1 << 30}
        vm.release.set()
        assert [(await first.receive())["id"] for _ in range(2)] == [1, 2]


@pytest.mark.asyncio
async def test_client_that_leaves_in_the_middle_of_a_command(tmp_path: Path) -> None:
    vm = FakeVm()
    async with serving(tmp_path / "c", {1: vm}) as room:
        first = await room.connect()
        first.send(b'{"execute": "reclaim"}')
        await vm.reclaiming.wait()
        first.writer.transport.abort()
        vm.release.set()
        second = await room.connect()
        assert "return" in await second.ask("query-vms")


@pytest.mark.asyncio
async def test_client_that_left_while_its_command_goes_on_is_sent_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vm = FakeVm()
    async with serving(tmp_path / "c", {1: vm}) as room:
        first, second = await room.connect(), await room.connect()
        first.send(b'{"execute": "reclaim"}')
        await vm.reclaiming.wait()
        first.writer.transport.abort()
        for number in range(20):  # asyncio warns of the fifth write to a closed connection
            room.server.emit("NOISE", {"number": number})
            assert (await second.receive())["data"] == {"number": number}
        vm.release.set()
        assert "return" in await second.ask("query-vms")
    assert not caplog.records


@pytest.mark.asyncio
async def test_greeting_says_what_this_is(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", {}) as room:
        client = await room.connect(negotiate=False)
        assert await client.receive() == {"QMP": {"version": VERSION, "capabilities": []}}
        assert (await client.ask("query-version"))["error"]["class"] == "CommandNotFound"


@pytest.mark.asyncio
async def test_client_that_has_said_everything_gets_its_answers(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", {}) as room:
        client = await room.connect()
        client.send(b'{"execute": "query-vms"}\n{"execute": "query-version"}\n')
        client.writer.write_eof()
        assert await client.receive() == {"return": []}
        assert await client.receive() == {"return": VERSION}
        assert await client.at_end()


@pytest.mark.asyncio
async def test_command_without_end_is_an_error_and_ends_the_session(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", {}) as room:
        client = await room.connect()
        client.send(b'{"execute": "' + b"x" * (1 << 16))
        assert "more than 65536 bytes" in (await client.receive())["error"]["desc"]
        assert await client.at_end()


@pytest.mark.asyncio
async def test_client_that_reads_no_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "SEND_TIMEOUT", 0.05)
    async with serving(tmp_path / "c", {}) as room:
        with socket.socket(socket.AF_UNIX) as deaf:
            deaf.connect(str(tmp_path / "c"))
            deaf.setblocking(False)
            commands = b'{"execute": "qmp_capabilities"}' + b'{"execute": "query-commands"}' * 1000
            loop = asyncio.get_running_loop()

            async def send_for_ever() -> None:
                async with asyncio.timeout(DEADLINE):
                    while True:
                        await loop.sock_sendall(deaf, commands)

            with pytest.raises(OSError, match=r"Broken pipe|reset"):
                await send_for_ever()
        other = await room.connect()
        assert await other.ask("query-vms") == {"return": []}


@pytest.mark.asyncio
async def test_client_that_reads_no_events_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "UNREAD_MAX", 1 << 16)
    async with serving(tmp_path / "c", {}) as room:
        deaf, good = await room.connect(), await room.connect()
        deaf.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a read transport, which a stream hides
        for number in range(2000):
            room.server.emit("NOISE", {"number": number, "text": "x" * 1000})
            assert (await good.receive())["data"]["number"] == number
        assert (await good.ask("query-vms")) == {"return": []}
        deaf.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert await deaf.at_end()


@pytest.mark.asyncio
async def test_events_are_for_those_who_have_negotiated(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", {}) as room:
        early = await room.connect(negotiate=False)
        late = await room.connect()
        room.server.emit("VM_CONNECTED", {"vm": 1})
        event = await late.receive()
        assert (event["event"], event["data"], sorted(event["timestamp"])) == (
            "VM_CONNECTED",
            {"vm": 1},
            ["microseconds", "seconds"],
        )
        assert "QMP" in await early.receive()
        assert await early.ask("qmp_capabilities") == {"return": {}}  # nothing in between


@pytest.mark.asyncio
async def test_client_past_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "CLIENTS_MAX", 2)
    async with serving(tmp_path / "c", {}) as room:
        clients = [await room.connect() for _ in range(2)]
        third = await room.connect(negotiate=False)
        assert (await third.receive())["error"]["desc"] == "there are 2 clients already"
        assert await third.at_end()
        clients[0].writer.close()
        while True:  # until the server has seen it
            fourth = await room.connect(negotiate=False)
            if "QMP" in await fourth.receive():
                break


@pytest.mark.asyncio
async def test_close_disconnects_every_client(tmp_path: Path) -> None:
    before = open_fds(os.getpid()).keys()
    vm = FakeVm()
    async with serving(tmp_path / "c", {1: vm}) as room:
        idle, busy = await room.connect(), await room.connect()
        busy.send(b'{"execute": "reclaim"}')
        await vm.reclaiming.wait()
        await room.server.close()
        assert await idle.at_end()
        assert await busy.at_end()
    assert open_fds(os.getpid()).keys() == before


@pytest.mark.asyncio
async def test_interval_is_each_virtual_machines_own(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", {}) as room:
        client = await room.connect()
        for vm, size in ((1, 10), (1, 11), (2, 20), (1, 12)):
            room.server.balloon_changed(vm, size)
        room.server.forget(1)
        room.server.forget(1)
        room.server.balloon_changed(1, 99)  # a new machine with that number has its event at once
        events = [await client.receive() for _ in range(3)]
        assert [event["data"] for event in events] == [
            {"actual": 10, "vm": 1},
            {"actual": 20, "vm": 2},
            {"actual": 99, "vm": 1},
        ]


@pytest.mark.asyncio
async def test_lack_of_descriptors_is_told_once_and_clients_come_in_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(protocol.process.accept_loop, "ACCEPT_RETRY", 0.001)
    refusals = 5
    accept = socket.socket.accept

    def scarce(self: socket.socket) -> Any:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return accept(self)

    monkeypatch.setattr(socket.socket, "accept", scarce)
    room = Room(tmp_path / "c", {})
    await room.server.start()
    talker = await room.connect()
    assert "return" in await talker.ask("query-version")
    assert refusals == 0
    messages = [record.message for record in caplog.records]
    assert messages == ["cannot accept a client of the control socket: Too many open files"]
    talker.writer.close()
    await room.server.close()
