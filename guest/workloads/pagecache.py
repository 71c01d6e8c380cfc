"""``pagecache``: reads files until memory is full of them, then drops them."""

import random
from dataclasses import dataclass
from typing import Final

from guest.machine import Block, Machine
from guest.mm.pageblock import MigrateType
from guest.mm.vmscan import PageCache
from guest.workloads.workload import OutOfMemoryError, Steps, wait_for_block
from protocol.memory import PAGE_SIZE

READAHEAD_PAGES: Final = 32
"""A file is read 128 KiB at a time, ``read_ahead_kb``; that is one turn."""
INODES_PER_PAGE: Final = 16
"""For so many files a page of inodes and names is kept; it is reclaimable, but cannot be moved."""

_PERCENT_OF_MEMORY: Final = 80
_FILE_PAGES_MU: Final = 3.0
_FILE_PAGES_SIGMA: Final = 1.8
"""Sizes of files are spread log-normally: half have up to e**3 = 20 pages, most bytes are in a few large ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageCacheUser:
    """Reads files of random sizes, ``size`` bytes in all (0: 80 % of what is free), keeps them in a cache, drops them.

    The cache grows page by page. Where memory gets short the pages used least recently make room, so more can be read
    than there is memory. Of all files ``drop`` percent are dropped; the others, chosen at random, have been used again
    before, and stay for the next of ``repeat`` rounds, which reads up to ``size`` again. ``hold`` and ``rest`` are
    seconds after reading and after dropping; ``rate`` limits reading to so many bytes a second (0: as fast as it goes).
    """

    size: int = 0
    hold: float = 1.0
    rest: float = 0.0
    rate: int = 0
    drop: float = 100.0
    repeat: int = 1

    def run(self, machine: Machine, seed: int) -> Steps:
        """Read and drop. Raises :class:`.OutOfMemoryError` when others have taken all memory."""
        chance = random.Random(seed)
        size = self.size or machine.free_bytes * _PERCENT_OF_MEMORY // 100
        with machine.page_cache() as cache:
            files: list[list[Block]] = []
            try:
                for _ in range(self.repeat):
                    machine.phase("fill")
                    yield from self._fill(machine, cache, chance, size, files)
                    machine.phase("hold")
                    yield self.hold
                    machine.phase("drop")
                    files = _use_some_again(cache, chance, files, 1 - self.drop / 100)
                    yield from _shrink_in_turns(cache, len(cache) - sum(map(len, files)))
                    machine.phase("rest")
                    yield self.rest
            except OutOfMemoryError:
                cache.drop()
                raise
            yield from _shrink_in_turns(cache, len(cache))

    def _fill(
        self,
        machine: Machine,
        cache: PageCache[Block],
        chance: random.Random,
        size: int,
        files: list[list[Block]],
    ) -> Steps:
        wanted = size // PAGE_SIZE - len(cache)
        while wanted > 0:
            pages: list[Block] = []
            files.append(pages)
            file_pages = min(wanted, 1 + int(chance.lognormvariate(_FILE_PAGES_MU, _FILE_PAGES_SIGMA)))
            if len(files) % INODES_PER_PAGE == 1:
                yield from _add(machine, cache, pages, MigrateType.RECLAIMABLE)
            while len(pages) < file_pages:
                window = min(READAHEAD_PAGES, file_pages - len(pages))
                for _ in range(window):
                    yield from _add(machine, cache, pages, MigrateType.MOVABLE)
                yield window * PAGE_SIZE / self.rate if self.rate else 0.0
            wanted -= file_pages


def _add(machine: Machine, cache: PageCache[Block], pages: list[Block], migratetype: MigrateType) -> Steps:
    block = machine.allocate(0, migratetype)
    if block is None:
        block = yield from wait_for_block(machine, 0, migratetype)
    cache.touch(block)
    pages.append(block)


def _use_some_again(
    cache: PageCache[Block], chance: random.Random, files: list[list[Block]], share: float
) -> list[list[Block]]:
    # The files that were used again, without the pages that reclaim has taken.
    again = chance.sample(files, round(len(files) * share))
    found = []
    for pages in again:
        cached = [block for block in pages if block in cache]
        for block in cached:
            cache.touch(block)
        found.append(cached)
    return found


def _shrink_in_turns(cache: PageCache[Block], pages: int) -> Steps:
    for begin in range(0, pages, READAHEAD_PAGES):
        cache.shrink(min(READAHEAD_PAGES, pages - begin))
        yield 0.0
