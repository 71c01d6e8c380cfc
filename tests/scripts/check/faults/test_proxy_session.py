"""A session between two sockets of the test, one the front-end's and one the back-end's."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Sequence
from typing import Final

import pytest

from protocol.process.events import EventLog
from protocol.recording.records import PROXY, Record
from protocol.vhost_user import BackendRequest, FrontendRequest
from protocol.vhost_user_codec import Channel, build_ack, build_message
from protocol.vhost_user_payloads import VringFile, VringState
from scripts.check.faults.fault_plan import FaultPlan
from scripts.check.faults.proxy_session import ProxySession
from scripts.check.faults.script_text import parse_script
from scripts.check.recording.recorder import Recorder

WITHIN: Final = 10.0
KICK: Final = build_message(FrontendRequest.SET_VRING_KICK, VringFile(0, has_file=True))
CALL: Final = build_message(FrontendRequest.SET_VRING_CALL, VringFile(0, has_file=True))
ONE: Final = (1).to_bytes(8, "little")


class Tap(Recorder):
    """A recorder that keeps what was passed: stream, bytes, number of descriptors."""

    def __init__(self) -> None:
        self.kept: list[tuple[Channel, bytes, int]] = []
        self.records: list[Record] = []
        super().__init__(self.records.append, 3, PROXY)

    def passed(self, stream: Channel, data: bytes, fds: Sequence[int] = ()) -> None:
        self.kept.append((stream, data, len(fds)))
        super().passed(stream, data, fds)


class Ends:
    """The front-end's and the back-end's end of a session, and what was passed between them."""

    def __init__(self) -> None:
        self.front_end, self.proxy_front = socket.socketpair()
        self.back_end, self.proxy_back = socket.socketpair()
        self.tap = Tap()
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        for sock in (self.front_end, self.back_end):
            sock.setblocking(False)

    async def send_file(self, message: bytes, fd: int) -> int:
        """Send ``message`` with ``fd`` from the front-end; return the descriptor that the back-end gets."""
        socket.send_fds(self.front_end, [message], [fd])
        await readable(self.back_end.fileno())
        data, fds, _, _ = socket.recv_fds(self.back_end, 4096, 4)
        assert data == message
        (received,) = fds
        return received


async def readable(fd: int) -> None:
    ready = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(fd, ready.set)
    try:
        await asyncio.wait_for(ready.wait(), WITHIN)
    finally:
        loop.remove_reader(fd)


async def received(sock: socket.socket, length: int = 4096) -> bytes:
    return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, length), WITHIN)


@contextlib.asynccontextmanager
async def session(text: str = "") -> AsyncIterator[Ends]:
    """Run a session with the faults of ``text``. At the end every descriptor of it is closed."""
    before = set(os.listdir("/proc/self/fd"))
    ends = Ends()
    plan = FaultPlan(parse_script(text, "test")).session()
    proxied = ProxySession(
        3, ends.proxy_front, ends.proxy_back, plan, EventLog(None, asyncio.get_running_loop().time), ends.tap
    )
    task = asyncio.create_task(proxied.run())
    try:
        yield ends
    finally:
        ends.front_end.close()
        ends.back_end.close()
        ends.ended.set_result(await asyncio.wait_for(task, WITHIN))
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.asyncio
async def test_both_streams_pass_and_are_observed() -> None:
    async with session() as ends:
        ends.front_end.send(KICK[:5])
        ends.front_end.send(KICK[5:])
        assert await received(ends.back_end) == KICK
        ack = build_ack(FrontendRequest.SET_VRING_KICK, 0)
        ends.back_end.send(ack)
        assert await received(ends.front_end) == ack
    assert ends.tap.kept == [(Channel.FRONTEND_REQUESTS, KICK, 0), (Channel.BACKEND_REPLIES, ack, 0)]


@pytest.mark.asyncio
async def test_bytes_out_of_step_pass() -> None:
    async with session("on request any: drop") as ends:
        ends.front_end.send(b"\xff" * 30)
        data = b""
        while len(data) < 30:
            data += await received(ends.back_end)
        assert data == b"\xff" * 30


@pytest.mark.asyncio
async def test_end_of_each_direction_passes_by_itself() -> None:
    async with session() as ends:
        ends.front_end.shutdown(socket.SHUT_WR)
        assert await received(ends.back_end) == b""
        late = build_ack(FrontendRequest.SET_OWNER, 0)
        ends.back_end.send(late)
        ends.back_end.close()
        assert await received(ends.front_end) == late
        assert await received(ends.front_end) == b""
    assert ends.ended.result() == "the front-end closed its connection"


@pytest.mark.asyncio
async def test_eventfds_are_replaced_and_notifications_pass() -> None:
    async with session() as ends:
        kick, call = os.eventfd(0), os.eventfd(0)
        back_kick, back_call = await ends.send_file(KICK, kick), await ends.send_file(CALL, call)
        os.eventfd_write(kick, 3)
        await readable(back_kick)
        assert os.eventfd_read(back_kick) == 3
        os.eventfd_write(back_call, 1)
        await readable(call)
        assert os.eventfd_read(call) == 1
        # A stopped ring keeps its kicks for the next start, as the same eventfd without a proxy would.
        ends.front_end.send(build_message(FrontendRequest.GET_VRING_BASE, VringState(0, 0)))
        await received(ends.back_end)
        os.eventfd_write(kick, 1)
        again = await ends.send_file(KICK, kick)
        await readable(again)
        assert os.eventfd_read(again) == 1
        for fd in (kick, call, back_kick, back_call, again):
            os.close(fd)


@pytest.mark.asyncio
async def test_second_kick_is_lost_and_a_storm_arrives() -> None:
    async with session("kick queue 0 occurrence 2: drop\non request SET_OWNER: pass; call queue 0 2") as ends:
        kick, call = os.eventfd(0), os.eventfd(0)
        back_kick, back_call = await ends.send_file(KICK, kick), await ends.send_file(CALL, call)
        for count in (1, 2, 4):
            os.eventfd_write(kick, count)
            while _counter(kick):  # noqa: ASYNC110 - what another reader takes makes no event
                await asyncio.sleep(0)
        await readable(back_kick)
        assert os.eventfd_read(back_kick) == 5
        ends.front_end.send(build_message(FrontendRequest.SET_OWNER))
        total = 0
        while total < 2:
            await readable(call)
            total += os.eventfd_read(call)
        for fd in (kick, call, back_kick, back_call):
            os.close(fd)


def _counter(fd: int) -> int:
    """Return an eventfd's counter without taking it (proc_pid_fdinfo(5))."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        return next(int(line.split()[1], 16) for line in file if line.startswith("eventfd-count"))


