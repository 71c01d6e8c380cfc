"""One bytearray as a guest's memory with a ring in it, and both halves of the ring over the same bytes."""

from guest.split_virtqueue import SplitDriverVirtqueue
from guest.virtqueue import IndirectTables
from host.split_virtqueue import SplitDeviceVirtqueue
from host.virtqueue import RingFeatures
from protocol.errors import VirtqueueError
from protocol.split_ring import SplitRing
from protocol.virtio_ring import DESCRIPTOR_SIZE, avail_ring_bytes, descriptor_table_bytes, used_ring_bytes

BASE = 0x4000_0000
"""Guest address of the first byte. Not zero, so that an address is never mistaken for an offset."""


def align(value: int, to: int) -> int:
    """Return ``value`` rounded up to a multiple of ``to``."""
    return -(-value // to) * to


class RingMemory:
    """Guest memory: the three parts of a ring of ``size``, then ``tables`` indirect tables of ``capacity`` entries.

    ``driver_view`` and ``device_view`` are two sets of views of the same bytes, as two processes would have.
    """

    def __init__(self, size: int, *, tables: int = 0, capacity: int = 0, fill: int = 0) -> None:
        self.size = size
        self.avail_offset = descriptor_table_bytes(size)
        self.used_offset = align(self.avail_offset + avail_ring_bytes(size), 4)
        self.ring_end = self.used_offset + used_ring_bytes(size)
        first_table = align(self.ring_end, DESCRIPTOR_SIZE)
        table_bytes = DESCRIPTOR_SIZE * capacity
        self.memory = bytearray(first_table + tables * table_bytes)
        self.memory[self.ring_end :] = bytes([fill]) * (len(self.memory) - self.ring_end)
        self.tables = (
            IndirectTables(
                addresses=tuple(BASE + first_table + table_bytes * number for number in range(tables)),
                capacity=capacity,
            )
            if tables
            else None
        )
        self.reads: list[tuple[int, int]] = []
        self.driver_view = self._view()
        self.device_view = self._view()

    def _view(self) -> SplitRing:
        whole = memoryview(self.memory)
        return SplitRing(self.size, whole, whole[self.avail_offset :], whole[self.used_offset :])

    def read_guest(self, address: int, length: int) -> bytes:
        """Return ``length`` bytes at guest ``address``, as the device reads them; each read is noted in ``reads``."""
        self.reads.append((address, length))
        start = address - BASE
        if start < 0 or start + length > len(self.memory):
            raise VirtqueueError(f"{length} bytes at {address:#x} are outside the guest's memory")
        return bytes(self.memory[start : start + length])

    def write_guest(self, address: int, data: bytes) -> None:
        """Store ``data`` at guest ``address``, as the driver does."""
        start = address - BASE
        assert 0 <= start <= start + len(data) <= len(self.memory), hex(address)
        self.memory[start : start + len(data)] = data

    def driver(self, *, event_idx: bool = False, index: int = 0) -> SplitDriverVirtqueue:
        """Return the driver's half. It begins at zero in life; ``index`` begins elsewhere, as after many requests."""
        queue = SplitDriverVirtqueue(
            self.driver_view, event_idx=event_idx, tables=self.tables, write_guest=self.write_guest
        )
        if index:
            ring = self.driver_view
            ring.avail[1] = ring.used[1] = index
            ring.avail[ring.used_event_at] = ring.used[ring.avail_event_at] = index
            queue._avail_index = queue._kicked_index = queue._last_used = index
        return queue

    def device(
        self, *, event_idx: bool = False, indirect_desc: bool = True, next_avail: int = 0
    ) -> SplitDeviceVirtqueue:
        """Return the device's half."""
        features = RingFeatures(event_idx=event_idx, indirect_desc=indirect_desc)
        return SplitDeviceVirtqueue(self.device_view, next_avail, features, self.read_guest)
