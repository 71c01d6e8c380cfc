"""A guest's memory as a fuzzer's input describes it, and what a discard of it may never touch."""

from collections.abc import Iterable
from typing import Final

from host.memory.discard_plan import DeviceMemory, Ragged
from host.virtqueue.virtqueue import Buffer
from protocol.errors import VhostUserError
from protocol.memory import PAGE_SIZE, FileRange, GuestAddress, MemoryRegion, RegionTable, UserAddress
from scripts.check.fuzzing.byte_source import ByteSource, must

_HUGE: Final = 2 << 20
_REGIONS_MAX: Final = 4
_USER_GAP: Final = 1 << 44


class AnyMemory:
    """Up to four regions of up to three files, and up to three rings in them.

    Input: a byte (bits 0 and 1 the number of regions less one, bits 2 and 3 of rings, bit 4 small pages only); nine
    bytes for each region (file and alignment, place, pages, place in the file), then seven for each ring.
    """

    def __init__(self, source: ByteSource) -> None:
        """Raise :class:`VhostUserError` for regions that overlap, which is a right answer."""
        counts = source.number()
        regions = [self._region(source, number) for number in range(1 + counts % _REGIONS_MAX)]
        self.files = tuple(file for _, file in regions)
        small = bool(counts & 16)
        # The last file has huge pages, unless all are small.
        self.page_sizes = tuple(_HUGE if file == 2 and not small else PAGE_SIZE for file in self.files)
        self.table = RegionTable(region for region, _ in regions)
        self.rings = [self._ring(source) for _ in range(counts >> 2 & 3)]
        self.view = DeviceMemory(self.table, self.page_sizes, self.rings, self.files)

    @staticmethod
    def _region(source: ByteSource, number: int) -> tuple[MemoryRegion, int]:
        kind = source.number()
        place, pages, offset = source.number(3), 1 + source.number(2), source.number(3)
        ragged = 512 if kind & 4 else 0
        region = MemoryRegion(
            guest_address=GuestAddress(place * PAGE_SIZE),
            size=pages * PAGE_SIZE,
            user_address=UserAddress((number + 1) * _USER_GAP),
            mmap_offset=offset % 0x1_0000 * PAGE_SIZE + ragged,
        )
        return region, kind % 3

    def _ring(self, source: ByteSource) -> FileRange:
        number = source.number() % len(self.table.regions)
        region = self.table.regions[number]
        at = source.number(4) % region.size
        length = 1 + min(source.number(2), region.size - at - 1)
        return FileRange(number, region.mmap_offset + at, length)

    def address(self, source: ByteSource) -> int:
        """Return a guest address, most often near a region's begin or end."""
        kind = source.number()
        if kind & 0x80:
            return source.number(8)
        region = self.table.regions[kind % len(self.table.regions)]
        offset = source.number(3)
        near = region.guest_end if kind & 0x40 else region.guest_address
        unit = 1 if kind & 0x20 else PAGE_SIZE
        return max(0, near - offset * unit if kind & 0x40 else near + offset * unit)

    def buffer(self, source: ByteSource) -> Buffer:
        """Return a buffer: an address, and a length in bytes or in pages."""
        address = self.address(source)
        length = source.number(4)
        return address, length if length & 1 << 31 else (length & 0xFFFF) * PAGE_SIZE

    def check(self, discards: Iterable[FileRange], spared: Buffer | None, ragged: Ragged) -> None:
        """Raise :class:`Violation` unless each discard lies in its region and away from rings and ``spared``."""
        table = None if spared is None else self.table.translate_guest(*spared)
        for place in discards:
            region = self.table.regions[place.region]
            begin, end = place.offset, place.offset + place.length
            must(place.length > 0, "a discard of no bytes")
            must(region.mmap_offset <= begin and end <= region.mmap_offset + region.size, "a discard outside a region")
            page = self.page_sizes[place.region]
            must(ragged is Ragged.ZEROED or not (begin | end) % page, "a discard of part of a page")
            for ring in self.rings:
                low, high = ring.offset // page * page, -(-(ring.offset + ring.length) // page) * page
                away = self.files[ring.region] != self.files[place.region] or end <= low or high <= begin
                must(away, "a discard of a page that holds a ring")
            if table is not None and self.files[table.region] == self.files[place.region]:
                away = end <= table.offset or table.offset + table.length <= begin
                must(away or not table.length, "a discard of the chain's own indirect table")


def any_memory(source: ByteSource) -> AnyMemory | None:
    """Return the memory that the input describes, None if no memory is like that."""
    try:
        return AnyMemory(source)
    except VhostUserError:
        return None
