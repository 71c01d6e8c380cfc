"""guest/mm/shuffle.py: the order of free blocks is random, and the same for the same seed."""

from collections.abc import Generator, Iterator

from guest.mm.page_alloc import PageAllocator
from guest.mm.pageblock import MigrateType
from guest.mm.reporting.page_reporting import Report
from guest.mm.reporting.reporters import make_reporter
from guest.mm.shuffle import Shuffle
from tests.guest.mm.reporting.reporting import entries

WHOLE = 1024


def test_boot_shuffles_the_blocks_of_the_top_order_and_loses_none() -> None:
    plain = PageAllocator(64 * WHOLE + 100)
    shuffled = PageAllocator(64 * WHOLE + 100, shuffle_seed=1)
    assert entries(shuffled, 10) != entries(plain, 10)
    assert sorted(entries(shuffled, 10)) == entries(plain, 10)
    assert all(entries(shuffled, order) == entries(plain, order) for order in range(10))
    shuffled.validate()


def test_shuffle_is_the_same_for_a_seed() -> None:
    first, again, other = (entries(PageAllocator(64 * WHOLE, shuffle_seed=seed), 10) for seed in (5, 5, 6))
    assert first == again != other


def test_shuffle_can_bring_any_block_first() -> None:
    firsts = {entries(PageAllocator(4 * WHOLE, shuffle_seed=seed), 10)[0] for seed in range(60)}
    assert firsts == {0, WHOLE, 2 * WHOLE, 3 * WHOLE}


def test_merged_block_stays_on_the_list_that_it_is_on() -> None:
    allocator = PageAllocator(4 * WHOLE)
    halves = [allocator.alloc_pages(9) for _ in range(2)]
    assert halves[0] is not None
    assert halves[1] is not None
    allocator.set_pageblock_migratetype(halves[0], MigrateType.UNMOVABLE)
    for pfn in halves:
        assert pfn is not None
        allocator.free_pages(pfn, 9)  # filed under the type of the half freed last, not of its first pageblock
    for seed in range(8):
        Shuffle(seed).shuffle_zone(allocator.zones[0], lambda _migratetype: None)
        allocator.validate()


def test_shuffling_resets_the_boundary_of_a_reporter_at_work() -> None:
    allocator = PageAllocator(64 * WHOLE)
    reporter = make_reporter("boundary", allocator)
    reporter.register(32, 0.0, lambda: None)
    worker = reporter.process(1.0)
    report = next(worker)
    report = worker.send(True)
    allocator.shuffle_zones(Shuffle(2))
    allocator.validate()
    reported = {pfn for pfn, _ in report.blocks}
    for report in iter_reports(worker):
        fresh = {pfn for pfn, _ in report.blocks}
        assert not fresh & reported
        reported |= fresh
    allocator.validate()
    assert reporter.reported_pages() == sum(1 << 10 for _ in entries(allocator, 10))


def iter_reports(worker: Generator[Report, bool, None]) -> Iterator[Report]:
    """Acknowledge what the worker holds, and everything that follows."""
    while True:
        try:
            report = worker.send(True)
        except StopIteration:
            return
        yield report


def test_blocks_change_places_within_their_migratetype() -> None:
    allocator = PageAllocator(32 * WHOLE)
    for pfn in range(0, 16 * WHOLE, 512):
        allocator.set_pageblock_migratetype(pfn, MigrateType.RECLAIMABLE)
    before = entries(allocator, 10, MigrateType.RECLAIMABLE)
    Shuffle(3).shuffle_zone(allocator.zones[0], lambda _migratetype: None)
    after = entries(allocator, 10, MigrateType.RECLAIMABLE)
    assert after != before
    assert sorted(after) == sorted(before)
    allocator.validate()


def test_freed_block_of_the_top_order_goes_to_either_end_by_chance_and_smaller_ones_do_not() -> None:
    allocator = PageAllocator(8 * WHOLE, shuffle_seed=2, min_free_kbytes=0)
    places = set()
    for _ in range(20):
        pfn = allocator.alloc_pages(10)
        assert pfn is not None
        allocator.free_pages(pfn, 10)
        places.add(entries(allocator, 10).index(pfn))
    assert places == {0, 7}
    held = [allocator.alloc_pages(9) for _ in range(2)]
    assert None not in held
    assert held[0] is not None
    allocator.free_pages(held[0], 9)
    assert entries(allocator, 9) == [held[0]]
    allocator.validate()


def test_bits_are_used_one_by_one() -> None:
    shuffle = Shuffle(7)
    bits = [shuffle.pick_tail() for _ in range(640)]
    assert 250 < sum(bits) < 390
