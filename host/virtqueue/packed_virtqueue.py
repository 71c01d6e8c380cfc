"""The device's half of the packed virtqueue: take lists that the driver made available, give them back as used.

Source: virtio 1.2, 2.8. The driver is not trusted: a ring of any content ends in a chain or in a
:class:`VirtqueueError`, after a bounded number of steps. See :class:`host.virtqueue.virtqueue.DeviceVirtqueue` for its
use.

The device remembers how many descriptors each buffer id in its hands occupies, since it skips as many when it gives
the buffer back.
"""

from host.virtqueue.virtqueue import (
    CHAIN_MAX,
    Buffer,
    Chain,
    LongChain,
    OnWrite,
    ReadGuest,
    RingFeatures,
    UsedOrder,
    add_readable,
    read_indirect_table,
)
from protocol.errors import VhostUserError, VirtqueueError
from protocol.packed_ring import (
    AVAIL_USED,
    FRESH_BASE,
    PACKED_DESCRIPTOR,
    VIRTQ_DESC_F_AVAIL,
    VIRTQ_DESC_F_USED,
    WRAP_COUNTER,
    PackedRing,
    available_bits,
    event_word,
    used_bits,
    wants_notification,
)
from protocol.process.memory_fence import full_fence, order_accesses
from protocol.virtio_ring import VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE


class PackedDeviceVirtqueue:
    """The device's side of one packed virtqueue.

    Raises:
        VhostUserError: ``base`` is not a place in the ring.
    """

    def __init__(self, ring: PackedRing, base: int, features: RingFeatures, read_guest: ReadGuest) -> None:
        if base == 0 and not ring.halves[7] & VIRTQ_DESC_F_USED:
            # Wrap counters begin at 1. A front-end that knows of no packed base, as User Mode Linux, says 0 for a fresh
            # ring. A ring that is really at the beginning of its second lap has a used descriptor in its first place.
            base = FRESH_BASE
        size = ring.size
        self._next_avail, self._next_used = base & (WRAP_COUNTER - 1), base >> 16 & (WRAP_COUNTER - 1)
        self._avail_bits = available_bits(bool(base & WRAP_COUNTER))
        self._used_bits = used_bits(bool(base & WRAP_COUNTER << 16))
        same_lap = bool(base & WRAP_COUNTER) == bool(base & WRAP_COUNTER << 16)
        self._in_flight = self._next_avail - self._next_used + (0 if same_lap else size)
        if max(self._next_avail, self._next_used) >= size or not 0 <= self._in_flight <= size:
            raise VhostUserError(f"base {base:#x} is not a place in a packed ring of {size}")
        self._ring = ring
        self._size = size
        self._features = features
        self._read_guest = read_guest
        self.on_write: OnWrite | None = None
        self._slots_of: dict[int, int] = {}
        self._unsignalled = 0
        self._event = ring.device_event[0]
        self._order = UsedOrder() if features.in_order else None

    @property
    def _avail_position(self) -> int:
        return self._next_avail | (WRAP_COUNTER if self._avail_bits == VIRTQ_DESC_F_AVAIL else 0)

    @property
    def _used_position(self) -> int:
        return self._next_used | (WRAP_COUNTER if self._used_bits else 0)

    @property
    def base(self) -> int:
        """The positions of the next available descriptor (lower half) and of the next used one (upper half)."""
        return self._avail_position | self._used_position << 16

    @property
    def token(self) -> int:
        """The content of the device event area: the device alone writes it, a different word at each place."""
        return self._event

    def is_as_left(self, token: int) -> bool:
        """Return whether the device event area held ``token`` when this device's side was made."""
        return self._event == token

    def pop(self, longest: int = CHAIN_MAX) -> Chain | None:
        """Take the next available list, or return None if the ring is empty.

        Raises:
            LongChain: the list, or its indirect table, has more than ``longest`` descriptors.
            VirtqueueError: the ring breaks a rule. The queue has not moved; it must not be used further.
        """
        ring = self._ring
        position = self._next_avail
        if ring.halves[8 * position + 7] & AVAIL_USED != self._avail_bits:
            return None
        order_accesses()  # the descriptor is read after the flags that make it available
        address, length, buffer_id, flags = ring.read_descriptor(position)
        table = None
        slots = 1
        readable: list[Buffer] = []
        writable: list[Buffer] = []
        if flags & VIRTQ_DESC_F_INDIRECT:
            if flags & VIRTQ_DESC_F_NEXT:
                raise VirtqueueError("an indirect descriptor in a list of descriptors")
            table = (address, length)
            self._read_indirect(address, length, readable, writable, longest)
        else:
            slots, buffer_id = self._read_list(readable, writable, longest)
        if buffer_id in self._slots_of:
            raise VirtqueueError(f"buffer id {buffer_id} is available a second time before it was used")
        if self._in_flight + slots > self._size:
            raise VirtqueueError(f"more than {self._size} descriptors are in flight")
        self._slots_of[buffer_id] = slots
        self._in_flight += slots
        self._next_avail = position + slots
        if self._next_avail >= self._size:
            self._next_avail -= self._size
            self._avail_bits ^= AVAIL_USED
        if self._order is not None:
            self._order.take(buffer_id)
        return Chain(buffer_id, readable, writable, table)

    def _read_list(self, readable: list[Buffer], writable: list[Buffer], longest: int) -> tuple[int, int]:
        # Returns how many descriptors the list has, and its buffer id, which stands in the last of them.
        index, bits = self._next_avail, self._avail_bits
        for count in range(1, min(self._size, longest) + 1):
            address, length, buffer_id, flags = self._ring.read_descriptor(index)
            if flags & AVAIL_USED != bits:
                raise VirtqueueError(f"descriptor {index} of a list is not available though its first one is")
            if flags & VIRTQ_DESC_F_INDIRECT:
                raise VirtqueueError("an indirect descriptor in a list of descriptors")
            if flags & VIRTQ_DESC_F_WRITE:
                writable.append((address, length))
            else:
                add_readable(address, length, readable, writable)
            if not flags & VIRTQ_DESC_F_NEXT:
                return count, buffer_id
            index += 1
            if index == self._size:
                index = 0
                bits ^= AVAIL_USED
        if longest < self._size:
            raise LongChain
        raise VirtqueueError(f"a list of descriptors is longer than its ring of {self._size}")

    def _read_indirect(
        self, address: int, length: int, readable: list[Buffer], writable: list[Buffer], longest: int
    ) -> None:
        # virtio 1.2, 2.8.7: descriptors follow one another without NEXT, the WRITE flag is the only valid one, and
        # other flags and the buffer id "are reserved and are ignored by the device".
        data = read_indirect_table(self._read_guest, address, length, self._features, self._size, longest)
        for buffer_address, buffer_length, _, flags in PACKED_DESCRIPTOR.iter_unpack(data):
            if flags & VIRTQ_DESC_F_WRITE:
                writable.append((buffer_address, buffer_length))
            else:
                add_readable(buffer_address, buffer_length, readable, writable)

    def unpop(self, chain: Chain) -> None:
        """Put back ``chain``, the one that was taken last: it will be taken again."""
        slots = self._slots_of.pop(chain.head)
        self._in_flight -= slots
        self._next_avail -= slots
        if self._next_avail < 0:
            self._next_avail += self._size
            self._avail_bits ^= AVAIL_USED
        if self._order is not None:
            self._order.untake(chain.head)

    def add_used(self, head: int, length: int) -> None:
        """Give the list with buffer id ``head`` back; ``length`` bytes of it were written by the device.

        With IN_ORDER a list whose turn has not come is held back until those before it are given back.
        """
        if self._order is None:
            self._write_used(head, length)
        else:
            for each_head, each_length in self._order.give_back(head, length):
                self._write_used(each_head, each_length)

    def _write_used(self, buffer_id: int, length: int) -> None:
        ring = self._ring
        index = self._next_used
        slots = self._slots_of.pop(buffer_id)
        ring.halves[8 * index + 6] = buffer_id
        ring.words[4 * index + 2] = length
        order_accesses()  # both are visible before the flags that say so
        ring.halves[8 * index + 7] = self._used_bits | (VIRTQ_DESC_F_WRITE if length else 0)
        if self.on_write is not None:
            self.on_write(0, 16 * index + 8, 8)
        self._in_flight -= slots
        self._unsignalled += slots
        self._next_used = index + slots
        if self._next_used >= self._size:
            self._next_used -= self._size
            self._used_bits ^= AVAIL_USED

    def needs_notification(self) -> bool:
        """Return whether the driver has to be told about the used descriptors since this was last asked."""
        full_fence()  # the used descriptors must be visible before we look whether the driver sleeps
        moved, self._unsignalled = self._unsignalled, 0
        event = self._ring.driver_event[0]
        return wants_notification(event, self._used_position, moved, self._size, event_idx=self._features.event_idx)

    def enable_notification(self) -> bool:
        """Ask for a kick when the next list becomes available. Return True if one already has: then go on popping."""
        ring = self._ring
        self._event = ring.device_event[0] = event_word(self._avail_position, event_idx=self._features.event_idx)
        if self.on_write is not None:
            self.on_write(2, 0, 4)
        if self._features.event_idx:
            full_fence()  # the event must be visible before we decide that nothing arrived
        return ring.halves[8 * self._next_avail + 7] & AVAIL_USED == self._avail_bits
