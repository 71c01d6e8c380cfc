"""Which file ranges a virtual machine may ask to have discarded.

The only place that judges a guest's address. A range passes if it lies wholly in one region, consists of whole pages of
the region's file and touches no page that holds a ring. Any other range is refused with a reason, and the ranges beside
it proceed.
"""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from itertools import groupby
from typing import Final, NamedTuple

from host.virtqueue.virtqueue import Buffer
from protocol.memory import ADDRESS_LIMIT, PAGE_SIZE, FileRange, RegionTable

JOINED_MAX: Final = 16 << 20
"""Most bytes of ranges that touch and are discarded in one call."""


class Refusal(Enum):
    """Why a range was not discarded. The values are the words of the ``refused`` event."""

    EMPTY = "empty"
    UNALIGNED = "unaligned"
    OUT_OF_RANGE = "out_of_range"
    CROSSES_REGIONS = "crosses_regions"
    RING_MEMORY = "ring_memory"
    READABLE = "readable"
    TOO_LONG = "too_long"
    BAD_COMMAND = "bad_command"
    STALE_HINT = "stale_hint"
    POISON = "poison"
    UNKNOWN_QUEUE = "unknown_queue"
    DISCARD_OFF = "discard_off"
    INHIBITED = "inhibited"
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


class Ragged(Enum):
    """What becomes of a range that is not whole pages of the region's file."""

    KEPT = "kept"
    """It is refused whole."""
    ROUNDED_UP = "rounded_up"
    """As madvise(2) has it: one with an unaligned address is refused, and an unaligned length is rounded up to whole
    pages of 4096 bytes; of larger pages those that are covered then are discarded."""
    ZEROED = "zeroed"
    """As fallocate(2) has it with FALLOC_FL_PUNCH_HOLE: whole pages are discarded, the rest is filled with zeros."""


@dataclass(frozen=True, slots=True)
class RangeRules:
    """How ranges are judged that consist of anything but whole pages of one region.

    With ``clamps`` a range that begins in a region and leaves it is cut at the region's end, else it is refused.
    """

    ragged: Ragged = Ragged.KEPT
    clamps: bool = False


STRICT: Final = RangeRules()


@dataclass(slots=True)
class DiscardPlan:
    """The ranges of one chain: those to discard, and those to keep."""

    ranges: int = 0
    bytes: int = 0
    discards: list[FileRange] = field(default_factory=list)
    refused: list[RefusedRange] = field(default_factory=list)

    def refuse(self, reason: Refusal, address: int, length: int) -> None:
        """Record that ``length`` bytes at guest ``address`` are kept, and why."""
        self.refused.append(RefusedRange(reason, address, length))

    def refuse_all(self, reason: Refusal, buffers: Iterable[Buffer]) -> None:
        """Count ``buffers`` as ranges of the chain and refuse each of them."""
        for address, length in buffers:
            self.ranges += 1
            self.bytes += length
            self.refused.append(RefusedRange(reason, address, length))

    def add(self, other: "DiscardPlan") -> None:
        """Append what ``other`` says to this plan, in order."""
        self.ranges += other.ranges
        self.bytes += other.bytes
        self.discards += other.discards
        self.refused += other.refused

    def refused_by_reason(self) -> list[RefusedRanges]:
        """Return the sum of ``refused`` for each reason, in the order in which the reasons came up."""
        sums: dict[Refusal, RefusedRanges] = {}
        for reason, address, length in self.refused:
            first_address, total, ranges = sums[reason][1:] if reason in sums else (address, 0, 0)
            sums[reason] = RefusedRanges(reason, first_address, total + length, ranges + 1)
        return list(sums.values())


def joined(places: Iterable[FileRange]) -> Iterator[tuple[int, int, int]]:
    """Yield region, offset and length of ``places`` in their order, those that touch as one.

    A driver reports a run of free memory block by block, upward or downward, and one system call for all of it takes
    less time than one for each. No piece grows beyond :data:`JOINED_MAX`, so that a stop is not kept waiting.
    """
    region, start, end = -1, 0, 0
    for number, offset, length in places:
        if number == region and end - start + length <= JOINED_MAX:
            if offset == end:
                end += length
                continue
            if offset + length == start:
                start = offset
                continue
        if end > start:
            yield region, start, end - start
        region, start, end = number, offset, offset + length
    if end > start:
        yield region, start, end - start


@dataclass(frozen=True, slots=True)
class _Bounds:
    low: int
    high: int


class _Window(NamedTuple):
    # One region with everything that a range of it has to be compared with. `low` and `high` bound it in guest
    # addresses, `spare_low` and `spare_high` bound all of it that is off limits; `shift` leads to file offsets.
    low: int
    high: int
    shift: int
    page_mask: int
    spare_low: int
    spare_high: int
    region: int


_NOWHERE: Final = _Window(0, 0, 0, 0, 0, 0, -1)


