"""The supervisor whose workers end at once, each time."""

import asyncio
import errno
import json
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from host.control.daemon_status import DaemonStatus
from host.qmp.qmp import Arguments, Request
from host.supervision.packets import PACKET_MAX, Kind, Packet, parse_packet, with_length, with_number
from host.supervision.worker_ends import ENDS_FREE
from host.supervision.zygote import Zygote
from host.supervisor import Supervisor
from host.worker import WakingSelector
from protocol.process.events import EventLog
from tests.harness.processes import DEADLINE


@pytest.fixture(autouse=True)
def no_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' own process is the front-end of all machines; that it is looked at is another test."""
    monkeypatch.setattr("host.supervision.worker_watch.WorkerWatch._begin_look", lambda *_: None)


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


class KeptZygote(BarrenZygote):
    """Each worker that is asked of it is a socket here."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[socket.socket] = []

    def fork(self, number: int, end: socket.socket) -> bool:
        """Keep the worker's end."""
        self.ends.append(end.dup())
        return super().fork(number, end)


def fail() -> None:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


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


class StuckZygote(BarrenZygote):
    """Forks nothing: it was stopped."""

    def __init__(self) -> None:
        super().__init__()
        self._asked: list[socket.socket] = []
        self.killed = 0

    def fork(self, number: int, end: socket.socket) -> bool:
        """Leave it for later."""
        self._asked.append(end.dup())
        return super().fork(number, end)

    def kill(self) -> None:
        """What it was asked ends with it."""
        self.killed += 1
        for end in self._asked:
            end.close()
        self._asked.clear()


class TalkingZygote(BarrenZygote):
    """What a worker is told comes to ``end``, where the test answers for it."""

    def fork(self, number: int, end: socket.socket) -> bool:
        """Fork nothing; say that the worker runs."""
        self.worker = subprocess.Popen([sys.executable, "-S", "-c", "import signal; signal.pause()"])
        self.end = end.dup()
        self.end.setblocking(False)
        self.end.send(Packet(Kind.HELLO, 0, with_number(self.worker.pid, b"")).build())
        return super().fork(number, end)

    async def next_ping(self) -> Packet:
        """Wait for the next PING, and answer it."""
        async with asyncio.timeout(DEADLINE):
            while True:
                packet = parse_packet(await asyncio.get_running_loop().sock_recv(self.end, PACKET_MAX), ())
                if packet.kind is Kind.PING:
                    self.end.send(Packet(Kind.ANSWER, 0, packet.body).build())
                    return packet


async def until(condition: Callable[[], bool]) -> None:
    """Wait until ``condition`` holds."""
    for _ in range(5000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError


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
async def test_session_that_has_begun_waits_for_a_worker_and_a_new_one_is_refused(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("host.supervisor.RETRY_INTERVAL", 0.001)
    zygote = KeptZygote()
    supervisor = Supervisor(zygote, 0, EventLog(None, time.monotonic), {}, DaemonStatus())
    pairs = [socket.socketpair() for _ in range(2)]
    supervisor.serve(1, pairs[0][1])
    zygote.ends[0].send(Packet(Kind.PIECE, 1, with_length(b"", b"x")).build(1))
    await until(lambda: supervisor._vms[1].has_begun)
    with monkeypatch.context() as patch:
        patch.setattr("host.supervision.worker_process.make_pair", fail)
        zygote.ends.pop().close()
        supervisor.serve(2, pairs[1][1])
        assert pairs[1][0].recv(1) == b""
        await until(lambda: len(caplog.messages) == 3)
    assert caplog.messages == [
        "vm 2 is refused: no worker can be started: Too many open files",
        "worker 1 has ended (it could not be started); vm 1: another one goes on",
        "vm 1 waits: no worker can be started: Too many open files",
    ]
    await until(lambda: bool(zygote.ends))
    zygote.ends[0].setblocking(True)
    kinds = [parse_packet(zygote.ends[0].recv(1 << 17), ()).kind for _ in range(3)]
    assert kinds[-1] is Kind.TAKE_OVER
    zygote.ends.pop().close()
    await supervisor.finish()
    for ours, _ in pairs:
        ours.close()


@pytest.mark.asyncio
async def test_workers_without_machines_that_cannot_be_started_are_tried_again_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    zygote = BarrenZygote()
    supervisor = Supervisor(zygote, 2, EventLog(None, time.monotonic), {}, DaemonStatus())
    supervisor.start()
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert zygote.forked == 2 * (ENDS_FREE + 1)
    assert [message for message in caplog.messages if "ends at its start" in message] == [
        f"worker {number} ends at its start (it could not be started): the next one waits, longer each time"
        for number in (1, 2)
    ]
    await supervisor.finish()


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
            "worker 1 has not answered for 10 s and is killed",
            "worker 1 has ended (SIGKILL); vm 7: another one goes on",
        ]
        await supervisor.finish()
    for worker in zygote.workers:
        worker.wait()


@pytest.mark.asyncio
async def test_worker_that_has_not_begun_waits_for_its_turn_and_what_forks_none_is_replaced(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("host.supervision.worker_watch.CHECK_INTERVAL", 0.01)
    zygote = StuckZygote()
    supervisor = Supervisor(zygote, 0, EventLog(None, time.monotonic), {}, DaemonStatus())
    supervisor.start()
    ours, theirs = socket.socketpair()
    with ours:
        supervisor.serve(7, theirs)
        for _ in range(5000):
            if zygote.forked > 1:
                break
            await asyncio.sleep(0.001)
        said = [record.getMessage() for record in caplog.records]
        assert said == [
            "no worker has begun for 10 s: the process that forks them is started again",
            "worker 1 has ended (it could not be started); vm 7: another one goes on",
        ]
        assert zygote.killed == 1
        zygote.kill()
        await supervisor.finish()


@pytest.mark.asyncio
async def test_worker_that_sleeps_is_not_asked_until_it_wakes_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or until one of the workers is stopped, for which the kernel sends a signal."""
    monkeypatch.setattr("host.supervision.worker_watch.CHECK_INTERVAL", 0.001)
    zygote = TalkingZygote()
    supervisor = Supervisor(zygote, 1, EventLog(None, time.monotonic), {}, DaemonStatus())
    supervisor.start()
    ours, theirs = socket.socketpair()
    with ours:
        supervisor.serve(1, theirs)
        await zygote.next_ping()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await zygote.next_ping()
        zygote.end.send(Packet(Kind.AWAKE).build())
        await zygote.next_ping()
        stops = "import signal; signal.raise_signal(signal.SIGSTOP)"
        stopped = await asyncio.create_subprocess_exec(sys.executable, "-S", "-c", stops)
        await zygote.next_ping()
        stopped.kill()
        await stopped.wait()
        zygote.end.close()
        await supervisor.finish()
        zygote.worker.wait()


def test_event_loop_that_wakes_up_says_so_once() -> None:
    calls: list[int] = []
    ours, theirs = socket.socketpair()
    with ours, theirs, WakingSelector() as selector:
        selector.register(ours, selectors.EVENT_READ)
        selector.select(0.0)
        selector.on_wake = lambda: calls.append(1)
        selector.select(0.0)  # it does not sleep here
        assert not calls
        theirs.send(b"x")
        selector.select()
        selector.select()
        assert calls == [1]
        ours.recv(1)
        selector.on_wake = lambda: calls.append(2)
        selector.select(0.001)  # a timer
        assert calls == [1, 2]


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
