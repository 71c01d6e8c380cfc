"""A packed ring in the hand of a driver that lies, and the device's half over it."""

import pytest

from host.virtqueue.virtqueue import Chain
from protocol.errors import VirtqueueError
from protocol.packed_ring import FRESH_BASE, PACKED_DESCRIPTOR, WRAP_COUNTER, available_bits
from scripts.check.model.ring_memory import PackedRingMemory

INDIRECT = 4


class Hostile:
    """A packed ring that the test fills by hand, and the device's half over it."""

    def __init__(
        self,
        size: int = 8,
        *,
        indirect_desc: bool = True,
        base: int = FRESH_BASE,
        event_idx: bool = False,
        in_order: bool = False,
    ):
        self.memory = PackedRingMemory(size, tables=1, capacity=1100)
        assert self.memory.tables is not None
        self.table = self.memory.tables.addresses[0]
        self.ring = self.memory.driver_view
        self.device = self.memory.device(indirect_desc=indirect_desc, base=base, event_idx=event_idx, in_order=in_order)
        self.at, self.wrap = base & 0x7FFF, bool(base & WRAP_COUNTER)

    def offer(self, *descriptors: tuple[int, int, int, int]) -> "Hostile":
        """Make descriptors available one after the other: address, length, buffer id, flags without AVAIL and USED."""
        for address, length, buffer_id, flags in descriptors:
            self.ring.write_descriptor(self.at, address, length, buffer_id)
            self.ring.halves[8 * self.at + 7] = flags | available_bits(self.wrap)
            self.at += 1
            if self.at == self.ring.size:
                self.at, self.wrap = 0, not self.wrap
        return self

    def offer_table(self, *entries: tuple[int, int, int, int], length: int | None = None, flags: int = 0) -> "Hostile":
        """Make an indirect table available, with buffer id 7."""
        self.memory.write_guest(self.table, b"".join(PACKED_DESCRIPTOR.pack(*entry) for entry in entries))
        return self.offer((self.table, 16 * len(entries) if length is None else length, 7, INDIRECT | flags))

    def pop(self) -> Chain:
        """Return the chain that has to be there."""
        chain = self.device.pop()
        assert chain is not None
        return chain

    def serve(self, length: int = 0) -> Chain:
        """Take the chain that has to be there and give it back."""
        chain = self.pop()
        self.device.add_used(chain.head, length)
        return chain

    def refuses(self, reason: str) -> None:
        """Check that the ring is refused for ``reason``, again and again, and that the device wrote nothing to it."""
        before, base = bytes(self.memory.memory), self.device.base
        for _ in range(2):
            with pytest.raises(VirtqueueError, match=reason):
                self.device.pop()
        assert bytes(self.memory.memory) == before
        assert self.device.base == base