class DeviceMemory:
    """One immutable view of a virtual machine's memory: the regions, their page sizes, and what is off limits.

    ``page_sizes`` gives the page size of each region's file in bytes; ``protected`` are the file ranges of the rings.
    ``files`` tells which regions lie in the same file: a page of it that holds a ring is off limits through each of
    them. Without it every region has a file of its own.
    """

    __slots__ = ("_files", "_protected", "_windows", "page_sizes", "table")

    def __init__(
        self,
        table: RegionTable,
        page_sizes: tuple[int, ...] = (),
        protected: Iterable[FileRange] = (),
        files: tuple[Hashable, ...] = (),
    ) -> None:
        self.table = table
        self.page_sizes = page_sizes or (PAGE_SIZE,) * len(table.regions)
        self._files: tuple[Hashable, ...] = files or tuple(range(len(table.regions)))
        bounds: dict[Hashable, list[_Bounds]] = {}
        for place in protected:
            page = self.page_sizes[place.region]
            low, high = place.offset // page * page, -(-(place.offset + place.length) // page) * page
            bounds.setdefault(self._files[place.region], []).append(_Bounds(low, high))
        self._protected = [bounds.get(file, []) for file in self._files]
        self._windows: list[_Window | None] = [None] * len(table.regions)

    def is_protected(self, place: FileRange) -> bool:
        """Return whether any byte of ``place`` is on a page that holds a ring."""
        end = place.offset + place.length
        return any(b.low < end and place.offset < b.high for b in self._protected[place.region])

    def split_pages(self, address: int, length: int) -> Iterator[Buffer]:
        """Cut a run of pages where another region begins or a ring's page does, so that only the pages that have to be
        refused are refused."""
        place = self.table.translate_guest(address, length)
        if place is not None and not self.is_protected(place):
            yield address, length
            return
        for _, pages in groupby(range(address, address + length, PAGE_SIZE), self._kind_of_page):
            first, *more = pages
            yield first, PAGE_SIZE * (1 + len(more))

    def _kind_of_page(self, address: int) -> tuple[int, bool] | None:
        place = self.table.translate_guest(address, PAGE_SIZE)
        return None if place is None else (place.region, self.is_protected(place))

    def plan(
        self, buffers: Iterable[Buffer], off_limits: Buffer | None = None, rules: RangeRules = STRICT
    ) -> DiscardPlan:
        """Return which of ``buffers`` are discarded and which are refused.

        ``off_limits`` is one more guest range to keep: the indirect table of the chain.
        """
        plan = DiscardPlan()
        discards = plan.discards
        spared = None if off_limits is None else self.table.translate_guest(*off_limits)
        low, high, shift, page_mask, spare_low, spare_high, region = _NOWHERE
        ranges = total = 0
        for address, length in buffers:
            ranges += 1
            total += length
            end = address + length
            if not low <= address < high and (number := self.table.find_guest(address)) is not None:
                low, high, shift, page_mask, spare_low, spare_high, region = self._window(number, spared)
            # Nearly every range passes here: whole pages of one region, away from all that is spared. Any other range
            # is judged from the beginning.
            if (
                low <= address < end <= high
                and not (address + shift | length) & page_mask
                and (end <= spare_low or spare_high <= address)
            ):
                discards.append(FileRange(region, address + shift, length))
                continue
            judged = self._judge(address, length, spared, rules)
            if isinstance(judged, Refusal):
                plan.refuse(judged, address, length)
                continue
            discards.append(judged)
        plan.ranges, plan.bytes = ranges, total
        return plan

    def _judge(self, address: int, length: int, spared: FileRange | None, rules: RangeRules) -> FileRange | Refusal:
        if length == 0:
            return Refusal.EMPTY
        place = self.table.translate_guest(address, length)
        if place is None:
            number = self.table.find_guest(address)
            if number is None:
                return Refusal.OUT_OF_RANGE
            if not rules.clamps:
                return Refusal.CROSSES_REGIONS
            place = self.table.translate_guest(address, self.table.regions[number].guest_end - address)
            assert place is not None
        # fallocate would round inward and then write zeros to the ragged edges: the check has to be ours.
        page = self.page_sizes[place.region]
        if rules.ragged is Ragged.ROUNDED_UP and place.offset % page == 0:
            whole = -(-place.length // PAGE_SIZE) * PAGE_SIZE // page * page
            rounded = self.table.translate_guest(address, whole) if whole else None
            if rounded is None:
                return Refusal.UNALIGNED
            place = rounded
        if rules.ragged is not Ragged.ZEROED and (place.offset | place.length) & (page - 1):
            return Refusal.UNALIGNED
        if self.is_protected(place) or (spared is not None and self._overlap(place, spared)):
            return Refusal.RING_MEMORY
        return place

    def _overlap(self, one: FileRange, other: FileRange) -> bool:
        return (
            self._files[one.region] == self._files[other.region]
            and one.offset < other.offset + other.length
            and other.offset < one.offset + one.length
        )

    def _window(self, number: int, spared: FileRange | None) -> _Window:
        window = self._windows[number]
        if window is None:
            region = self.table.regions[number]
            shift = region.mmap_offset - region.guest_address
            spare_low = min((bound.low for bound in self._protected[number]), default=ADDRESS_LIMIT) - shift
            spare_high = max((bound.high for bound in self._protected[number]), default=0) - shift
            page_mask = self.page_sizes[number] - 1
            window = _Window(region.guest_address, region.guest_end, shift, page_mask, spare_low, spare_high, number)
            self._windows[number] = window
        if spared is None or self._files[spared.region] != self._files[number]:
            return window
        low, high = spared.offset - window.shift, spared.offset + spared.length - window.shift
        return window._replace(spare_low=min(window.spare_low, low), spare_high=max(window.spare_high, high))
