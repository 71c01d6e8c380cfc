"""guest/machine.py: its counters, and the calls of its recorder and callbacks."""

from guest.machine import Machine
from guest.mm.page_alloc import PageAllocator
from guest.mm.pageblock import MigrateType
from guest.workloads.allocation_trace import TraceWriter


class Contents:
    """Pages with stamps in them, that a test may spoil."""

    def __init__(self) -> None:
        self.stamps: dict[int, int] = {}

    def fill(self, pfn: int, pages: int, stamp: int) -> None:
        """Remember the stamp of each page."""
        self.stamps.update(dict.fromkeys(range(pfn, pfn + pages), stamp))

    def count_corrupted(self, pfn: int, pages: int, stamp: int) -> int:
        """Count the pages with another stamp."""
        return sum(self.stamps[page] != stamp for page in range(pfn, pfn + pages))


class Scene:
    """A machine of 16 MiB and everything it said."""

    def __init__(self) -> None:
        self.contents = Contents()
        self.phases: list[str] = []
        self.corrupted: list[tuple[int, int, int]] = []
        self.lines: list[str] = []
        self.machine = Machine(
            PageAllocator(4096),
            self.contents,
            self.phases.append,
            lambda pfn, order, pages: self.corrupted.append((pfn, order, pages)),
            recorder=TraceWriter(self.lines.append, lambda: 1.5),
        )


def test_pages_are_filled_verified_and_counted() -> None:
    scene = Scene()
    block = scene.machine.allocate(3)
    assert block is not None
    assert scene.machine.allocated_bytes == 8 * 4096
    scene.machine.free(block)
    assert (scene.machine.verified_pages, scene.machine.corrupted_pages, scene.machine.allocated_bytes) == (8, 0, 0)
    assert scene.machine.free_bytes == 16 << 20


def test_discarded_page_is_found_at_its_free() -> None:
    scene = Scene()
    block = scene.machine.allocate(3)
    assert block is not None
    scene.contents.stamps[block.pfn + 2] = 0
    scene.machine.free(block)
    assert scene.corrupted == [(block.pfn, 3, 1)]
    assert (scene.machine.verified_pages, scene.machine.corrupted_pages) == (7, 1)


def test_verify_all_reads_what_is_in_use() -> None:
    scene = Scene()
    blocks = [scene.machine.allocate(order) for order in (0, 1, 2)]
    assert blocks[1] is not None
    scene.machine.free(blocks[1])
    scene.machine.verify_all()
    assert scene.machine.verified_pages == 2 + 1 + 4


def test_recorder_is_told_all_that_happens() -> None:
    scene = Scene()
    scene.machine.phase("fill")
    first = scene.machine.allocate(0)
    scene.machine.allocate(9, MigrateType.UNMOVABLE)
    assert first is not None
    scene.machine.free(first)
    assert "".join(scene.lines) == (
        "balloon-trace 1\n1.5 phase fill\n1.5 alloc 1 0\n1.5 alloc 2 9 unmovable\n1.5 free 1\n"
    )
    assert scene.phases == ["fill"]


def test_allocation_that_failed_is_counted_and_not_recorded() -> None:
    scene = Scene()
    while scene.machine.allocate(10) is not None:
        pass
    assert scene.machine.failed_allocations == 1
    assert "".join(scene.lines).count("alloc") == scene.machine.allocated_pages >> 10


def test_compaction_moves_a_block_with_its_content() -> None:
    scene = Scene()
    block = scene.machine.allocate(2)
    assert block is not None
    old, new = block.pfn, block.pfn ^ 1024
    assert scene.machine.migrate(old, new, 2)
    scene.contents.stamps.update(dict.fromkeys(range(old, old + 4), 0))
    assert block.pfn == new
    scene.machine.verify(block)
    assert (scene.machine.verified_pages, scene.machine.corrupted_pages) == (8, 0)


def test_compaction_cannot_move_blocks_that_no_workload_holds() -> None:
    """Rings, for example: the device knows their address."""
    scene = Scene()
    pfn = scene.machine.allocator.alloc_pages(0)
    assert pfn is not None
    assert not scene.machine.migrate(pfn, pfn ^ 1024, 0)


def test_page_cache_gives_way() -> None:
    scene = Scene()
    with scene.machine.page_cache() as cache:
        for _ in range(3000):
            block = scene.machine.allocate(0)
            assert block is not None
            cache.touch(block)
        held = [scene.machine.allocate(9) for _ in range(3)]
        assert None not in held
        assert len(cache) < 3000
        cache.drop()
    assert scene.machine.allocated_pages == 3 * 512
