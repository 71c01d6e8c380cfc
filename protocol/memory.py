"""The guest's memory as vhost-user describes it: regions, and the file offset of an address.

A region has two addresses. Descriptors hold *guest* addresses; SET_VRING_ADDR alone holds *user* addresses, which are
virtual addresses of the front-end. Source: vhost-user specification, "Memory region description".
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple, NewType

from protocol.errors import VhostUserError

GuestAddress = NewType("GuestAddress", int)
"""A guest physical address, in bytes."""

UserAddress = NewType("UserAddress", int)
"""A virtual address of the front-end's process, in bytes."""

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT
"""The unit of balloon page frame numbers, and the smallest page that a discard can free, in bytes."""

ADDRESS_LIMIT: Final = 1 << 64


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRegion:
    """A range of guest memory and its place in the file that backs it. All four fields are bytes."""

    guest_address: GuestAddress
    size: int
    user_address: UserAddress
    mmap_offset: int

    def check(self) -> None:
        """Raise :class:`VhostUserError` if the region is empty or one of its ranges ends above 2**64."""
        if self.size == 0:
            raise VhostUserError(f"memory region at guest address {self.guest_address:#x} is empty")
        for what, start in (
            ("guest address", self.guest_address),
            ("user address", self.user_address),
            ("file offset", self.mmap_offset),
        ):
            if start + self.size > ADDRESS_LIMIT:
                raise VhostUserError(f"memory region wraps: {what} {start:#x} plus size {self.size:#x} exceeds 2**64")

    @property
    def guest_end(self) -> int:
        """First guest address past the end of the region."""
        return self.guest_address + self.size

    @property
    def user_end(self) -> int:
        """First user address past the end of the region."""
        return self.user_address + self.size

    def is_same_place(self, other: "MemoryRegion") -> bool:
        """Return whether REM_MEM_REG with ``other`` means this region: addresses and size count, not the offset."""
        return (self.guest_address, self.user_address, self.size) == (
            other.guest_address,
            other.user_address,
            other.size,
        )


class FileRange(NamedTuple):
    """``length`` bytes at file offset ``offset`` of the region with number ``region`` in its table."""

    region: int
    offset: int
    length: int


class RegionTable:
    """An immutable set of regions, checked, with both address spaces searchable.

    Raises:
        VhostUserError: a region is empty or wraps, or two of them overlap in guest or user addresses.
    """

    __slots__ = ("_guest_order", "_guest_starts", "regions")

    def __init__(self, regions: Iterable[MemoryRegion] = ()) -> None:
        self.regions: tuple[MemoryRegion, ...] = tuple(regions)
        for region in self.regions:
            region.check()
        self._guest_order = sorted(range(len(self.regions)), key=lambda i: self.regions[i].guest_address)
        self._guest_starts = [self.regions[i].guest_address for i in self._guest_order]
        self._refuse_overlaps()

    def _refuse_overlaps(self) -> None:
        by_guest = [self.regions[i] for i in self._guest_order]
        for below, above in pairwise(by_guest):
            if below.guest_end > above.guest_address:
                raise VhostUserError(f"memory regions overlap at guest address {above.guest_address:#x}")
        by_user = sorted(self.regions, key=lambda region: region.user_address)
        for below, above in pairwise(by_user):
            if below.user_end > above.user_address:
                raise VhostUserError(f"memory regions overlap at user address {above.user_address:#x}")

    @property
    def total_bytes(self) -> int:
        """Sum of all region sizes in bytes."""
        return sum(region.size for region in self.regions)

    def find_guest(self, address: int) -> int | None:
        """Return the number of the region that contains guest ``address``, or None."""
        position = bisect_right(self._guest_starts, address) - 1
        if position < 0:
            return None
        number = self._guest_order[position]
        return number if address < self.regions[number].guest_end else None

    def translate_guest(self, address: int, length: int) -> FileRange | None:
        """Return where ``length`` bytes at guest ``address`` lie, or None unless all of them lie in one region."""
        number = self.find_guest(address)
        if number is None:
            return None
        region = self.regions[number]
        if address + length > region.guest_end:
            return None
        return FileRange(number, address - region.guest_address + region.mmap_offset, length)

    def guest_of(self, place: FileRange) -> int:
        """Return the guest address of the first byte of ``place``: the inverse of :meth:`translate_guest`."""
        region = self.regions[place.region]
        return place.offset - region.mmap_offset + region.guest_address

    def translate_user(self, address: int, length: int) -> FileRange | None:
        """Return where ``length`` bytes at user ``address`` lie, or None unless all of them lie in one region."""
        for number, region in enumerate(self.regions):
            if region.user_address <= address and address + length <= region.user_end:
                return FileRange(number, address - region.user_address + region.mmap_offset, length)
        return None

    def with_region(self, region: MemoryRegion) -> "RegionTable":
        """Return a table with ``region`` added at the end. Raises :class:`VhostUserError` like the constructor."""
        return RegionTable((*self.regions, region))

    def number_of(self, region: MemoryRegion) -> int:
        """Return the number of the region at the same place as ``region``.

        Raises:
            VhostUserError: the table has no such region.
        """
        for number, mine in enumerate(self.regions):
            if mine.is_same_place(region):
                return number
        raise VhostUserError(
            f"no memory region at guest address {region.guest_address:#x}, user address {region.user_address:#x}, "
            f"size {region.size:#x}"
        )

    def without(self, number: int) -> "RegionTable":
        """Return a table without region ``number``; later numbers move down by one."""
        return RegionTable((*self.regions[:number], *self.regions[number + 1 :]))
