"""What happens to an attachment in its life: stopped and started, reset, kicked and interrupted by messages."""

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from guest.attachment import Attachment
from guest.attachment_options import AttachmentOptions
from protocol.errors import SessionEnded, VhostUserError
from protocol.vhost_user import BackendRequest, DeviceConfig, FrontendRequest, Payload, ProtocolFeature, VringState
from protocol.vhost_user_codec import Channel, Message, MessageReader, build_message, build_reply
from protocol.virtio import DeviceStatus, feature_mask
from protocol.virtio_balloon import BalloonFeature, BalloonQueue
from tests.end_to_end.harness import open_fds
from tests.guest.fake_backend import BLOCK, INFLIGHT, REPORTING, FakeBackend, Guest, fake_backend

SESSION: Final = (
    "SET_STATUS SET_STATUS SET_FEATURES SET_STATUS GET_STATUS SET_MEM_TABLE "
    + "SET_VRING_NUM SET_VRING_BASE SET_VRING_ADDR SET_VRING_CALL SET_VRING_KICK SET_VRING_ENABLE " * 3
    + "GET_CONFIG SET_STATUS"
).split()
"""What brings a device with three queues up, once its features are known."""


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    """Memory with rings; when the test is over, no file descriptor may have been added, no view be in use."""
    before = open_fds(os.getpid()).keys()
    guest = Guest(tmp_path / "socket")
    yield guest
    guest.ram.close()
    assert open_fds(os.getpid()).keys() <= before


def names(backend: FakeBackend) -> list[str]:
    """Return the requests that came so far, and forget them."""
    found = [FrontendRequest(message.request).name for message in backend.messages]
    backend.messages.clear()
    return found


# -- stop and start ---------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_stopped_queues_start_where_they_were_and_requests_survive(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        attachment = await guest.attach()
        before = attachment.post(BalloonQueue.REPORTING, (), [BLOCK])
        backend.bases = {0: 3, REPORTING: 0}
        names(backend)
        await attachment.stop()
        assert names(backend) == ["GET_VRING_BASE"] * 3
        meanwhile = attachment.post(BalloonQueue.REPORTING, (), [BLOCK])
        await attachment.start()
        bases = [message.payload for message in backend.messages if message.request is FrontendRequest.SET_VRING_BASE]
        assert bases == [VringState(0, 3), VringState(1, 0), VringState(REPORTING, 0)]
        assert not before.done()
        assert os.eventfd_read(backend.last(FrontendRequest.SET_VRING_KICK).fds[0]) > 0  # whatever was posted is seen
        ring = guest.device_ring(REPORTING)
        first = ring.avail[2]
        ring.release()
        guest.give_back(backend, first)
        assert await before == 0
        guest.give_back(backend)
        assert await meanwhile == 0
        attachment.close()


