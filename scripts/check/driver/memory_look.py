"""Looks at pages of the driver's memory without bringing one into being that is not there."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

from host.ring.ring_service import RingService
from protocol.memory import PAGE_SIZE, FileRange

PAGES_OF_RANGE: Final = 4
"""Pages of one range whose content is looked at."""

MIXED: Final = -1
"""What stands for the content of a page that is not one 32-bit number throughout."""


def present_pages(files: Any, place: FileRange) -> Iterator[int]:
    """Yield the offsets of the pages of ``place`` that its file has."""
    # On an open file of its own: a position that is shared with the front-end is the front-end's.
    fd = os.open(f"/proc/self/fd/{files[place.region].fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        at, end = place.offset, place.offset + place.length
        while at < end:
            try:
                at = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:
                return
            if at < end:
                yield at
            at += PAGE_SIZE
    finally:
        os.close(fd)


def present_addresses(service: RingService, place: FileRange) -> Iterator[int]:
    """Yield the guest addresses of the pages of ``place`` that are there."""
    for at in present_pages(service._memory.files, place):
        yield service._memory.table.guest_of(FileRange(place.region, at, PAGE_SIZE))


def contents(service: RingService, buffers: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Return what the first pages of each of ``buffers`` hold that are there, by guest address: a 32-bit number that
    fills the page, or :data:`MIXED`."""
    table, files = service._memory.table, service._memory.files
    found: dict[int, int] = {}
    for address, length in buffers:
        place = table.translate_guest(address, length)
        if place is None or (place.offset | length) % PAGE_SIZE:
            continue
        for at in islice(present_pages(files, place), PAGES_OF_RANGE):
            data = os.pread(files[place.region].fd, PAGE_SIZE, at)
            word = data[:4]
            is_one = len(data) == PAGE_SIZE and data == word * (PAGE_SIZE // 4)
            guest = table.guest_of(FileRange(place.region, at, PAGE_SIZE))
            found[guest] = int.from_bytes(word, "little") if is_one else MIXED
    return found


def page_places(service: RingService, data: bytes) -> Iterator[FileRange]:
    """Yield where the pages lie whose frame numbers are ``data``; those outside of memory are left out."""
    for start in range(0, len(data) - 3, 4):
        pfn = int.from_bytes(data[start : start + 4], "little")
        with contextlib.suppress(ValueError):
            if (place := service._memory.table.translate_guest(pfn * PAGE_SIZE, PAGE_SIZE)) is not None:
                yield place
