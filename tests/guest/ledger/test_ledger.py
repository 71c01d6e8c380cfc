"""Each cause of the ledger, produced on purpose."""

from typing import Any, Final

import pytest

from guest.ledger.ledger import CAUSES, take_ledger
from guest.mm.page_alloc import PageAllocator
from guest.mm.pageblock import MAX_ORDER, MigrateType
from guest.mm.reporting.cause import Cause
from guest.mm.reporting.page_reporting import PageReporter, Report
from guest.mm.reporting.reporters import REPORTERS, make_reporter
from guest.mm.watermark import AllocFlags, low_wmark_pages
from guest.simulation import HostMemory
from protocol.memory import PAGE_SIZE
from tests.guest.mm.reporting.reporting import do_nothing, due, run_pass

BLOCK: Final = PAGE_SIZE << MAX_ORDER
ALL = pytest.mark.parametrize("name", list(REPORTERS))
OF_2019 = pytest.mark.parametrize("name", ["boundary", "scan"])


class Guest:
    """``blocks`` blocks of MAX_ORDER, all of them free and untouched, and a reporter that is not registered yet."""

    def __init__(
        self,
        name: str | None,
        *,
        blocks: int = 256,
        nr_cpus: int = 0,
        min_free_kbytes: int | None = None,
        **constants: Any,
    ) -> None:
        self.allocator = PageAllocator(blocks << MAX_ORDER, nr_cpus=nr_cpus, min_free_kbytes=min_free_kbytes)
        self.host = HostMemory(self.allocator.end_pfn)
        self.reporter = None if name is None else make_reporter(name, self.allocator, **constants)

    def touch(self) -> None:
        """Have the host back everything."""
        self.host.fill(0, self.allocator.end_pfn, 0)

    @property
    def registered(self) -> PageReporter:
        """The reporter, registered with the first call."""
        assert self.reporter is not None
        if not self.reporter.registered:
            self.reporter.register(32, 0.0, do_nothing)
        return self.reporter

    def discard(self, report: Report) -> bool:
        """Do as the device does."""
        for pfn, order in report.blocks:
            self.host.discard(pfn, 1 << order)
        return True

    def allocate(self, count: int, order: int = MAX_ORDER) -> list[int]:
        """Take and touch blocks."""
        pfns = [pfn for _ in range(count) if (pfn := self.allocator.alloc_pages(order)) is not None]
        for pfn in pfns:
            self.host.fill(pfn, 1 << order, 0)
        return pfns

    def take_all(self) -> list[int]:
        """Touch and take all memory, beyond the watermarks."""
        self.touch()
        flags = AllocFlags.NO_WATERMARKS
        return list(iter(lambda: self.allocator.alloc_pages(MAX_ORDER, MigrateType.MOVABLE, flags), None))

    def held(self, kept_for: Cause | None = None) -> dict[Cause, int]:
        """Return the causes that hold something, in bytes."""
        ledger = take_ledger(self.allocator, self.reporter, self.host.residency, kept_for=kept_for)
        in_flight = () if self.reporter is None else self.reporter.in_flight
        free = (
            self.allocator.nr_free_pages() + self.allocator.nr_pcp_pages() + sum(1 << order for _, order in in_flight)
        )
        assert ledger.free_bytes == free * PAGE_SIZE
        assert tuple(ledger.held_bytes) == CAUSES
        return {cause: size for cause, size in ledger.held_bytes.items() if size}


def test_causes_have_a_fixed_order() -> None:
    assert [str(cause) for cause in Cause] == [
        "below_order",
        "watermark",
        "high_residue",
        "delay",
        "budget",
        "pcp",
        "poison",
        "inhibited",
        "refused",
        "unacknowledged",
        "unknown",
    ]


@ALL
def test_untouched_memory_counts_as_returned(name: str) -> None:
    guest = Guest(name)
    assert due(guest.registered) is not None
    assert guest.held() == {}


# --- From the free to the acknowledgement ---


@ALL
def test_delay(name: str) -> None:
    guest = Guest(name)
    guest.touch()
    assert due(guest.registered) is not None
    assert guest.held() == {Cause.DELAY: 256 * BLOCK}


@OF_2019
def test_all_is_returned_without_a_pause(name: str) -> None:
    guest = Guest(name)
    guest.touch()
    run_pass(guest.registered, guest.discard)
    assert guest.held() == {}


@pytest.mark.parametrize(("name", "blocks"), [("boundary", 16), ("scan", 16), ("rotation", 32)])
def test_unacknowledged(name: str, blocks: int) -> None:
    """The rest of the pass waits for the same answer as the blocks that the device has."""
    guest = Guest(name)
    guest.touch()
    worker = guest.registered.process(0.0)
    report = next(worker)
    assert len(report.blocks) == blocks
    assert guest.held() == {Cause.UNACKNOWLEDGED: 256 * BLOCK}
    guest.discard(report)
    assert guest.held() == {Cause.UNACKNOWLEDGED: (256 - blocks) * BLOCK}
    worker.close()


