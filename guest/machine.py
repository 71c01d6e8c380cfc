"""The emulated machine as its programs see it: pages to allocate, write, read and free.

Every allocated page is written, and verified before it is freed, which detects a device that discards a page in use.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from guest.mm.page_alloc import PageAllocator
from guest.mm.pageblock import MigrateType
from guest.mm.vmscan import PageCache
from guest.page_poison import PagePoison
from guest.scheduler import Scheduler
from protocol.memory import PAGE_SIZE


class PageContent(Protocol):
    """Where the content of pages is kept; :class:`guest.ram.GuestRam` is one."""

    def fill(self, pfn: int, pages: int, stamp: int) -> None:
        """Touch ``pages`` pages from ``pfn``, leaving the pattern of ``stamp`` in each."""

    def count_corrupted(self, pfn: int, pages: int, stamp: int) -> int:
        """Return how many of the pages have lost the pattern of ``stamp``."""


class Recorder(Protocol):
    """Records what workloads do; :class:`guest.workloads.allocation_trace.TraceWriter` is one."""

    def allocated(self, number: int, order: int, migratetype: MigrateType) -> None:
        """A block was allocated. ``number`` names it until it is freed."""

    def freed(self, number: int) -> None:
        """The block ``number`` is about to be freed."""

    def phase(self, name: str) -> None:
        """A phase of a workload begins."""


class KnownContent(Protocol):
    """What the device has said of the content of free pages; :class:`guest.balloon.initialised_pages.InitialisedPages`
    is one."""

    def take(self, pfn: int, pages: int) -> int:
        """Pages are taken into use. Return how many of them do not hold what was said."""


@dataclass(slots=True, eq=False)
class Block:
    """2**order pages in use from page frame ``pfn``, holding the pattern of ``stamp``. Compaction may move it."""

    pfn: int
    order: int
    stamp: int


class Machine:
    """Allocates, fills, verifies and frees blocks, and counts corrupted pages.

    ``on_phase`` is called with the name of each new phase of a workload, ``on_corruption`` with each corrupted block:
    pfn, order, number of corrupted pages. ``recorder``, which may be set later, is called at every allocation, free and
    phase. With ``poison`` free pages hold a pattern, and a page that has lost it counts as corrupted when allocated. So
    does a page that is not as ``known`` says.
    """

    def __init__(
        self,
        allocator: PageAllocator,
        content: PageContent,
        on_phase: Callable[[str], None],
        on_corruption: Callable[[int, int, int], None],
        *,
        recorder: Recorder | None = None,
        poison: PagePoison | None = None,
        known: KnownContent | None = None,
    ) -> None:
        self.allocator = allocator
        self.scheduler = Scheduler(allocator)
        self._content = content
        self._on_phase = on_phase
        self._on_corruption = on_corruption
        self.recorder = recorder
        self._poison = poison
        self._known = known
        allocator.vmscan.migrate = self.migrate
        self._last_stamp = 0
        self._blocks: dict[int, Block] = {}
        self._caches: list[PageCache[Block]] = []
        self.allocated_pages = 0
        self.verified_pages = 0
        self.corrupted_pages = 0
        self.failed_allocations = 0

    def allocate(self, order: int, migratetype: MigrateType = MigrateType.MOVABLE) -> Block | None:
        """Take 2**order pages and fill them. Return None if the allocation fails."""
        pfn = self.allocator.alloc_pages(order, migratetype)
        if pfn is None:
            self.failed_allocations += 1
            return None
        self._check_free_pages(pfn, order)
        self._last_stamp += 1
        self._content.fill(pfn, 1 << order, self._last_stamp)
        self.allocated_pages += 1 << order
        block = self._blocks[pfn] = Block(pfn, order, self._last_stamp)
        if self.recorder is not None:
            self.recorder.allocated(block.stamp, order, migratetype)
        return block

    def free(self, block: Block) -> None:
        """Verify the block's content and give its pages back."""
        self.verify(block)
        if self.recorder is not None:
            self.recorder.freed(block.stamp)
        if self._poison is not None:
            self._poison.restore(block.pfn, 1 << block.order)
        self.allocator.free_pages(block.pfn, block.order)
        del self._blocks[block.pfn]
        self.allocated_pages -= 1 << block.order

    def migrate(self, old_pfn: int, new_pfn: int, order: int) -> bool:
        """Move a block that a workload holds, with its content, to other pages; False for any other block."""
        block = self._blocks.get(old_pfn)
        if block is None or block.order != order:
            return False
        self.verify(block)
        self._check_free_pages(new_pfn, order)
        if self._poison is not None:
            self._poison.restore(old_pfn, 1 << order)
        self._content.fill(new_pfn, 1 << order, block.stamp)
        del self._blocks[old_pfn]
        block.pfn = new_pfn
        self._blocks[new_pfn] = block
        return True

    def verify(self, block: Block) -> None:
        """Read the block's pages and count those whose content is not what was written."""
        pages = 1 << block.order
        corrupted = self._content.count_corrupted(block.pfn, pages, block.stamp)
        self.verified_pages += pages - corrupted
        if corrupted:
            self._count_corrupted(block.pfn, block.order, corrupted)

    def _check_free_pages(self, pfn: int, order: int) -> None:
        spoilt = 0 if self._known is None else self._known.take(pfn, 1 << order)
        if self._poison is not None:
            spoilt = max(spoilt, self._poison.count_spoilt(pfn, 1 << order))
        if spoilt:
            self._count_corrupted(pfn, order, spoilt)

    def _count_corrupted(self, pfn: int, order: int, pages: int) -> None:
        self.corrupted_pages += pages
        self._on_corruption(pfn, order, pages)

    def verify_all(self) -> None:
        """Read every page that is in use."""
        for block in self._blocks.values():
            self.verify(block)

    def phase(self, name: str) -> None:
        """EmitEvent a new phase of the workload."""
        if self.recorder is not None:
            self.recorder.phase(name)
        self._on_phase(name)

    @contextmanager
    def page_cache(self) -> Iterator[PageCache[Block]]:
        """Register a page cache for as long as it is in use: when memory is short its oldest pages are freed."""
        cache: PageCache[Block] = PageCache(self._release)
        self.allocator.vmscan.register_shrinker(cache.shrink)
        self._caches.append(cache)
        try:
            yield cache
        finally:
            self._caches = [other for other in self._caches if other is not cache]
            self.allocator.vmscan.unregister_shrinker(cache.shrink)

    def _release(self, block: Block) -> int:
        self.free(block)
        return 1 << block.order

    @property
    def cached_pages(self) -> int:
        """Pages in page caches, which are reclaimable. They count as allocated, too."""
        return sum(map(len, self._caches))

    @property
    def free_bytes(self) -> int:
        """Bytes on the free lists."""
        return self.allocator.nr_free_pages() * PAGE_SIZE

    @property
    def allocated_bytes(self) -> int:
        """Bytes that workloads hold."""
        return self.allocated_pages * PAGE_SIZE
