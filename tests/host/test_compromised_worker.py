"""The supervisor and a worker that a guest has made its own: it says what it likes, and harms no other machine."""

import asyncio
import contextlib
import json
import os
import random
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio

from host.control.daemon_status import DaemonStatus
from host.qmp.qmp import Arguments, Request
from host.supervision.packets import (
    PACKET_MAX,
    Kind,
    Packet,
    parse_packet,
    split_number,
    with_kept,
    with_length,
    with_number,
)
from host.supervision.supervised_vm import MESSAGE_MAX, VM_FILES_MAX
from host.supervision.zygote import Zygote
from host.supervisor import Supervisor
from protocol.errors import BalloonError
from protocol.process.events import EventLog
from tests.harness.processes import open_fds

BAD, GOOD = 1, 2
"""The machine whose worker is at fault, and one of another worker."""


@pytest.fixture(autouse=True)
def no_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' own process is the front-end of all machines; that it is looked at is another test."""
    monkeypatch.setattr("host.supervision.worker_watch.WorkerWatch._begin_look", lambda *_: None)


@dataclass
class Lines:
    """A stream of events."""

    written: list[str] = field(default_factory=list)

    def write(self, line: str) -> None:
        """Take a line."""
        self.written.append(line)

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class PuppetZygote(Zygote):
    """Each worker that is asked of it is a socket here."""

    def __init__(self) -> None:
        ours, self._theirs = socket.socketpair()
        super().__init__(ours, 0)
        self.ends: list[socket.socket] = []

    def fork(self, number: int, end: socket.socket) -> bool:
        """Keep the worker's end."""
        self.ends.append(end.dup())
        self.ends[-1].setblocking(False)
        return True

    def close(self) -> None:
        """End it, and all workers."""
        super().close()
        self._theirs.close()
        for end in self.ends:
            end.close()