@pytest.mark.asyncio
async def test_what_the_device_finished_before_it_stopped_is_collected(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        attachment = await guest.attach()
        report = attachment.post(BalloonQueue.REPORTING, (), [BLOCK])
        guest.give_back(backend, interrupt=False)
        await attachment.stop()
        assert await report == 0
        attachment.close()


@pytest.mark.asyncio
async def test_a_back_end_that_refuses_to_stop_is_lost(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        attachment = await guest.attach()
        backend.answers[FrontendRequest.GET_VRING_BASE] = build_reply(FrontendRequest.GET_VRING_BASE)
        with pytest.raises(VhostUserError, match="refused GET_VRING_BASE"):
            await attachment.stop()
        assert "refused GET_VRING_BASE" in await attachment.lost
        with pytest.raises(SessionEnded):
            await attachment.start()
        attachment.close()


# -- reset and status -------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_the_device_status_is_told_step_by_step(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        attachment = await guest.attach()
        told = [message.payload for message in backend.messages if message.request is FrontendRequest.SET_STATUS]
        assert told == [1, 3, 11, 15]
        assert names(backend)[-len(SESSION) :] == SESSION
        attachment.close()


@pytest.mark.asyncio
async def test_a_device_that_does_not_take_the_features_is_not_used(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        backend.answers[FrontendRequest.GET_STATUS] = build_message(FrontendRequest.GET_STATUS)[:4] + bytes.fromhex(
            "05000000 08000000 03000000 00000000"
        )
        with pytest.raises(VhostUserError, match="does not take the features"):
            await guest.attach()
        assert backend.status & DeviceStatus.FAILED


@pytest.mark.asyncio
async def test_a_reset_forgets_every_request_and_begins_with_empty_rings(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        attachment = await guest.attach()
        report = attachment.post(BalloonQueue.REPORTING, (), [BLOCK])
        names(backend)
        await attachment.reset()
        assert await report is None
        assert names(backend) == ["RESET_DEVICE", "SET_STATUS", *SESSION]
        ring = guest.device_ring(REPORTING)
        assert (ring.avail[1], ring.used[1]) == (0, 0)
        ring.release()
        attachment.close()


@pytest.mark.asyncio
async def test_a_request_while_the_device_is_reset_comes_back(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        attachment = await guest.attach()
        backend.answers[FrontendRequest.SET_MEM_TABLE] = b""
        resetting = asyncio.create_task(attachment.reset())
        await backend.gave_own_answer.wait()
        assert await attachment.request(BalloonQueue.REPORTING, (), [BLOCK]) is None
        resetting.cancel()
        assert "was not waited for" in await attachment.lost
        attachment.close()


# -- in-band notifications --------------------------------------------------------------------------------------------


async def call_in_band(channel: socket.socket, queue: int) -> Payload:
    """Interrupt for ``queue`` by a message; return the answer."""
    channel.setblocking(False)
    channel.send(build_message(BackendRequest.VRING_CALL, VringState(queue, 0), need_reply=True))
    reader = MessageReader(Channel.FRONTEND_REPLIES)
    while (message := reader.next_message()) is None:
        reader.feed(await asyncio.get_running_loop().sock_recv(channel, reader.bytes_desired()))
    assert isinstance(message, Message)
    return message.payload


@pytest.mark.asyncio
async def test_in_band_nothing_but_messages_travels(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        guest.wish(AttachmentOptions(in_band=True))
        attachment = await guest.attach()
        assert {"SET_VRING_CALL", "SET_VRING_KICK"}.isdisjoint(found := names(backend))
        assert found.count("VRING_KICK") == 3  # each of the queues was started by one
        report = attachment.post(BalloonQueue.REPORTING, (), [BLOCK])
        await backend.seen(FrontendRequest.VRING_KICK)
        assert backend.last(FrontendRequest.VRING_KICK).payload == VringState(REPORTING, 0)
        with socket.socket(fileno=os.dup(backend.fds[0])) as channel:
            guest.give_back(backend, interrupt=False)
            assert await call_in_band(channel, 9) == 1
            assert not report.done()
            assert await call_in_band(channel, REPORTING) == 0
        assert await report == 0
        attachment.close()


@pytest.mark.asyncio
async def test_in_band_no_kick_starts_a_ring_that_is_stopped(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        guest.wish(AttachmentOptions(in_band=True))
        attachment = await guest.attach()
        await attachment.stop()
        names(backend)
        attachment.post(BalloonQueue.REPORTING, (), [BLOCK])
        await attachment.read_config()
        assert names(backend) == ["GET_CONFIG"]
        await attachment.start()
        assert "VRING_KICK" in names(backend)
        attachment.close()


@pytest.mark.asyncio
async def test_a_back_end_without_in_band_notifications(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        backend.protocol_features &= ~feature_mask(ProtocolFeature.INBAND_NOTIFICATIONS)
        guest.wish(AttachmentOptions(in_band=True))
        with pytest.raises(VhostUserError, match=r"^the back-end does not offer in-band notifications$"):
            await guest.attach()


@pytest.mark.asyncio
async def test_a_call_message_that_was_not_agreed_on_is_refused(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        attachment = await guest.attach()
        with socket.socket(fileno=os.dup(backend.fds[0])) as channel:
            assert await call_in_band(channel, REPORTING) == 1
        attachment.close()


# -- resuming with the next back-end ----------------------------------------------------------------------------------

RESUME: Final = AttachmentOptions(resume=True)


class Interruptions:
    """What an attachment says about back-ends that come and go."""

    def __init__(self, attachment: Attachment) -> None:
        self.said: list[str | None] = []
        self._changed = asyncio.Event()
        attachment.on_interruption = self._note

    def _note(self, reason: str | None) -> None:
        self.said.append(reason)
        self._changed.set()

    async def count(self, number: int) -> None:
        """Wait until so many things have been said."""
        while len(self.said) < number:
            self._changed.clear()
            await self._changed.wait()


@pytest.mark.asyncio
async def test_the_next_back_end_goes_on_with_what_the_last_one_did_not_give_back(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        guest.wish(RESUME)
        attachment = await guest.attach()
        interruptions = Interruptions(attachment)
        done = attachment.post(BalloonQueue.REPORTING, (), [BLOCK])
        guest.give_back(backend)
        assert await done == 0
        pending = attachment.post(BalloonQueue.REPORTING, (), [BLOCK])
        backend.leave()
        await interruptions.count(1)
        meanwhile = attachment.post(BalloonQueue.REPORTING, (), [BLOCK])
        await interruptions.count(2)
        assert interruptions.said == ["back-end gone", None]
        bases = [message.payload for message in backend.messages if message.request is FrontendRequest.SET_VRING_BASE]
        assert bases == [VringState(0, 0), VringState(1, 0), VringState(REPORTING, 1)]
        assert os.eventfd_read(backend.last(FrontendRequest.SET_VRING_KICK).fds[0]) > 0
        ring = guest.device_ring(REPORTING)
        first = ring.avail[2 + 1]
        ring.release()
        guest.give_back(backend, first)
        assert await pending == 0
        guest.give_back(backend)
        assert await meanwhile == 0
        assert not attachment.lost.done()
        attachment.close()


@pytest.mark.asyncio
async def test_what_the_last_back_end_finished_without_saying_so_is_not_done_again(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        guest.wish(RESUME)
        attachment = await guest.attach()
        interruptions = Interruptions(attachment)
        report = attachment.post(BalloonQueue.REPORTING, (), [BLOCK])
        guest.give_back(backend, interrupt=False)
        backend.leave()
        await interruptions.count(2)
        assert await report == 0
        bases = [message.payload for message in backend.messages if message.request is FrontendRequest.SET_VRING_BASE]
        assert bases[-1] == VringState(REPORTING, 1)
        attachment.close()


@pytest.mark.asyncio
async def test_the_configuration_that_the_driver_wrote_is_written_to_the_next_back_end(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        guest.wish(RESUME)
        attachment = await guest.attach()
        interruptions = Interruptions(attachment)
        await attachment.write_config(4, b"\1\0\0\0")
        backend.leave()
        await interruptions.count(1)
        await attachment.write_config(12, b"\2\0\0\0")
        await interruptions.count(2)
        told = [message.payload for message in backend.messages if message.request is FrontendRequest.SET_CONFIG]
        assert sorted(told, key=repr) == [
            DeviceConfig(offset=12, flags=0, data=b"\2\0\0\0"),
            DeviceConfig(offset=4, flags=0, data=b"\1\0\0\0"),
        ]
        assert attachment.config_changed.is_set()  # the next one may wish for something else
        attachment.close()


@pytest.mark.asyncio
async def test_the_inflight_file_is_kept_and_handed_to_every_back_end(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        guest.wish(RESUME)
        attachment = await guest.attach()
        interruptions = Interruptions(attachment)
        found = names(backend)
        assert found.index("GET_INFLIGHT_FD") < found.index("SET_INFLIGHT_FD") < found.index("SET_VRING_NUM")
        for number in (2, 4):
            backend.leave()
            await interruptions.count(number)
            handed = backend.last(FrontendRequest.SET_INFLIGHT_FD)
            assert handed.payload == INFLIGHT
            assert "memfd:inflight" in os.readlink(f"/proc/self/fd/{handed.fds[0]}")
            assert "GET_INFLIGHT_FD" not in names(backend)
        attachment.close()


@pytest.mark.asyncio
async def test_queues_that_were_stopped_stay_stopped_with_the_next_back_end(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        guest.wish(RESUME)
        attachment = await guest.attach()
        interruptions = Interruptions(attachment)
        backend.bases = {REPORTING: 5}
        await attachment.stop()
        backend.leave()
        await interruptions.count(1)
        with pytest.raises(SessionEnded, match="no back-end at the moment"):
            await attachment.start()
        await interruptions.count(2)
        assert "SET_VRING_KICK" not in names(backend)
        await attachment.start()
        bases = [message.payload for message in backend.messages if message.request is FrontendRequest.SET_VRING_BASE]
        assert bases[-1] == VringState(REPORTING, 5)
        attachment.close()


@pytest.mark.asyncio
async def test_a_back_end_that_offers_something_else_does_not_resume(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        guest.wish(RESUME)
        attachment = await guest.attach()
        report = attachment.post(BalloonQueue.REPORTING, (), [BLOCK])
        backend.offered &= ~feature_mask(BalloonFeature.PAGE_REPORTING)
        backend.leave()
        assert await attachment.lost == "the back-end does not offer what the last one did"
        assert await report is None
        attachment.close()


@pytest.mark.asyncio
async def test_an_attachment_is_closed_while_it_waits_for_a_back_end(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        guest.wish(RESUME)
        attachment = await guest.attach()
        interruptions = Interruptions(attachment)
        report = attachment.post(BalloonQueue.REPORTING, (), [BLOCK])
        backend.answers[FrontendRequest.GET_FEATURES] = b""
        backend.leave()
        await interruptions.count(1)
        await backend.gave_own_answer.wait()
        attachment.close()
        assert await report is None
        assert await attachment.lost == "closed"
