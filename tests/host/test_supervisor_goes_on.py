"""The supervisor that goes on with the machines of another one, and takes what that one's workers have said."""

import asyncio
import contextlib
import errno
import io
import json
import os
import random
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from host.configuration.device_options import DEFAULT_DEVICE, parse_device_options
from host.control.daemon_status import DaemonStatus
from host.service_manager.service_manager import HandedOver
from host.supervision.packets import Kind, Legacy, Packet, parse_packet
from host.supervision.zygote import Zygote
from host.supervisor import Supervisor
from host.vm_store.vm_record import PAGE, Place, VmRecord, build_head
from protocol.process.events import EventLog
from tests.harness.descriptor_store import DescriptorStore
from tests.harness.processes import open_fds


@pytest.fixture(autouse=True)
def no_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' own process is the front-end of all machines; that it is looked at is another test."""
    monkeypatch.setattr("host.supervision.worker_watch.WorkerWatch._begin_look", lambda *_: None)


class QuietZygote(Zygote):
    """Each worker that is asked of it is a socket here."""

    def __init__(self) -> None:
        ours, self._theirs = socket.socketpair()
        super().__init__(ours, 0)
        self.ends: dict[int, socket.socket] = {}

    def fork(self, number: int, end: socket.socket) -> bool:
        """Keep the worker's end."""
        self.ends[number] = end.dup()
        self.ends[number].setblocking(False)
        return True

    def close(self) -> None:
        """End it, and all workers."""
        super().close()
        self._theirs.close()
        for end in self.ends.values():
            end.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DescriptorStore]:
    """A manager."""
    with contextlib.closing(DescriptorStore(tmp_path / "notify")) as store:
        yield store


def start(
    store: DescriptorStore,
    handed_over: HandedOver | None = None,
    *,
    told: io.StringIO | None = None,
    status: DaemonStatus | None = None,
) -> tuple[Supervisor, QuietZygote]:
    """Return a supervisor with a pool of one worker, whose events are ``told``."""
    zygote, events = QuietZygote(), EventLog(told, time.monotonic)
    supervisor = Supervisor(zygote, 1, events, {}, status or DaemonStatus(), store.side, handed_over)
    supervisor.start()
    return supervisor, zygote


def connect(supervisor: Supervisor, number: int) -> socket.socket:
    """Have a new machine served, whose device has a name; return the front-end's end."""
    ours, theirs = socket.socketpair()
    supervisor.serve(number, theirs, device=replace(DEFAULT_DEVICE, name=f"guest{number}"))
    return ours


async def said(end: socket.socket) -> list[Packet]:
    """Return what a worker was told by now, but for questions."""
    for _ in range(20):
        await asyncio.sleep(0)
    packets = []
    with contextlib.suppress(BlockingIOError):
        while True:
            data, fds, _, _ = socket.recv_fds(end, 1 << 17, 10)
            for fd in fds:
                os.close(fd)
            packets.append(parse_packet(data, ()))
    return [packet for packet in packets if packet.kind not in (Kind.COMMAND, Kind.PING)]


async def attached(end: socket.socket) -> list[tuple[int, str]]:
    """Return the numbers and names of the machines that a worker was given."""
    packets = [packet for packet in await said(end) if packet.kind is not Kind.ALONE]
    assert all(packet.kind is Kind.ATTACH for packet in packets)
    return [(packet.vm, parse_device_options(packet.body).name) for packet in packets]


