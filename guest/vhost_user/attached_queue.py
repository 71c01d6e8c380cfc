"""One virtqueue of an attached machine: its ring in guest memory, its two event descriptors, who waits for what."""

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence

from guest.ram import GuestRam
from guest.vhost_user.frontend import QueueSetup
from guest.virtqueue.ring_memory import RingMemory
from guest.virtqueue.virtqueue import Buffer, IndirectTables
from guest.virtqueue.virtqueue_formats import open_virtqueue
from protocol.memory import UserAddress
from protocol.virtio import FeatureBit, has_feature


class AttachedQueue:
    """Virtqueue number ``index`` over zeroed ring memory, as negotiated in ``features``.

    The event descriptors are ours; the back-end has duplicates, unless kicks and interrupts travel ``in_band``.
    """

    def __init__(self, index: int, memory: RingMemory, ram: GuestRam, features: int, *, in_band: bool) -> None:
        self.index = index
        self.base = 0
        """Where the device goes on when it is started: what stopping it gave."""
        self._memory = memory
        self._in_band = in_band
        ram.write(memory.descriptor, bytes(memory.bytes))
        self._ring = memory.open(ram.view)
        indirect = has_feature(features, FeatureBit.RING_INDIRECT_DESC)
        self._virtqueue = open_virtqueue(
            self._ring,
            event_idx=has_feature(features, FeatureBit.RING_EVENT_IDX),
            tables=IndirectTables(addresses=memory.tables, capacity=memory.table_capacity) if indirect else None,
            write_guest=ram.write,
            in_order=has_feature(features, FeatureBit.IN_ORDER),
        )
        self._waiting: dict[int, asyncio.Future[int | None]] = {}
        self._loop = asyncio.get_running_loop()
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        self.kick_fd, self.call_fd = os.eventfd(0, flags), os.eventfd(0, flags)

    def setup(self, user_base: int) -> QueueSetup:
        """How the queue is announced; ``user_base`` is the user address of guest address 0."""
        return QueueSetup(
            size=self._memory.options.size,
            descriptor=UserAddress(user_base + self._memory.descriptor),
            available=UserAddress(user_base + self._memory.available),
            used=UserAddress(user_base + self._memory.used),
            kick=None if self._in_band else self.kick_fd,
            call=None if self._in_band else self.call_fd,
        )

    def post(
        self, readable: Sequence[Buffer], writable: Sequence[Buffer], kick: Callable[[], None]
    ) -> "asyncio.Future[int | None]":
        """Make a request available, call ``kick`` if the device wants to hear of it, and return what will be its used
        length.

        Raises:
            QueueFullError: too few descriptors are free. Nothing was added.
        """
        head = self._virtqueue.add(readable, writable)
        future: asyncio.Future[int | None] = self._loop.create_future()
        self._waiting[head] = future
        if self._virtqueue.needs_kick():
            kick()
        return future

    def collect(self) -> None:
        """Take all that the device is done with, and ask for an interrupt with the next.

        Raises:
            VirtqueueError: the device broke a rule of the ring.
        """
        while True:
            while (used := self._virtqueue.get_used()) is not None:
                future = self._waiting.pop(used.head, None)
                if future is not None and not future.done():  # nobody waits where that was given up
                    future.set_result(used.length)
            if not self._virtqueue.enable_interrupt():
                return

    def rewind(self) -> None:
        """Have a device that knows nothing of the ring go on with the oldest request that was not given back."""
        self.base = self._virtqueue.oldest

    def watch(self, on_call: Callable[["AttachedQueue"], None]) -> None:
        """Call ``on_call`` with each interrupt from now on."""
        self._loop.add_reader(self.call_fd, self._on_call, on_call)

    def _on_call(self, on_call: Callable[["AttachedQueue"], None]) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.call_fd)
        on_call(self)

    def give_up(self) -> None:
        """Tell everybody who waits that the back-end went away."""
        for future in self._waiting.values():
            if not future.done():
                future.set_result(None)
        self._waiting.clear()

    def close(self) -> None:
        """Release the ring and close the event descriptors."""
        self._loop.remove_reader(self.call_fd)
        os.close(self.kick_fd)
        os.close(self.call_fd)
        self._ring.release()
