"""The machine's attachment to a back-end, against one that a test scripts: every way in which it can come and go."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from guest.attachment import QUEUE_SIZE, Attachment, allocate_rings
from guest.mm.page_alloc import PageAllocator
from guest.ram import GuestRam
from host.virtio_balloon import OFFERED
from protocol.errors import SessionEnded, UsageError, VhostUserError
from protocol.memory import PAGE_SIZE
from protocol.split_ring import SplitRing
from protocol.vhost_user import (
    BackendRequest,
    DeviceConfig,
    FrontendRequest,
    MemoryTable,
    Payload,
    ProtocolFeature,
    VringAddress,
    VringState,
    form_of,
)
from protocol.vhost_user_codec import Channel, Message, MessageReader, build_message, build_own_reply, build_reply
from protocol.virtio import PROTOCOL_FEATURES, FeatureBit, feature_mask, has_feature
from protocol.virtio_balloon import BalloonConfig, BalloonFeature
from protocol.virtio_ring import avail_ring_bytes, descriptor_table_bytes, used_ring_bytes
from tests.end_to_end.harness import DEADLINE, open_fds

REPORTING: Final = 2


class FakeBackend:
    """A back-end for one front-end after another: notes every message, answers as the real one would, unless
    ``answers`` has its own answer for a request; ``hang_up_at`` names a request that ends the connection instead."""

    def __init__(self, path: Path) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.listener.setblocking(False)
        self.offered = OFFERED
        self.num_pages = 0
        self.answers: dict[FrontendRequest, bytes] = {}
        self.hang_up_at: FrontendRequest | None = None
        self.messages: list[Message] = []
        self.gave_own_answer = asyncio.Event()
        self.socket: socket.socket | None = None
        self.fds: list[int] = []

    async def serve(self) -> None:
        """Serve front-ends for ever."""
        loop = asyncio.get_running_loop()
        while True:
            self.socket, _ = await loop.sock_accept(self.listener)
            self.socket.setblocking(False)
            await self._serve_one(loop, self.socket)
            self.hang_up()

    async def _serve_one(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        reader = MessageReader(Channel.FRONTEND_REQUESTS)
        while True:
            ready = asyncio.Event()
            loop.add_reader(sock, ready.set)
            await ready.wait()
            loop.remove_reader(sock)
            data, fds, _, _ = socket.recv_fds(sock, reader.bytes_desired(), 16)
            self.fds += fds
            reader.feed(data, fds)
            if not data:
                return
            while (message := reader.next_message()) is not None:
                assert isinstance(message, Message)
                self.messages.append(message)
                if message.request is self.hang_up_at:
                    return
                for byte in self._answer(message):  # in pieces as small as they come
                    await loop.sock_sendall(sock, bytes([byte]))

    def _answer(self, message: Message) -> bytes:
        assert isinstance(message.request, FrontendRequest)
        if message.request in self.answers:
            self.gave_own_answer.set()
            return self.answers[message.request]
        own: dict[FrontendRequest, Payload] = {
            FrontendRequest.GET_FEATURES: self.offered | PROTOCOL_FEATURES,
            FrontendRequest.GET_PROTOCOL_FEATURES: feature_mask(*ProtocolFeature),
            FrontendRequest.GET_CONFIG: DeviceConfig(
                offset=0, flags=0, data=BalloonConfig(num_pages=self.num_pages).build()
            ),
        }
        if form_of(message.request).reply is not None:
            return build_own_reply(message.request, own[message.request])
        return build_reply(message.request, 0) if message.need_reply else b""

    def last(self, request: FrontendRequest) -> Message:
        """Return the newest message of this kind."""
        return [message for message in self.messages if message.request is request][-1]

    def hang_up(self) -> None:
        """Close the connection and what came over it."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()


@asynccontextmanager
async def fake_backend(path: Path) -> AsyncIterator[FakeBackend]:
    """Run a back-end at ``path``; a test that takes longer than the deadline fails."""
    backend = FakeBackend(path)
    serving = asyncio.create_task(backend.serve())
    try:
        async with asyncio.timeout(DEADLINE):
            yield backend
    finally:
        serving.cancel()
        outcome = (await asyncio.gather(serving, return_exceptions=True))[0]
        backend.hang_up()
        backend.listener.close()
    assert isinstance(outcome, asyncio.CancelledError), outcome


