"""A virtual machine without a guest, for tests: a vhost-user front-end that can send anything, and memory with rings.

:class:`Client` is the bare socket. :class:`VirtualMachine` adds sealed memory, three queues with real rings and a
session as a well-behaved front-end has it. Everything blocks, with a deadline.
"""

import fcntl
import mmap
import os
import select
import socket
import struct
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, TypeVar

from guest.vhost_user.frontend import Call, Frontend, QueueSetup
from guest.virtqueue.virtqueue import IndirectTables
from guest.virtqueue.virtqueue_formats import open_virtqueue
from protocol.memory import PAGE_SIZE, GuestAddress, MemoryRegion, UserAddress
from protocol.ring_formats import RingLayout
from protocol.split_ring import SplitRing
from protocol.vhost_user import HEADER_SIZE, FrontendRequest
from protocol.vhost_user_codec import Channel, Message, MessageReader, build_message
from protocol.vhost_user_payloads import Payload, VringAddress, VringFile, VringState
from protocol.virtio import FeatureBit, feature_mask, has_feature
from protocol.virtio_balloon import BalloonFeature, BalloonQueue, queue_order
from tests.harness.processes import DEADLINE, until

MIB: Final = 1 << 20
GUEST_BASE: Final = 0x1_4000_0000
"""Guest address of the memory: neither zero nor equal to its user address, so that a mix-up is noticed."""
USER_BASE: Final = 0x7F12_3456_0000
RAM_BYTES: Final = 16 * MIB
QUEUE_SIZE: Final = 128
INFLATE, DEFLATE, REPORTING = 0, 1, 2

WANTED: Final = feature_mask(
    FeatureBit.VERSION_1,
    FeatureBit.RING_EVENT_IDX,
    FeatureBit.RING_INDIRECT_DESC,
    BalloonFeature.PAGE_REPORTING,
    BalloonFeature.DEFLATE_ON_OOM,
)
"""Features that a machine accepts by default: those of a machine that reports and little else."""

_QUEUE_STRIDE: Final = 0x8000
_TABLES_AT: Final = 0x40000
_PFNS_AT: Final = 0xA0000
DATA_AT: Final = 1 * MIB
"""Offset of the first byte that is not used for rings, indirect tables and page frame numbers."""

Result = TypeVar("Result")


