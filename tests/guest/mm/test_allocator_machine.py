"""Any sequence of allocations, frees, steals, drains, moves and reclaims, in every shape of memory, under any reporter.

A small guest with all there is: several zones, per-CPU lists, a contiguous memory area, shuffling, a page cache. After
every step ``validate()`` compares lists, map and counters, and every page is in exactly one hand.
"""

from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from guest.mm.errors import BadPageError
from guest.mm.mmzone import ZoneSpan
from guest.mm.page_alloc import PageAllocator
from guest.mm.page_flags import ALLOCATED, MOVABLE
from guest.mm.pageblock import MigrateType
from guest.mm.reporting.page_reporting import PageReporter, Report
from guest.mm.reporting.reporters import REPORTERS, make_reporter
from guest.mm.shuffle import Shuffle
from guest.mm.vmscan import PageCache
from guest.mm.watermark import AllocFlags
from tests.guest.mm.reporting.reporting import do_nothing

PAGES = 6 * 1024
ONE = (("Normal", 0, PAGES),)
THREE = (("DMA32", 0, 2048), ("Normal", 2048, 4096), ("Movable", 4096, PAGES))
ORDINARY = st.sampled_from([MigrateType.UNMOVABLE, MigrateType.MOVABLE, MigrateType.MOVABLE, MigrateType.RECLAIMABLE])
ORDERS = st.sampled_from([0, 0, 1, 3, 4, 8, 9, 10])
FLAGS = st.sampled_from([AllocFlags.NONE, AllocFlags.NONE, AllocFlags.ATOMIC, AllocFlags.NORETRY])


