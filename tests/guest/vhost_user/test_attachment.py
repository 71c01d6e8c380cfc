"""The machine's attachment to a back-end, against one that a test scripts: every way in which it can come and go."""

import asyncio
import os
import socket

import pytest

from guest.ram import GuestRam
from guest.virtqueue.ring_memory import QUEUE_SIZE, RingOptions
from guest.virtqueue.virtqueue import QueueFullError
from protocol.balloon_config import BalloonConfig
from protocol.errors import SessionEnded, VhostUserError
from protocol.units import MIB
from protocol.vhost_user import BackendRequest, FrontendRequest
from protocol.vhost_user_codec import Channel, Message, MessageReader, build_ack, build_message
from protocol.vhost_user_payloads import DeviceConfig, MemoryTable, Payload, VringAddress, VringState
from protocol.virtio import FeatureBit, feature_mask, has_feature
from protocol.virtio_balloon import BalloonFeature, BalloonQueue
from tests.guest.vhost_user.fake_backend import BLOCK, REPORTING, FakeBackend, Guest, fake_backend

# -- coming up --------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_device_is_brought_up_over_the_guests_own_memory(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        backend.num_pages = 77
        attachment = await guest.attach()
        assert attachment.config == BalloonConfig(num_pages=77)
        assert BalloonQueue.REPORTING in attachment.queues
        assert has_feature(attachment.features, FeatureBit.RING_EVENT_IDX)

        table = backend.last(FrontendRequest.SET_MEM_TABLE)
        assert isinstance(table.payload, MemoryTable)
        (region,) = table.payload.regions
        assert (region.guest_address, region.size, region.mmap_offset) == (0, guest.ram.size, 0)
        assert os.fstat(table.fds[0]) == os.fstat(guest.ram.fd)

        address, memory = backend.last(FrontendRequest.SET_VRING_ADDR).payload, guest.rings[REPORTING]
        assert isinstance(address, VringAddress)
        offsets = [at - region.user_address for at in (address.descriptor, address.available, address.used)]
        assert offsets == [memory.descriptor, memory.available, memory.used]
        assert backend.last(FrontendRequest.SET_VRING_ENABLE).payload == VringState(REPORTING, 1)
        attachment.close()


@pytest.mark.asyncio
async def test_memory_around_a_hole_is_two_regions_of_one_file(guest: Guest) -> None:
    guest.ram.close()
    guest.ram = GuestRam(16 * MIB, hole=range(12 * MIB, 20 * MIB))
    async with fake_backend(guest.path) as backend:
        attachment = await guest.attach()
        table = backend.last(FrontendRequest.SET_MEM_TABLE)
        assert isinstance(table.payload, MemoryTable)
        regions = [(region.guest_address, region.size, region.mmap_offset) for region in table.payload.regions]
        assert regions == [(0, 12 * MIB, 0), (20 * MIB, 4 * MIB, 20 * MIB)]
        assert len({region.user_address - region.guest_address for region in table.payload.regions}) == 1
        assert [os.fstat(fd) for fd in table.fds] == [os.fstat(guest.ram.fd)] * 2
        attachment.close()