class Guest:
    """What an attachment is made for: memory with rings in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ram = GuestRam(16 << 20)
        self.rings = allocate_rings(PageAllocator(self.ram.size // PAGE_SIZE))

    async def attach(self) -> Attachment:
        return await Attachment.connect(self.path, self.ram, self.rings)

    def device_ring(self, index: int) -> SplitRing:
        """Return the device's view of a queue's ring."""
        memory = self.rings[index]
        return SplitRing(
            QUEUE_SIZE,
            self.ram.view(memory.ring, descriptor_table_bytes(QUEUE_SIZE)),
            self.ram.view(memory.available, avail_ring_bytes(QUEUE_SIZE)),
            self.ram.view(memory.used, used_ring_bytes(QUEUE_SIZE)),
        )

    def give_back(self, backend: FakeBackend, head: int | None = None) -> None:
        """Do as a device that is done with the newest report: a used entry, an interrupt."""
        ring = self.device_ring(REPORTING)
        position = ring.used[1] % QUEUE_SIZE
        newest = ring.avail[2 + (ring.avail[1] - 1) % QUEUE_SIZE]
        ring.used_elements[1 + 2 * position] = newest if head is None else head
        ring.used[1] = ring.used[1] + 1
        ring.release()
        os.eventfd_write(backend.last(FrontendRequest.SET_VRING_CALL).fds[0], 1)


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    """Memory with rings; when the test is over, no file descriptor may have been added, no view be in use."""
    before = open_fds(os.getpid()).keys()
    guest = Guest(tmp_path / "socket")
    yield guest
    guest.ram.close()
    assert open_fds(os.getpid()).keys() <= before


# -- rings in memory --------------------------------------------------------------------------------------------------


def test_rings_and_their_tables_lie_apart_aligned_and_in_pages_of_their_own() -> None:
    allocator = PageAllocator(4096)
    rings = allocate_rings(allocator)
    taken = 4096 - allocator.nr_free_pages()
    assert len(rings) == 5
    pages: list[int] = []
    for memory in rings:
        assert memory.ring % 16 == memory.table % 16 == memory.available % 2 == memory.used % 4 == 0
        assert memory.ring + descriptor_table_bytes(QUEUE_SIZE) <= memory.available
        assert memory.available + avail_ring_bytes(QUEUE_SIZE) <= memory.used
        assert memory.used + used_ring_bytes(QUEUE_SIZE) <= memory.table
        assert memory.table + 16 * QUEUE_SIZE == memory.ring + memory.bytes
        pages += range(memory.ring // PAGE_SIZE, -(-(memory.ring + memory.bytes) // PAGE_SIZE))
    assert len(set(pages)) == len(pages) <= taken


def test_a_machine_without_room_for_rings_is_refused() -> None:
    with pytest.raises(UsageError, match="too little memory for its virtqueues"):
        allocate_rings(PageAllocator(8))


# -- coming up --------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_the_device_is_brought_up_over_the_guests_own_memory(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        backend.num_pages = 77
        attachment = await guest.attach()
        assert attachment.config == BalloonConfig(num_pages=77)
        assert attachment.driver.can_report
        assert has_feature(attachment.driver.features, FeatureBit.RING_EVENT_IDX)

        table = backend.last(FrontendRequest.SET_MEM_TABLE)
        assert isinstance(table.payload, MemoryTable)
        (region,) = table.payload.regions
        assert (region.guest_address, region.size, region.mmap_offset) == (0, guest.ram.size, 0)
        assert os.fstat(table.fds[0]) == os.fstat(guest.ram.fd)

        address, memory = backend.last(FrontendRequest.SET_VRING_ADDR).payload, guest.rings[REPORTING]
        assert isinstance(address, VringAddress)
        offsets = [at - region.user_address for at in (address.descriptor, address.available, address.used)]
        assert offsets == [memory.ring, memory.available, memory.used]
        assert backend.last(FrontendRequest.SET_VRING_ENABLE).payload == VringState(REPORTING, 1)
        attachment.close()


@pytest.mark.asyncio
async def test_a_device_without_reporting_has_two_queues(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        backend.offered &= ~feature_mask(BalloonFeature.PAGE_REPORTING)
        attachment = await guest.attach()
        assert not attachment.driver.can_report
        assert backend.last(FrontendRequest.SET_VRING_ENABLE).payload == VringState(1, 1)
        attachment.close()


@pytest.mark.asyncio
async def test_rings_begin_empty_for_every_back_end(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        for _ in range(3):
            attachment = await guest.attach()
            report = asyncio.create_task(attachment.report([(1024, 9), (2048, 10)]))
            await asyncio.sleep(0)
            ring = guest.device_ring(REPORTING)
            assert (ring.avail[1], ring.used[1]) == (1, 0)
            ring.release()
            guest.give_back(backend)
            assert await report is True
            attachment.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("request_kind", ["GET_FEATURES", "SET_MEM_TABLE", "SET_VRING_KICK", "GET_CONFIG"])
async def test_a_back_end_that_hangs_up_half_way(request_kind: str, guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        backend.hang_up_at = FrontendRequest[request_kind]
        with pytest.raises(SessionEnded, match=f"closed the connection during {request_kind}$"):
            await guest.attach()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (build_reply(FrontendRequest.SET_MEM_TABLE, 1), "refused SET_MEM_TABLE"),
        (build_reply(FrontendRequest.SET_OWNER, 0), "answer to SET_MEM_TABLE makes no sense"),
        (build_reply(99, 0), "answer to SET_MEM_TABLE makes no sense"),
        (build_message(FrontendRequest.SET_OWNER), "a request among back-end replies"),
        (b"\xff" * 12, "version"),
    ],
    ids=["refusal", "answer to something else", "unknown request", "request", "garbage"],
)
async def test_a_back_end_that_answers_wrongly(answer: bytes, complaint: str, guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        backend.answers[FrontendRequest.SET_MEM_TABLE] = answer
        with pytest.raises(VhostUserError, match=complaint):
            await guest.attach()


@pytest.mark.asyncio
async def test_a_back_end_that_does_not_answer(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guest.attachment.ANSWER_TIMEOUT", 0.05)
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
async def test_a_report_under_way_when_the_back_end_goes_has_failed(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        attachment = await guest.attach()
        report = asyncio.create_task(attachment.report([(1024, 10)]))
        await asyncio.sleep(0)
        assert backend.socket is not None
        backend.socket.shutdown(socket.SHUT_RDWR)
        assert await report is False
        assert await attachment.lost == "back-end gone"
        assert await attachment.report([(2048, 10)]) is False
        attachment.close()


@pytest.mark.asyncio
async def test_a_back_end_that_speaks_out_of_turn_is_lost(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        attachment = await guest.attach()
        assert backend.socket is not None
        backend.socket.send(build_reply(FrontendRequest.SET_OWNER, 0))
        assert await attachment.lost == "the back-end spoke out of turn"
        attachment.close()


@pytest.mark.asyncio
async def test_a_device_that_breaks_the_ring_is_lost_and_the_report_with_it(guest: Guest) -> None:
    async with fake_backend(guest.path) as backend:
        attachment = await guest.attach()
        report = asyncio.create_task(attachment.report([(1024, 10)]))
        await asyncio.sleep(0)
        guest.give_back(backend, head=QUEUE_SIZE + 5)
        assert await report is False
        assert str(QUEUE_SIZE + 5) in await attachment.lost
        attachment.close()


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
async def test_a_change_of_configuration_is_noticed_and_read(guest: Guest) -> None:
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
async def test_a_channel_that_ends_with_an_answer_unread_does_no_harm(guest: Guest) -> None:
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    async with fake_backend(guest.path) as backend:
        attachment = await guest.attach()
        with channel_of(backend) as channel:
            channel.send(build_message(BackendRequest.CONFIG_CHANGE_MSG, need_reply=True))
            await attachment.config_changed.wait()
            channel.shutdown(socket.SHUT_RDWR)
        os.close(backend.fds.pop(0))
        report = asyncio.create_task(attachment.report([(1024, 10)]))
        await asyncio.sleep(0)
        guest.give_back(backend)
        acknowledged = await report
        attachment.close()
    assert acknowledged
    assert faults == []
