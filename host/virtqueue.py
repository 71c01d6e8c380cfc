"""The device's half of the split virtqueue: take chains that the driver made available, give them back as used.

Source: virtio 1.2, 2.7. The driver is not trusted: whatever it writes ends either in a chain or in a
:class:`VirtqueueError`, after a bounded number of steps.

Example: serve everything, then go to sleep without losing a kick::

    while True:
        chain = queue.pop()
        if chain is None:
            if queue.enable_notification():
                continue  # more arrived while falling asleep
            break
        ...  # deal with the chain
        queue.add_used(chain.head, 0)
        if queue.needs_notification():
            ...  # signal the call eventfd

Must not know: mappings, eventfds, what a chain means.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from protocol.errors import VirtqueueError
from protocol.virtio_ring import (
    DESCRIPTOR,
    DESCRIPTOR_SIZE,
    VIRTQ_AVAIL_F_NO_INTERRUPT,
    VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_F_WRITE,
    SplitRing,
    full_fence,
    needs_event,
    order_accesses,
    ring_delta,
)

INDIRECT_MAX: Final = 1024
"""Longest indirect table that is taken whatever the queue size, in descriptors: the limit that QEMU has."""

ReadGuest = Callable[[int, int], bytes]
"""Reads ``length`` bytes at a guest address; raises :class:`VirtqueueError` where there is no such memory."""

Buffer = tuple[int, int]
"""A guest address and a length in bytes, exactly as a descriptor said; nothing about it is checked yet."""


class Chain(NamedTuple):
    """One descriptor chain: its head index, the buffers that the device may read and those that it may write."""

    head: int
    readable: list[Buffer]
    writable: list[Buffer]
    indirect_table: Buffer | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RingFeatures:
    """What was negotiated about the ring itself."""

    event_idx: bool
    indirect_desc: bool


class DeviceVirtqueue:
    """The device's side of one split virtqueue.

    ``next_avail`` is the 16-bit index of the available entry to take next, ``next_used`` that of the used entry to
    write next. The latter is read from the ring, which is where a driver keeps it over a restart of the device.
    """

    def __init__(self, ring: SplitRing, next_avail: int, features: RingFeatures, read_guest: ReadGuest) -> None:
        self._ring = ring
        self._features = features
        self._read_guest = read_guest
        self.next_avail = next_avail & 0xFFFF
        self.next_used = ring.used[1]
        self._signalled_used = self.next_used
        self._mask = ring.size - 1
        self._longest = max(ring.size, INDIRECT_MAX)

    def pop(self) -> Chain | None:
        """Take the next available chain, or return None if there is none.

        Raises:
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
        chain = self._read_chain(head)
        self.next_avail = (self.next_avail + 1) & 0xFFFF
        return chain

    def _read_chain(self, head: int) -> Chain:
        ring = self._ring
        readable: list[Buffer] = []
        writable: list[Buffer] = []
        index = head
        for _ in range(ring.size):
            if index >= ring.size:
                raise VirtqueueError(f"descriptor index {index} in a ring of {ring.size}")
            address, length, flags, index = ring.read_descriptor(index)
            if flags & VIRTQ_DESC_F_INDIRECT:
                # virtio 1.2, 2.7.5.3.2: "The device MUST ignore the write-only flag in the descriptor that refers to
                # an indirect table", and MUST handle direct descriptors followed by one indirect.
                if flags & VIRTQ_DESC_F_NEXT:
                    raise VirtqueueError(f"descriptor chain {head} goes on behind an indirect table")
                self._read_indirect(address, length, readable, writable)
                return Chain(head, readable, writable, (address, length))
            self._add_buffer(address, length, flags, readable, writable)
            if not flags & VIRTQ_DESC_F_NEXT:
                return Chain(head, readable, writable, None)
        raise VirtqueueError(f"descriptor chain {head} is a loop or longer than its ring of {ring.size}")

    @staticmethod
    def _add_buffer(address: int, length: int, flags: int, readable: list[Buffer], writable: list[Buffer]) -> None:
        if flags & VIRTQ_DESC_F_WRITE:
            writable.append((address, length))
        elif writable:
            # virtio 1.2, 2.7.4.2: "The driver MUST place any device-writable descriptor elements after any
            # device-readable descriptor elements."
            raise VirtqueueError("a device-readable descriptor follows a device-writable one")
        else:
            readable.append((address, length))

    def _read_indirect(self, address: int, length: int, readable: list[Buffer], writable: list[Buffer]) -> None:
        if not self._features.indirect_desc:
            raise VirtqueueError("an indirect descriptor, though INDIRECT_DESC was not negotiated")
        count, rest = divmod(length, DESCRIPTOR_SIZE)
        if rest or not 1 <= count <= self._longest:
            raise VirtqueueError(
                f"an indirect table of {length} bytes is not 1 to {self._longest} descriptors of {DESCRIPTOR_SIZE}"
            )
        # One copy of the whole table: what is judged is what is used, whatever the driver writes meanwhile.
        table = list(DESCRIPTOR.iter_unpack(self._read_guest(address, length)))
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
                self._add_buffer(buffer_address, buffer_length, flags, readable, writable)
            if not flags & VIRTQ_DESC_F_NEXT:
                return
        raise VirtqueueError(f"the indirect table at {address:#x} is a loop")

    def add_used(self, head: int, length: int) -> None:
        """Give chain ``head`` back; ``length`` bytes of it were written by the device.

        virtio 1.2, 2.7.8.2: "The device MUST set len prior to updating the used idx."
        """
        ring = self._ring
        slot = self.next_used & self._mask
        elements = ring.used_elements
        elements[1 + 2 * slot] = head
        elements[2 + 2 * slot] = length
        self.next_used = (self.next_used + 1) & 0xFFFF
        order_accesses()
        ring.used[1] = self.next_used

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
            full_fence()  # the event index must be visible before we decide that nothing arrived
        return ring.avail[1] != self.next_avail
