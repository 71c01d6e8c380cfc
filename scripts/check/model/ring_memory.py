"""One bytearray as a guest's memory with a ring in it, and both halves of the ring over the same bytes."""

from typing import TypeAlias

from guest.virtqueue.packed_virtqueue import PackedDriverVirtqueue
from guest.virtqueue.split_virtqueue import SplitDriverVirtqueue
from guest.virtqueue.virtqueue import IndirectTables
from host.virtqueue.packed_virtqueue import PackedDeviceVirtqueue
from host.virtqueue.split_virtqueue import SplitDeviceVirtqueue
from host.virtqueue.virtqueue import RingFeatures
from protocol.errors import VirtqueueError
from protocol.packed_ring import FRESH_BASE, WRAP_COUNTER, PackedRing, used_bits
from protocol.ring_formats import RingLayout
from protocol.split_ring import SplitRing
from protocol.virtio_ring import DESCRIPTOR_SIZE
from scripts.check.model.store_buffer import Processor

BASE = 0x4000_0000
"""Guest address of the first byte. Not zero, so that an address is never mistaken for an offset."""


class GuestBytes:
    """Guest memory: a ring of this layout, then ``tables`` indirect tables of ``capacity`` entries."""

    def __init__(self, layout: RingLayout, *, tables: int = 0, capacity: int = 0, fill: int = 0) -> None:
        self.size = layout.size
        self.layout = layout
        self.ring_end = layout.bytes
        first_table = -(-self.ring_end // DESCRIPTOR_SIZE) * DESCRIPTOR_SIZE
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
        self.driver_sees = self.device_sees = self.memory
        self.processors: dict[str, Processor] = {}

    def separate(self) -> None:
        """Give each half a processor of its own, which sees the other's stores only when they have left its buffer."""
        self.processors = {"driver": Processor(self.memory), "device": Processor(self.memory)}
        self.driver_sees = self.processors["driver"].sees
        self.device_sees = self.processors["device"].sees

    def flush(self, half: str) -> None:
        """Bring all that ``half`` has stored to where the other sees it."""
        if self.processors:
            self.processors[half].flush()
            for processor in self.processors.values():
                processor.load()

    def parts(self, sees: bytearray) -> tuple[memoryview, memoryview, memoryview]:
        """Return views of the ring's three parts."""
        whole = memoryview(sees)
        descriptor, driver, device = self.layout.offsets
        return whole[descriptor:], whole[driver:], whole[device:]

    def read_guest(self, address: int, length: int) -> bytes:
        """Return ``length`` bytes at guest ``address``, as the device reads them; each read is noted in ``reads``."""
        self.reads.append((address, length))
        start = address - BASE
        if start < 0 or start + length > len(self.memory):
            raise VirtqueueError(f"{length} bytes at {address:#x} are outside the guest's memory")
        return bytes(self.device_sees[start : start + length])

    def write_guest(self, address: int, data: bytes) -> None:
        """Store ``data`` at guest ``address``, as the driver does."""
        start = address - BASE
        assert 0 <= start <= start + len(data) <= len(self.memory), hex(address)
        self.driver_sees[start : start + len(data)] = data


class RingMemory(GuestBytes):
    """A split ring. ``driver_view`` and ``device_view`` are views of the same bytes, as two processes would have."""

    def __init__(self, size: int, *, tables: int = 0, capacity: int = 0, fill: int = 0) -> None:
        super().__init__(RingLayout(size), tables=tables, capacity=capacity, fill=fill)
        self.open()

    def open(self) -> None:
        """Open both views."""
        self.driver_view = SplitRing(self.size, *self.parts(self.driver_sees))
        self.device_view = SplitRing(self.size, *self.parts(self.device_sees))

    def separate(self) -> None:
        super().separate()
        self.open()

    def driver(
        self, *, event_idx: bool = False, index: int = 0, in_order: bool = False, mixed: bool = False
    ) -> SplitDriverVirtqueue:
        """Return the driver's half. It begins at zero in life; ``index`` begins elsewhere, as after many requests."""
        queue = SplitDriverVirtqueue(
            self.driver_view,
            event_idx=event_idx,
            tables=self.tables,
            write_guest=self.write_guest,
            in_order=in_order,
            mixed=mixed,
        )
        if index:
            ring = self.driver_view
            ring.avail[1] = ring.used[1] = index
            ring.avail[ring.used_event_at] = ring.used[ring.avail_event_at] = index
            queue._avail_index = queue._kicked_index = queue._last_used = index
        return queue

    def device(
        self, *, event_idx: bool = False, indirect_desc: bool = True, in_order: bool = False, base: int = 0
    ) -> SplitDeviceVirtqueue:
        """Return the device's half."""
        features = RingFeatures(event_idx=event_idx, indirect_desc=indirect_desc, in_order=in_order)
        return SplitDeviceVirtqueue(self.device_view, base, features, self.read_guest)


class PackedRingMemory(GuestBytes):
    """A packed ring. ``driver_view`` and ``device_view`` are views of the same bytes, as two processes would have."""

    def __init__(self, size: int, *, tables: int = 0, capacity: int = 0, fill: int = 0) -> None:
        super().__init__(RingLayout(size, packed=True), tables=tables, capacity=capacity, fill=fill)
        self.open()

    def open(self) -> None:
        """Open both views."""
        self.driver_view = PackedRing(self.size, *self.parts(self.driver_sees))
        self.device_view = PackedRing(self.size, *self.parts(self.device_sees))

    def separate(self) -> None:
        super().separate()
        self.open()

    def driver(
        self, *, event_idx: bool = False, position: int = WRAP_COUNTER, in_order: bool = False
    ) -> PackedDriverVirtqueue:
        """Return the driver's half. It begins in lap 1 in life; ``position`` begins elsewhere, as after many
        requests: then everything before is used in this lap, everything after in the lap before."""
        queue = PackedDriverVirtqueue(
            self.driver_view,
            event_idx=event_idx,
            tables=self.tables,
            write_guest=self.write_guest,
            in_order=in_order,
        )
        index, wrap = position & (WRAP_COUNTER - 1), bool(position & WRAP_COUNTER)
        for slot in range(self.size if position != WRAP_COUNTER else 0):
            self.driver_view.halves[8 * slot + 7] = used_bits(wrap == (slot < index))
        queue._next_avail = queue._last_used = index
        queue._avail_wrap = queue._used_wrap = wrap
        return queue

    def device(
        self, *, event_idx: bool = False, indirect_desc: bool = True, in_order: bool = False, base: int = FRESH_BASE
    ) -> PackedDeviceVirtqueue:
        """Return the device's half."""
        features = RingFeatures(event_idx=event_idx, indirect_desc=indirect_desc, packed=True, in_order=in_order)
        return PackedDeviceVirtqueue(self.device_view, base, features, self.read_guest)


AnyRingMemory: TypeAlias = RingMemory | PackedRingMemory
AnyDriver: TypeAlias = SplitDriverVirtqueue | PackedDriverVirtqueue
AnyDevice: TypeAlias = SplitDeviceVirtqueue | PackedDeviceVirtqueue


def halves(
    memory: AnyRingMemory, *, event_idx: bool = False, in_order: bool = False, begin: int = 0, mixed: bool = False
) -> tuple[AnyDriver, AnyDevice]:
    """Return both halves of a ring that has seen ``begin`` descriptors go by."""
    if isinstance(memory, RingMemory):
        index = begin & 0xFFFF
        driver = memory.driver(event_idx=event_idx, index=index, in_order=in_order, mixed=mixed)
        memory.flush("driver")
        return driver, memory.device(event_idx=event_idx, in_order=in_order, base=index)
    laps, slot = divmod(begin, memory.size)
    position = slot | (0 if laps % 2 else WRAP_COUNTER)
    packed_driver = memory.driver(event_idx=event_idx, position=position, in_order=in_order)
    memory.flush("driver")
    return packed_driver, memory.device(event_idx=event_idx, in_order=in_order, base=position | position << 16)