def test_blocks_freed_during_a_pass_of_rotation() -> None:
    """Of the list that is walked they are in this pass; of one before it they wait for the next."""
    guest = Guest("rotation")
    (large,) = guest.allocate(1)
    small, _ = guest.allocate(2, order=9)
    worker = guest.registered.process(0.0)
    assert next(worker).blocks[0][1] == MAX_ORDER
    guest.allocator.free_pages(large, MAX_ORDER)
    assert guest.held() == {Cause.UNACKNOWLEDGED: BLOCK}
    guest.allocator.free_pages(small, 9)
    assert guest.held() == {Cause.UNACKNOWLEDGED: BLOCK, Cause.DELAY: BLOCK // 2}
    worker.close()


def test_budget() -> None:
    """A pass of rotation over 256 blocks makes two reports: ceil(256 / 512) and one more."""
    guest = Guest("rotation")
    guest.touch()
    left = 256
    while left:
        reports = run_pass(guest.registered, guest.discard)
        assert [len(report.blocks) for report in reports] == [32, 32]
        left -= 64
        assert guest.held() == ({Cause.BUDGET: left * BLOCK} if left else {})


def test_budget_is_spent_with_the_last_report_that_it_allows() -> None:
    guest = Guest("rotation")
    guest.touch()
    worker = guest.registered.process(0.0)
    guest.discard(next(worker))
    assert guest.held() == {Cause.UNACKNOWLEDGED: 224 * BLOCK}
    worker.send(True)
    assert guest.held() == {Cause.UNACKNOWLEDGED: 32 * BLOCK, Cause.BUDGET: 192 * BLOCK}
    worker.close()


def test_budget_that_sufficed_holds_nothing() -> None:
    guest = Guest("rotation", blocks=64)
    (pfn,) = guest.allocate(1)
    guest.touch()
    for _ in range(3):
        if due(guest.registered) is not None:
            run_pass(guest.registered, guest.discard)
    guest.allocator.free_pages(pfn, MAX_ORDER)
    assert guest.held() == {Cause.DELAY: BLOCK}


@OF_2019
def test_high_water_mark_residue(name: str) -> None:
    """31 free blocks of an order request nothing, the 32nd does."""
    guest = Guest(name)
    run_pass(guest.registered, guest.discard)
    pfns = guest.allocate(32)
    for count, pfn in enumerate(pfns[:31], 1):
        guest.allocator.free_pages(pfn, MAX_ORDER)
        assert guest.held() == {Cause.HIGH_RESIDUE: count * BLOCK}
    guest.allocator.free_pages(pfns[31], MAX_ORDER)
    assert guest.held() == {Cause.DELAY: 32 * BLOCK}


# --- What is never reported ---


@ALL
def test_below_order(name: str) -> None:
    guest = Guest(name, order=9)
    for _ in range(9):
        if due(guest.registered) is not None:
            run_pass(guest.registered, guest.discard)
    pfns = guest.allocate(512, order=0)
    for pfn in pfns[::2]:
        guest.allocator.free_pages(pfn, 0)
    assert guest.held() == {Cause.BELOW_ORDER: 256 * PAGE_SIZE}


@ALL
def test_pcp(name: str) -> None:
    guest = Guest(name, nr_cpus=2)
    for _ in range(9):
        if due(guest.registered) is not None:
            run_pass(guest.registered, guest.discard)
    (pfn,) = guest.allocate(1, order=0)
    guest.allocator.free_pages(pfn, 0)
    assert guest.allocator.nr_pcp_pages() > 1  # others were fetched and not touched
    assert guest.held() == {Cause.PCP: PAGE_SIZE}


@ALL
def test_isolated_pageblock_is_inhibited(name: str) -> None:
    guest = Guest(name)
    guest.touch()
    guest.allocator.set_pageblock_migratetype(0, MigrateType.ISOLATE)
    guest.allocator.set_pageblock_migratetype(512, MigrateType.ISOLATE)
    assert due(guest.registered) is not None
    assert guest.held() == {Cause.DELAY: 255 * BLOCK, Cause.INHIBITED: BLOCK}


# --- The watermark ---


def test_watermark_of_rotation() -> None:
    """A zone is left alone up to its low watermark and a whole report, however often it is requested."""
    guest = Guest("rotation")
    zone = guest.allocator.zones[0]
    pfns = guest.take_all()
    assert due(guest.registered) is not None
    while zone.free_pages + 1024 <= low_wmark_pages(zone) + (32 << 9):
        guest.allocator.free_pages(pfns.pop(), MAX_ORDER)
        assert guest.held() == {Cause.WATERMARK: zone.free_pages * PAGE_SIZE}
    run_pass(guest.registered, guest.discard)
    assert guest.held() == {Cause.WATERMARK: zone.free_pages * PAGE_SIZE}
    guest.allocator.free_pages(pfns.pop(), MAX_ORDER)
    assert guest.held() == {Cause.DELAY: zone.free_pages * PAGE_SIZE}


def test_zone_that_was_short_waits_for_the_next_free() -> None:
    """Frees of small blocks lift a zone above the mark, but do not request a pass."""
    guest = Guest("rotation")
    zone = guest.allocator.zones[0]
    while due(guest.registered) is not None:
        run_pass(guest.registered, guest.discard)
    small = guest.allocate(4096, order=0)
    large = guest.allocate(256)
    while zone.free_pages + 1024 <= low_wmark_pages(zone) + (32 << 9):
        guest.allocator.free_pages(large.pop(0), MAX_ORDER)
    run_pass(guest.registered, guest.discard)
    for pfn in small[::2]:
        guest.allocator.free_pages(pfn, 0)
    assert zone.free_pages > low_wmark_pages(zone) + (32 << 9)
    assert due(guest.registered) is None
    held = guest.held()
    assert held.pop(Cause.BELOW_ORDER) == 2048 * PAGE_SIZE
    assert held.keys() == {Cause.WATERMARK}


@OF_2019
def test_watermark_of_2019(name: str) -> None:
    """A block is not isolated when the zone would be left with the minimum watermark or less."""
    guest = Guest(name, high_water_mark=8, capacity=8, min_free_kbytes=64 << 10)
    zone = guest.allocator.zones[0]
    pfns = guest.take_all()
    assert due(guest.registered) is not None
    for _ in range(17):
        guest.allocator.free_pages(pfns.pop(), MAX_ORDER)
        assert guest.held() == {Cause.WATERMARK: zone.free_pages * PAGE_SIZE}
    for _ in range(3):
        guest.allocator.free_pages(pfns.pop(), MAX_ORDER)
        assert guest.held() == {Cause.DELAY: zone.free_pages * PAGE_SIZE}
    # The pass takes blocks until the watermark forbids one more. The others wait for the next free.
    (report,) = run_pass(guest.registered, guest.discard)
    assert len(report.blocks) == 3
    assert due(guest.registered) is None
    assert guest.held() == {Cause.WATERMARK: 17 * BLOCK}
    guest.allocator.free_pages(pfns.pop(), MAX_ORDER)
    assert guest.held() == {Cause.DELAY: 18 * BLOCK}


# --- The device ---


@ALL
def test_refused_by_a_failed_report(name: str) -> None:
    guest = Guest(name)
    guest.touch()
    run_pass(guest.registered, lambda report: False)
    assert due(guest.registered) is None
    assert guest.held() == {Cause.REFUSED: 256 * BLOCK}


@ALL
def test_failure_does_not_last_beyond_the_next_request(name: str) -> None:
    guest = Guest(name)
    pfns = guest.allocate(32)
    run_pass(guest.registered, lambda report: False)
    for pfn in pfns:
        guest.allocator.free_pages(pfn, MAX_ORDER)
    assert guest.held() == {Cause.DELAY: 32 * BLOCK}


@ALL
def test_refused_by_an_acknowledgement_without_a_discard(name: str) -> None:
    guest = Guest(name)
    guest.touch()
    for _ in range(9):
        if due(guest.registered) is not None:
            run_pass(guest.registered)
    assert guest.held() == {Cause.REFUSED: 256 * BLOCK}
    assert guest.held(Cause.INHIBITED) == {Cause.INHIBITED: 256 * BLOCK}


def test_part_of_a_block_that_the_device_has_kept_is_refused_as_well() -> None:
    """The split takes the mark of the report away; rotation sees no reason for another pass."""
    guest = Guest("rotation", blocks=64)
    guest.touch()
    while due(guest.registered) is not None:
        run_pass(guest.registered)
    guest.allocator.alloc_pages(9)
    assert guest.held() == {Cause.REFUSED: 64 * BLOCK - BLOCK // 2}


@ALL
@pytest.mark.parametrize("registered", [True, False])
def test_poison(name: str, registered: bool) -> None:
    """A device that keeps pages for their pattern, or is not reported to for it. What is too small stays that."""
    guest = Guest(name)
    pfns = guest.allocate(512, order=0)
    guest.touch()
    if registered:
        assert due(guest.registered) is not None
    for pfn in pfns[::2]:
        guest.allocator.free_pages(pfn, 0)
    assert guest.held(Cause.POISON) == {Cause.BELOW_ORDER: 256 * PAGE_SIZE, Cause.POISON: 256 * BLOCK - (BLOCK // 2)}


@ALL
def test_inhibited_without_a_device(name: str) -> None:
    guest = Guest(name)
    guest.touch()
    assert guest.held() == {Cause.INHIBITED: 256 * BLOCK}
    worker = guest.registered.process(0.0)
    guest.discard(next(worker))
    guest.registered.unregister()
    assert guest.held().keys() == {Cause.INHIBITED}


def test_inhibited_without_a_reporter() -> None:
    guest = Guest(None)
    pfns = guest.allocate(512, order=0)
    guest.touch()
    for pfn in pfns[::2]:
        guest.allocator.free_pages(pfn, 0)
    assert guest.held() == {Cause.INHIBITED: 256 * BLOCK - 256 * PAGE_SIZE}
