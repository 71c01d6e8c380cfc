"""What happens to an attachment in its life: stopped and started, reset, kicked and interrupted by messages."""

import asyncio
import os
import socket
from typing import Final

import pytest

from protocol.errors import SessionEnded, VhostUserError
from protocol.vhost_user import FrontendRequest, ProtocolFeature
from protocol.vhost_user_codec import build_ack, build_message
from protocol.vhost_user_payloads import VringState
from protocol.virtio import DeviceStatus, feature_mask
from protocol.virtio_balloon import BalloonQueue
from tests.guest.vhost_user.fake_backend import BLOCK, REPORTING, Guest, call_in_band, fake_backend, names
from tests.protocol.messages import raw

SESSION: Final = (
    "SET_STATUS SET_STATUS SET_FEATURES SET_STATUS GET_STATUS SET_MEM_TABLE "
    + "SET_VRING_NUM SET_VRING_BASE SET_VRING_ADDR SET_VRING_CALL SET_VRING_KICK SET_VRING_ENABLE " * 3
    + "GET_CONFIG SET_STATUS"
).split()
"""What brings a device with three queues up, once its features are known."""


# -- stop and start ---------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_stopped_queues_start_where_they_were_and_requests_survive(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        attachment = await guest.attach()
        before = attachment.queues[BalloonQueue.REPORTING].post((), [BLOCK])
        backend.bases = {0: 3, REPORTING: 0}
        names(backend)
        await attachment.stop()
        assert names(backend) == ["GET_VRING_BASE"] * 3
        meanwhile = attachment.queues[BalloonQueue.REPORTING].post((), [BLOCK])
        await attachment.start()
        bases = backend.payloads(FrontendRequest.SET_VRING_BASE)
        assert bases == [VringState(0, 3), VringState(1, 0), VringState(REPORTING, 0)]
        assert not before.done()
        assert os.eventfd_read(backend.last(FrontendRequest.SET_VRING_KICK).fds[0]) > 0  # every posted request is seen
        ring = guest.device_ring(REPORTING)
        first = ring.avail[2]
        ring.release()
        guest.give_back(backend, first)
        assert await before == 0
        guest.give_back(backend)
        assert await meanwhile == 0
        attachment.close()


