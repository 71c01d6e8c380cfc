"""Ranges of pages, as they stand in scripts: ``1024+512`` are the 512 pages from page frame 1024 on."""

from collections.abc import Iterable
from itertools import groupby
from typing import Final, NamedTuple

NOWHERE: Final = -1
"""The first page of a range that has no place: pages that were asked for and not had, or a number of them alone."""


class Pages(NamedTuple):
    """``count`` pages from page frame ``first`` on."""

    first: int
    count: int

    @property
    def end(self) -> int:
        """The first page past them."""
        return self.first + self.count

    def __str__(self) -> str:
        return f"{'none' if self.first == NOWHERE else self.first}+{self.count}"


def block(pfn: int, order: int) -> Pages:
    """Return the pages of a block of the buddy allocator."""
    return Pages(pfn, 1 << order)


def amount(count: int) -> Pages:
    """Return a number of pages without a place."""
    return Pages(NOWHERE, count)


def runs(pfns: Iterable[int]) -> tuple[Pages, ...]:
    """Return page frame numbers as ranges, in ascending order."""
    found = list[Pages]()
    for _, run in groupby(enumerate(sorted(pfns)), key=lambda numbered: numbered[1] - numbered[0]):
        members = [pfn for _, pfn in run]
        found.append(Pages(members[0], len(members)))
    return tuple(found)
