"""A ring that remembers the descriptors that its device's side reads."""

from typing import TypeAlias

from protocol.packed_ring import PackedRing
from protocol.recording.records import RecordedDescriptor
from protocol.split_ring import SplitRing


class RecordedSplitRing(SplitRing):
    """The views of another split ring, which stays their owner. ``reads`` are the descriptors that were read."""

    __slots__ = ("reads",)

    def __init__(self, ring: SplitRing) -> None:
        self.size, self.used_event_at, self.avail_event_at = ring.size, ring.used_event_at, ring.avail_event_at
        self.desc, self.avail, self.used, self.used_elements = ring.desc, ring.avail, ring.used, ring.used_elements
        self.reads: list[RecordedDescriptor] = []

    def read_descriptor(self, index: int) -> tuple[int, int, int, int]:
        """Return one copy of descriptor ``index``, and remember it."""
        descriptor = super().read_descriptor(index)
        self.reads.append(RecordedDescriptor(index, *descriptor))
        return descriptor


class RecordedPackedRing(PackedRing):
    """The views of another packed ring, which stays their owner. ``reads`` are the descriptors that were read."""

    __slots__ = ("reads",)

    def __init__(self, ring: PackedRing) -> None:
        self.size, self.desc, self.halves, self.words = ring.size, ring.desc, ring.halves, ring.words
        self.driver_event, self.device_event = ring.driver_event, ring.device_event
        self.reads: list[RecordedDescriptor] = []

    def read_descriptor(self, index: int) -> tuple[int, int, int, int]:
        """Return one copy of descriptor ``index``, and remember it."""
        address, length, buffer_id, flags = descriptor = super().read_descriptor(index)
        if self.reads and self.reads[-1].place == index:
            self.reads.pop()  # the first of a list is read twice, and the second copy counts
        self.reads.append(RecordedDescriptor(index, address, length, flags, buffer_id))
        return descriptor


RecordedRing: TypeAlias = RecordedSplitRing | RecordedPackedRing
