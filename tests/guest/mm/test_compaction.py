"""guest/mm/compaction.py: movable blocks move up, larger blocks come about, and the page reporter's place is reset."""

import random

import pytest

from guest.mm.compaction import Deferral
from guest.mm.mmzone import Zone
from guest.mm.page_alloc import PageAllocator
from guest.mm.page_flags import ALLOCATED, MOVABLE
from guest.mm.pageblock import MigrateType
from guest.mm.reporting.reporters import make_reporter
from tests.guest.mm.reporting.reporting import do_nothing, run_pass

UNMOVABLE, MOVABLE_TYPE = MigrateType.UNMOVABLE, MigrateType.MOVABLE


class Owner:
    """Holds blocks and learns where they went."""

    def __init__(self, allocator: PageAllocator) -> None:
        self.allocator = allocator
        self.blocks: dict[int, int] = {}
        self.moves: list[tuple[int, int, int]] = []
        self.pinned: set[int] = set()
        allocator.vmscan.migrate = self.migrate

    def take(self, order: int, migratetype: MigrateType = MOVABLE_TYPE) -> int | None:
        pfn = self.allocator.alloc_pages(order, migratetype)
        if pfn is not None:
            self.blocks[pfn] = order
        return pfn

    def fill(self, order: int = 0) -> None:
        while self.take(order) is not None:
            pass

    def give(self, pfn: int) -> None:
        self.allocator.free_pages(pfn, self.blocks.pop(pfn))

    def migrate(self, pfn: int, target: int, order: int) -> bool:
        if pfn in self.pinned:
            return False
        assert self.blocks.pop(pfn) == order
        assert target not in self.blocks
        self.blocks[target] = order
        self.moves.append((pfn, target, order))
        return True

    def check(self) -> None:
        self.allocator.validate()
        for pfn, order in self.blocks.items():
            assert self.allocator.mem_map[pfn] == ALLOCATED | MOVABLE | order
        assert self.allocator.nr_free_pages() == self.allocator.total_pages - sum(1 << o for o in self.blocks.values())


def scattered(pages: int = 4096, every: int = 2) -> Owner:
    """A guest in use as single pages, of which one in ``every`` is free again: nothing larger than a page is."""
    owner = Owner(PageAllocator(pages, min_free_kbytes=0))
    owner.fill()
    for pfn in sorted(owner.blocks)[::every]:
        owner.give(pfn)
    assert sum(owner.allocator.zones[0].nr_free[1:]) == 0
    return owner


@pytest.mark.parametrize("order", [1, 3, 8, 9, 10])
def test_block_comes_about_from_pages_that_were_scattered(order: int) -> None:
    owner = scattered(8192)
    pfn = owner.take(order)
    assert pfn is not None
    assert owner.allocator.vmscan.compaction.success >= 1
    owner.check()


def test_compaction_moves_all_pages_to_the_end_when_no_order_is_named() -> None:
    owner = scattered()
    owner.allocator.vmscan.compact(-1, MOVABLE_TYPE)
    assert all(target > pfn for pfn, target, _ in owner.moves)
    # Half of the pages are in use: they fill the upper half, up to the pageblock in which the scanners met.
    assert owner.allocator.zones[0].nr_free[10] >= 1
    assert sum(pfn < 2048 - 512 for pfn in owner.blocks) == 0
    owner.check()


def test_pages_move_only_with_a_callback_that_moves_their_content() -> None:
    owner = scattered()
    owner.allocator.vmscan.migrate = None
    assert owner.take(9) is None
    assert owner.allocator.vmscan.compaction.runs == 0


def test_block_that_its_owner_declines_to_move_stays() -> None:
    owner = scattered()
    owner.pinned = {pfn for pfn in owner.blocks if pfn % 512 == 1}
    assert owner.take(9) is None
    assert owner.pinned <= owner.blocks.keys()
    assert owner.allocator.vmscan.compaction.declined > 0
    owner.check()