@pytest.mark.asyncio
async def test_request_used_before_the_stop_is_collected(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        attachment = await guest.attach()
        report = attachment.queues[BalloonQueue.REPORTING].post((), [BLOCK])
        guest.give_back(backend, interrupt=False)
        await attachment.stop()
        assert await report == 0
        attachment.close()


@pytest.mark.asyncio
async def test_back_end_that_refuses_to_stop_is_lost(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        attachment = await guest.attach()
        backend.answers[FrontendRequest.GET_VRING_BASE] = raw(FrontendRequest.GET_VRING_BASE, flags=0x5)
        with pytest.raises(VhostUserError, match="refused GET_VRING_BASE"):
            await attachment.stop()
        assert "refused GET_VRING_BASE" in await attachment.lost
        with pytest.raises(SessionEnded):
            await attachment.start()
        attachment.close()


# -- reset and status -------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_device_status_is_told_step_by_step(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        attachment = await guest.attach()
        told = backend.payloads(FrontendRequest.SET_STATUS)
        assert told == [1, 3, 11, 15]
        assert names(backend)[-len(SESSION) :] == SESSION
        attachment.close()


@pytest.mark.asyncio
async def test_device_that_does_not_take_the_features_is_not_used(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        backend.answers[FrontendRequest.GET_STATUS] = build_message(FrontendRequest.GET_STATUS)[:4] + bytes.fromhex(
            "05000000 08000000 03000000 00000000"
        )
        with pytest.raises(VhostUserError, match="does not take the features"):
            await guest.attach()
        assert backend.status & DeviceStatus.FAILED


@pytest.mark.asyncio
async def test_reset_forgets_every_request_and_begins_with_empty_rings(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        attachment = await guest.attach()
        report = attachment.queues[BalloonQueue.REPORTING].post((), [BLOCK])
        names(backend)
        await attachment.reset()
        assert await report is None
        assert await attachment.lost == "the driver reset the device"
        assert await attachment.queues[BalloonQueue.REPORTING].post((), [BLOCK]) is None
        assert names(backend) == ["RESET_DEVICE", "SET_STATUS"]
        following = await attachment.bind_again()
        assert names(backend) == SESSION
        ring = guest.device_ring(REPORTING)
        assert (ring.avail[1], ring.used[1]) == (0, 0)
        ring.release()
        report = following.queues[BalloonQueue.REPORTING].post((), [BLOCK])
        backend.leave()
        assert await following.lost == "back-end gone"
        assert await report is None
        following.close()


@pytest.mark.asyncio
async def test_back_end_that_goes_while_the_device_is_reset(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        attachment = await guest.attach()
        await attachment.reset()
        backend.hang_up_at = FrontendRequest.SET_MEM_TABLE
        with pytest.raises(SessionEnded, match=r"during SET_MEM_TABLE$"):
            await attachment.bind_again()


@pytest.mark.asyncio
async def test_call_that_waited_for_a_reset_is_not_sent_to_the_next_device(guest: Guest) -> None:
    """A call that waited for the reset sends nothing after it, not even a kick."""
    async with fake_backend(guest.path) as backend:
        guest.choose(in_band=True)
        attachment = await guest.attach()
        names(backend)
        reset = asyncio.create_task(attachment.reset())
        late = [
            asyncio.create_task(work)
            for work in (attachment.stop(), attachment.start(), attachment.write_config(4, b"late"), attachment.reset())
        ]
        attachment.queues[BalloonQueue.REPORTING].post((), [BLOCK])
        await reset
        following = await attachment.bind_again()
        ends = await asyncio.gather(*late, return_exceptions=True)
        assert [type(end) for end in ends] == [SessionEnded, SessionEnded, type(None), SessionEnded]
        await following.read_config()
        said = names(backend)
        assert said[:3] == ["RESET_DEVICE", "SET_STATUS", "SET_STATUS"]
        assert not {"GET_VRING_BASE", "SET_CONFIG"} & set(said)
        assert said.count("RESET_DEVICE") == 1
        assert said.count("VRING_KICK") == said.count("SET_VRING_ENABLE") == 3
        following.close()


@pytest.mark.asyncio
async def test_reset_that_is_refused_loses_the_back_end(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        attachment = await guest.attach()
        backend.answers[FrontendRequest.RESET_DEVICE] = build_ack(FrontendRequest.RESET_DEVICE, 1)
        with pytest.raises(VhostUserError, match="refused RESET_DEVICE"):
            await attachment.reset()
        assert not attachment.was_reset
        assert await attachment.lost == "the back-end refused RESET_DEVICE"
        attachment.close()


# -- in-band notifications --------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_notifications_in_band_are_messages_only(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        guest.choose(in_band=True)
        attachment = await guest.attach()
        assert {"SET_VRING_CALL", "SET_VRING_KICK"}.isdisjoint(found := names(backend))
        assert found.count("VRING_KICK") == 3  # each of the queues was started by one
        report = attachment.queues[BalloonQueue.REPORTING].post((), [BLOCK])
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
async def test_stopped_ring_in_band_is_not_started_by_a_kick(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        guest.choose(in_band=True)
        attachment = await guest.attach()
        await attachment.stop()
        names(backend)
        attachment.queues[BalloonQueue.REPORTING].post((), [BLOCK])
        await attachment.read_config()
        assert names(backend) == ["GET_CONFIG"]
        await attachment.start()
        assert "VRING_KICK" in names(backend)
        attachment.close()


@pytest.mark.asyncio
async def test_back_end_without_in_band_notifications(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        backend.protocol_features &= ~feature_mask(ProtocolFeature.INBAND_NOTIFICATIONS)
        guest.choose(in_band=True)
        with pytest.raises(VhostUserError, match=r"^the back-end does not offer in-band notifications$"):
            await guest.attach()


@pytest.mark.asyncio
async def test_call_message_that_was_not_agreed_on_is_refused(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        attachment = await guest.attach()
        with socket.socket(fileno=os.dup(backend.fds[0])) as channel:
            assert await call_in_band(channel, REPORTING) == 1
        attachment.close()
