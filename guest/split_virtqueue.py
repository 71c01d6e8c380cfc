"""The driver's half of the split virtqueue: make buffers available, collect what the device used.

Source: virtio 1.2, 2.7; behaviour as in Linux ``drivers/virtio/virtio_ring.c``: one indirect table for a request of
more than one buffer where that was negotiated, event indices where those were.

Must not know: what a buffer means, how a kick travels.
"""

from collections.abc import Sequence
from typing import Final

from guest.virtqueue import Buffer, IndirectTables, QueueFullError, UsedBuffer, WriteGuest
from protocol.errors import VirtqueueError
from protocol.split_ring import DESCRIPTOR, VIRTQ_USED_F_NO_NOTIFY, Descriptor, SplitRing
from protocol.virtio_ring import (
    DESCRIPTOR_SIZE,
    VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_F_WRITE,
    full_fence,
    needs_event,
    order_accesses,
    ring_delta,
)

_END: Final = -1


class SplitDriverVirtqueue:
    """The driver's side of one split virtqueue over zeroed ring memory.

    ``tables`` None means that INDIRECT_DESC was not negotiated: every buffer then takes a descriptor of its own.
    """

    def __init__(
        self, ring: SplitRing, *, event_idx: bool, tables: IndirectTables | None, write_guest: WriteGuest
    ) -> None:
        self._ring = ring
        self._event_idx = event_idx
        self._write_guest = write_guest
        self._table_capacity = tables.capacity if tables else 0
        self._free_tables = list(tables.addresses) if tables else []
        self._next_free = [*range(1, ring.size), _END]
        self._free_head = 0
        self._free_count = ring.size
        self._avail_index = 0
        self._kicked_index = 0
        self._last_used = 0
        self._chains: dict[int, list[int]] = {}
        self._table_of: dict[int, int] = {}

    @property
    def outstanding(self) -> int:
        """Number of requests that the device has not given back."""
        return len(self._chains)

    def add(self, readable: Sequence[Buffer], writable: Sequence[Buffer]) -> int:
        """Make one request available and return its head. The device is not told yet: see :meth:`needs_kick`.

        Raises:
            QueueFullError: too few free descriptors.
        """
        buffers = [(address, length, 0) for address, length in readable]
        buffers += [(address, length, VIRTQ_DESC_F_WRITE) for address, length in writable]
        if not buffers:
            raise ValueError("a request without buffers")
        if self._free_tables and 1 < len(buffers) <= self._table_capacity:
            head = self._add_indirect(buffers)
        else:
            head = self._add_direct(buffers)
        ring = self._ring
        ring.avail[2 + (self._avail_index & (ring.size - 1))] = head
        self._avail_index = (self._avail_index + 1) & 0xFFFF
        order_accesses()  # the entry must be visible before the index that publishes it
        ring.avail[1] = self._avail_index
        return head

    def _take(self, count: int) -> list[int]:
        if count > self._free_count:
            raise QueueFullError(f"{count} descriptors needed, {self._free_count} free")
        taken: list[int] = []
        for _ in range(count):
            taken.append(self._free_head)
            self._free_head = self._next_free[self._free_head]
        self._free_count -= count
        return taken

    def _add_direct(self, buffers: list[tuple[int, int, int]]) -> int:
        indices = self._take(len(buffers))
        for position, (address, length, flags) in enumerate(buffers):
            is_last = position == len(buffers) - 1
            following = 0 if is_last else indices[position + 1]
            more = 0 if is_last else VIRTQ_DESC_F_NEXT
            self._ring.write_descriptor(indices[position], Descriptor(address, length, flags | more, following))
        self._chains[indices[0]] = indices
        return indices[0]

    def _add_indirect(self, buffers: list[tuple[int, int, int]]) -> int:
        indices = self._take(1)
        table = self._free_tables.pop()
        last = len(buffers) - 1
        self._write_guest(
            table,
            b"".join(
                DESCRIPTOR.pack(
                    address, length, flags | (VIRTQ_DESC_F_NEXT if i < last else 0), i + 1 if i < last else 0
                )
                for i, (address, length, flags) in enumerate(buffers)
            ),
        )
        descriptor = Descriptor(table, DESCRIPTOR_SIZE * len(buffers), VIRTQ_DESC_F_INDIRECT, 0)
        self._ring.write_descriptor(indices[0], descriptor)
        self._chains[indices[0]] = indices
        self._table_of[indices[0]] = table
        return indices[0]

    def needs_kick(self) -> bool:
        """Return whether the device wants to be told about what was added since this was last asked."""
        full_fence()  # the available index must be visible before we look whether the device sleeps
        ring = self._ring
        old, new = self._kicked_index, self._avail_index
        self._kicked_index = new
        if old == new:
            return False
        if self._event_idx:
            return needs_event(ring.used[ring.avail_event_at], new, old)
        return not ring.used[0] & VIRTQ_USED_F_NO_NOTIFY

    def get_used(self) -> UsedBuffer | None:
        """Take the next request that the device is done with, or return None.

        Raises:
            VirtqueueError: the device broke a rule of the ring.
        """
        ring = self._ring
        waiting = ring_delta(ring.used[1], self._last_used)
        if waiting == 0:
            return None
        if waiting > ring.size:
            raise VirtqueueError(f"the device's used index is {waiting} ahead in a ring of {ring.size}")
        order_accesses()  # the element is read after the index that publishes it
        slot = self._last_used & (ring.size - 1)
        head, length = ring.used_elements[1 + 2 * slot], ring.used_elements[2 + 2 * slot]
        indices = self._chains.pop(head, None)
        if indices is None:
            raise VirtqueueError(f"the device gave back {head}, which it does not have")
        self._last_used = (self._last_used + 1) & 0xFFFF
        self._give_back(head, indices)
        return UsedBuffer(head, length)

    def _give_back(self, head: int, indices: list[int]) -> None:
        for index in reversed(indices):
            self._next_free[index] = self._free_head
            self._free_head = index
        self._free_count += len(indices)
        if head in self._table_of:
            self._free_tables.append(self._table_of.pop(head))

    def enable_interrupt(self) -> bool:
        """Ask for an interrupt with the next used entry. Return True if there is one already: then collect it."""
        ring = self._ring
        if self._event_idx:
            ring.avail[ring.used_event_at] = self._last_used
            full_fence()  # the event index must be visible before we decide that nothing arrived
        return ring.used[1] != self._last_used
