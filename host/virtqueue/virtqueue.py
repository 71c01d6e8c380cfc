"""The device's half of a virtqueue: chains, the negotiated ring features, the common part of both formats.

Source: virtio 1.2, 2.7 and 2.8. The formats are :mod:`host.virtqueue.split_virtqueue` and
:mod:`host.virtqueue.packed_virtqueue`.

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
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from protocol.errors import VirtqueueError
from protocol.virtio_ring import DESCRIPTOR_SIZE, QUEUE_SIZE_MAX

INDIRECT_MAX: Final = 1024
"""Longest indirect table that is taken for any queue size, in descriptors: QEMU's limit."""

CHAIN_MAX: Final = 2 * QUEUE_SIZE_MAX
"""Buffers of the longest chain: direct ones of the largest ring, then a table of as many (virtio 1.2, 2.7.5.3)."""

ReadGuest = Callable[[int, int], bytes]
"""Reads ``length`` bytes at a guest address; raises :class:`VirtqueueError` where there is no such memory."""

WriteGuest = Callable[[int, bytes], None]
"""Stores bytes at a guest address; raises :class:`VirtqueueError` where there is no such memory."""

OnWrite = Callable[[int, int, int], None]
"""Called after a store into a ring: the part (0, 1 or 2, in the order of SET_VRING_ADDR's fields), offset, length."""

Buffer = tuple[int, int]
"""A guest address and a length in bytes, exactly as in a descriptor, unchecked."""


class Chain(NamedTuple):
    """One descriptor chain: the buffers that the device may read and those that it may write.

    ``head`` names it when it is given back: the index of its first descriptor in a split ring, its buffer id in a
    packed one.
    """

    head: int
    readable: list[Buffer]
    writable: list[Buffer]
    indirect_table: Buffer | None

    @property
    def buffers(self) -> int:
        """How many buffers it has."""
        return len(self.readable) + len(self.writable)


class LongChain(Exception):
    """The next available chain has more buffers than the caller wants to read at once. The queue has not moved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RingFeatures:
    """What was negotiated about the ring itself."""

    event_idx: bool
    indirect_desc: bool
    packed: bool = False
    in_order: bool = False


class DeviceVirtqueue(Protocol):
    """The device's side of one virtqueue.

    ``on_write`` is called after every store into the ring; None if these are not logged.
    """

    on_write: OnWrite | None

    @property
    def base(self) -> int:
        """Where the queue goes on, as GET_VRING_BASE answers it and SET_VRING_BASE brings it back.

        Split: the 16-bit index of the next available entry. Packed: the next available descriptor in bits 0 to 14,
        its wrap counter in bit 15, the next used descriptor and its wrap counter in bits 16 to 31.
        """

    @property
    def token(self) -> int:
        """An opaque value of the ring as the device leaves it, for :meth:`is_as_left`."""

    def is_as_left(self, token: int) -> bool:
        """Return whether the ring was still as ``token`` says when this device's side was made.

        If it was not, its driver has gone and the memory has another use by now: it must not be written.
        """

    def pop(self, longest: int = CHAIN_MAX) -> Chain | None:
        """Take the next available chain, or return None if the ring is empty.

        Raises:
            LongChain: the chain has more than ``longest`` buffers, or its indirect table more descriptors. It may also
                be a loop, which is found when the whole chain is taken.
            VirtqueueError: the ring breaks a rule. The queue has not moved; it must not be used further.
        """

    def unpop(self, chain: Chain) -> None:
        """Put back ``chain``, the one that was taken last: it will be taken again."""

    def add_used(self, head: int, length: int) -> None:
        """Give chain ``head`` back; ``length`` bytes of it were written by the device.

        With IN_ORDER a chain whose turn has not come is held back until those before it are given back.
        """

    def needs_notification(self) -> bool:
        """Return whether the driver has to be told about the used entries since this was last asked."""

    def enable_notification(self) -> bool:
        """Ask for a kick when the next chain becomes available. Return True if one already has: then go on popping."""


class UsedOrder:
    """The order of IN_ORDER: chains go back as they became available (virtio 1.2, 2.7.9 and 2.8.8)."""

    def __init__(self) -> None:
        self._taken: deque[int] = deque()
        self._early: dict[int, int] = {}

    def take(self, head: int) -> None:
        """Note that ``head`` was taken."""
        self._taken.append(head)

    def untake(self, head: int) -> None:
        """Note that ``head``, the last that was taken, was put back."""
        assert self._taken[-1] == head
        self._taken.pop()

    def give_back(self, head: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield head and length of each chain whose turn it is now that ``head`` is done, in order."""
        self._early[head] = length
        while self._taken and self._taken[0] in self._early:
            first = self._taken.popleft()
            yield first, self._early.pop(first)


def add_readable(address: int, length: int, readable: list[Buffer], writable: list[Buffer]) -> None:
    """Append a device-readable buffer to ``readable``.

    Raises:
        VirtqueueError: there is a writable one before it. virtio 1.2, 2.7.4.2 and 2.8.17: "The driver MUST place any
            device-writable descriptor elements after any device-readable descriptor elements."
    """
    if writable:
        raise VirtqueueError("a device-readable descriptor follows a device-writable one")
    readable.append((address, length))


def read_indirect_table(
    read_guest: ReadGuest, address: int, length: int, features: RingFeatures, ring_size: int, room: int
) -> bytes:
    """Return one copy of a whole indirect table: the copy is both checked and used, so later writes have no effect.

    Raises:
        LongChain: it has more than ``room`` descriptors.
        VirtqueueError: indirect tables were not negotiated, ``length`` (bytes) is invalid, or it is outside the memory.
    """
    if not features.indirect_desc:
        raise VirtqueueError("an indirect descriptor, though INDIRECT_DESC was not negotiated")
    count, rest = divmod(length, DESCRIPTOR_SIZE)
    longest = max(ring_size, INDIRECT_MAX)
    if rest or not 1 <= count <= longest:
        raise VirtqueueError(
            f"an indirect table of {length} bytes is not 1 to {longest} descriptors of {DESCRIPTOR_SIZE}"
        )
    if count > room:
        raise LongChain
    return read_guest(address, length)
