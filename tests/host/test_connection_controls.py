"""The controls of a virtual machine over a whole session: real memory, real rings, a driver in a thread."""

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from typing import TypeVar

import pytest

import host.control.reclaim
import host.control.reclaim_progress
from host.balloon.offered_features import OFFERED
from host.control.reclaim_progress import ReclaimMethod
from host.vhost_user.device_setup import DeviceSetup, KickMethod, RingFormat
from protocol.balloon_config import BalloonConfig
from protocol.errors import BalloonError
from protocol.memory import PAGE_SIZE
from protocol.vhost_user import BackendRequest, FrontendRequest, ProtocolFeature
from protocol.vhost_user_codec import Channel, Message, MessageReader
from protocol.vhost_user_payloads import DeviceConfig, VringFile, VringState
from protocol.virtio import FeatureBit, feature_mask
from protocol.virtio_balloon import CONFIG_ACTUAL, BalloonFeature, BalloonQueue, QueueDialect
from tests.harness.processes import DEADLINE, until
from tests.harness.virtual_machine import DATA_AT, GUEST_BASE, INFLATE, WANTED, VirtualMachine
from tests.host.ring.gate import gated_discard
from tests.host.test_connection import Attached, attached, in_thread

HINTING = feature_mask(BalloonFeature.FREE_PAGE_HINT)
STATISTICS = feature_mask(BalloonFeature.STATS_VQ)
STATS, FREE_PAGE = BalloonQueue.STATS, BalloonQueue.FREE_PAGE
P = PAGE_SIZE
Result = TypeVar("Result")


async def connect(session: Attached) -> VirtualMachine:
    """Return a machine with statistics and hinting and sixteen pages in use."""
    machine = await asyncio.to_thread(VirtualMachine, session.client, wanted=WANTED | STATISTICS | HINTING)
    machine.ram.touch(DATA_AT, 16 * P)
    return machine


async def driving(driver: Callable[[], None], asking: "asyncio.Future[Result] | asyncio.Task[Result]") -> Result:
    """Run the driver's part in a thread while a command is under way."""
    driven = asyncio.create_task(in_thread(driver))
    result = await asyncio.wait_for(asking, DEADLINE)
    await driven
    return result


@pytest.mark.asyncio
async def test_facts_can_be_asked_for_until_the_end_is_told() -> None:
    async with attached() as session:
        machine = await connect(session)
        control = session.connection.control
        before = control.info()
        machine.close()
        await session.task
        after = control.info()
        assert (before.pid, before.memory_bytes) == (os.getpid(), machine.ram.size)
        assert (after.pid, after.memory_bytes) == (os.getpid(), 0)


@pytest.mark.asyncio
@pytest.mark.parametrize("ring", RingFormat)
async def test_setup_of_the_device_by_its_driver_can_be_queried(ring: RingFormat) -> None:
    packed = ring is RingFormat.PACKED
    async with attached(OFFERED | (feature_mask(FeatureBit.RING_PACKED) if packed else 0)) as session:
        control = session.connection.control
        assert control.info().setup == DeviceSetup(None, QueueDialect.NEGOTIATED, {})
        machine = await asyncio.to_thread(VirtualMachine, session.client, packed=packed)
        kicks = dict.fromkeys((BalloonQueue.INFLATE, BalloonQueue.DEFLATE, BalloonQueue.REPORTING), KickMethod.EVENTFD)
        assert control.info().setup == DeviceSetup(ring, QueueDialect.NEGOTIATED, kicks)
        await in_thread(lambda: machine.ask(FrontendRequest.SET_VRING_KICK, VringFile(2, False)))
        assert control.info().setup.kicks == kicks | {BalloonQueue.REPORTING: KickMethod.POLLING}
        needed = (ProtocolFeature.INBAND_NOTIFICATIONS, ProtocolFeature.BACKEND_REQ, ProtocolFeature.REPLY_ACK)
        await in_thread(lambda: machine.ask(FrontendRequest.SET_PROTOCOL_FEATURES, feature_mask(*needed)))
        await in_thread(lambda: machine.ask(FrontendRequest.GET_VRING_BASE, VringState(0, 0)))
        assert control.info().setup.kicks == {
            BalloonQueue.DEFLATE: KickMethod.EVENTFD,
            BalloonQueue.REPORTING: KickMethod.IN_BAND,
        }
        machine.close()


