"""The layout of a virtqueue in either format: names, lengths and alignments of its three parts.

Source: virtio 1.2, 2.6 (the three areas), 2.7 and 2.8.
"""

from dataclasses import dataclass
from typing import Final, TypeAlias

from protocol.packed_ring import PackedRing
from protocol.split_ring import SplitRing
from protocol.virtio_ring import (
    AVAIL_RING_ALIGN,
    DESCRIPTOR_TABLE_ALIGN,
    EVENT_AREA_ALIGN,
    EVENT_AREA_BYTES,
    USED_RING_ALIGN,
    avail_ring_bytes,
    check_queue_size,
    descriptor_table_bytes,
    used_ring_bytes,
)

Ring: TypeAlias = SplitRing | PackedRing
"""The views of one virtqueue in either format."""

_SPLIT_NAMES: Final = ("descriptor table", "available ring", "used ring")
_PACKED_NAMES: Final = ("descriptor ring", "driver event area", "device event area")


@dataclass(frozen=True, slots=True)
class RingLayout:
    """The parts of a virtqueue of ``size`` entries: descriptor area, driver area and device area, in this order."""

    size: int
    packed: bool = False

    def __post_init__(self) -> None:
        """Raise :class:`VirtqueueError` for a size that the format does not have."""
        check_queue_size(self.size, packed=self.packed)

    @property
    def names(self) -> tuple[str, str, str]:
        """The specification's names of the three parts."""
        return part_names(packed=self.packed)

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Bytes of each part."""
        if self.packed:
            return descriptor_table_bytes(self.size), EVENT_AREA_BYTES, EVENT_AREA_BYTES
        return descriptor_table_bytes(self.size), avail_ring_bytes(self.size), used_ring_bytes(self.size)

    @property
    def alignments(self) -> tuple[int, int, int]:
        """Alignment of each part's address, in bytes."""
        return part_alignments(packed=self.packed)

    @property
    def offsets(self) -> tuple[int, int, int]:
        """Byte offset of each part if they follow one another, as drivers allocate them."""
        lengths, alignments = self.lengths, self.alignments
        driver = -(-lengths[0] // alignments[1]) * alignments[1]
        device = -(-(driver + lengths[1]) // alignments[2]) * alignments[2]
        return 0, driver, device

    @property
    def bytes(self) -> int:
        """Bytes of all three parts if they follow one another."""
        return self.offsets[2] + self.lengths[2]

    def open(self, descriptor: memoryview, driver: memoryview, device: memoryview) -> Ring:
        """Return the ring over byte views of the three parts, each at least as long as :attr:`lengths` says."""
        return (PackedRing if self.packed else SplitRing)(self.size, descriptor, driver, device)


def part_names(*, packed: bool) -> tuple[str, str, str]:
    """Return the specification's names of descriptor area, driver area and device area in this format."""
    return _PACKED_NAMES if packed else _SPLIT_NAMES


def part_alignments(*, packed: bool) -> tuple[int, int, int]:
    """Return the alignments of descriptor area, driver area and device area, in bytes."""
    if packed:
        return DESCRIPTOR_TABLE_ALIGN, EVENT_AREA_ALIGN, EVENT_AREA_ALIGN
    return DESCRIPTOR_TABLE_ALIGN, AVAIL_RING_ALIGN, USED_RING_ALIGN
