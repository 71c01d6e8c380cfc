"""The device's half of the split virtqueue: take chains that the driver made available, give them back as used.

Source: virtio 1.2, 2.7. The driver is not trusted: a ring of any content ends in a chain or in a
:class:`VirtqueueError`, after a bounded number of steps. See :class:`host.virtqueue.virtqueue.DeviceVirtqueue` for its
use.
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
from protocol.errors import VirtqueueError
from protocol.process.memory_fence import full_fence, order_accesses
from protocol.split_ring import DESCRIPTOR, VIRTQ_AVAIL_F_NO_INTERRUPT, SplitRing
from protocol.virtio_ring import VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE, needs_event, ring_delta


class SplitDeviceVirtqueue:
    """The device's side of one split virtqueue.

    ``next_avail`` is the 16-bit index of the available entry to take next, ``next_used`` that of the used entry to
    write next. The latter is read from the ring, which is where a driver keeps it over a restart of the device.
    """

    def __init__(self, ring: SplitRing, base: int, features: RingFeatures, read_guest: ReadGuest) -> None:
        self._ring = ring
        self._features = features
        self._read_guest = read_guest
        self.on_write: OnWrite | None = None
        self.next_avail = base & 0xFFFF
        self.next_used = ring.used[1]
        self._signalled_used = self.next_used
        self._mask = ring.size - 1
        self._order = UsedOrder() if features.in_order else None

    @property
    def base(self) -> int:
        """The 16-bit index of the available entry to take next."""
        return self.next_avail

    @property
    def token(self) -> int:
        """The 16-bit index of the used entry to write next: the device alone moves it, so it tells an unchanged ring
        from memory that has another use by now."""
        return self.next_used

    def is_as_left(self, token: int) -> bool:
        """Return whether the used index in the ring was ``token`` when this device's side was made."""
        return self.next_used == token

    def pop(self, longest: int = CHAIN_MAX) -> Chain | None:
        """Take the next available chain, or return None if the ring is empty.

        Raises:
            LongChain: the chain has more than ``longest`` buffers, or its indirect table more descriptors.
            VirtqueueError: the ring breaks a rule. ``next_avail`` has not moved; the queue must not be used further.
        """
        ring = self._ring
        waiting = ring_delta(ring.avail[1], self.next_avail)
        if waiting == 0:
            return None
        if waiting > ring.size:
            raise VirtqueueError(f"available index is {waiting} ahead in a ring of {ring.size}")
        order_accesses()  # the entries are read after the index that publishes them
        head = ring.avail[2 + (self.next_avail & self._mask)]
        chain = self._read_chain(head, longest)
        self.next_avail = (self.next_avail + 1) & 0xFFFF
        if self._order is not None:
            self._order.take(head)
        return chain

    def unpop(self, chain: Chain) -> None:
        """Put back ``chain``, the one that was taken last: it will be taken again."""
        self.next_avail = (self.next_avail - 1) & 0xFFFF
        if self._order is not None:
            self._order.untake(chain.head)

    def _read_chain(self, head: int, longest: int) -> Chain:
        ring = self._ring
        readable: list[Buffer] = []
        writable: list[Buffer] = []
        index = head
        for _ in range(min(ring.size, longest)):
            if index >= ring.size:
                raise VirtqueueError(f"descriptor index {index} in a ring of {ring.size}")
            address, length, flags, index = ring.read_descriptor(index)
            if flags & VIRTQ_DESC_F_INDIRECT:
                # virtio 1.2, 2.7.5.3.2: "The device MUST ignore the write-only flag in the descriptor that refers to
                # an indirect table", and MUST handle direct descriptors followed by one indirect.
                if flags & VIRTQ_DESC_F_NEXT:
                    raise VirtqueueError(f"descriptor chain {head} goes on after an indirect table")
                self._read_indirect(address, length, readable, writable, longest)
                return Chain(head, readable, writable, (address, length))
            if flags & VIRTQ_DESC_F_WRITE:
                writable.append((address, length))
            else:
                add_readable(address, length, readable, writable)
            if not flags & VIRTQ_DESC_F_NEXT:
                return Chain(head, readable, writable, None)
        if longest < ring.size:
            raise LongChain
        raise VirtqueueError(f"descriptor chain {head} is a loop or longer than its ring of {ring.size}")

    def _read_indirect(
        self, address: int, length: int, readable: list[Buffer], writable: list[Buffer], longest: int
    ) -> None:
        room = longest - len(readable) - len(writable)
        data = read_indirect_table(self._read_guest, address, length, self._features, self._ring.size, room)
        table = list(DESCRIPTOR.iter_unpack(data))
        count = len(table)
        index = 0
        for _ in range(count):
            if index >= count:
                raise VirtqueueError(f"descriptor index {index} in an indirect table of {count}")
            buffer_address, buffer_length, flags, index = table[index]
            if flags & VIRTQ_DESC_F_INDIRECT:
                raise VirtqueueError("an indirect descriptor inside an indirect table")
            if flags & VIRTQ_DESC_F_WRITE:
                writable.append((buffer_address, buffer_length))
            else:
                add_readable(buffer_address, buffer_length, readable, writable)
            if not flags & VIRTQ_DESC_F_NEXT:
                return
        raise VirtqueueError(f"the indirect table at {address:#x} is a loop")

    def add_used(self, head: int, length: int) -> None:
        """Give chain ``head`` back; ``length`` bytes of it were written by the device.

        With IN_ORDER a chain whose turn has not come is held back until those before it are given back.
        """
        if self._order is None:
            self._write_used(head, length)
        else:
            for each_head, each_length in self._order.give_back(head, length):
                self._write_used(each_head, each_length)

    def _write_used(self, head: int, length: int) -> None:
        # virtio 1.2, 2.7.8.2: "The device MUST set len prior to updating the used idx."
        ring = self._ring
        slot = self.next_used & self._mask
        elements = ring.used_elements
        elements[1 + 2 * slot] = head
        elements[2 + 2 * slot] = length
        self.next_used = (self.next_used + 1) & 0xFFFF
        order_accesses()
        ring.used[1] = self.next_used
        if self.on_write is not None:
            self.on_write(2, 4 + 8 * slot, 8)
            self.on_write(2, 2, 2)

    def needs_notification(self) -> bool:
        """Return whether the driver has to be told about the used entries since this was last asked."""
        full_fence()  # the used index must be visible before we look whether the driver sleeps
        ring = self._ring
        old, new = self._signalled_used, self.next_used
        self._signalled_used = new
        if old == new:
            return False
        if self._features.event_idx:
            return needs_event(ring.avail[ring.used_event_at], new, old)
        return not ring.avail[0] & VIRTQ_AVAIL_F_NO_INTERRUPT

    def enable_notification(self) -> bool:
        """Ask for a kick when the next chain becomes available. Return True if one already has: then go on popping."""
        ring = self._ring
        if self._features.event_idx:
            ring.used[ring.avail_event_at] = self.next_avail
            if self.on_write is not None:
                self.on_write(2, 2 * ring.avail_event_at, 2)
            full_fence()  # the event index must be visible before we decide that nothing arrived
        return ring.avail[1] != self.next_avail
