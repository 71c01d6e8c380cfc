"""Guest memory for virtqueues: how large a ring of a format is, where its parts lie, and the pages that hold it.

Source: virtio 1.2, 2.7 (the parts of a split virtqueue) and 2.8 (those of a packed one), with their alignments.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from guest.mm.page_alloc import PageAllocator
from guest.mm.pageblock import MAX_ORDER, MigrateType
from protocol.errors import UsageError
from protocol.memory import PAGE_SIZE
from protocol.ring_formats import Ring, RingLayout
from protocol.virtio import FeatureBit, feature_mask
from protocol.virtio_balloon import QUEUES_MAX
from protocol.virtio_ring import DESCRIPTOR_SIZE, QUEUE_SIZE_MAX

QUEUE_SIZE: Final = 256
"""Entries of a virtqueue by default, as in User Mode Linux."""

TABLES: Final = 2
"""Indirect tables of one queue. Only reports have more than one buffer, and one report is under way at a time; a
request that finds no table free is made of direct descriptors."""

TABLE_CAPACITY_MAX: Final = 1024
"""Most descriptors of one indirect table; a longer request is made of direct descriptors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RingOptions:
    """The virtqueues that a machine asks for. ``packed`` and ``in_order`` are required of the device, the other two
    are used where they are offered.

    Raises:
        UsageError: a size that is invalid for the format (virtio 1.2, 2.7 and 2.8.10.1).
    """

    size: int = QUEUE_SIZE
    packed: bool = False
    indirect: bool = True
    event_idx: bool = True
    in_order: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.size <= QUEUE_SIZE_MAX:
            raise UsageError(f"a queue of {self.size} entries: there can be 1 to {QUEUE_SIZE_MAX}")
        if not self.packed and self.size & (self.size - 1):
            raise UsageError(f"a queue of {self.size} entries: the size of a split ring is a power of two")

    @property
    def required(self) -> int:
        """Features that the device must offer for these rings."""
        bits = [FeatureBit.RING_PACKED] * self.packed + [FeatureBit.IN_ORDER] * self.in_order
        return feature_mask(*bits)

    @property
    def features(self) -> int:
        """Every feature of rings that is accepted where it is offered."""
        bits = [FeatureBit.RING_INDIRECT_DESC] * self.indirect + [FeatureBit.RING_EVENT_IDX] * self.event_idx
        return self.required | feature_mask(*bits)


RING_FEATURES: Final = RingOptions(packed=True, in_order=True).features
"""All features that :class:`RingOptions` decides."""


@dataclass(frozen=True, slots=True)
class RingMemory:
    """Contiguous guest memory for one queue: its ring, then its indirect tables. All places are guest addresses."""

    descriptor: int
    """The descriptor table or ring, which begins the memory. Aligned to 16 bytes."""
    options: RingOptions

    @property
    def layout(self) -> RingLayout:
        """The format and size of the ring."""
        return RingLayout(self.options.size, self.options.packed)

    @property
    def available(self) -> int:
        """The available ring, or the driver's event area."""
        return self.descriptor + self.layout.offsets[1]

    @property
    def used(self) -> int:
        """The used ring, or the device's event area."""
        return self.descriptor + self.layout.offsets[2]

    @property
    def table_capacity(self) -> int:
        """Descriptors of one indirect table. No chain may be longer than the queue (virtio 1.2, 2.7.5.3.1)."""
        return min(self.options.size, TABLE_CAPACITY_MAX)

    @property
    def tables(self) -> tuple[int, ...]:
        """The indirect tables, in pages of their own."""
        first = _align(self.descriptor + self.layout.bytes, PAGE_SIZE)
        return tuple(first + number * self.table_capacity * DESCRIPTOR_SIZE for number in range(TABLES))

    @property
    def bytes(self) -> int:
        """Length of the whole in bytes."""
        return self.tables[-1] + self.table_capacity * DESCRIPTOR_SIZE - self.descriptor

    def open(self, view: Callable[[int, int], memoryview]) -> Ring:
        """Return the ring in this memory; ``view`` gives a view of (guest address, length)."""
        places = zip((self.descriptor, self.available, self.used), self.layout.lengths, strict=True)
        return self.layout.open(*(view(address, length) for address, length in places))


def allocate_rings(allocator: PageAllocator, options: RingOptions | None = None) -> tuple[RingMemory, ...]:
    """Allocate pages for the rings of every possible queue, for the life of the machine.

    Raises:
        UsageError: the machine is too small.
    """
    options = options or RingOptions()
    pages = -(-RingMemory(0, options).bytes // PAGE_SIZE)
    order = (pages - 1).bit_length()
    assert order <= MAX_ORDER
    rings: list[RingMemory] = []
    for _ in range(QUEUES_MAX):
        pfn = allocator.alloc_pages(order, MigrateType.UNMOVABLE)
        if pfn is None:
            raise UsageError("the machine has too little memory for its virtqueues")
        rings.append(RingMemory(pfn * PAGE_SIZE, options))
    return tuple(rings)


def _align(value: int, to: int) -> int:
    return -(-value // to) * to
