"""One session over a socket pair, in this process, where its descriptors and its timing can be held."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

import host.connection
import host.descriptors.socket_read
import host.message_channel
import host.session_release
from host.balloon.offered_features import OFFERED
from host.balloon.virtio_balloon import VirtioBalloon
from host.connection import Connection
from host.peers.peers import Peers
from host.ring.ring_service import RingService
from host.supervision.session_journal import NOT_JOURNALED, SessionJournal
from host.vhost_user import ring_control
from host.vhost_user.session import Session
from protocol.errors import VirtqueueError
from protocol.memory import PAGE_SIZE
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_codec import MessageReader, build_message
from protocol.vhost_user_payloads import MemoryTable, Payload, VringFile, VringState
from protocol.virtio_balloon import BalloonQueue
from tests.harness.processes import DEADLINE, open_fds
from tests.harness.virtual_machine import DATA_AT, QUEUE_SIZE, REPORTING, Client, VirtualMachine
from tests.host.ring.gate import Gate, gated_discard


@dataclass
class Attached:
    """A session that runs: its task, the front-end's end of it, and what it told.

    ``ended`` says that the test has looked at how the task ended.
    """

    connection: Connection
    task: asyncio.Task[str]
    client: Client
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    ended: bool = False

    def count(self, event: str) -> int:
        return sum(name == event for name, _ in self.events)


@contextlib.asynccontextmanager
async def attached(offered: int = OFFERED, journal: SessionJournal = NOT_JOURNALED) -> AsyncIterator[Attached]:
    """Run a session that offers these features."""
    ours, theirs = socket.socketpair()
    events: list[tuple[str, dict[str, Any]]] = []

    def emit(event: str, **fields: object) -> None:
        events.append((event, fields))

    with ThreadPoolExecutor(4) as executor:
        record = Session(offered=offered, balloon=VirtioBalloon())
        connection = Connection(theirs, record, Peers(executor), emit, journal=journal)
        task = asyncio.create_task(connection.run())
        session = Attached(connection, task, Client(ours), events)
        try:
            yield session
        finally:
            ours.close()
            if not session.ended:
                with contextlib.suppress(asyncio.CancelledError):
                    await task


class WrittenJournal(SessionJournal):
    """Writes the session down at each turn of the event loop, as long as it may be."""

    is_kept = True

    def __init__(self) -> None:
        self.build: Callable[[], tuple[bytes, set[int]]] | None = None
        self.problems: list[object] = []

    def begin(self, journal: Callable[[], tuple[bytes, set[int]]]) -> None:
        self.build = journal
        self._write()

    def _write(self) -> None:
        if self.build is None:
            return
        try:
            self.build()
        except Exception as problem:
            self.problems.append(problem)
        asyncio.get_running_loop().call_soon(self._write)

    def close(self) -> None:
        self.build = None


async def in_thread(action: Callable[[], object]) -> None:
    """Do something that blocks, while the session's event loop runs."""
    async with asyncio.timeout(DEADLINE):
        await asyncio.to_thread(action)


@pytest.mark.asyncio
async def test_descriptors_that_were_received_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    received: set[int] = set()
    feed = MessageReader.feed

    def recording_feed(self: MessageReader, data: bytes, fds: Iterable[int] = ()) -> None:
        numbers = list(fds)
        received.update(numbers)
        feed(self, data, numbers)

    monkeypatch.setattr(MessageReader, "feed", recording_feed)
    before = open_fds(os.getpid())
    for _ in range(20):
        async with attached() as session:
            await in_thread(lambda: live(session.client))
    after = open_fds(os.getpid())
    assert 5 <= len(received) < 50  # of 200: numbers come back, for each was closed
    assert {number: after[number] for number in received & after.keys()} == {
        number: before[number] for number in received & before.keys()
    }
    assert len(after) <= len(before) + 1  # the event loop's own executor, made on first use, may have some


def live(client: Client) -> None:
    """Have a whole session with descriptors in right and wrong places, and hang up in the middle of a message."""
    machine = VirtualMachine(client)
    machine.check_alive()
    fd = machine.reporting.call_fd
    assert machine.ask(FrontendRequest.SET_OWNER, None, [fd]) == 1
    assert machine.ask(FrontendRequest.SET_VRING_CALL, VringFile(REPORTING, True), [fd, fd]) == 1
    client.send(build_message(FrontendRequest.SET_VRING_CALL, VringFile(REPORTING, True))[:13], [fd])
    machine.close()


@pytest.mark.asyncio
async def test_session_can_be_written_down_whenever_its_process_may_do_so() -> None:
    """No part of it has gone while it is still written down."""
    journal = WrittenJournal()
    async with attached(journal=journal) as session:
        await in_thread(lambda: VirtualMachine(session.client).check_alive())
        assert journal.build is not None
        session.client.socket.close()
        async with asyncio.timeout(DEADLINE):
            await session.task
        session.ended = True
    assert journal.problems == []