def test_unmovable_pages_are_not_touched() -> None:
    allocator = PageAllocator(2048, min_free_kbytes=0)
    owner = Owner(allocator)
    pfns: list[int] = []
    while (pfn := allocator.alloc_pages(0, UNMOVABLE)) is not None:
        pfns.append(pfn)
    for pfn in pfns[::2]:
        allocator.free_pages(pfn, 0)
    assert allocator.alloc_pages(9) is None
    assert owner.moves == []
    allocator.validate()


def test_larger_blocks_move_as_a_whole() -> None:
    owner = Owner(PageAllocator(4096, min_free_kbytes=0))
    owner.fill(order=2)
    for pfn in sorted(owner.blocks)[::2]:
        owner.give(pfn)
    assert owner.take(9) is not None
    assert {order for _, _, order in owner.moves} == {2}
    assert all(target % 4 == 0 for _, target, _ in owner.moves)
    owner.check()


def test_zone_with_too_little_free_memory_is_not_compacted() -> None:
    owner = Owner(PageAllocator(2048, min_free_kbytes=0))
    owner.fill()
    for pfn in sorted(owner.blocks)[:512:2]:
        owner.give(pfn)
    # 256 pages are free, and compaction for a block of 512 wants 1024.
    assert owner.take(9) is None
    assert owner.allocator.vmscan.compaction.runs == 0


def test_fast_search_makes_the_reporter_forget_its_place() -> None:
    owner = scattered(8192)
    allocator = owner.allocator
    calls: list[tuple[int, int]] = []
    reporter = make_reporter("boundary", allocator, order=0)
    reporter.register(16, 0.0, do_nothing)
    release = reporter.page_reporting_free_area_release
    worker = reporter.process(1.0)
    next(worker)

    def recorded(zone: Zone, order: int, migratetype: int) -> None:
        calls.append((order, migratetype))
        release(zone, order, migratetype)

    reporter.page_reporting_free_area_release = recorded  # type: ignore[method-assign]
    assert owner.take(9) is not None
    assert (0, MOVABLE_TYPE) in calls
    assert {migratetype for _, migratetype in calls} == {MOVABLE_TYPE}
    worker.close()
    reporter.unregister()
    owner.check()


def test_compaction_is_skipped_twice_as_often_after_each_failure() -> None:
    owner = scattered()
    owner.pinned = set(range(1, 4096, 512))
    statistics = owner.allocator.vmscan.compaction
    runs = []
    for _ in range(24):
        assert owner.take(9) is None
        runs.append(statistics.runs)
    # Two attempts for each request; the first is made, then every second, fourth and eighth.
    assert runs[:8] == [1, 2, 2, 3, 3, 3, 3, 4]
    owner.pinned.clear()
    while owner.take(9) is None:
        pass
    assert statistics.success == 1
    owner.check()


def test_deferral_is_for_orders_that_have_failed() -> None:
    deferral = Deferral()
    deferral.note(9, success=False)
    assert not deferral.deferred(8)
    assert [deferral.deferred(9), deferral.deferred(9)] == [True, False]
    for _ in range(9):
        deferral.note(9, success=False)
    assert [deferral.deferred(10) for _ in range(64)] == [True] * 63 + [False]
    deferral.note(9, success=True)
    assert not deferral.deferred(9)
    assert not deferral.deferred(10)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["boundary", "rotation", "scan"])
def test_blocks_of_any_orders_survive_compaction_under_a_reporter(name: str, seed: int) -> None:
    chance = random.Random(seed)
    owner = Owner(PageAllocator(6144, min_free_kbytes=64))
    reporter = make_reporter(name, owner.allocator, order=chance.choice([2, 5, 9]))
    reporter.register(16, 0.0, do_nothing)
    for _ in range(30):
        for _ in range(chance.randrange(400)):
            owner.take(chance.choice([0, 0, 0, 1, 3, 5]))
        for pfn in chance.sample(sorted(owner.blocks), len(owner.blocks) // chance.choice([2, 3])):
            owner.give(pfn)
        if chance.random() < 0.5 and reporter.due is not None:
            run_pass(reporter)
        owner.allocator.vmscan.compact(chance.choice([-1, 4, 9, 10]), chance.choice([UNMOVABLE, MOVABLE_TYPE]))
        owner.check()
    assert owner.moves
