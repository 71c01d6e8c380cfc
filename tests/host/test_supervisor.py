"""The supervisor whose workers end at once, each time."""

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import pytest

from host.control.daemon_status import DaemonStatus
from host.qmp.qmp import Arguments, Request
from host.supervision.packets import Kind, Packet, with_number
from host.supervision.zygote import Zygote
from host.supervisor import ENDS_FREE, Supervisor
from protocol.process.events import EventLog


class BarrenZygote(Zygote):
    """Each worker that is asked of it ends before it has begun."""

    def __init__(self) -> None:
        ours, self._theirs = socket.socketpair()
        super().__init__(ours, 0)
        self.forked = 0

    def fork(self, number: int, end: socket.socket) -> bool:
        """Fork nothing; the caller closes the worker's end."""
        self.forked += 1
        return True

    def close(self) -> None:
        """End it."""
        super().close()
        self._theirs.close()


class StoppedZygote(BarrenZygote):
    """Each worker that is asked of it says that it runs, and then nothing: it was stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.workers: list[subprocess.Popen[bytes]] = []

    def fork(self, number: int, end: socket.socket) -> bool:
        """Start a process, and stop it."""
        worker = subprocess.Popen([sys.executable, "-c", ""], stdin=end.fileno())
        os.kill(worker.pid, signal.SIGSTOP)
        end.send(Packet(Kind.HELLO, 0, with_number(worker.pid, b"")).build())
        self.workers.append(worker)
        return super().fork(number, end)


def request(name: str, **arguments: Any) -> Request:
    return Request(name=name, arguments=Arguments(arguments))


@pytest.mark.asyncio
async def test_worker_that_ends_at_every_start_is_started_less_often_and_its_machine_stays_connected(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    zygote = BarrenZygote()
    supervisor = Supervisor(zygote, 0, EventLog(None, time.monotonic), {}, DaemonStatus())
    ours, theirs = socket.socketpair()
    supervisor.serve(7, theirs)
    for _ in range(1000):
        if any("ends at its start" in record.message for record in caplog.records):
            break
        await asyncio.sleep(0.001)
    assert zygote.forked == ENDS_FREE + 1
    assert sum("ends at its start" in record.message for record in caplog.records) == 1
    answer = json.loads(await supervisor.perform(request("query-vms")))
    assert answer["return"] == [{"vm": 7, "health": ["not-served"], "broken": "its worker does not answer"}]
    answer = json.loads(await supervisor.perform(request("query-balloon", vm=7)))
    assert answer["error"]["desc"] == "vm 7 has no worker at present"
    ours.setblocking(False)
    with pytest.raises(BlockingIOError):
        ours.recv(1)
    await supervisor.finish()
    assert ours.recv(1) == b""
    ours.close()


@pytest.mark.asyncio
async def test_worker_that_does_not_answer_is_killed_and_replaced(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("host.supervision.worker_watch.CHECK_INTERVAL", 0.02)
    zygote = StoppedZygote()
    status = DaemonStatus()
    supervisor = Supervisor(zygote, 0, EventLog(None, time.monotonic), {}, status)
    supervisor.start()
    ours, theirs = socket.socketpair()
    with ours:
        supervisor.serve(7, theirs)
        for _ in range(5000):
            if status.worker_restarts:
                break
            await asyncio.sleep(0.001)
        said = [record.getMessage() for record in caplog.records]
        assert said[:2] == [
            "worker 1 has not answered for 0 s and is killed",
            "worker 1 has ended (SIGKILL); vm 7: another one goes on",
        ]
        await supervisor.finish()
    for worker in zygote.workers:
        worker.wait()


@pytest.mark.asyncio
async def test_command_without_a_machine_says_so() -> None:
    supervisor = Supervisor(BarrenZygote(), 0, EventLog(None, time.monotonic), {"qemu": {}}, DaemonStatus())
    for name, said in (
        ("query-balloon", "no virtual machine is connected"),
        ("balloons", "unknown command 'balloons' (query-commands lists them)"),
        ("qom-get", "parameter 'path' is missing"),
    ):
        assert json.loads(await supervisor.perform(request(name)))["error"]["desc"] == said
    assert json.loads(await supervisor.perform(request("query-version")))["return"] == {"qemu": {}}
    await supervisor.finish()


@pytest.mark.asyncio
async def test_process_that_connects_too_often_is_complained_of_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("host.supervisor.SESSIONS_MAX", 0)
    supervisor = Supervisor(BarrenZygote(), 0, EventLog(None, time.monotonic), {}, DaemonStatus())
    for number in range(3):
        ours, theirs = socket.socketpair()
        with ours:
            supervisor.serve(number, theirs)
            assert ours.recv(1) == b""
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"process {os.getpid()} has 0 sessions: further ones are refused"]
    await supervisor.finish()