def config_of(machine: VirtualMachine) -> BalloonConfig:
    return machine.client.perform(machine.frontend.get_config())


def tell_actual(machine: VirtualMachine, pages: int) -> None:
    config = DeviceConfig(offset=CONFIG_ACTUAL.start, flags=0, data=struct.pack("<I", pages))
    assert machine.ask(FrontendRequest.SET_CONFIG, config) == 0


def await_command_id(machine: VirtualMachine, *, at_least: int) -> int:
    until(lambda: config_of(machine).free_page_hint_cmd_id >= at_least, "a command id")
    return config_of(machine).free_page_hint_cmd_id


@pytest.mark.asyncio
async def test_statistics_go_to_and_fro() -> None:
    async with attached() as session:
        machine = await connect(session)
        queue = machine.queue(STATS)
        machine.offer(STATS, struct.pack("<HQ", 4, 1))
        await in_thread(lambda: until(lambda: session.count("statistics") == 1, "the first statistics"))
        control = session.connection.control
        for free in (2, 3):

            def answer(free: int = free) -> None:
                queue.collect()
                machine.offer(STATS, struct.pack("<HQHQ", 4, free, 99, 1))

            statistics = await driving(answer, asyncio.ensure_future(control.statistics()))
            assert statistics.values == {"memfree": free}
        assert queue.ring.used[1] == 2
        assert session.count("statistics") == 3
        assert session.connection.metrics.unknown_tags == 2
        await in_thread(lambda: check_statistics_ring_stops(machine))
        machine.close()


def check_statistics_ring_stops(machine: VirtualMachine) -> None:
    """A held buffer is not lost: it counts as not taken."""
    index = machine.queue(STATS).index
    assert machine.ask(FrontendRequest.GET_VRING_BASE, VringState(index, 0)) == VringState(index, 2)


@pytest.mark.asyncio
async def test_round_of_hinting_discards_what_was_hinted_in_it() -> None:
    async with attached(OFFERED | HINTING) as session:
        machine = await connect(session)

        def hint() -> None:
            command_id = await_command_id(machine, at_least=2)
            machine.offer(FREE_PAGE, struct.pack("<I", command_id))
            machine.offer(FREE_PAGE, b"", [(DATA_AT, 2 * P)])
            machine.offer(FREE_PAGE, b"", [(DATA_AT + 4 * P, P), (DATA_AT + 6 * P, P)])
            machine.queue(FREE_PAGE).collect(3)
            machine.offer(FREE_PAGE, struct.pack("<I", 0))
            machine.offer(FREE_PAGE, b"", [(DATA_AT + 8 * P, P)])  # too late
            machine.queue(FREE_PAGE).collect(2)

        control = session.connection.control
        result = await driving(hint, asyncio.ensure_future(control.reclaim()))
        assert (result.method, result.complete) == (ReclaimMethod.HINT, True)
        assert (result.offered_bytes, result.discarded_bytes) == (4 * P, 4 * P)
        assert machine.ram.pages() == {DATA_AT + page * P for page in range(16)} - {
            DATA_AT + page * P for page in (0, 1, 4, 6)
        }
        assert not machine.ram.spoilt_pages()
        assert (await asyncio.to_thread(config_of, machine)).free_page_hint_cmd_id == 1
        states = [(fields["state"], fields["command_id"]) for name, fields in session.events if name == "hinting"]
        assert states == [("start", 2), ("done", 1)]
        assert session.connection.metrics.refused["stale_hint"] == 1
        machine.close()