@pytest.mark.asyncio
async def test_device_without_reporting_has_two_queues(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        backend.offered &= ~feature_mask(BalloonFeature.PAGE_REPORTING)
        attachment = await guest.attach()
        assert BalloonQueue.REPORTING not in attachment.queues
        assert backend.last(FrontendRequest.SET_VRING_ENABLE).payload == VringState(1, 1)
        attachment.close()


@pytest.mark.asyncio
async def test_rings_begin_empty_for_every_back_end(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        for _ in range(3):
            attachment = await guest.attach()
            report = attachment.queues[BalloonQueue.REPORTING].post((), [BLOCK, (BLOCK[0], 4096)])
            ring = guest.device_ring(REPORTING)
            assert (ring.avail[1], ring.used[1]) == (1, 0)
            ring.release()
            guest.give_back(backend)
            assert await report == 0
            attachment.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("request_kind", ["GET_FEATURES", "SET_MEM_TABLE", "SET_VRING_KICK", "GET_CONFIG"])
async def test_back_end_that_hangs_up_half_way(request_kind: str, guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        backend.hang_up_at = FrontendRequest[request_kind]
        with pytest.raises(SessionEnded, match=f"closed the connection during {request_kind}$"):
            await guest.attach()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (build_ack(FrontendRequest.SET_MEM_TABLE, 1), "refused SET_MEM_TABLE"),
        (build_ack(FrontendRequest.SET_OWNER, 0), "answer to SET_MEM_TABLE is invalid"),
        (build_ack(99, 0), "answer to SET_MEM_TABLE is invalid"),
        (build_message(FrontendRequest.SET_OWNER), "a request among back-end replies"),
        (b"\xff" * 12, "version"),
    ],
    ids=["refusal", "answer to something else", "unknown request", "request", "garbage"],
)
async def test_back_end_that_answers_wrongly(answer: bytes, complaint: str, guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        backend.answers[FrontendRequest.SET_MEM_TABLE] = answer
        with pytest.raises(VhostUserError, match=complaint):
            await guest.attach()


@pytest.mark.asyncio
async def test_back_end_that_does_not_answer(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guest.vhost_user.session.ANSWER_TIMEOUT", 0.05)
    async with fake_backend(guest.path) as backend:
        backend.answers[FrontendRequest.SET_VRING_NUM] = b""
        with pytest.raises(SessionEnded, match=f"^the back-end at {guest.path} does not answer$"):
            await guest.attach()


@pytest.mark.asyncio
async def test_waiting_for_an_answer_can_be_given_up(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        backend.answers[FrontendRequest.SET_VRING_NUM] = b""
        attaching = asyncio.create_task(guest.attach())
        await backend.gave_own_answer.wait()
        attaching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attaching


# -- going away -------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_report_under_way_when_the_back_end_goes_has_failed(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        attachment = await guest.attach()
        report = attachment.queues[BalloonQueue.REPORTING].post((), [BLOCK])
        assert backend.socket is not None
        backend.socket.shutdown(socket.SHUT_RDWR)
        assert await report is None
        assert await attachment.lost == "back-end gone"
        assert await attachment.queues[BalloonQueue.REPORTING].post((), [BLOCK]) is None
        attachment.close()


@pytest.mark.asyncio
async def test_back_end_that_speaks_out_of_turn_is_lost(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        attachment = await guest.attach()
        assert backend.socket is not None
        backend.socket.send(build_ack(FrontendRequest.SET_OWNER, 0))
        assert await attachment.lost == "the back-end spoke out of turn"
        attachment.close()


@pytest.mark.asyncio
async def test_device_that_breaks_the_ring_is_lost_and_the_report_with_it(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        attachment = await guest.attach()
        report = attachment.queues[BalloonQueue.REPORTING].post((), [BLOCK])
        guest.give_back(backend, head=QUEUE_SIZE + 5)
        assert await report is None
        assert str(QUEUE_SIZE + 5) in await attachment.lost
        attachment.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("offence", ["out of turn", "ring", "channel"])
async def test_loss_of_a_broken_session_is_reported_after_the_device_has_stopped(guest: Guest, offence: str) -> None:
    async with fake_backend(guest.path) as backend:
        attachment = await guest.attach()
        backend.may_close.clear()
        report = attachment.queues[BalloonQueue.REPORTING].post((), [BLOCK])
        assert backend.socket is not None
        match offence:
            case "out of turn":
                backend.socket.send(build_ack(FrontendRequest.SET_OWNER, 0))
            case "ring":
                guest.give_back(backend, head=QUEUE_SIZE + 5)
            case _:
                with socket.socket(fileno=os.dup(backend.last(FrontendRequest.SET_BACKEND_REQ_FD).fds[0])) as channel:
                    channel.send(b"\xff" * 12)
        await backend.was_left.wait()
        await attachment.read_config()  # which takes its turns of the event loop, and finds no back-end
        assert not report.done()
        assert not attachment.lost.done()
        backend.may_close.set()
        assert await report is None
        assert await attachment.lost
        attachment.close()


# -- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_requests_under_way_together_each_get_their_own_completion(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        attachment = await guest.attach()
        futures = [attachment.queues[BalloonQueue.REPORTING].post((), [(number << 20, 4096)]) for number in range(3)]
        ring = guest.device_ring(REPORTING)
        heads = [ring.avail[2 + number] for number in range(3)]
        ring.release()
        guest.give_back(backend, heads[1], length=11)
        assert await futures[1] == 11
        guest.give_back(backend, heads[2], length=22)
        assert await futures[2] == 22
        assert not futures[0].done()
        attachment.close()
        assert await futures[0] is None


@pytest.mark.asyncio
async def test_request_whose_caller_was_cancelled_does_not_disturb_others(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        attachment = await guest.attach()
        first = attachment.queues[BalloonQueue.REPORTING].post((), [BLOCK])
        first.cancel()
        guest.give_back(backend)
        second = attachment.queues[BalloonQueue.REPORTING].post((), [BLOCK])
        guest.give_back(backend)
        assert await second == 0
        attachment.close()


@pytest.mark.asyncio
async def test_full_queue_refuses_and_goes_on(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        attachment = await guest.attach()
        waiting = [attachment.queues[BalloonQueue.REPORTING].post((), [BLOCK]) for _ in range(QUEUE_SIZE)]
        with pytest.raises(QueueFullError):
            attachment.queues[BalloonQueue.REPORTING].post((), [BLOCK])
        guest.give_back(backend)
        assert await waiting[-1] == 0
        attachment.queues[BalloonQueue.REPORTING].post((), [BLOCK])
        attachment.close()


@pytest.mark.asyncio
async def test_configuration_space_is_written_and_read_by_many_at_once(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        attachment = await guest.attach()
        writes = [attachment.write_config(4, number.to_bytes(4, "little")) for number in range(8)]
        reads = [attachment.read_config() for _ in range(8)]
        await asyncio.gather(*(each for pair in zip(writes, reads, strict=True) for each in pair))
        written = backend.payloads(FrontendRequest.SET_CONFIG)
        assert written == [DeviceConfig(offset=4, flags=0, data=number.to_bytes(4, "little")) for number in range(8)]
        assert not attachment.lost.done()
        attachment.close()


@pytest.mark.asyncio
async def test_refused_write_of_the_configuration_space_loses_the_back_end(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        attachment = await guest.attach()
        backend.answers[FrontendRequest.SET_CONFIG] = build_ack(FrontendRequest.SET_CONFIG, 1)
        await attachment.write_config(4, bytes(4))
        assert await attachment.lost == "the back-end refused SET_CONFIG"
        await attachment.write_config(4, bytes(4))
        assert [message.request for message in backend.messages].count(FrontendRequest.SET_CONFIG) == 1
        attachment.close()


@pytest.mark.asyncio
async def test_answer_that_is_not_waited_for_ends_the_session(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        attachment = await guest.attach()
        backend.answers[FrontendRequest.SET_CONFIG] = b""
        writing = asyncio.create_task(attachment.write_config(4, bytes(4)))
        await backend.gave_own_answer.wait()
        writing.cancel()
        assert "was not waited for" in await attachment.lost
        attachment.close()


# -- what is asked for ------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_rings_are_as_they_were_asked_for(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        guest.choose(ring=RingOptions(size=8, indirect=False, event_idx=False))
        attachment = await guest.attach()
        assert attachment.queue_size == 8
        assert backend.last(FrontendRequest.SET_VRING_NUM).payload == VringState(REPORTING, 8)
        assert not has_feature(attachment.features, FeatureBit.RING_INDIRECT_DESC)
        assert not has_feature(attachment.features, FeatureBit.RING_EVENT_IDX)
        attachment.close()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("ring", "complaint"),
    [(RingOptions(packed=True), "packed rings"), (RingOptions(in_order=True), "use in order")],
    ids=["packed", "in order"],
)
async def test_back_end_without_the_rings_asked_for(ring: RingOptions, complaint: str, guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        backend.offered &= ~feature_mask(FeatureBit.RING_PACKED, FeatureBit.IN_ORDER)
        guest.choose(ring=ring)
        with pytest.raises(VhostUserError, match=f"^the back-end does not offer {complaint}$"):
            await guest.attach()


# -- the back-end's own requests --------------------------------------------------------------------------------------


def channel_of(backend: FakeBackend) -> socket.socket:
    """Return the channel for the back-end's own requests."""
    channel = socket.socket(fileno=os.dup(backend.last(FrontendRequest.SET_BACKEND_REQ_FD).fds[0]))
    channel.setblocking(False)
    return channel


async def answer_on(channel: socket.socket, request: BackendRequest) -> Payload:
    """Send a request that wants an answer, and return the answer."""
    channel.send(build_message(request, need_reply=True))
    reader = MessageReader(Channel.FRONTEND_REPLIES)
    while (message := reader.next_message()) is None:
        reader.feed(await asyncio.get_running_loop().sock_recv(channel, reader.bytes_desired()))
    assert isinstance(message, Message)
    return message.payload


@pytest.mark.asyncio
async def test_change_of_configuration_is_noticed_and_read(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        attachment = await guest.attach()
        with channel_of(backend) as channel:
            backend.num_pages = 512
            assert await answer_on(channel, BackendRequest.CONFIG_CHANGE_MSG) == 0
        assert attachment.config_changed.is_set()
        assert (await attachment.read_config()).num_pages == 512 == attachment.config.num_pages
        backend.hang_up_at = FrontendRequest.GET_CONFIG
        assert (await attachment.read_config()).num_pages == 512
        assert "closed the connection during GET_CONFIG" in await attachment.lost
        attachment.close()


@pytest.mark.asyncio
async def test_garbage_on_the_channel_loses_the_back_end(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        attachment = await guest.attach()
        with channel_of(backend) as channel:
            channel.send(b"\xff" * 12)
            assert "on the back-end's channel: message version" in await attachment.lost
        attachment.close()


@pytest.mark.asyncio
async def test_channel_that_ends_with_an_answer_unread_does_no_harm(guest: Guest) -> None:
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    async with fake_backend(guest.path) as backend:
        attachment = await guest.attach()
        with channel_of(backend) as channel:
            channel.send(build_message(BackendRequest.CONFIG_CHANGE_MSG, need_reply=True))
            await attachment.config_changed.wait()
            channel.shutdown(socket.SHUT_RDWR)
        os.close(backend.fds.pop(0))
        report = attachment.queues[BalloonQueue.REPORTING].post((), [BLOCK])
        guest.give_back(backend)
        assert await report == 0
        attachment.close()
    assert faults == []