class Scene:
    """A supervisor with two machines, each with a worker of its own."""

    def __init__(self) -> None:
        self.events = Lines()
        self.zygote = PuppetZygote()
        self.supervisor = Supervisor(self.zygote, 0, EventLog(self.events, time.monotonic), {}, DaemonStatus())
        self.notices: list[tuple[Any, ...]] = []
        self.supervisor.notices = self
        self.front_ends = []
        for vm in (BAD, GOOD):
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            self.front_ends.append(ours)
            self.supervisor.serve(vm, theirs)
        self.bad, self.good = self.zygote.ends
        self._number = 0

    def emit(self, event: str, data: Any) -> None:
        """Take an event for control clients."""
        self.notices.append((event, data))

    def balloon_changed(self, vm: int, logical_bytes: int) -> None:
        """Take a size."""
        self.notices.append(("balloon", vm, logical_bytes))

    def forget(self, vm: int) -> None:
        """Take the end of a machine."""
        self.notices.append(("forget", vm))

    async def say(self, data: bytes, fds: tuple[int, ...] = ()) -> bool:
        """Send bytes as the bad worker; return whether the supervisor still listens."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while True:
                try:
                    socket.send_fds(self.bad, [data], fds)
                except BlockingIOError:
                    await asyncio.sleep(0)
                else:
                    await settle()
                    return not is_closed(self.bad)
        return False

    async def tell(self, kind: Kind, body: bytes = b"", fds: tuple[int, ...] = (), vm: int = BAD) -> bool:
        """Send a packet as the bad worker; return whether the supervisor still listens."""
        self._number += 1
        return await self.say(Packet(kind, vm, body).build(self._number), fds)

    async def other_goes_on(self) -> None:
        """Check that the other machine is served, and by its own worker."""
        number = 1 + getattr(self, "_good_number", 0)
        self._good_number = number
        packet = Packet(Kind.HANDLED, GOOD, with_kept(b"journal", set(), b"reply")).build(number)
        self.good.send(packet)
        await settle()
        assert self.front_ends[1].recv(100) == b"reply"


async def settle() -> None:
    """Let the supervisor take in what has come."""
    for _ in range(6):
        await asyncio.sleep(0)


def start_process() -> "subprocess.Popen[bytes]":
    """Start a process that ends when its input does."""
    return subprocess.Popen(["cat"], stdin=subprocess.PIPE)


def is_closed(end: socket.socket) -> bool:
    """Return whether the other end is closed; what it has said is dropped."""
    try:
        while data := end.recv(PACKET_MAX):
            parse_packet(data, ())
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True
    return True


@pytest_asyncio.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    """The two machines; at the end all is closed."""
    monkeypatch.setattr("host.supervisor.STOP_PATIENCE", 0.0)
    before = len(open_fds(os.getpid()))
    scene = Scene()
    yield scene
    await scene.supervisor.finish()
    for end in (*scene.front_ends, *scene.zygote.ends):
        end.close()
    for _ in range(1000):
        if len(open_fds(os.getpid())) <= before:
            break
        await asyncio.sleep(0.001)
    assert len(open_fds(os.getpid())) <= before


MEANINGLESS: dict[str, tuple[Kind | int, bytes]] = {
    "no kind": (0, b""),
    "unknown kind": (200, b""),
    "a supervisor's word": (Kind.STOP, b""),
    "attach": (Kind.ATTACH, b"{}"),
    "hello cut short": (Kind.HELLO, b"\1"),
    "a process that is no worker": (Kind.HELLO, with_number(os.getppid(), b"")),
    "a process of no number": (Kind.HELLO, b"\xff\xff\xff\xff"),
    "no process": (Kind.HELLO, with_number(0, b"")),
    "descriptors of nothing": (Kind.TAKEN, b""),
    "descriptors of no reply": (Kind.HANDLED, with_kept(b"", set())),
    "piece cut short": (Kind.PIECE, b"\xff\xff\xff\xff"),
    "empty piece": (Kind.PIECE, with_length(b"", b"")),
    "long piece": (Kind.PIECE, with_length(b"", bytes(MESSAGE_MAX + 1))),
    "handled cut short": (Kind.HANDLED, with_length(b"[]", b"")),
    "handled without numbers": (Kind.HANDLED, with_length(b"[[[[]]]]", with_length(b"", b""))),
    "handled deep": (Kind.HANDLED, with_length(b"[" * 100_000, with_length(b"", b""))),
    "handled text": (Kind.HANDLED, with_length(b"\xff", with_length(b"", b""))),
    "files that did not come": (Kind.HANDLED, with_kept(b"journal", {0, 99})),
    "long reply": (Kind.HANDLED, with_kept(b"", set(), bytes(MESSAGE_MAX + 1))),
    "journal cut short": (Kind.JOURNAL, b""),
    "record cut short": (Kind.RECORD, b"\0"),
    "record of no queue": (Kind.RECORD, with_number(70000, b"")),
    "events of no text": (Kind.EVENTS, b"\xff\n"),
    "events of no form": (Kind.EVENTS, b"[1]\n"),
    "deep events": (Kind.EVENTS, b'{"event":' + b"[" * 100_000 + b"\n"),
    "event without a name": (Kind.EVENTS, b'{"vm": 1}\n'),
    "notice of no form": (Kind.NOTICE, b"7"),
    "notice without arguments": (Kind.NOTICE, b'["forget"]'),
    "notice of no call": (Kind.NOTICE, b'["close", 1]'),
    "answer cut short": (Kind.ANSWER, b""),
    "left, with a worker of its own": (Kind.LEFT, b""),
}


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the lines of the log."""
    return [record.getMessage() for record in caplog.records]


def request(name: str, **arguments: Any) -> Request:
    return Request(name=name, arguments=Arguments(arguments))