@pytest.mark.asyncio
async def test_byte_now_and_then_does_not_extend_a_messages_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.message_channel, "MESSAGE_TIMEOUT", 0.3)
    async with attached() as session:
        message = build_message(FrontendRequest.SET_FEATURES, 0)
        for at in range(len(message)):
            with contextlib.suppress(BrokenPipeError):
                session.client.socket.send(message[at : at + 1])
            await asyncio.wait([session.task], timeout=0.05)
        assert session.task.done()
        assert "did not come within" in session.task.result()


@pytest.mark.asyncio
async def test_silent_front_end_between_messages_is_not_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.message_channel, "MESSAGE_TIMEOUT", 0.05)
    async with attached() as session:
        await asyncio.wait([session.task], timeout=0.2)
        assert not session.task.done()
        await in_thread(lambda: session.client.ask(FrontendRequest.GET_QUEUE_NUM))


@pytest.mark.asyncio
async def test_front_end_that_reads_no_reply_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.message_channel, "MESSAGE_TIMEOUT", 0.1)
    async with attached() as session:
        session.client.socket.setblocking(False)
        while not session.task.done():
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                session.client.socket.send(build_message(FrontendRequest.GET_FEATURES) * 64)
            await asyncio.wait([session.task], timeout=0.01)
        assert session.task.result() == "front-end does not read its replies"


@pytest.mark.asyncio
async def test_descriptors_lost_on_the_way_cost_their_own_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of them are missing cannot be known, so the message cannot be carried out. The next one can."""
    monkeypatch.setattr(host.descriptors.socket_read, "_ANCILLARY_SPACE", socket.CMSG_SPACE(8))
    before = open_fds(os.getpid()).keys()
    async with attached() as session:
        fd = os.eventfd(0)
        session.client.request(FrontendRequest.SET_OWNER, None, [fd] * 9)
        os.close(fd)
        await in_thread(lambda: session.client.ask(FrontendRequest.GET_QUEUE_NUM))
        (refused,) = [fields for event, fields in session.events if event == "message_refused"]
        assert refused["reason"] == "file descriptors were lost on the way, the daemon has too many open"
    assert open_fds(os.getpid()).keys() <= before | {max(before) + 1}


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["vanishes", "is told to stop", "vanishes and is told to stop"])
async def test_chain_in_hand_is_finished_however_a_session_ends(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    gate = gated_discard(monkeypatch)
    async with attached() as session:
        machine = await asyncio.to_thread(VirtualMachine, session.client)
        machine.ram.touch(DATA_AT, 2 * PAGE_SIZE)
        machine.submit([(DATA_AT, PAGE_SIZE)])
        machine.submit([(DATA_AT + PAGE_SIZE, PAGE_SIZE)])
        await in_thread(gate.entered.wait)
        if "vanishes" in how:
            session.client.socket.close()
            await asyncio.wait([session.task], timeout=0.05)
        if "stop" in how:
            session.task.cancel()
            await asyncio.wait([session.task], timeout=0.05)
        assert not session.task.done()
        assert machine.reporting.ring.used[1] == 0
        gate.opened.set()
        await asyncio.wait([session.task], timeout=DEADLINE)
        assert session.task.cancelled() == ("stop" in how)
        assert machine.reporting.ring.used[1] == 1
        assert machine.ram.pages() == {DATA_AT + PAGE_SIZE}
        assert (session.count("report"), session.connection.metrics.reports) == (1, 1)
        machine.close()


def stopping(request: FrontendRequest, machine: VirtualMachine) -> tuple[Payload, Payload, list[int]]:
    """Return a payload with which ``request`` stops the reporting queue, the answer to it, and its descriptors."""
    index = machine.reporting.index
    match request:
        case FrontendRequest.GET_VRING_BASE:
            return VringState(index, 0), VringState(index, 1), []  # the chain in hand, and not the next one
        case FrontendRequest.SET_VRING_ENABLE:
            return VringState(index, 0), 0, []
        case FrontendRequest.SET_MEM_TABLE:
            return MemoryTable(()), 0, []
        case FrontendRequest.REM_MEM_REG:
            return machine.region, 0, []
        case _:
            return None, 0, []


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "request_number",
    [
        FrontendRequest.RESET_DEVICE,
        FrontendRequest.GET_VRING_BASE,
        FrontendRequest.SET_VRING_ENABLE,
        FrontendRequest.SET_MEM_TABLE,
        FrontendRequest.REM_MEM_REG,
    ],
)
async def test_messages_alone_wait_for_the_chain_in_hand(
    monkeypatch: pytest.MonkeyPatch, request_number: FrontendRequest
) -> None:
    gate = gated_discard(monkeypatch)
    async with attached() as slow, attached() as quick:
        machine = await asyncio.to_thread(VirtualMachine, slow.client)
        machine.ram.touch(DATA_AT, 2 * PAGE_SIZE)
        machine.submit([(DATA_AT, PAGE_SIZE)])
        machine.submit([(DATA_AT + PAGE_SIZE, PAGE_SIZE)])
        await in_thread(gate.entered.wait)
        payload, answer, fds = stopping(request_number, machine)
        service = slow.connection.queue(BalloonQueue.REPORTING)
        assert service is not None
        stop, stopped = service.stop, asyncio.Event()

        async def stop_noted(*, drain: bool = True) -> int:
            stopped.set()
            return await stop(drain=drain)

        monkeypatch.setattr(service, "stop", stop_noted)
        machine.client.request(request_number, payload, fds, need_reply=True)
        async with asyncio.timeout(DEADLINE):
            await stopped.wait()
        for _ in range(3):
            await in_thread(lambda: quick.client.ask(FrontendRequest.GET_FEATURES))
        assert machine.reporting.ring.used[1] == 0
        gate.opened.set()
        assert (await asyncio.to_thread(machine.client.reply)).payload == answer
        assert machine.reporting.ring.used[1] == 1
        assert machine.ram.pages() == {DATA_AT + PAGE_SIZE}
        machine.close()


@pytest.mark.asyncio
async def test_ring_set_up_anew_while_it_breaks_is_not_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The note that the old ring broke arrives when the new one runs already."""
    gate = Gate()
    serve = VirtioBalloon.serve

    def broken_serve(*arguments: Any) -> Any:
        if gate.opened.is_set():
            return serve(*arguments)
        gate.pass_through()
        raise VirtqueueError("as a test wanted it")

    monkeypatch.setattr(VirtioBalloon, "serve", broken_serve)
    stopping = asyncio.Event()
    stop = RingService.stop

    async def noted_stop(service: RingService, *, drain: bool = True) -> int:
        stopping.set()
        return await stop(service, drain=drain)

    monkeypatch.setattr(RingService, "stop", noted_stop)
    async with attached() as session:
        machine = await asyncio.to_thread(VirtualMachine, session.client)
        machine.submit([(DATA_AT, PAGE_SIZE)])
        await in_thread(gate.entered.wait)
        kick = (VringFile(REPORTING, True), [machine.reporting.kick_fd])
        machine.client.request(FrontendRequest.SET_VRING_KICK, *kick, need_reply=True)
        await stopping.wait()  # the message waits for the worker
        gate.opened.set()
        assert (await asyncio.to_thread(machine.client.reply)).payload == 0
        machine.ram.touch(DATA_AT, PAGE_SIZE)
        machine.submit([(DATA_AT, PAGE_SIZE)])
        await in_thread(lambda: machine.reporting.wait_for_used_index(1))
        assert machine.ram.pages() == set()
        assert session.count("queue_stopped") == 1
        machine.close()


