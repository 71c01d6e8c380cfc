"""Ranges of pages, as they stand in scripts: ``1024+512`` are the 512 pages from page frame 1024 on."""

from collections.abc import Iterable
from itertools import groupby
from typing import Final, NamedTuple

NOWHERE: Final = -1
"""The first page of a range that has no place: pages that were asked for and not had, or a number of them alone."""


class Pages(NamedTuple):
    """``length`` pages from page frame ``first`` on."""

    first: int
    length: int

    @property
    def end(self) -> int:
        """The first page past them."""
        return self.first + self.length

    def __str__(self) -> str:
        return f"{'none' if self.first == NOWHERE else self.first}+{self.length}"


def block(pfn: int, order: int) -> Pages:
    """Return the pages of a block of the buddy allocator."""
    return Pages(pfn, 1 << order)


def amount(length: int) -> Pages:
    """Return a number of pages without a place."""
    return Pages(NOWHERE, length)


def runs(pfns: Iterable[int]) -> tuple[Pages, ...]:
    """Return page frame numbers as ranges, in ascending order."""
    found = list[Pages]()
    for _, run in groupby(enumerate(sorted(pfns)), key=lambda numbered: numbered[1] - numbered[0]):
        members = [pfn for _, pfn in run]
        found.append(Pages(members[0], len(members)))
    return tuple(found)


def neighbours_joined(ranges: Iterable[Pages]) -> tuple[Pages, ...]:
    """Return ``ranges`` without repetitions, one that begins where the one before ends joined to it."""
    found = list[Pages]()
    for pages in dict.fromkeys(ranges):
        if found and found[-1].end == pages.first:
            found[-1] = Pages(found[-1].first, found[-1].length + pages.length)
        else:
            found.append(pages)
    return tuple(found)