@pytest.mark.asyncio
@pytest.mark.parametrize("what", MEANINGLESS)
async def test_packet_that_means_nothing_costs_its_worker(
    scene: Scene, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    kind, body = MEANINGLESS[what]
    with contextlib.closing(socket.socket()) as unrelated:
        data = bytes([kind, 0, 0, 0]) + BAD.to_bytes(4, "little") + b"\xff" * 4 + body
        assert not await scene.say(data, (unrelated.fileno(),))
    assert [line for line in said(caplog) if "worker 1 is at fault and is killed: " in line]
    await scene.other_goes_on()
    assert len(scene.zygote.ends) == 3  # another worker has the machine


@pytest.mark.asyncio
async def test_nothing_is_said_of_another_machine(scene: Scene) -> None:
    lines = [{"t": 1.5, "event": "report", "vm": vm} for vm in (GOOD, BAD, 3)]
    lines += [{"event": "listening"}, {"event": "suppressed", "of": "session", "uid": 0, "count": 3}]
    assert await scene.tell(Kind.EVENTS, "".join(json.dumps(line) + "\n" for line in lines).encode())
    assert [json.loads(line) for line in scene.events.written] == [lines[1], lines[4]]
    for vm in (GOOD, BAD, 3, True, "1", None):
        for call in (["emit", "VM_CONNECTED", {"vm": vm}], ["balloon_changed", vm, 7], ["forget", vm]):
            assert await scene.tell(Kind.NOTICE, json.dumps(call).encode())
    assert scene.notices == [("VM_CONNECTED", {"vm": BAD}), ("balloon", BAD, 7), ("forget", BAD)]
    for kind in (Kind.ENDED, Kind.LEFT, Kind.HANDLED, Kind.JOURNAL, Kind.PIECE, Kind.TAKEN, Kind.RECORD):
        assert await scene.tell(kind, b"", vm=GOOD)
    await scene.other_goes_on()


@pytest.mark.asyncio
async def test_answers_say_nothing_of_another_machine(scene: Scene) -> None:
    scene.bad.recv(PACKET_MAX)
    answers = {
        "query-vms": [{"vm": GOOD, "name": "forged"}, {"vm": BAD, "name": "own"}, {"vm": []}, [], 7],
        "query-balloon": "two\nlines",
    }

    async def answer(name: str, text: bytes) -> Any:
        asking = asyncio.create_task(scene.supervisor.perform(request(name, **({"vm": BAD} if "-b" in name else {}))))
        while True:
            await asyncio.sleep(0)
            with contextlib.suppress(BlockingIOError):
                packet = parse_packet(scene.bad.recv(PACKET_MAX), ())
                if packet.kind is Kind.COMMAND:
                    break
        number, _ = split_number(packet.body)
        assert await scene.tell(Kind.ANSWER, with_number(number, text))
        for end in scene.zygote.ends[1:]:
            end.close()
        return json.loads(await asking)

    found = await answer("query-vms", json.dumps({"return": answers["query-vms"]}).encode())
    assert [entry.get("name") for entry in found["return"]] == ["own", None]
    failed = await answer("query-balloon", b'{"return": {}}\n{"event": "STOP"}\n')
    assert failed["error"]["desc"] == "its worker's answer cannot be read"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("kind", "body", "files", "most"),
    [
        (Kind.PIECE, with_length(b"", bytes(64)), 0, MESSAGE_MAX // 64),
        (Kind.PIECE, with_length(b"", b"x"), 250, VM_FILES_MAX // 250),
        (Kind.RECORD, with_number(0, b""), 1, VM_FILES_MAX),
        (Kind.HANDLED, with_kept(b"", set(), bytes(MESSAGE_MAX)), 0, 200),
    ],
    ids=["bytes", "files", "records", "replies"],
)
async def test_what_has_no_end_costs_its_worker(scene: Scene, kind: Kind, body: bytes, files: int, most: int) -> None:
    before = len(open_fds(os.getpid()))
    fd = os.memfd_create("test")
    told = 0
    while await scene.tell(kind, body, (fd,) * files):
        told += 1
        assert told <= most
    os.close(fd)
    assert len(open_fds(os.getpid())) <= before + VM_FILES_MAX + 4  # of the worker that goes on
    await scene.other_goes_on()


@pytest.mark.asyncio
async def test_answer_without_an_end_costs_its_worker(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("host.supervision.worker_process.ANSWER_MAX", 3 * PACKET_MAX)
    (worker, *_) = scene.supervisor._workers.values()
    asking = asyncio.create_task(worker.ask(Kind.STATUS))
    await settle()
    for _ in range(3):
        assert await scene.tell(Kind.PART, with_number(1, bytes(PACKET_MAX - 100)))
    assert not await scene.tell(Kind.PART, with_number(1, bytes(PACKET_MAX - 100)))
    with pytest.raises(BalloonError):
        await asking


@pytest.mark.asyncio
async def test_worker_names_its_process_once(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    child = start_process()
    other = start_process()
    assert await scene.tell(Kind.HELLO, with_number(child.pid, b""))
    assert not await scene.tell(Kind.HELLO, with_number(other.pid, b""))
    for _ in range(5000):
        if len(said(caplog)) == 2:
            break
        await asyncio.sleep(0.001)
    assert said(caplog)[1].startswith("worker 1 has ended (SIGKILL); vm 1")
    assert other.poll() is None
    for process in (child, other):
        process.communicate()


@pytest.mark.asyncio
async def test_end_of_a_worker_is_noticed_that_has_given_its_way_to_others(scene: Scene) -> None:
    child = start_process()
    assert await scene.tell(Kind.HELLO, with_number(child.pid, b""))
    assert await scene.tell(Kind.PIECE, with_length(b"", b"x"), (scene.bad.fileno(),))  # held by the supervisor too
    assert await scene.tell(Kind.TAKEN)
    scene.bad.close()
    child.kill()
    for _ in range(5000):
        if len(scene.zygote.ends) == 3:
            break
        await asyncio.sleep(0.001)
    scene.zygote.ends[2].setblocking(True)
    kinds = [parse_packet(scene.zygote.ends[2].recv(PACKET_MAX), ()).kind for _ in range(3)]
    assert kinds[-1] is Kind.FILES  # what it had said counts
    await scene.other_goes_on()
    child.communicate()


@pytest.mark.asyncio
@pytest.mark.parametrize("seed", range(4))
async def test_other_machine_goes_on_beside_a_worker_that_says_anything(scene: Scene, seed: int) -> None:
    chance = random.Random(seed)
    fd = os.memfd_create("test")
    for _ in range(400):
        good = chance.random() < 0.7
        kind = chance.choice(list(Kind)) if good else chance.randrange(256)
        parts = [chance.choice(_PARTS)(chance) for _ in range(chance.randrange(4))]
        data = bytes([kind, 0, 0, 0]) + chance.choice((BAD, GOOD, 9)).to_bytes(4, "little") + chance.randbytes(4)
        data = (data + b"".join(parts))[: chance.choice((5, 1000, 100_000))]
        if not await scene.say(data, (fd,) * chance.choice((0, 0, 1, 7))):
            scene.bad.close()
            if not any(BAD in worker.vms for worker in scene.supervisor._workers.values()):  # it waits for one
                break
            scene.bad = scene.zygote.ends[-1]
    os.close(fd)
    await scene.other_goes_on()


_PARTS: list[Callable[[random.Random], bytes]] = [
    lambda chance: chance.randbytes(chance.randrange(40)),
    lambda chance: with_kept(b"journal", {chance.randrange(4)}, b"reply"),
    lambda chance: with_length(b"", b"data"),
    lambda chance: with_number(chance.randrange(6), b""),
    lambda chance: json.dumps(["emit", "x", {"vm": chance.randrange(3)}]).encode(),
    lambda chance: b'{"event": "report", "vm": 1}\n',
]