@pytest.mark.asyncio
async def test_session_does_not_outlive_what_retires_its_broken_rings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it a queue that breaks would stay as it is, and its driver would wait for ever."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(ring_control, "ring_broke", fail)
    async with attached() as session:
        machine = await asyncio.to_thread(VirtualMachine, session.client)
        machine.reporting.ring.avail[1] = QUEUE_SIZE + 1
        machine.reporting.kick()
        await asyncio.wait([session.task], timeout=DEADLINE)
        assert isinstance(session.task.exception(), ZeroDivisionError)
        session.ended = True
        machine.close()


@pytest.mark.asyncio
async def test_session_without_memory_ends_in_one_line_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    before = open_fds(os.getpid()).keys()
    async with attached() as session:
        machine = await asyncio.to_thread(VirtualMachine, session.client)
        monkeypatch.setattr(host.connection, "handle", fail)
        session.client.request(FrontendRequest.GET_QUEUE_NUM)
        await asyncio.wait([session.task], timeout=DEADLINE)
        assert session.task.result() == "the daemon is out of memory"
        machine.close()
    assert len(open_fds(os.getpid()).keys() - before) <= 1  # the event loop's own


@pytest.mark.asyncio
async def test_worker_that_is_held_up_does_not_keep_its_session_and_keeps_its_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its file must stay open: the number of a closed one may be another machine's memory by then."""
    for module in (host.connection, host.session_release):
        monkeypatch.setattr(module, "RELEASE_PATIENCE", 0.1)
    gate = gated_discard(monkeypatch)
    async with attached() as session:
        machine = await asyncio.to_thread(VirtualMachine, session.client)
        before = open_fds(os.getpid())
        machine.ram.touch(DATA_AT, PAGE_SIZE)
        machine.submit([(DATA_AT, PAGE_SIZE)])
        await in_thread(gate.entered.wait)
        session.client.socket.close()
        await asyncio.wait([session.task], timeout=DEADLINE)
        assert "front-end gone" in session.task.result()
        held = [number for number, target in open_fds(os.getpid()).items() if "test-ram" in target]
        assert len(held) == sum("test-ram" in target for target in before.values())
        gate.opened.set()
        await asyncio.wait(host.session_release._unreleased, timeout=DEADLINE)
        assert not host.session_release._unreleased
        assert not machine.ram.pages()
        machine.close()
