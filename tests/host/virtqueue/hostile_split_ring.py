"""A split ring in the hand of a driver that lies, and the device's half over it."""

import pytest

from host.virtqueue.virtqueue import Chain
from protocol.errors import VirtqueueError
from protocol.split_ring import DESCRIPTOR, Descriptor
from scripts.check.model.ring_memory import RingMemory

TABLE_CAPACITY = 1100
"""Descriptors that fit past the ring, where tests put their indirect tables."""


class Hostile:
    """A ring that the test fills by hand, and the device's half over it."""

    def __init__(self, size: int = 8, *, indirect_desc: bool = True, next_avail: int = 0, event_idx: bool = False):
        self.memory = RingMemory(size, tables=1, capacity=TABLE_CAPACITY)
        assert self.memory.tables is not None
        self.table = self.memory.tables.addresses[0]
        self.ring = self.memory.driver_view
        self.ring.avail[1] = self.ring.used[1] = next_avail
        self.device = self.memory.device(indirect_desc=indirect_desc, base=next_avail, event_idx=event_idx)

    def describe(self, *descriptors: Descriptor) -> "Hostile":
        """Write descriptors 0, 1, 2 and so on."""
        for index, descriptor in enumerate(descriptors):
            self.ring.write_descriptor(index, descriptor)
        return self

    def describe_table(self, *descriptors: Descriptor) -> "Hostile":
        """Write an indirect table."""
        self.memory.write_guest(self.table, b"".join(DESCRIPTOR.pack(*each) for each in descriptors))
        return self

    def offer(self, *heads: int) -> "Hostile":
        """Make chains available."""
        for head in heads:
            index = self.ring.avail[1]
            self.ring.avail[2 + index % self.ring.size] = head
            self.ring.avail[1] = (index + 1) & 0xFFFF
        return self

    def pop(self) -> Chain:
        """Return the chain that has to be there."""
        chain = self.device.pop()
        assert chain is not None
        return chain

    def refuses(self, reason: str) -> None:
        """Check that the ring is refused for ``reason``, again and again, and that the device wrote nothing to it."""
        before = bytes(self.memory.memory)
        for _ in range(2):
            with pytest.raises(VirtqueueError, match=reason):
                self.device.pop()
        assert bytes(self.memory.memory) == before