@pytest.mark.asyncio
@pytest.mark.parametrize("rule", ["", "call queue 0 every 2: drop"])
async def test_socket_is_replaced_only_where_a_rule_names_its_queue(rule: str) -> None:
    async with session(rule) as ends:
        mine, theirs = socket.socketpair()
        mine.setblocking(False)
        back = socket.socket(fileno=await ends.send_file(CALL, theirs.fileno()))
        assert (os.fstat(back.fileno()).st_ino == os.fstat(theirs.fileno()).st_ino) == (not rule)
        back.send(ONE)
        assert await received(mine) == ONE
        for sock in (mine, theirs, back):
            sock.close()


@pytest.mark.asyncio
async def test_pipe_is_replaced_where_a_rule_names_its_queue() -> None:
    async with session("kick queue any occurrence 9: drop") as ends:
        reading, writing = os.pipe()
        back = await ends.send_file(KICK, reading)
        assert os.fstat(back).st_ino != os.fstat(reading).st_ino
        os.write(writing, ONE)
        await readable(back)
        assert os.read(back, 100) == ONE
        for fd in (reading, writing, back):
            os.close(fd)


@pytest.mark.asyncio
async def test_channel_of_the_back_end_passes_and_has_faults() -> None:
    async with session("on request CONFIG_CHANGE_MSG occurrence 2: set request 9") as ends:
        mine, theirs = socket.socketpair()
        mine.setblocking(False)
        request = build_message(FrontendRequest.SET_BACKEND_REQ_FD)
        back = socket.socket(fileno=await ends.send_file(request, theirs.fileno()))
        back.setblocking(False)
        theirs.close()
        change = build_message(BackendRequest.CONFIG_CHANGE_MSG, need_reply=True)
        back.send(change)
        assert await received(mine) == change
        ack = build_ack(BackendRequest.CONFIG_CHANGE_MSG, 0)
        mine.send(ack)
        assert await received(back) == ack
        back.send(change)
        assert await received(mine) == b"\x09" + change[1:]
        back.close()
        assert await received(mine) == b""
        mine.close()
    assert {channel for channel, _, _ in ends.tap.kept} == set(Channel) - {Channel.BACKEND_REPLIES}


@pytest.mark.asyncio
async def test_front_end_is_disconnected_first() -> None:
    async with session("on request SET_OWNER: disconnect front-end") as ends:
        ends.front_end.send(build_message(FrontendRequest.SET_OWNER))
        assert await received(ends.front_end) == b""
        assert await received(ends.back_end) == build_message(FrontendRequest.SET_OWNER)
        assert await received(ends.back_end) == b""
    assert ends.ended.result() == "a rule disconnected the front-end"


@pytest.mark.asyncio
async def test_reset_is_sent_and_descriptors_are_made() -> None:
    async with session("on request SET_OWNER: add fd eventfd; add fd memory; pass; reset") as ends:
        ends.front_end.send(build_message(FrontendRequest.SET_OWNER))
        await readable(ends.back_end.fileno())
        data, fds, _, _ = socket.recv_fds(ends.back_end, 12, 4)
        assert data == build_message(FrontendRequest.SET_OWNER)
        assert len(fds) == 2
        assert await received(ends.back_end) == build_message(FrontendRequest.RESET_DEVICE)
        for fd in fds:
            os.close(fd)
