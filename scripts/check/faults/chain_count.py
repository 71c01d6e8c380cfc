"""Counts the chains of a virtqueue from outside: those that the driver made available, and those that the device used.

Source: virtio 1.2, 2.7 and 2.8. A watcher has copies of the ring, taken now and then, and writes nothing.
"""

from typing import Protocol

from protocol.packed_ring import AVAIL_USED, FRESH_BASE, WRAP_COUNTER, PackedRing, available_bits, used_bits
from protocol.split_ring import SplitRing
from protocol.virtio_ring import VIRTQ_DESC_F_NEXT, ring_delta


class ChainCount(Protocol):
    """How many chains were made ``available`` and were ``used`` since the first copy was taken."""

    available: int
    used: int


class SplitChainCount:
    """The count of a split ring. Chains that are available and not used at the beginning are counted."""

    def __init__(self) -> None:
        self.available = 0
        self.used = 0
        self._last: tuple[int, int] | None = None

    def observe(self, ring: SplitRing) -> None:
        """Take a copy of the ring, the available ring copied before the used ring."""
        avail, used = ring.avail[1], ring.used[1]
        last_avail, last_used = self._last or (used, used)
        self.available += ring_delta(avail, last_avail)
        self.used += ring_delta(used, last_used)
        self._last = avail, used


class PackedChainCount:
    """The count of a packed ring that begins at ``position``.

    A chain that is first seen used is taken for one of a single descriptor, as chains with indirect tables are: the
    device has overwritten what told its length.
    """

    def __init__(self, position: int = FRESH_BASE & 0xFFFF) -> None:
        self.available = 0
        self.used = 0
        self._next = self._next_used = position
        self._lengths: dict[int, int] = {}

    def observe(self, ring: PackedRing) -> None:
        """Take a copy of the ring."""
        while self._take_available(ring):
            pass
        while self._take_used(ring):
            pass

    def _take_available(self, ring: PackedRing) -> bool:
        if self.available - self.used >= ring.size:
            return False
        index, wrap = self._next & ~WRAP_COUNTER, bool(self._next & WRAP_COUNTER)
        if index >= ring.size:
            return False
        bits = ring.halves[8 * index + 7] & AVAIL_USED
        length, last = 1, index
        if bits == available_bits(wrap):
            while ring.halves[8 * last + 7] & VIRTQ_DESC_F_NEXT and length < ring.size:
                last = (last + 1) % ring.size
                length += 1
        elif bits != used_bits(wrap) or self._next != self._next_used:
            return False
        self._lengths[ring.halves[8 * last + 6]] = length
        self.available += 1
        self._next = _advanced(self._next, length, ring.size)
        return True

    def _take_used(self, ring: PackedRing) -> bool:
        index, wrap = self._next_used & ~WRAP_COUNTER, bool(self._next_used & WRAP_COUNTER)
        if index >= ring.size or ring.halves[8 * index + 7] & AVAIL_USED != used_bits(wrap):
            return False
        if self.used == self.available:
            return self._take_available(ring)
        self._next_used = _advanced(self._next_used, self._lengths.pop(ring.halves[8 * index + 6], 1), ring.size)
        self.used += 1
        return True


def _advanced(position: int, length: int, size: int) -> int:
    index = (position & ~WRAP_COUNTER) + length
    wrap = position & WRAP_COUNTER
    return index | wrap if index < size else (index - size) | (wrap ^ WRAP_COUNTER)
