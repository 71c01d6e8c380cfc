"""One virtqueue of an attached machine: its ring in guest memory, its two event descriptors, the requests under way."""

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence

from guest.ram import GuestRam
from guest.vhost_user.frontend import QueueSetup
from guest.virtqueue.ring_memory import RingMemory
from guest.virtqueue.virtqueue import Buffer, IndirectTables
from guest.virtqueue.virtqueue_formats import open_virtqueue
from protocol.errors import VirtqueueError
from protocol.memory import UserAddress
from protocol.virtio import FeatureBit, has_feature


class AttachedQueue:
    """Virtqueue number ``index`` over zeroed ring memory, as negotiated in ``features``.

    The event descriptors belong to this queue; the back-end has duplicates. With ``kick_in_band``, which is called with
    the index, it has none: kicks and interrupts are messages of the session. ``on_broken`` is called with the reason
    when the device breaks a rule of the ring.
    """

    def __init__(
        self,
        index: int,
        memory: RingMemory,
        ram: GuestRam,
        features: int,
        *,
        on_broken: Callable[[str], None],
        kick_in_band: Callable[[int], None] | None = None,
    ) -> None:
        self.index = index
        self.base = 0
        """Where the device starts: 0 for an empty ring, else the base at which it was stopped."""
        self._memory = memory
        self._on_broken = on_broken
        self._kick_in_band = kick_in_band
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
        self._gone = False
        self._loop.add_reader(self.call_fd, self._on_interrupt)

    def setup(self, user_base: int) -> QueueSetup:
        """Return what the back-end is told of the queue; ``user_base`` is the user address of guest address 0."""
        in_band = self._kick_in_band is not None
        return QueueSetup(
            size=self._memory.options.size,
            descriptor=UserAddress(user_base + self._memory.descriptor),
            available=UserAddress(user_base + self._memory.available),
            used=UserAddress(user_base + self._memory.used),
            kick=None if in_band else self.kick_fd,
            call=None if in_band else self.call_fd,
        )

    def post(self, readable: Sequence[Buffer] = (), writable: Sequence[Buffer] = ()) -> "asyncio.Future[int | None]":
        """Hand a request to the device and return at once; several may be under way.

        The future's result is the used length that the device gave, or None when the back-end went away first. Until it
        is done, the device may write to ``writable`` buffers.

        Raises:
            QueueFullError: too few descriptors are free. Nothing was added.
        """
        future: asyncio.Future[int | None] = self._loop.create_future()
        if self._gone:
            future.set_result(None)
            return future
        self._waiting[self._virtqueue.add(readable, writable)] = future
        if self._virtqueue.needs_kick():
            self.kick()
        self.collect()  # a device that used a buffer before interrupts were enabled sends none for it
        return future

    def kick(self) -> None:
        """Notify the device."""
        if self._kick_in_band is None:
            os.eventfd_write(self.kick_fd, 1)
        else:
            self._kick_in_band(self.index)

    def collect(self) -> None:
        """Complete every request that the device has used, and enable the interrupt for the next."""
        if self._gone:
            return
        try:
            while True:
                while (used := self._virtqueue.get_used()) is not None:
                    future = self._waiting.pop(used.head, None)
                    if future is not None and not future.done():  # its caller may have been cancelled
                        future.set_result(used.length)
                if not self._virtqueue.enable_interrupt():
                    return
        except VirtqueueError as error:
            self._on_broken(str(error))

    def _on_interrupt(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.call_fd)
        self.collect()

    def rewind(self) -> None:
        """Have the next device, which has no state of the ring, start from the oldest request that was not used."""
        self.base = self._virtqueue.oldest

    def give_up(self) -> None:
        """Complete every request with None, and each later one: the back-end went away."""
        self._gone = True
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