@pytest.mark.asyncio
async def test_end_of_a_reclaim_waits_for_the_discard_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that stalls has its round closed, but it may not release a block that is still being discarded."""
    monkeypatch.setattr(host.control.reclaim_progress, "STALL", 0.05)
    gate = gated_discard(monkeypatch)
    async with attached(OFFERED | HINTING) as session:
        machine = await connect(session)
        control = session.connection.control

        def hint() -> None:
            machine.offer(FREE_PAGE, struct.pack("<I", await_command_id(machine, at_least=2)))
            machine.offer(FREE_PAGE, b"", [(DATA_AT, P)])
            assert gate.entered.wait(DEADLINE)
            until(lambda: config_of(machine).free_page_hint_cmd_id == 0, "STOP")
            machine.offer(FREE_PAGE, b"", [(DATA_AT + P, P)])
            for _ in range(5):
                assert config_of(machine).free_page_hint_cmd_id == 0
            gate.opened.set()
            machine.queue(FREE_PAGE).collect(3)
            until(lambda: config_of(machine).free_page_hint_cmd_id == 1, "DONE")

        result = await driving(hint, asyncio.ensure_future(control.reclaim("hint")))
        assert (result.complete, result.discarded_bytes) == (False, P)
        assert DATA_AT + P in machine.ram.pages()
        machine.close()


@pytest.mark.asyncio
async def test_inflating_takes_what_is_free_and_tells_the_driver_of_each_target(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host.control.reclaim, "RESERVE_BYTES", P)
    monkeypatch.setattr(host.control.reclaim, "RESERVE_PART", 1 << 20)
    async with attached() as session:
        machine = await connect(session)
        ours, theirs = socket.socketpair()
        ours.settimeout(DEADLINE)
        pages = [DATA_AT + page * P for page in range(8)]

        def changed(reader: MessageReader) -> BalloonConfig:
            while (message := reader.next_message()) is None:
                reader.feed(ours.recv(reader.bytes_desired()))
            assert isinstance(message, Message)
            assert message.request is BackendRequest.CONFIG_CHANGE_MSG
            return config_of(machine)

        def inflate() -> None:
            assert machine.ask(FrontendRequest.SET_BACKEND_REQ_FD, None, [theirs.fileno()]) == 0
            machine.offer(STATS, struct.pack("<HQ", 4, 9 * P))  # the first buffer, an answer like any other
            reader = MessageReader(Channel.BACKEND_REQUESTS)
            assert changed(reader).num_pages == 8
            machine.send_pfns(INFLATE, b"".join(struct.pack("<I", (GUEST_BASE + page) >> 12) for page in pages))
            tell_actual(machine, 8)
            assert changed(reader).num_pages == 0
            tell_actual(machine, 0)

        control = session.connection.control
        sizes: list[int] = []
        control.on_balloon_change = sizes.append
        result = await driving(inflate, asyncio.ensure_future(control.reclaim()))
        assert (result.method, result.complete, result.discarded_bytes) == (ReclaimMethod.INFLATE, True, 8 * P)
        assert machine.ram.pages() == {DATA_AT + page * P for page in range(8, 16)}
        assert sizes == [8, 0]
        assert [fields["bytes"] for name, fields in session.events if name == "target"] == [8 * P, 0]
        ours.close()
        theirs.close()
        machine.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("method", ["hint", "inflate"])
async def test_machine_that_goes_away_while_it_is_asked(method: str) -> None:
    async with attached(OFFERED | HINTING) as session:
        machine = await connect(session)
        reclaim = asyncio.create_task(session.connection.control.reclaim(method))
        await in_thread(lambda: config_of(machine))  # the request is on its way by now
        machine.close()
        with pytest.raises(BalloonError, match="the virtual machine has gone"):
            await asyncio.wait_for(reclaim, DEADLINE)
        assert not session.connection.balloon.hinting.is_open


@pytest.mark.asyncio
async def test_configuration_change_is_told_without_a_wait() -> None:
    """The front-end's end of the channel is full, answers what was not asked, is replaced, and is closed."""
    async with attached() as session:
        machine = await connect(session)
        control = session.connection.control
        ours, theirs = socket.socketpair()
        await in_thread(lambda: machine.ask(FrontendRequest.SET_BACKEND_REQ_FD, None, [theirs.fileno()]))
        theirs.close()
        control.state_memory(1 << 30, reserve=0)
        for pages in range(5000):  # far more than a socket holds
            control.set_num_pages(pages)
        ours.send(struct.pack("<IIQ", BackendRequest.CONFIG_CHANGE_MSG, 0x5, 1)[:12] + bytes(8))
        assert (await asyncio.to_thread(config_of, machine)).num_pages == 4999
        other, theirs = socket.socketpair()
        await in_thread(lambda: machine.ask(FrontendRequest.SET_BACKEND_REQ_FD, None, [theirs.fileno()]))
        theirs.close()
        ours.settimeout(DEADLINE)
        await in_thread(lambda: drain(ours))  # the old one is closed
        other.close()
        control.set_num_pages(7)
        await in_thread(machine.check_alive)
        assert (await asyncio.to_thread(config_of, machine)).num_pages == 7
        ours.close()
        machine.close()


def drain(sock: socket.socket) -> None:
    """Read up to the end of the stream."""
    try:
        while sock.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
