"""Fuzz targets: the device's half of a split and of a packed virtqueue over memory of any content.

Input: features, ring size, base (4 bytes), 16 bytes of operations, then the memory: the ring's parts and 512 bytes
after them. The driver keeps storing to the memory while the device works, at places that the operations name.
"""

from typing import Final

from host.virtqueue.virtqueue import INDIRECT_MAX, Chain, DeviceVirtqueue, RingFeatures
from host.virtqueue.virtqueue_formats import open_virtqueue
from protocol.errors import VhostUserError, VirtqueueError
from protocol.ring_formats import RingLayout
from scripts.check.fuzzing.byte_source import ByteSource, must

BASE: Final = 0x1000
"""Guest address of the first byte of the memory."""

_OPERATIONS: Final = 16
_BEYOND: Final = 512
"""Bytes of memory after the ring: for indirect tables."""

_EVENT_IDX, _INDIRECT, _IN_ORDER, _LOGGED = 1, 2, 4, 8


class RingUnderTest:
    """A ring in memory of any content, its device's half, and what has to hold after each of its steps."""

    def __init__(self, source: ByteSource, *, packed: bool) -> None:
        """Raise :class:`VhostUserError` if the base is not a place in the ring, which is a right answer."""
        choices = source.number()
        number = source.number()
        self.size = 1 + number % 32 if packed else 1 << number % 6
        base = source.number(4)
        self.operations = source.take(_OPERATIONS)
        layout = RingLayout(self.size, packed)
        self.memory = bytearray(source.take(layout.bytes + _BEYOND))
        self.offsets, self.lengths = layout.offsets, layout.lengths
        self.in_order = bool(choices & _IN_ORDER)
        features = RingFeatures(
            event_idx=bool(choices & _EVENT_IDX),
            indirect_desc=bool(choices & _INDIRECT),
            packed=packed,
            in_order=self.in_order,
        )
        whole = memoryview(self.memory)
        descriptor, driver, device = (whole[offset:] for offset in self.offsets)
        self.ring = layout.open(descriptor, driver, device)
        self.queue: DeviceVirtqueue = open_virtqueue(self.ring, base, features, self._read_guest)
        self.logged: list[tuple[int, int]] = []
        self.queue.on_write = self._note_write
        self.taken: list[Chain] = []
        self.latest: Chain | None = None
        """The chain that was taken last, while it is not given back: the only one that may be put back."""

    def _read_guest(self, address: int, length: int) -> bytes:
        start = address - BASE
        if start < 0 or start + length > len(self.memory):
            raise VirtqueueError("outside the guest's memory")
        return bytes(self.memory[start : start + length])

    def _note_write(self, part: int, offset: int, length: int) -> None:
        must(offset >= 0 and offset + length <= self.lengths[part], "a store past the end of a part of the ring")
        self.logged.append((self.offsets[part] + offset, length))

    def pop(self) -> bool:
        """Take a chain; return False when the ring is broken."""
        before, base = bytes(self.memory), self.queue.base
        try:
            chain = self.queue.pop()
        except VirtqueueError:
            must(self.queue.base == base, "a broken ring has moved the queue")
            must(self.memory == before, "pop has written to the memory")
            return False
        must(self.memory == before, "pop has written to the memory")
        if chain is None:
            must(self.queue.base == base, "an empty ring has moved the queue")
            return True
        must(0 < chain.buffers <= self.size + max(self.size, INDIRECT_MAX), "a chain of an impossible length")
        if chain.indirect_table is None:
            must(chain.buffers <= self.size, "a chain is longer than its ring")
        self.taken.append(chain)
        self.latest = chain
        return True

    def put_back(self) -> None:
        """Put the last chain back and take it again: it has to be the same one."""
        chain, self.latest = self.latest, None
        if chain is None:
            return
        base = self.queue.base
        self.taken.pop()
        self.queue.unpop(chain)
        try:
            again = self.queue.pop()
        except VirtqueueError:
            again = None  # the driver has changed the ring meanwhile
        if again is not None:
            self.taken.append(again)
            self.latest = again
        if again == chain:
            must(self.queue.base == base, "a chain taken again has moved the queue to another place")

    def give_back(self, which: int, length: int) -> None:
        """Give a chain back; only stores that the log knows may change the memory."""
        if not self.taken:
            return
        chain = self.taken.pop(which % len(self.taken))
        if chain is self.latest:
            self.latest = None
        before = bytes(self.memory)
        self.logged.clear()
        self.queue.add_used(chain.head, length)
        must(bool(self.logged) or self.in_order, "a chain that was given back is not in the ring")
        self._check_stores(before)

    def sleep(self) -> None:
        """Ask for a kick, and whether the driver waits for an interrupt."""
        before = bytes(self.memory)
        self.logged.clear()
        self.queue.needs_notification()
        must(not self.queue.needs_notification(), "the driver is told twice about the same used entries")
        self.queue.enable_notification()
        self._check_stores(before)

    def _check_stores(self, before: bytes) -> None:
        if self.memory == before:
            return
        expected = bytearray(before)
        for at, length in self.logged:
            expected[at : at + length] = self.memory[at : at + length]
        must(self.memory == expected, "a store into the ring is not in the log of dirty pages")


def _run(data: bytes, *, packed: bool) -> None:
    source = ByteSource(data)
    try:
        ring = RingUnderTest(source, packed=packed)
    except VhostUserError:
        return
    for operation in ring.operations:
        value = operation >> 3
        match operation & 7:
            case 0 | 1 | 2:
                if not ring.pop():
                    must(not ring.pop(), "a broken ring is whole when it is looked at again")
                    break
            case 3:
                ring.put_back()
            case 4 | 5:
                ring.give_back(value, value * 0x0123_4567 & 0xFFFF_FFFF)
            case 6:
                ring.sleep()
            case _:
                # The driver stores: one byte, anywhere.
                ring.memory[(value * 37 + source.number()) % len(ring.memory)] = source.number()
    ring.ring.release()


def split_ring(data: bytes) -> None:
    """A split ring of any content gives chains or a VirtqueueError, and only logged stores change the memory."""
    _run(data, packed=False)


def packed_ring(data: bytes) -> None:
    """A packed ring of any content gives lists or a VirtqueueError, and only logged stores change the memory."""
    _run(data, packed=True)