class Ram:
    """A memory file, sealed against shrinking, mapped as the process of a virtual machine maps it."""

    def __init__(self, size: int = RAM_BYTES, *, sealed: bool = True) -> None:
        self.fd = os.memfd_create("test-ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, size)
        if sealed:
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self.size = size
        self.map = mmap.mmap(self.fd, size)

    def touch(self, offset: int, length: int) -> None:
        """Fill whole pages with their own page number, so that each is allocated and differs from the others."""
        for at in range(offset, offset + length, PAGE_SIZE):
            self.map[at : at + PAGE_SIZE] = page_pattern(at)

    def pages(self, start: int = DATA_AT, end: int | None = None) -> set[int]:
        """Return the offsets of the allocated pages from ``start``, exactly, as the file system knows them."""
        end = self.size if end is None else end
        found: set[int] = set()
        at = start
        while at < end:
            try:
                at = os.lseek(self.fd, at, os.SEEK_DATA)
            except OSError:
                break
            hole = min(os.lseek(self.fd, at, os.SEEK_HOLE), end)
            found.update(range(at, hole, PAGE_SIZE))
            at = max(at, hole)
        return found

    def spoilt_pages(self) -> set[int]:
        """Return the allocated data pages that no longer hold what :meth:`touch` wrote."""
        return {at for at in self.pages() if self.map[at : at + PAGE_SIZE] != page_pattern(at)}

    def close(self) -> None:
        """Unmap and close."""
        self.map.close()
        os.close(self.fd)


def page_pattern(offset: int) -> bytes:
    """Return what :meth:`Ram.touch` writes into the page at ``offset``."""
    return struct.pack("<Q", offset | 1) * (PAGE_SIZE // 8)


class Client:
    """A connection to a back-end that sends any bytes."""

    number = 0
    """The daemon's number of this virtual machine, where a test needs it."""

    def __init__(self, path: Path | socket.socket) -> None:
        if isinstance(path, socket.socket):
            self.socket = path
        else:
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.socket.connect(str(path))
        self.socket.settimeout(DEADLINE)
        self._reader = MessageReader(Channel.BACKEND_REPLIES)

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send bytes with file descriptors on the first of them."""
        if fds:
            sent = socket.send_fds(self.socket, [data], list(fds))
            data = data[sent:]
        if data:
            self.socket.sendall(data)

    def request(
        self, request: FrontendRequest, payload: Payload = None, fds: Sequence[int] = (), *, need_reply: bool = False
    ) -> None:
        """Send one well-formed message."""
        self.send(build_message(request, payload, need_reply=need_reply), fds)

    def reply(self) -> Message:
        """Return the next reply."""
        while (message := self._reader.next_message()) is None:
            data = self.socket.recv(self._reader.bytes_desired())
            if not data:
                raise ConnectionResetError("the back-end closed the connection")
            self._reader.feed(data)
        assert isinstance(message, Message)
        return message

    def raw_reply(self) -> tuple[int, int, bytes]:
        """Return the next reply unparsed: request number, flags, payload."""
        request, flags, size = struct.unpack("<III", self._exactly(HEADER_SIZE))
        return request, flags, self._exactly(size)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.socket.recv(size - len(data))
            if not piece:
                raise ConnectionResetError("the back-end closed the connection")
            data += piece
        return data

    def ask(self, request: FrontendRequest, payload: Payload = None, fds: Sequence[int] = ()) -> Payload:
        """Send one message with NEED_REPLY and return the reply: the request's own, or 0 for done and 1 for refused."""
        self.request(request, payload, fds, need_reply=True)
        reply = self.reply()
        assert reply.request == request
        return reply.payload

    def perform(self, calls: Generator[Call, Payload, Result]) -> Result:
        """Carry out the steps of a sans-IO front-end; return its result."""
        answer: Payload = None
        try:
            call = next(calls)
            while True:
                self.send(call.data, call.fds)
                answer = self.reply().payload if call.reply_expected else None
                call = calls.send(answer)
        except StopIteration as stop:
            result: Result = stop.value
            return result

    def is_closed_by_peer(self) -> bool:
        """Wait for the end of the stream, skipping replies; return False if it does not end."""
        try:
            while self.socket.recv(4096):
                pass
        except TimeoutError:
            return False
        except ConnectionResetError:
            pass
        return True

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()


class TestQueue:
    """One virtqueue of a :class:`VirtualMachine`: its place in the memory, its eventfds, its driver's half."""

    __test__ = False

    def __init__(self, ram: Ram, index: int, features: int, size: int = QUEUE_SIZE, *, base: int = 0) -> None:
        self.index = index
        self.size = size
        self.offset = index * _QUEUE_STRIDE
        self.kick_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.call_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._features = features
        self._ram = ram
        self._view = memoryview(ram.map)
        self.base = base
        self.renew()

    def renew(self) -> None:
        """Begin anew with zeroed rings and a fresh driver's half."""
        ram, start = self._ram, self.offset
        ram.map[start : start + _QUEUE_STRIDE] = bytes(_QUEUE_STRIDE)
        tables = IndirectTables(
            addresses=tuple(GUEST_BASE + _TABLES_AT + self.index * 0x10000 + i * 0x1000 for i in range(16)),
            capacity=PAGE_SIZE // 16,
        )
        layout = RingLayout(self.size, has_feature(self._features, FeatureBit.RING_PACKED))
        self.views = layout.open(*(self._view[start + at :] for at in (0, 0x4000, 0x6000)))

        def write_guest(address: int, data: bytes) -> None:
            at = address - GUEST_BASE
            ram.map[at : at + len(data)] = data

        self.driver = open_virtqueue(
            self.views,
            event_idx=has_feature(self._features, FeatureBit.RING_EVENT_IDX),
            tables=tables if has_feature(self._features, FeatureBit.RING_INDIRECT_DESC) else None,
            write_guest=write_guest,
            in_order=has_feature(self._features, FeatureBit.IN_ORDER),
        )

    @property
    def ring(self) -> SplitRing:
        """The ring's views, in a session without RING_PACKED."""
        assert isinstance(self.views, SplitRing)
        return self.views

    @property
    def setup(self) -> QueueSetup:
        """How the queue is announced."""
        at = USER_BASE + self.offset
        return QueueSetup(
            size=self.size,
            descriptor=UserAddress(at),
            available=UserAddress(at + 0x4000),
            used=UserAddress(at + 0x6000),
            kick=self.kick_fd,
            call=self.call_fd,
        )

    def messages(self, *, base: int = 0) -> dict[FrontendRequest, tuple[Payload, tuple[int, ...]]]:
        """Return the messages that set the queue up, by request and in their usual order, for tests to change."""
        index, at = self.index, USER_BASE + self.offset
        address = VringAddress(
            index=index,
            flags=0,
            descriptor=UserAddress(at),
            available=UserAddress(at + 0x4000),
            used=UserAddress(at + 0x6000),
        )
        return {
            FrontendRequest.SET_VRING_NUM: (VringState(index, self.size), ()),
            FrontendRequest.SET_VRING_BASE: (VringState(index, base), ()),
            FrontendRequest.SET_VRING_ADDR: (address, ()),
            FrontendRequest.SET_VRING_CALL: (VringFile(index, True), (self.call_fd,)),
            FrontendRequest.SET_VRING_KICK: (VringFile(index, True), (self.kick_fd,)),
            FrontendRequest.SET_VRING_ENABLE: (VringState(index, 1), ()),
        }

    def kick(self) -> None:
        """Kick the device, whether or not it asks for notifications."""
        os.eventfd_write(self.kick_fd, 1)

    def wait_for_call(self, deadline: float = DEADLINE) -> None:
        """Wait for the device's interrupt."""
        poll = select.poll()  # a crowd has descriptors beyond what select takes
        poll.register(self.call_fd, select.POLLIN)
        assert poll.poll(deadline * 1000), f"queue {self.index}: no call for {deadline} s"
        os.eventfd_read(self.call_fd)

    def wait_for_used_index(self, index: int) -> None:
        """Wait for the device by polling: the test has set another call descriptor."""
        until(lambda: self.ring.used[1] == index, f"used index {index} of queue {self.index}")

    def collect(self, count: int = 1) -> list[int]:
        """Wait for ``count`` used buffers; return their heads. Their used length has to be 0."""
        heads: list[int] = []
        while len(heads) < count:
            used = self.driver.get_used()
            if used is not None:
                assert used.length == 0
                heads.append(used.head)
            elif not self.driver.enable_interrupt():
                self.wait_for_call()
        return heads

    def close(self) -> None:
        """Release the views and close the eventfds."""
        self.views.release()
        self._view.release()
        os.close(self.kick_fd)
        os.close(self.call_fd)


class VirtualMachine:
    """A whole session: connected, negotiated, memory table sent, and by default its queues running.

    There is a queue for each one that exists under the negotiated features, and there are at least three. ``packed``
    and ``in_order`` have the rings so; the daemon has to offer it.
    """

    def __init__(
        self,
        client: Client | Path,
        *,
        ram: Ram | None = None,
        wanted: int = WANTED,
        run: bool = True,
        mmap_offset: int = 0,
        packed: bool = False,
        in_order: bool = False,
    ) -> None:
        self.ram = ram or Ram()
        self.client = client if isinstance(client, Client) else Client(client)
        self.frontend = Frontend()
        self.region = MemoryRegion(
            guest_address=GuestAddress(GUEST_BASE),
            size=self.ram.size - mmap_offset,
            user_address=UserAddress(USER_BASE),
            mmap_offset=mmap_offset,
        )
        offered = self.client.perform(self.frontend.offer())
        extra = (1 << FeatureBit.RING_PACKED if packed else 0) | (1 << FeatureBit.IN_ORDER if in_order else 0)
        assert offered & extra == extra, "the daemon does not offer the rings that the test wants"
        self.features = offered & (wanted | extra)
        self.client.perform(self.frontend.accept(self.features))
        self.order = queue_order(self.features)
        self.queues = [TestQueue(self.ram, index, self.features) for index in range(max(3, len(self.order)))]
        if run:
            self.set_memory()
            for queue in self.queues:
                self.start(queue)

    def set_memory(self) -> None:
        """Send the memory table."""
        self.client.perform(self.frontend.set_memory((self.region,), (self.ram.fd,)))

    def start(self, queue: TestQueue) -> None:
        """Set up one queue and start it."""
        self.client.perform(self.frontend.start_queue(queue.index, queue.setup))

    def ask(self, request: FrontendRequest, payload: Payload = None, fds: Sequence[int] = ()) -> Payload:
        """Send one message and return its answer, see :meth:`Client.ask`."""
        return self.client.ask(request, payload, fds)

    def ask_each(self, messages: Mapping[FrontendRequest, tuple[Payload, Sequence[int]]]) -> None:
        """Send messages in their order; each has to be carried out."""
        for request, (payload, fds) in messages.items():
            assert self.client.ask(request, payload, fds) == 0, request

    def queue(self, kind: BalloonQueue) -> TestQueue:
        """Return a queue by what it carries."""
        return self.queues[self.order.index(kind)]

    @property
    def reporting(self) -> TestQueue:
        """The reporting queue, or the one in its place if reporting was not negotiated."""
        kind = BalloonQueue.REPORTING
        return self.queue(kind) if kind in self.order else self.queues[REPORTING]

    def submit(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Report ranges, pairs of offset in the memory and length; do not wait."""
        self.reporting.driver.add((), [(GUEST_BASE + offset, length) for offset, length in ranges])
        self.reporting.kick()

    def report(self, *ranges: tuple[int, int]) -> None:
        """Report ranges and wait until the device gives them back."""
        self.submit(ranges)
        self.reporting.collect()

    def send_pfns(self, queue: int, data: bytes) -> None:
        """Put an array of page frame numbers on the inflate or deflate queue and wait until it comes back."""
        self.ram.map[_PFNS_AT : _PFNS_AT + len(data)] = data
        self.queues[queue].driver.add([(GUEST_BASE + _PFNS_AT, len(data))], ())
        self.queues[queue].kick()
        self.queues[queue].collect()

    def offer(self, kind: BalloonQueue, data: bytes, blocks: Iterable[tuple[int, int]] = ()) -> None:
        """Put ``data`` for the device to read and blocks, pairs of offset and length, on a queue; do not wait."""
        queue = self.queue(kind)
        at = _PFNS_AT + 0x1000 * queue.index
        self.ram.map[at : at + len(data)] = data
        readable = [(GUEST_BASE + at, len(data))] if data else []
        queue.driver.add(readable, [(GUEST_BASE + offset, length) for offset, length in blocks])
        queue.kick()

    def check_alive(self) -> None:
        """Check that the session works: touch two pages, report one, and find exactly this one discarded."""
        first = DATA_AT
        self.ram.touch(first, 2 * PAGE_SIZE)
        before = self.ram.pages()
        self.report((first, PAGE_SIZE))
        assert self.ram.pages() == before - {first}
        assert not self.ram.spoilt_pages()

    def close(self) -> None:
        """Disconnect and release everything."""
        self.client.close()
        for queue in self.queues:
            queue.close()
        self.ram.close()

    def __enter__(self) -> "VirtualMachine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
