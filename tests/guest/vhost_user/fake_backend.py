"""A back-end that a test scripts, and the memory of a machine that attaches to it."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from guest.balloon.virtio_balloon import accept_features
from guest.mm.page_alloc import PageAllocator
from guest.ram import GuestRam
from guest.vhost_user.attachment import Attachment
from guest.vhost_user.attachment_options import AttachmentOptions
from guest.virtqueue.ring_memory import allocate_rings
from host.balloon.offered_features import OFFERED
from protocol.balloon_config import BalloonConfig
from protocol.memory import PAGE_SIZE
from protocol.split_ring import SplitRing
from protocol.vhost_user import BackendRequest, FrontendRequest, ProtocolFeature, form_of
from protocol.vhost_user_codec import Channel, Message, MessageReader, build_ack, build_message, build_own_reply
from protocol.vhost_user_payloads import DeviceConfig, InflightDescription, Payload, VringState
from protocol.virtio import PROTOCOL_FEATURES, feature_mask
from protocol.virtio_balloon import BalloonFeature
from tests.harness.processes import DEADLINE

REPORTING: Final = 2
INFLIGHT: Final = InflightDescription(mmap_size=4096, mmap_offset=0, num_queues=3, queue_size=256)
BLOCK: Final = (4 << 20, 4 << 20)


class FakeBackend:
    """A back-end for one front-end after another: notes every message, answers as the real one would, unless
    ``answers`` has its own answer for a request; ``hang_up_at`` names a request that ends the connection instead."""

    def __init__(self, path: Path) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.listener.setblocking(False)
        self.offered = OFFERED & ~feature_mask(BalloonFeature.STATS_VQ)  # reporting is queue 2
        self.protocol_features = feature_mask(*ProtocolFeature)
        self.num_pages = 0
        self.status = 0
        self.bases: dict[int, int] = {}
        """What stopping a queue gives, 0 unless told otherwise."""
        self.answers: dict[FrontendRequest, bytes] = {}
        self.hang_up_at: FrontendRequest | None = None
        self.messages: list[Message] = []
        self._came = asyncio.Event()
        self.gave_own_answer = asyncio.Event()
        self.was_left = asyncio.Event()
        self.may_close = asyncio.Event()
        """Until this is set, a back-end whose front-end has left is still busy with what it was given."""
        self.may_close.set()
        self.socket: socket.socket | None = None
        self.fds: list[int] = []

    async def serve(self) -> None:
        """Serve one front-end after another; never return."""
        loop = asyncio.get_running_loop()
        while True:
            self.socket, _ = await loop.sock_accept(self.listener)
            self.socket.setblocking(False)
            await self._serve_one(loop, self.socket)
            self.was_left.set()
            await self.may_close.wait()
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
                self._came.set()
                if message.request is self.hang_up_at:
                    return
                answer = self._answer(message)
                if message.request is FrontendRequest.GET_INFLIGHT_FD:
                    file = os.memfd_create("inflight")
                    socket.send_fds(sock, [answer[:1]], [file])
                    os.close(file)
                    answer = answer[1:]
                for byte in answer:  # in pieces as small as they come
                    await loop.sock_sendall(sock, bytes([byte]))

    def _answer(self, message: Message) -> bytes:
        assert isinstance(message.request, FrontendRequest)
        if message.request in self.answers:
            self.gave_own_answer.set()
            return self.answers[message.request]
        if message.request is FrontendRequest.SET_STATUS:
            assert isinstance(message.payload, int)
            self.status = message.payload
        queue = message.payload.index if isinstance(message.payload, VringState) else 0
        own: dict[FrontendRequest, Payload] = {
            FrontendRequest.GET_STATUS: self.status,
            FrontendRequest.GET_INFLIGHT_FD: INFLIGHT,
            FrontendRequest.GET_VRING_BASE: VringState(queue, self.bases.get(queue, 0)),
            FrontendRequest.GET_FEATURES: self.offered | PROTOCOL_FEATURES,
            FrontendRequest.GET_PROTOCOL_FEATURES: self.protocol_features,
            FrontendRequest.GET_CONFIG: DeviceConfig(
                offset=0, flags=0, data=BalloonConfig(num_pages=self.num_pages).build()
            ),
        }
        if form_of(message.request).reply is not None:
            return build_own_reply(message.request, own[message.request])
        return build_ack(message.request, 0) if message.need_reply else b""

    async def seen(self, request: FrontendRequest) -> None:
        """Wait until a message of this kind has come."""
        while not any(message.request is request for message in self.messages):
            self._came.clear()
            await self._came.wait()

    def leave(self) -> None:
        """End the session, as a back-end does that dies; the next one listens at the same place."""
        assert self.socket is not None
        self.messages.clear()
        self.socket.shutdown(socket.SHUT_RDWR)

    def last(self, request: FrontendRequest) -> Message:
        """Return the newest message of this kind."""
        return [message for message in self.messages if message.request is request][-1]

    def payloads(self, request: FrontendRequest) -> list[Payload]:
        """Return what each message of this kind said, in their order."""
        return [message.payload for message in self.messages if message.request is request]

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
        self.allocator = PageAllocator(self.ram.size // PAGE_SIZE)
        self.options = AttachmentOptions(accept_features=accept_features)
        self.rings = allocate_rings(self.allocator)

    def choose(self, **changes: Any) -> None:
        """Attach with these fields of :class:`AttachmentOptions` changed from now on."""
        self.options = replace(self.options, **changes)
        self.rings = allocate_rings(self.allocator, self.options.ring)

    async def attach(self) -> Attachment:
        """Attach to the back-end."""
        return await Attachment.connect(self.path, self.ram, self.rings, self.options)

    def device_ring(self, index: int) -> SplitRing:
        """Return the device's view of a queue's ring."""
        ring = self.rings[index].open(self.ram.view)
        assert isinstance(ring, SplitRing)
        return ring

    def give_back(
        self, backend: FakeBackend, head: int | None = None, *, length: int = 0, interrupt: bool = True
    ) -> None:
        """Do as a device that is done with the newest report, or with ``head``: a used entry, an interrupt."""
        ring = self.device_ring(REPORTING)
        position = ring.used[1] % ring.size
        newest = ring.avail[2 + (ring.avail[1] - 1) % ring.size]
        ring.used_elements[1 + 2 * position] = newest if head is None else head
        ring.used_elements[2 + 2 * position] = length
        ring.used[1] = ring.used[1] + 1
        ring.release()
        if interrupt:
            os.eventfd_write(backend.last(FrontendRequest.SET_VRING_CALL).fds[0], 1)


def names(backend: FakeBackend) -> list[str]:
    """Return the requests that came so far, and forget them."""
    found = [FrontendRequest(message.request).name for message in backend.messages]
    backend.messages.clear()
    return found


async def call_in_band(channel: socket.socket, queue: int) -> Payload:
    """Interrupt for ``queue`` by a message; return the answer."""
    channel.setblocking(False)
    channel.send(build_message(BackendRequest.VRING_CALL, VringState(queue, 0), need_reply=True))
    reader = MessageReader(Channel.FRONTEND_REPLIES)
    while (message := reader.next_message()) is None:
        reader.feed(await asyncio.get_running_loop().sock_recv(channel, reader.bytes_desired()))
    assert isinstance(message, Message)
    return message.payload
