"""``pagecache``: reads files until memory is full of them, then drops them. Must not know: the device, real time."""

import random
from dataclasses import dataclass
from typing import Final

from guest.machine import Block, Machine
from guest.mm.mmzone import MigrateType
from guest.workloads.steps import Steps, free_in_turns, killed_when_out_of_memory, wait_for_block
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
class PageCache:
    """Reads files of random sizes until ``size`` bytes are cached (0: 80 % of what is free), holds them, drops them.

    The cache grows page by page, and is dropped file by file in random order, ``drop`` percent of all files; what is
    left stays for the next of ``repeat`` rounds, which reads up to ``size`` again. ``hold`` and ``rest`` are seconds
    after reading and after dropping; ``rate`` limits reading to so many bytes a second (0: as fast as it goes).
    """

    size: int = 0
    hold: float = 1.0
    rest: float = 0.0
    rate: int = 0
    drop: float = 100.0
    repeat: int = 1

    def run(self, machine: Machine, seed: int) -> Steps:
        """Read and drop. Raises :class:`~guest.workloads.steps.OutOfMemoryError` when the machine has too little."""
        chance = random.Random(seed)
        size = self.size or machine.free_bytes * _PERCENT_OF_MEMORY // 100
        files: list[list[Block]] = []
        for _ in range(self.repeat):
            machine.phase("fill")
            yield from killed_when_out_of_memory(machine, files, self._fill(machine, chance, size, files))
            machine.phase("hold")
            yield self.hold
            machine.phase("drop")
            chance.shuffle(files)
            for _ in range(round(len(files) * self.drop / 100)):
                yield from free_in_turns(machine, files.pop(), READAHEAD_PAGES)
            machine.phase("rest")
            yield self.rest
        for pages in files:
            yield from free_in_turns(machine, pages, READAHEAD_PAGES)

    def _fill(self, machine: Machine, chance: random.Random, size: int, files: list[list[Block]]) -> Steps:
        wanted = size // PAGE_SIZE - sum(map(len, files))
        while wanted > 0:
            pages: list[Block] = []
            files.append(pages)
            if len(files) % INODES_PER_PAGE == 1:
                pages.append((yield from wait_for_block(machine, 0, MigrateType.RECLAIMABLE)))
            file_pages = min(wanted, 1 + int(chance.lognormvariate(_FILE_PAGES_MU, _FILE_PAGES_SIGMA)))
            yield from self._read(machine, pages, file_pages)
            wanted -= len(pages)

    def _read(self, machine: Machine, pages: list[Block], file_pages: int) -> Steps:
        for begin in range(0, file_pages, READAHEAD_PAGES):
            window = min(READAHEAD_PAGES, file_pages - begin)
            for _ in range(window):
                block = machine.allocate(0)
                pages.append(block if block is not None else (yield from wait_for_block(machine, 0)))
            yield window * PAGE_SIZE / self.rate if self.rate else 0.0
