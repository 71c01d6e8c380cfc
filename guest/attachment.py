"""The machine's attachment to a back-end: the socket, the rings in guest memory, the event descriptors, the driver.

An attachment lives as long as its connection. When the back-end goes away it says so through :attr:`Attachment.lost`,
and every report under way comes back as failed.

Must not know: how free pages are found, what programs run in the guest.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from guest.frontend import Call, Frontend, QueueSetup
from guest.mm.mmzone import MAX_ORDER, MigrateType
from guest.mm.page_alloc import PageAllocator
from guest.ram import GuestRam
from guest.split_virtqueue import SplitDriverVirtqueue
from guest.virtio_balloon import BalloonDriver, accept_features
from guest.virtqueue import DriverVirtqueue, IndirectTables
from protocol.errors import BalloonError, SessionEnded, UsageError, VhostUserError
from protocol.memory import PAGE_SIZE, GuestAddress, MemoryRegion, UserAddress
from protocol.split_ring import SplitRing
from protocol.vhost_user import HEADER_SIZE, BackendRequest, Payload
from protocol.vhost_user_codec import BadMessage, Channel, Message, MessageReader, build_reply
from protocol.virtio import FeatureBit, has_feature
from protocol.virtio_balloon import QUEUES_MAX, BalloonConfig, queue_order
from protocol.virtio_ring import (
    DESCRIPTOR_SIZE,
    USED_RING_ALIGN,
    avail_ring_bytes,
    descriptor_table_bytes,
    used_ring_bytes,
)

QUEUE_SIZE: Final = 256
"""Entries of each virtqueue, as User Mode Linux has it."""

ANSWER_TIMEOUT: Final = 10.0
"""Seconds that a back-end may take to bring its device up."""

_USER_BASE: Final = 0x7F00_0000_0000
"""Where the guest's memory pretends to be mapped. User addresses are names only; any will do."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class RingMemory:
    """Pages of the guest set aside for one queue: its ring and one indirect table, at guest addresses."""

    ring: int
    table: int
    bytes: int

    @property
    def available(self) -> int:
        """Guest address of the available ring, right behind the descriptor table."""
        return self.ring + descriptor_table_bytes(QUEUE_SIZE)

    @property
    def used(self) -> int:
        """Guest address of the used ring, behind the available ring, aligned."""
        end = self.available + avail_ring_bytes(QUEUE_SIZE)
        return -(-end // USED_RING_ALIGN) * USED_RING_ALIGN


def allocate_rings(allocator: PageAllocator) -> tuple[RingMemory, ...]:
    """Take pages for the rings of every queue that there can be. They are kept for the machine's life.

    Raises:
        UsageError: the machine is too small.
    """
    length = descriptor_table_bytes(QUEUE_SIZE) + avail_ring_bytes(QUEUE_SIZE) + used_ring_bytes(QUEUE_SIZE)
    length += USED_RING_ALIGN
    table_at = -(-length // PAGE_SIZE) * PAGE_SIZE
    total = table_at + DESCRIPTOR_SIZE * QUEUE_SIZE
    order = (-(-total // PAGE_SIZE) - 1).bit_length()
    assert order <= MAX_ORDER
    rings: list[RingMemory] = []
    for _ in range(QUEUES_MAX):
        pfn = allocator.alloc_pages(order, MigrateType.UNMOVABLE)
        if pfn is None:
            raise UsageError("the machine has too little memory for its virtqueues")
        rings.append(RingMemory(pfn * PAGE_SIZE, pfn * PAGE_SIZE + table_at, total))
    return tuple(rings)


@dataclass(slots=True)
class _Queue:
    # One queue in use. The descriptors are ours; the back-end has duplicates.
    kick: int
    call: int
    ring: SplitRing
    virtqueue: DriverVirtqueue


class Attachment:
    """A connection to a back-end with a balloon driver bound to its device."""

    def __init__(self, sock: socket.socket, ram: GuestRam, rings: Sequence[RingMemory]) -> None:
        self._socket = sock
        self._ram = ram
        self._rings = rings
        self._loop = asyncio.get_running_loop()
        self._reader = MessageReader(Channel.BACKEND_REPLIES)
        self._frontend = Frontend()
        self._queues: list[_Queue] = []
        self._channel: socket.socket | None = None
        self._channel_reader = MessageReader(Channel.BACKEND_REQUESTS)
        self._acknowledged: asyncio.Future[bool] | None = None
        self.config_changed = asyncio.Event()
        self.lost: asyncio.Future[str] = self._loop.create_future()
        """Done, with the reason, when the back-end is gone."""

    @classmethod
    async def connect(cls, path: Path, ram: GuestRam, rings: Sequence[RingMemory]) -> "Attachment":
        """Connect to the back-end that listens at ``path`` and bring its device up.

        Raises:
            SessionEnded: nobody listens, or the back-end went away meanwhile.
            VhostUserError: the back-end refused something that this machine cannot do without.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        attachment = cls(sock, ram, rings)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await attachment._loop.sock_connect(sock, os.fspath(path))
                await attachment._bring_up()
        except TimeoutError as error:
            attachment.close()
            raise SessionEnded(f"the back-end at {path} does not answer") from error
        except OSError as error:
            attachment.close()
            raise SessionEnded(f"no back-end at {path}: {error.strerror or error}") from error
        except BaseException:
            attachment.close()
            raise
        attachment._watch()
        return attachment

    # -- control plane ----------------------------------------------------------------------------------------------

    async def _bring_up(self) -> None:
        offered = await self._call(self._frontend.offer())
        ours, theirs = socket.socketpair()
        self._channel = ours
        ours.setblocking(False)
        with theirs:
            await self._call(self._frontend.set_backend_channel(theirs.fileno()))
        features = accept_features(offered)
        await self._call(self._frontend.accept(features))
        region = MemoryRegion(
            guest_address=GuestAddress(0), size=self._ram.size, user_address=UserAddress(_USER_BASE), mmap_offset=0
        )
        await self._call(self._frontend.set_memory((region,), (self._ram.fd,)))
        for index in range(len(queue_order(features))):
            queue = self._make_queue(self._rings[index], features)
            self._queues.append(queue)
            await self._call(self._frontend.start_queue(index, _setup_of(self._rings[index], queue)))
        self.config = await self._call(self._frontend.get_config())
        self.driver = BalloonDriver(features, [queue.virtqueue for queue in self._queues])

    def _make_queue(self, memory: RingMemory, features: int) -> _Queue:
        self._ram.write(memory.ring, bytes(memory.bytes))
        ring = SplitRing(
            QUEUE_SIZE,
            self._ram.view(memory.ring, descriptor_table_bytes(QUEUE_SIZE)),
            self._ram.view(memory.available, avail_ring_bytes(QUEUE_SIZE)),
            self._ram.view(memory.used, used_ring_bytes(QUEUE_SIZE)),
        )
        indirect = has_feature(features, FeatureBit.RING_INDIRECT_DESC)
        virtqueue = SplitDriverVirtqueue(
            ring,
            event_idx=has_feature(features, FeatureBit.RING_EVENT_IDX),
            tables=IndirectTables(addresses=(memory.table,), capacity=QUEUE_SIZE) if indirect else None,
            write_guest=self._ram.write,
        )
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        return _Queue(os.eventfd(0, flags), os.eventfd(0, flags), ring, virtqueue)

    async def _call(self, calls: Generator[Call, Payload, Result]) -> Result:
        try:
            call = next(calls)
            while True:
                call = calls.send(await self._exchange(call))
        except StopIteration as stop:
            result: Result = stop.value
            return result

    async def _exchange(self, call: Call) -> Payload:
        sent = socket.send_fds(self._socket, [call.data], call.fds)
        await self._loop.sock_sendall(self._socket, call.data[sent:])
        if not call.reply_expected:
            return None
        while (message := self._reader.next_message()) is None:
            data = await self._loop.sock_recv(self._socket, self._reader.bytes_desired())
            if not data:
                raise SessionEnded(f"the back-end closed the connection during {call.request.name}")
            self._reader.feed(data)
        if isinstance(message, BadMessage) or message.request is not call.request:
            raise VhostUserError(f"the back-end's answer to {call.request.name} makes no sense")
        return message.payload

    async def read_config(self) -> BalloonConfig:
        """Read the configuration space anew, as after a change."""
        self._unwatch_socket()
        try:
            self.config = await self._call(self._frontend.get_config())
        except (BalloonError, OSError) as error:
            self._lose(str(error))
        else:
            self._loop.add_reader(self._socket.fileno(), self._on_socket)
        return self.config

    # -- watching ---------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        self._loop.add_reader(self._socket.fileno(), self._on_socket)
        assert self._channel is not None
        self._loop.add_reader(self._channel.fileno(), self._on_channel)
        for queue in self._queues:
            self._loop.add_reader(queue.call, self._on_call, queue.call)

    def _on_socket(self) -> None:
        # Between calls the back-end has nothing to say here: whatever comes is the end.
        try:
            data = self._socket.recv(HEADER_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(f"back-end gone: {error.strerror}")
            return
        self._lose("the back-end spoke out of turn" if data else "back-end gone")

    def _on_channel(self) -> None:
        assert self._channel is not None
        try:
            data = self._channel.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # reset: the back-end left with an answer of ours unread
        if not data:
            self._loop.remove_reader(self._channel.fileno())
            return
        self._channel_reader.feed(data)
        try:
            while (message := self._channel_reader.next_message()) is not None:
                self._take_request(message)
        except (VhostUserError, OSError) as error:
            self._lose(f"on the back-end's channel: {error}")

    def _take_request(self, message: Message | BadMessage) -> None:
        assert self._channel is not None
        if message.request == BackendRequest.CONFIG_CHANGE_MSG and isinstance(message, Message):
            self.config_changed.set()
            status = 0
        else:
            status = 1
        if message.need_reply:
            self._channel.send(build_reply(message.request, status))

    def _on_call(self, fd: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(fd)
        self._look_for_acknowledgement()

    def _look_for_acknowledgement(self) -> None:
        if self._acknowledged is None or self._acknowledged.done():
            return
        try:
            if self.driver.acknowledged():
                self._acknowledged.set_result(True)
        except BalloonError as error:
            self._lose(str(error))

    def _lose(self, reason: str) -> None:
        if not self.lost.done():
            self.lost.set_result(reason)
        if self._acknowledged is not None and not self._acknowledged.done():
            self._acknowledged.set_result(False)
        self._unwatch_socket()

    def _unwatch_socket(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())

    # -- data plane -------------------------------------------------------------------------------------------------

    async def report(self, blocks: Sequence[tuple[int, int]]) -> bool:
        """Report free ``blocks`` (pfn, order) and wait for the acknowledgement, however long it takes, as Linux does.

        Returns False if the back-end went away first.
        """
        if self.lost.done():
            return False
        self._acknowledged = self._loop.create_future()
        if self.driver.report(blocks):
            os.eventfd_write(self._queues[-1].kick, 1)
        self._look_for_acknowledgement()
        try:
            return await self._acknowledged
        finally:
            self._acknowledged = None

    def close(self) -> None:
        """Detach: close the connection and everything that belonged to it. Without effect the second time."""
        self._lose("closed")
        if self._channel is not None:
            self._loop.remove_reader(self._channel.fileno())
            self._channel.close()
            self._channel = None
        for queue in self._queues:
            self._loop.remove_reader(queue.call)
            os.close(queue.kick)
            os.close(queue.call)
            queue.ring.release()
        self._queues.clear()
        self._socket.close()


def _setup_of(memory: RingMemory, queue: _Queue) -> QueueSetup:
    return QueueSetup(
        size=QUEUE_SIZE,
        descriptor=UserAddress(_USER_BASE + memory.ring),
        available=UserAddress(_USER_BASE + memory.available),
        used=UserAddress(_USER_BASE + memory.used),
        kick=queue.kick,
        call=queue.call,
    )
