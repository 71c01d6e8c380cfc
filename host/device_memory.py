"""Which file ranges a virtual machine may ask to have discarded.

The one place that judges an address a guest gave. A range passes only if it lies wholly in one region, is made of whole
pages of the region's file and touches no page that a ring lives on; everything else is refused with a reason, and never
harms the ranges beside it.

Must not know: file descriptors, queues, what the guest's features are.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from host.virtqueue import Buffer
from protocol.memory import PAGE_SIZE, FileRange, RegionTable


class Refusal(Enum):
    """Why a range was not discarded. The values are the words of the ``refused`` event."""

    EMPTY = "empty"
    UNALIGNED = "unaligned"
    OUT_OF_RANGE = "out_of_range"
    CROSSES_REGIONS = "crosses_regions"
    RING_MEMORY = "ring_memory"
    READABLE = "readable"
    TOO_LONG = "too_long"
    POISON = "poison"
    DISCARD_OFF = "discard_off"
    DISCARD_FAILED = "discard_failed"


class RefusedRange(NamedTuple):
    """``length`` bytes at guest ``address`` that are kept as they are."""

    reason: Refusal
    address: int
    length: int


class RefusedRanges(NamedTuple):
    """All ranges of one chain that were refused for one reason: the first one's address, their bytes, their number."""

    reason: Refusal
    first_address: int
    bytes: int
    ranges: int


@dataclass(slots=True)
class DiscardPlan:
    """What is to be done about the ranges of one chain: discard these, keep those."""

    ranges: int = 0
    bytes: int = 0
    discards: list[FileRange] = field(default_factory=list)
    refused: list[RefusedRange] = field(default_factory=list)

    def refuse(self, reason: Refusal, address: int, length: int) -> None:
        """Keep ``length`` bytes at guest ``address``, and remember why."""
        self.refused.append(RefusedRange(reason, address, length))

    def refused_by_reason(self) -> list[RefusedRanges]:
        """Return the sum of ``refused`` for each reason, in the order in which the reasons came up."""
        sums: dict[Refusal, RefusedRanges] = {}
        for reason, address, length in self.refused:
            first_address, total, ranges = sums[reason][1:] if reason in sums else (address, 0, 0)
            sums[reason] = RefusedRanges(reason, first_address, total + length, ranges + 1)
        return list(sums.values())


@dataclass(frozen=True, slots=True)
class _Bounds:
    low: int
    high: int


class DeviceMemory:
    """One immutable view of a virtual machine's memory: the regions, their page sizes, and what is off limits.

    ``page_sizes`` gives the page size of each region's file in bytes; ``protected`` are the file ranges of the rings.
    """

    __slots__ = ("_protected", "_protected_bounds", "page_sizes", "table")

    def __init__(
        self, table: RegionTable, page_sizes: tuple[int, ...] = (), protected: Iterable[FileRange] = ()
    ) -> None:
        self.table = table
        self.page_sizes = page_sizes or (PAGE_SIZE,) * len(table.regions)
        self._protected: list[list[_Bounds]] = [[] for _ in table.regions]
        for place in protected:
            page = self.page_sizes[place.region]
            low, high = place.offset // page * page, -(-(place.offset + place.length) // page) * page
            self._protected[place.region].append(_Bounds(low, high))
        self._protected_bounds = [
            (min(b.low for b in ranges), max(b.high for b in ranges)) if ranges else (0, 0)
            for ranges in self._protected
        ]

    def is_protected(self, place: FileRange) -> bool:
        """Return whether any byte of ``place`` is on a page that holds a ring."""
        end = place.offset + place.length
        return any(b.low < end and place.offset < b.high for b in self._protected[place.region])

    def plan(self, buffers: Iterable[Buffer], plan: DiscardPlan, off_limits: Buffer | None = None) -> None:
        """Sort ``buffers`` into ``plan.discards`` and ``plan.refused``.

        ``off_limits`` is one more guest range to spare, the chain's own indirect table.
        """
        translate = self.table.translate_guest
        spared = None if off_limits is None else translate(*off_limits)
        for address, length in buffers:
            plan.ranges += 1
            plan.bytes += length
            if length == 0:
                plan.refuse(Refusal.EMPTY, address, length)
                continue
            place = translate(address, length)
            if place is None:
                reason = Refusal.OUT_OF_RANGE if self.table.find_guest(address) is None else Refusal.CROSSES_REGIONS
                plan.refuse(reason, address, length)
                continue
            region, offset, _ = place
            # fallocate would round inward and then write zeros to the ragged edges: the check has to be ours.
            if (offset | length) & (self.page_sizes[region] - 1):
                plan.refuse(Refusal.UNALIGNED, address, length)
                continue
            low, high = self._protected_bounds[region]
            if (offset < high and low < offset + length and self.is_protected(place)) or (
                spared is not None
                and spared.region == region
                and spared.offset < offset + length
                and offset < spared.offset + spared.length
            ):
                plan.refuse(Refusal.RING_MEMORY, address, length)
                continue
            plan.discards.append(place)