class Memory(RuleBasedStateMachine):
    """The machine. ``held`` maps the blocks in use to their orders; those of the page cache are in it as well."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, int] = {}
        self.owner: dict[int, list[int]] = {}
        self.worker: Generator[Report, bool, None] | None = None
        self.report = Report(())
        self.reporter: PageReporter | None = None

    @initialize(
        zones=st.sampled_from([ONE, THREE]),
        nr_cpus=st.integers(0, 2),
        pageblock_order=st.sampled_from([4, 9, 9, 10]),
        cma_blocks=st.sampled_from([0, 0, 1, 2]),
        shuffle_seed=st.one_of(st.none(), st.integers(0, 9)),
        tail=st.booleans(),
        claims=st.booleans(),
        name=st.sampled_from([None, *REPORTERS]),
    )
    def boot(
        self,
        zones: tuple[tuple[str, int, int], ...],
        nr_cpus: int,
        pageblock_order: int,
        cma_blocks: int,
        shuffle_seed: int | None,
        tail: bool,
        claims: bool,
        name: str | None,
    ) -> None:
        self.allocator = PageAllocator(
            PAGES,
            zones=[ZoneSpan(name=zone, start_pfn=start, end_pfn=end) for zone, start, end in zones],
            min_free_kbytes=256,
            move_to_tail=tail,
            claims_pageblocks=claims,
            pageblock_order=pageblock_order,
            nr_cpus=nr_cpus,
            cma_pages=cma_blocks << pageblock_order,
            shuffle_seed=shuffle_seed,
        )
        self.allocator.vmscan.migrate = self.migrate
        self.cache: PageCache[int] = PageCache(self.release)
        self.allocator.vmscan.register_shrinker(self.cache.shrink)
        if name is not None:
            self.reporter = make_reporter(name, self.allocator, order=min(5, pageblock_order))
            self.reporter.register(16, 0.0, do_nothing)

    # --- Owners ---

    def release(self, serial: int) -> int:
        (pfn,) = self.owner.pop(serial)
        order = self.held.pop(pfn)
        self.allocator.free_pages(pfn, order)
        return 1 << order

    def migrate(self, pfn: int, target: int, order: int) -> bool:
        if pfn % 7 == 0:
            return False
        assert self.held.pop(pfn) == order
        assert target not in self.held
        self.held[target] = order
        for place in self.owner.values():
            if place == [pfn]:
                place[0] = target
        return True

    # --- The workload ---

    @rule(order=ORDERS, migratetype=ORDINARY, flags=FLAGS, count=st.sampled_from([1, 2, 7, 300]))
    def allocate(self, order: int, migratetype: MigrateType, flags: AllocFlags, count: int) -> None:
        for _ in range(count):
            pfn = self.allocator.alloc_pages(order, migratetype, flags)
            if pfn is None:
                break
            assert pfn % (1 << order) == 0
            assert pfn not in self.held
            expected = ALLOCATED | order | (MOVABLE if migratetype == MigrateType.MOVABLE else 0)
            assert self.allocator.mem_map[pfn] == expected
            self.held[pfn] = order

    @rule(count=st.sampled_from([1, 50, 400]))
    def cache_pages(self, count: int) -> None:
        for _ in range(count):
            pfn = self.allocator.alloc_pages(0)
            if pfn is None:
                break
            self.held[pfn] = 0
            serial = max(self.owner, default=0) + 1
            self.owner[serial] = [pfn]
            self.cache.touch(serial)

    @precondition(lambda self: self.held)
    @rule(choice=st.integers(0, 10**6), count=st.sampled_from([1, 3, 64, 500]), stride=st.integers(1, 3))
    def free(self, choice: int, count: int, stride: int) -> None:
        cached = {pfn for (pfn,) in self.owner.values()}
        pfns = [pfn for pfn in sorted(self.held) if pfn not in cached]
        for pfn in pfns[choice % max(1, len(pfns)) :: stride][:count]:
            self.allocator.free_pages(pfn, self.held.pop(pfn))

    @rule(pfn=st.integers(-1, PAGES), order=ORDERS)
    def free_wrongly(self, pfn: int, order: int) -> None:
        if self.held.get(pfn) != order:
            before = bytes(self.allocator.mem_map)
            with pytest.raises(BadPageError, match=f"pfn {pfn} order {order}"):
                self.allocator.free_pages(pfn, order)
            assert self.allocator.mem_map == before

    # --- The kernel ---

    @rule(pfn=st.integers(0, PAGES - 1), migratetype=st.sampled_from(list(MigrateType)))
    def retag(self, pfn: int, migratetype: MigrateType) -> None:
        self.allocator.set_pageblock_migratetype(pfn, migratetype)

    @rule(order=st.sampled_from([-1, 1, 4, 9, 10]), migratetype=ORDINARY)
    def compact(self, order: int, migratetype: MigrateType) -> None:
        self.allocator.vmscan.compact(order, migratetype)

    @rule(nr_pages=st.sampled_from([1, 32, 1000]))
    def shrink(self, nr_pages: int) -> None:
        self.allocator.vmscan.shrink(nr_pages)

    @rule(seed=st.integers(0, 3))
    def shuffle(self, seed: int) -> None:
        self.allocator.shuffle_zones(Shuffle(seed))

    @rule(cpu=st.integers(0, 1))
    def schedule_or_drain(self, cpu: int) -> None:
        if cpu < len(self.allocator.zones[0].pcps):
            self.allocator.run_on_cpu(cpu)
        else:
            self.allocator.drain_all_pages()
            assert self.allocator.nr_pcp_pages() == 0

    # --- The device ---

    @precondition(lambda self: self.worker is None and self.reporter is not None and self.reporter.due is not None)
    @rule()
    def start(self) -> None:
        assert self.reporter is not None
        self.worker = self.reporter.process(self.reporter.due or 0.0)
        self.take(next(self.worker, None))

    @precondition(lambda self: self.worker is not None)
    @rule(acknowledged=st.sampled_from([True, True, True, False]))
    def answer(self, acknowledged: bool) -> None:
        assert self.worker is not None
        try:
            self.take(self.worker.send(acknowledged))
        except StopIteration:
            self.take(None)

    def take(self, report: Report | None) -> None:
        self.report = report or Report(())
        if report is None:
            self.worker = None
        taken = {page for pfn, order in self.report.blocks for page in range(pfn, pfn + (1 << order))}
        assert taken.isdisjoint(self.held)

    # --- What always holds ---

    @invariant()
    def all_agrees(self) -> None:
        if hasattr(self, "allocator"):
            self.allocator.validate()
            held = sum(1 << order for order in self.held.values())
            free = self.allocator.nr_free_pages() + self.allocator.nr_pcp_pages()
            assert held + free + self.report.pages == PAGES
            assert not self.allocator.kswapd_wanted

    def teardown(self) -> None:
        if hasattr(self, "allocator"):
            if self.reporter is not None:
                self.reporter.unregister()
            for pfn, order in self.held.items():
                self.allocator.free_pages(pfn, order)
            self.allocator.drain_all_pages()
            self.allocator.validate()
            assert self.allocator.nr_free_pages() == PAGES


@pytest.mark.long
def test_allocator_survives_any_sequence_of_events() -> None:
    run_state_machine_as_test(
        Memory,
        settings=settings(
            max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
        ),
    )
