"""The driver's half of the split virtqueue: make buffers available, collect what the device used.

Source: virtio 1.2, 2.7; behaviour as in Linux ``drivers/virtio/virtio_ring.c``: one indirect table for a request of
more than one buffer where that was negotiated, event indices where those were.
"""

from collections.abc import Sequence
from typing import Final

from guest.virtqueue.virtqueue import (
    Buffer,
    BufferDescriptor,
    DriverVirtqueue,
    IndirectTables,
    QueueFullError,
    UsedBuffer,
    WriteGuest,
)
from protocol.errors import VirtqueueError
from protocol.process.memory_fence import full_fence, order_accesses
from protocol.split_ring import DESCRIPTOR, VIRTQ_USED_F_NO_NOTIFY, Descriptor, SplitRing
from protocol.virtio_ring import (
    DESCRIPTOR_SIZE,
    VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_NEXT,
    needs_event,
    ring_delta,
)

_END: Final = -1


class SplitDriverVirtqueue(DriverVirtqueue):
    """The driver's side of one split virtqueue over zeroed ring memory.

    ``tables`` None means that INDIRECT_DESC was not negotiated: every buffer then takes a descriptor of its own.
    ``mixed`` has the first buffer of a request in a direct descriptor followed by an indirect table of the others.
    No driver is known to do that, but every device has to understand it (virtio 1.2, 2.7.5.3.2).
    """

    def __init__(
        self,
        ring: SplitRing,
        *,
        event_idx: bool,
        tables: IndirectTables | None,
        write_guest: WriteGuest,
        in_order: bool = False,
        mixed: bool = False,
    ) -> None:
        super().__init__(event_idx=event_idx, tables=tables, write_guest=write_guest, in_order=in_order)
        self._ring = ring
        self._mixed = mixed
        self._next_free = [*range(1, ring.size), _END]
        self._free_head = 0
        self._free_count = ring.size
        self._avail_index = 0
        self._kicked_index = 0
        self._last_used = 0
        self._chains: dict[int, list[int]] = {}

    @property
    def outstanding(self) -> int:
        """Number of requests that the device has not given back."""
        return len(self._chains)

    @property
    def oldest(self) -> int:
        """Where the oldest request lies that the device has not given back, as a base for a device to start from."""
        return self._last_used

    def skip_to(self, index: int) -> None:
        """Go on at the 16-bit ``index`` of an empty ring whose two indices were set to it."""
        assert not self._chains
        self._avail_index = self._kicked_index = self._last_used = index

    def add(self, readable: Sequence[Buffer], writable: Sequence[Buffer]) -> int:
        """Make one request available and return its head. The device is not notified: see :meth:`needs_kick`.

        Raises:
            QueueFullError: too few free descriptors.
        """
        buffers = self._descriptors(readable, writable)
        direct, in_table = self._divide(buffers)
        indices = self._take(len(direct) + bool(in_table))
        head = indices[0]
        if in_table:
            table = self._free_tables.pop()
            self._table_of[head] = table
            self._write_guest(table, _linked(in_table))
            direct = [*direct, (table, DESCRIPTOR_SIZE * len(in_table), VIRTQ_DESC_F_INDIRECT)]
        last = len(direct) - 1
        for position, (address, length, flags) in enumerate(direct):
            more, following = (VIRTQ_DESC_F_NEXT, indices[position + 1]) if position < last else (0, 0)
            self._ring.write_descriptor(indices[position], Descriptor(address, length, flags | more, following))
        self._chains[head] = indices
        if self._batch is not None:
            self._batch.add(head, writable)
        self._publish(head)
        return head

    def _publish(self, head: int) -> None:
        ring = self._ring
        ring.avail[2 + (self._avail_index & (ring.size - 1))] = head
        self._avail_index = (self._avail_index + 1) & 0xFFFF
        order_accesses()  # the entry must be visible before the index that publishes it
        ring.avail[1] = self._avail_index

    def _divide(self, buffers: list[BufferDescriptor]) -> tuple[list[BufferDescriptor], list[BufferDescriptor]]:
        # The buffers with descriptors of their own, and those in a table.
        own = 1 if self._mixed else 0
        if self._free_tables and len(buffers) > 1 and len(buffers) - own <= self._table_capacity:
            return buffers[:own], buffers[own:]
        return buffers, []

    def _take(self, count: int) -> list[int]:
        if count > self._free_count:
            raise QueueFullError(f"{count} descriptors needed, {self._free_count} free")
        self._free_count -= count
        if self._batch is not None:
            # virtio 1.2, 2.7.5: "If VIRTIO_F_IN_ORDER has been negotiated, driver uses descriptors in ring order:
            # starting from offset 0 in the table, and wrapping around at the end of the table."
            first, size = self._free_head, self._ring.size
            self._free_head = (first + count) % size
            return [(first + number) % size for number in range(count)]
        taken: list[int] = []
        for _ in range(count):
            taken.append(self._free_head)
            self._free_head = self._next_free[self._free_head]
        return taken

    def needs_kick(self) -> bool:
        """Return whether the device asked to be notified of the requests added since the last call."""
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
        """Return the next request that the device used, or None.

        Raises:
            VirtqueueError: the device broke a rule of the ring.
        """
        batch = self._batch
        if batch is not None and batch.is_open:
            return self._collect(batch.take())
        ring = self._ring
        waiting = ring_delta(ring.used[1], self._last_used)
        if waiting == 0:
            return None
        if waiting > ring.size:
            raise VirtqueueError(f"the device's used index is {waiting} ahead in a ring of {ring.size}")
        order_accesses()  # the element is read after the index that publishes it
        slot = self._last_used & (ring.size - 1)
        used = UsedBuffer(ring.used_elements[1 + 2 * slot], ring.used_elements[2 + 2 * slot])
        if used.head not in self._chains:
            raise VirtqueueError(f"the device gave back {used.head}, which is not in flight")
        if batch is not None:
            batch.report(used, waiting)
            used = batch.take()
        return self._collect(used)

    def _collect(self, used: UsedBuffer) -> UsedBuffer:
        indices = self._chains.pop(used.head)
        self._last_used = (self._last_used + 1) & 0xFFFF
        if self._batch is None:
            for index in reversed(indices):
                self._next_free[index] = self._free_head
                self._free_head = index
        self._free_count += len(indices)
        if used.head in self._table_of:
            self._free_tables.append(self._table_of.pop(used.head))
        return used

    def enable_interrupt(self) -> bool:
        """Ask for an interrupt with the next used entry. True when one is already there: then collect it."""
        ring = self._ring
        if self._event_idx:
            ring.avail[ring.used_event_at] = self._last_used
            full_fence()  # the event index must be visible before we decide that nothing arrived
        return ring.used[1] != self._last_used


def _linked(parts: list[BufferDescriptor]) -> bytes:
    # An indirect table: each entry links to the next.
    last = len(parts) - 1
    return b"".join(
        DESCRIPTOR.pack(address, length, flags | (VIRTQ_DESC_F_NEXT if i < last else 0), i + 1 if i < last else 0)
        for i, (address, length, flags) in enumerate(parts)
    )