@pytest.mark.asyncio
async def test_connection_that_waited_waits_on_and_begins_after_the_other(
    store: DescriptorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("host.supervisor.SESSIONS_MAX", 1)
    first, zygote = start(store)
    connect(first, 1).close()  # it has ended, and was not released yet
    with connect(first, 2), contextlib.closing(zygote):
        assert await attached(zygote.ends[1]) == [(1, "guest1")]
        zygote.ends[1].close()
        await first.let_go()
        second, zygote = start(store, store.hand_over())
        assert await attached(zygote.ends[1]) == [(1, "guest1")]
        zygote.ends[1].send(Packet(Kind.ENDED, 1).build(1))
        assert await attached(zygote.ends[1]) == [(2, "guest2")]
        zygote.ends[1].close()
        await second.finish()
    assert store.look() == []


@pytest.mark.asyncio
async def test_machine_that_a_former_worker_has_left_goes_on_apart_and_stays_so(
    store: DescriptorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("host.supervisor.STOP_PATIENCE", 0.0)
    first, zygote = start(store)
    with connect(first, 1) as front_end:
        (end,), (worker,) = [each.dup() for each in zygote.ends.values()], first._workers.values()
        assert await attached(end) == [(1, "guest1")]
        await first.let_go()
        worker._link.close()  # this process goes on in the test alone
        zygote.close()
        end.send(Packet(Kind.LEFT, 1).build(1))
        end.close()
        second, zygote = start(store, store.hand_over())
        assert await said(zygote.ends[1]) == []
        alone, *rest = await said(zygote.ends[2])
        assert (alone.kind, [(packet.kind, packet.vm) for packet in rest]) == (Kind.ALONE, [(Kind.ATTACH, 1)])
        for each in zygote.ends.values():
            each.close()
        await second.let_go()
        third, zygote = start(store, store.hand_over())
        assert await attached(zygote.ends[1]) == []
        assert await attached(zygote.ends[2]) == [(1, "guest1")]
        zygote.ends[1].send(Packet(Kind.LEFT, 1).build(1))  # it may come once more, of a worker that has left it
        assert await said(zygote.ends[2]) == []
        assert list(zygote.ends) == [1, 2]
        for each in zygote.ends.values():
            each.close()
        front_end.setblocking(False)
        with pytest.raises(BlockingIOError):
            front_end.recv(1)
        await third.finish()
        assert store.look() == []
        assert front_end.recv(1) == b""


@pytest.mark.asyncio
async def test_machine_goes_on_whose_former_worker_has_given_its_way_to_others(
    store: DescriptorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("host.supervisor.STOP_PATIENCE", 0.0)
    monkeypatch.setattr("host.supervision.stored_machines.END_PATIENCE", 0.01)
    first, zygote = start(store)
    with connect(first, 1):
        end = zygote.ends[1].dup()
        (worker,) = first._workers.values()
        await first.let_go()
        worker._link.close()
        second, zygote = start(store, store.hand_over())
        assert await attached(zygote.ends[1]) == []
        told: list[tuple[int, str]] = []
        for _ in range(5000):
            if told := await attached(zygote.ends[1]):
                break
            await asyncio.sleep(0.001)
        assert told == [(1, "guest1")]
        for each in (end, *zygote.ends.values()):
            each.close()
        await second.finish()


@pytest.mark.asyncio
async def test_machine_is_served_without_being_kept_if_no_descriptor_is_left(
    store: DescriptorStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor, zygote = start(store)
    create = os.memfd_create

    def failing_create(name: str, flags: int) -> int:
        if name == "balloon replies":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return create(name, flags)

    monkeypatch.setattr(os, "memfd_create", failing_create)
    before = open_fds(os.getpid()).keys()
    with connect(supervisor, 1):
        assert await attached(zygote.ends[1]) == [(1, "guest1")]
        assert caplog.messages == ["vm 1: its session would not outlive this process: Too many open files"]
        assert len(open_fds(os.getpid()).keys() - before) == 2  # the connection's ends
        assert not any(name.startswith("vm") for name in store.look())
        zygote.ends[1].close()
        await supervisor.finish()


@pytest.mark.asyncio
async def test_machine_that_cannot_go_on_is_told_of_and_its_number_is_not_given_again(store: DescriptorStore) -> None:
    first, zygote = start(store)
    with connect(first, 7) as front_end:
        with contextlib.closing(zygote):
            await first.let_go()
        store.look()
        os.pwrite(store.fd("vm7.record"), b"no record", 0)
        told, status = io.StringIO(), DaemonStatus()
        second, zygote = start(store, store.hand_over(), told=told, status=status)
        with contextlib.closing(zygote):
            assert not any(name.startswith("vm") for name in store.look())
            assert front_end.recv(1) == b""
            event = json.loads(told.getvalue().splitlines()[0])
            assert (event["event"], event["vm"]) == ("disconnected", 7)
            assert event["reason"] == "what is kept of it cannot be read"
            assert status.sessions == 7
            await second.finish()


def stray_descriptor(chance: random.Random) -> int:
    """Return a descriptor that no supervisor has stored."""
    match chance.randrange(8):
        case 0:
            return os.eventfd(0)
        case 1:
            reading, writing = os.pipe()
            os.close(writing)
            return reading
        case 2 | 3:
            fd = os.memfd_create("stray")
            body = chance.choice((b"", b"[" * 9000, RECORD.build(), RECORD.build()[:-3], chance.randbytes(99)))
            os.pwrite(fd, build_head() + Place(1, chance.choice((len(body), 1 << 31, 0))).build(), 0)
            os.pwrite(fd, body, PAGE)
            return fd
        case 4:
            return socket.create_server(("127.0.0.1", 0)).detach()
        case _:
            ours, theirs = socket.socketpair(socket.AF_UNIX, chance.choice((socket.SOCK_STREAM, socket.SOCK_SEQPACKET)))
            for _ in range(3):
                theirs.send(Packet(chance.choice(list(Kind)), 1, chance.randbytes(9)).build(9))
            theirs.close()
            return ours.detach()


RECORD = VmRecord(
    number=1,
    device=DEFAULT_DEVICE.build(),
    alone=False,
    link="worker1.01234567",
    packet=7,
    has_begun=True,
    lasts=True,
    kept=frozenset({1}),
    names={1: "vm1.file1"},
    replies_end=20,
    legacy=Legacy(journal=b"[" * 9000, pieces=(), taken=True, records={}, next_file=2).build(),
)


@pytest.mark.asyncio
@pytest.mark.parametrize("seed", range(2))
async def test_supervisor_begins_whatever_its_manager_hands_over(
    store: DescriptorStore, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr("host.supervisor.STOP_PATIENCE", 0.0)
    chance = random.Random(seed)
    whole = [f"vm1.{what}" for what in ("connection", "record", "replies", "file1")] + ["worker1.01234567"]
    odd = ["", "vm0.record", "vm99999999999.record", "vm2.record", "worker2.0", "listener.%2Ftmp", "\x00", "vm1.file2"]
    for _ in range(10):
        names = [*whole, *chance.sample(odd, 3), chance.choice(whole)]
        supervisor, zygote = start(store, HandedOver([(name, stray_descriptor(chance)) for name in names]))
        with connect(supervisor, 7):
            for _ in range(20):
                await asyncio.sleep(0)
            assert (7, "guest7") in await attached(zygote.ends[1])
            for each in zygote.ends.values():
                each.close()
            await supervisor.finish()
