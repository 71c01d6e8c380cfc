"""An attachment that resumes: back-ends come and go, its rings and requests stay."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator

import pytest

from guest.vhost_user.attachment import Attachment
from protocol.errors import SessionEnded
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_payloads import DeviceConfig, VringState
from protocol.virtio import feature_mask
from protocol.virtio_balloon import BalloonFeature, BalloonQueue
from tests.guest.vhost_user.fake_backend import (
    BLOCK,
    INFLIGHT,
    REPORTING,
    FakeBackend,
    Guest,
    call_in_band,
    fake_backend,
    names,
)


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


@contextlib.asynccontextmanager
async def resuming(
    guest: Guest, *, in_band: bool = False
) -> AsyncIterator[tuple[FakeBackend, Attachment, Interruptions]]:
    """A guest attached to a back-end, and what it says about that. It is detached in the end."""
    async with fake_backend(guest.path) as backend:
        guest.choose(resume=True, in_band=in_band)
        attachment = await guest.attach()
        yield backend, attachment, Interruptions(attachment)
        attachment.close()


@pytest.mark.asyncio
async def test_next_back_end_goes_on_with_what_the_last_one_did_not_give_back(guest: Guest) -> None:
    async with resuming(guest) as (backend, attachment, interruptions):
        done = attachment.queues[BalloonQueue.REPORTING].post((), [BLOCK])
        guest.give_back(backend)
        assert await done == 0
        pending = attachment.queues[BalloonQueue.REPORTING].post((), [BLOCK])
        backend.leave()
        await interruptions.count(1)
        meanwhile = attachment.queues[BalloonQueue.REPORTING].post((), [BLOCK])
        await interruptions.count(2)
        assert interruptions.said == ["back-end gone", None]
        bases = backend.payloads(FrontendRequest.SET_VRING_BASE)
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


@pytest.mark.asyncio
async def test_request_used_without_an_interrupt_is_not_done_again(guest: Guest) -> None:
    async with resuming(guest) as (backend, attachment, interruptions):
        report = attachment.queues[BalloonQueue.REPORTING].post((), [BLOCK])
        guest.give_back(backend, interrupt=False)
        backend.leave()
        await interruptions.count(2)
        assert await report == 0
        bases = backend.payloads(FrontendRequest.SET_VRING_BASE)
        assert bases[-1] == VringState(REPORTING, 1)


@pytest.mark.asyncio
async def test_configuration_that_the_driver_wrote_is_written_to_the_next_back_end(guest: Guest) -> None:
    async with resuming(guest) as (backend, attachment, interruptions):
        await attachment.write_config(4, b"\1\0\0\0")
        backend.leave()
        await interruptions.count(1)
        await attachment.write_config(12, b"\2\0\0\0")
        await interruptions.count(2)
        told = backend.payloads(FrontendRequest.SET_CONFIG)
        assert sorted(told, key=repr) == [
            DeviceConfig(offset=12, flags=0, data=b"\2\0\0\0"),
            DeviceConfig(offset=4, flags=0, data=b"\1\0\0\0"),
        ]
        assert attachment.config_changed.is_set()  # the next one may have another target


@pytest.mark.asyncio
async def test_inflight_file_is_kept_and_handed_to_every_back_end(guest: Guest) -> None:
    async with resuming(guest) as (backend, _, interruptions):
        found = names(backend)
        assert found.index("GET_INFLIGHT_FD") < found.index("SET_INFLIGHT_FD") < found.index("SET_VRING_NUM")
        for number in (2, 4):
            backend.leave()
            await interruptions.count(number)
            handed = backend.last(FrontendRequest.SET_INFLIGHT_FD)
            assert handed.payload == INFLIGHT
            assert "memfd:inflight" in os.readlink(f"/proc/self/fd/{handed.fds[0]}")
            assert "GET_INFLIGHT_FD" not in names(backend)


@pytest.mark.asyncio
async def test_queues_that_were_stopped_stay_stopped_with_the_next_back_end(guest: Guest) -> None:
    async with resuming(guest) as (backend, attachment, interruptions):
        backend.bases = {REPORTING: 5}
        await attachment.stop()
        backend.leave()
        await interruptions.count(1)
        with pytest.raises(SessionEnded, match="no back-end at the moment"):
            await attachment.start()
        await interruptions.count(2)
        assert "SET_VRING_KICK" not in names(backend)
        await attachment.start()
        bases = backend.payloads(FrontendRequest.SET_VRING_BASE)
        assert bases[-1] == VringState(REPORTING, 5)


@pytest.mark.asyncio
async def test_queues_of_which_not_all_were_stopped_go_on_with_the_next_back_end(guest: Guest) -> None:
    """What was given back is not handed over again, and what was not is."""
    async with resuming(guest) as (backend, attachment, interruptions):
        done = attachment.queues[BalloonQueue.REPORTING].post((), [BLOCK])
        guest.give_back(backend)
        assert await done == 0
        under_way = attachment.queues[BalloonQueue.REPORTING].post((), [BLOCK])
        backend.hang_up_at = FrontendRequest.GET_VRING_BASE
        with pytest.raises(SessionEnded):
            await attachment.stop()
        await interruptions.count(2)
        bases = backend.payloads(FrontendRequest.SET_VRING_BASE)
        assert bases[-1] == VringState(REPORTING, 1)
        assert attachment.is_started
        assert not under_way.done()
        guest.give_back(backend)
        assert await under_way == 0


@pytest.mark.asyncio
async def test_back_end_that_offers_something_else_does_not_resume(guest: Guest) -> None:
    async with resuming(guest) as (backend, attachment, _):
        report = attachment.queues[BalloonQueue.REPORTING].post((), [BLOCK])
        backend.offered &= ~feature_mask(BalloonFeature.PAGE_REPORTING)
        backend.leave()
        assert await attachment.lost == "the back-end does not offer what the last one did"
        assert await report is None


@pytest.mark.asyncio
async def test_attachment_is_closed_while_it_waits_for_a_back_end(guest: Guest) -> None:
    async with resuming(guest) as (backend, attachment, interruptions):
        report = attachment.queues[BalloonQueue.REPORTING].post((), [BLOCK])
        backend.answers[FrontendRequest.GET_FEATURES] = b""
        backend.leave()
        await interruptions.count(1)
        await backend.gave_own_answer.wait()
        attachment.close()
        assert await report is None
        assert await attachment.lost == "closed"


@pytest.mark.asyncio
async def test_caller_that_waits_for_an_answer_ends_when_the_channel_breaks(guest: Guest) -> None:
    """Three callers: one whose answer does not come, one queued after it, and the driver's own kick."""
    async with resuming(guest, in_band=True) as (backend, attachment, interruptions):
        backend.answers[FrontendRequest.SET_CONFIG] = b""
        writing = asyncio.create_task(attachment.write_config(4, bytes(4)))
        await backend.gave_own_answer.wait()
        reading = asyncio.create_task(attachment.read_config())
        report = attachment.queues[BalloonQueue.REPORTING].post((), [BLOCK])
        del backend.answers[FrontendRequest.SET_CONFIG]
        with socket.socket(fileno=os.dup(backend.fds[0])) as channel:
            channel.send(b"\xff" * 12)
            await asyncio.gather(writing, reading)
        await interruptions.count(2)
        assert interruptions.said[0] is not None
        assert "on the back-end's channel" in interruptions.said[0]
        guest.give_back(backend, interrupt=False)
        with socket.socket(fileno=os.dup(backend.last(FrontendRequest.SET_BACKEND_REQ_FD).fds[0])) as channel:
            assert await call_in_band(channel, REPORTING) == 0
        assert await report == 0
