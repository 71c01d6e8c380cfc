"""The driver's half of the packed virtqueue: make buffers available, collect what the device used.

Source: virtio 1.2, 2.8; behaviour as in Linux ``drivers/virtio/virtio_ring.c``: buffer ids from a list of free ones,
the id in every descriptor of a list, the flags of the first descriptor stored last, one indirect table for a request
of more than one buffer where that was negotiated.
"""

from collections.abc import Sequence

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
from protocol.packed_ring import (
    AVAIL_USED,
    PACKED_DESCRIPTOR,
    WRAP_COUNTER,
    PackedRing,
    available_bits,
    event_word,
    used_bits,
    wants_notification,
)
from protocol.process.memory_fence import full_fence, order_accesses
from protocol.virtio_ring import DESCRIPTOR_SIZE, VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE


class PackedDriverVirtqueue(DriverVirtqueue):
    """The driver's side of one packed virtqueue over zeroed ring memory.

    ``tables`` None means that INDIRECT_DESC was not negotiated: every buffer then takes a descriptor of its own.
    """

    def __init__(
        self,
        ring: PackedRing,
        *,
        event_idx: bool,
        tables: IndirectTables | None,
        write_guest: WriteGuest,
        in_order: bool = False,
    ) -> None:
        super().__init__(event_idx=event_idx, tables=tables, write_guest=write_guest, in_order=in_order)
        self._ring = ring
        self._free_ids = list(range(ring.size - 1, -1, -1))
        self._free_count = ring.size
        self._next_avail = 0
        self._avail_wrap = True
        self._unkicked = 0
        self._last_used = 0
        self._used_wrap = True
        self._slots_of: dict[int, int] = {}

    @property
    def outstanding(self) -> int:
        """Number of requests that the device has not given back."""
        return len(self._slots_of)

    @property
    def oldest(self) -> int:
        """Where the oldest request lies that the device has not given back, as a base for a device to start from."""
        position = self._last_used | (WRAP_COUNTER if self._used_wrap else 0)
        return position | position << 16

    def add(self, readable: Sequence[Buffer], writable: Sequence[Buffer]) -> int:
        """Make one request available and return its buffer id. The device is not notified: see
        :meth:`needs_kick`.

        Raises:
            QueueFullError: too few free descriptors.
        """
        buffers = self._descriptors(readable, writable)
        indirect = bool(self._free_tables) and 1 < len(buffers) <= self._table_capacity
        slots = 1 if indirect else len(buffers)
        if slots > self._free_count:
            raise QueueFullError(f"{slots} descriptors needed, {self._free_count} free")
        buffer_id = self._free_ids.pop()
        if indirect:
            table = self._free_tables.pop()
            self._table_of[buffer_id] = table
            self._write_guest(
                table,
                b"".join(PACKED_DESCRIPTOR.pack(address, length, 0, flags) for address, length, flags in buffers),
            )
            buffers = [(table, DESCRIPTOR_SIZE * len(buffers), VIRTQ_DESC_F_INDIRECT)]
        self._slots_of[buffer_id] = slots
        if self._batch is not None:
            self._batch.add(buffer_id, writable)
        self._write_list(buffer_id, buffers)
        return buffer_id

    def _write_list(self, buffer_id: int, buffers: list[BufferDescriptor]) -> None:
        ring = self._ring
        first = self._next_avail
        first_flags = 0
        last = len(buffers) - 1
        for number, (address, length, kind) in enumerate(buffers):
            index = self._next_avail
            flags = kind | available_bits(self._avail_wrap) | (VIRTQ_DESC_F_NEXT if number < last else 0)
            ring.write_descriptor(index, address, length, buffer_id)
            if number:
                ring.halves[8 * index + 7] = flags
            else:
                first_flags = flags
            self._next_avail += 1
            if self._next_avail == ring.size:
                self._next_avail = 0
                self._avail_wrap = not self._avail_wrap
        self._free_count -= len(buffers)
        self._unkicked += len(buffers)
        order_accesses()  # the whole list is visible before the flags that make it available
        ring.halves[8 * first + 7] = first_flags

    def needs_kick(self) -> bool:
        """Return whether the device asked to be notified of the requests added since the last call."""
        full_fence()  # what is available must be visible before we look whether the device sleeps
        moved, self._unkicked = self._unkicked, 0
        ring = self._ring
        position = self._next_avail | (WRAP_COUNTER if self._avail_wrap else 0)
        return wants_notification(ring.device_event[0], position, moved, ring.size, event_idx=self._event_idx)

    def _is_used(self) -> bool:
        return self._ring.halves[8 * self._last_used + 7] & AVAIL_USED == used_bits(self._used_wrap)

    def get_used(self) -> UsedBuffer | None:
        """Return the next request that the device used, or None. The length counts only where the device set the write
        flag (virtio 1.2, 2.8.4).

        Raises:
            VirtqueueError: the device broke a rule of the ring.
        """
        batch = self._batch
        if batch is not None and batch.is_open:
            return self._collect(batch.take())
        if not self._is_used():
            return None
        order_accesses()  # the descriptor is read after the flags that say that it is used
        _, length, buffer_id, flags = self._ring.read_descriptor(self._last_used)
        if buffer_id not in self._slots_of:
            raise VirtqueueError(f"the device gave back {buffer_id}, which is not in flight")
        used = UsedBuffer(buffer_id, length if flags & VIRTQ_DESC_F_WRITE else 0)
        if batch is not None:
            batch.report(used, self.outstanding)
            used = batch.take()
        return self._collect(used)

    def _collect(self, used: UsedBuffer) -> UsedBuffer:
        slots = self._slots_of.pop(used.head)
        self._free_ids.append(used.head)
        self._free_count += slots
        if used.head in self._table_of:
            self._free_tables.append(self._table_of.pop(used.head))
        self._last_used += slots
        if self._last_used >= self._ring.size:
            self._last_used -= self._ring.size
            self._used_wrap = not self._used_wrap
        return used

    def enable_interrupt(self) -> bool:
        """Ask for an interrupt with the next used descriptor. True when one is already there: then collect it."""
        ring = self._ring
        position = self._last_used | (WRAP_COUNTER if self._used_wrap else 0)
        ring.driver_event[0] = event_word(position, event_idx=self._event_idx)
        if self._event_idx:
            full_fence()  # the event must be visible before we decide that nothing arrived
        return self._is_used() or (self._batch is not None and self._batch.is_open)
