"""The ledger through any sequence of allocations, frees, reports and answers, with every reporter.

After every step the pages are counted one by one, by another way than the ledger's, and compared with it.
"""

from collections.abc import Generator
from typing import ClassVar

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

from guest.ledger.ledger import CAUSES, Ledger, take_ledger
from guest.mm.mmzone import ZoneSpan
from guest.mm.page_alloc import PageAllocator
from guest.mm.page_flags import BLOCK_ORDER, BUDDY, BUDDY_ORDER, ISOLATED, ORDER_MASK, PCP, REPORTED
from guest.mm.pageblock import MigrateType
from guest.mm.reporting.cause import Cause
from guest.mm.reporting.page_reporting import PageReporter, Report
from guest.mm.reporting.reporters import REPORTERS, make_reporter
from guest.simulation import HostMemory
from protocol.memory import PAGE_SIZE
from tests.guest.mm.reporting.reporting import do_nothing

PAGES = 6 * 1024
ONE = (("Normal", 0, PAGES),)
TWO = (("DMA32", 0, 2048), ("Normal", 2048, PAGES))
ORDERS = st.sampled_from([0, 0, 1, 3, 4, 5, 6, 8, 9, 10])
TYPES = st.sampled_from([MigrateType.UNMOVABLE, MigrateType.MOVABLE, MigrateType.MOVABLE, MigrateType.RECLAIMABLE])
ANSWERS = st.sampled_from(["discard", "discard", "discard", "keep", "fail"])


def brute_force(allocator: PageAllocator, residency: bytearray, order: int) -> dict[str, int]:
    """Count bytes page by page: all that are free, and the backed ones by where their block is."""
    found = dict.fromkeys(("free", "pcp", "isolated", "below", "reported", "unreported"), 0)
    pfn = 0
    while pfn < PAGES:
        state = allocator.mem_map[pfn]
        size = BLOCK_ORDER[state]
        assert size is not None
        backed = sum(residency[page] == 1 for page in range(pfn, pfn + (1 << size))) * PAGE_SIZE
        where = None
        if BUDDY_ORDER[state] is not None:
            where = "below" if size < order else "reported" if state & REPORTED else "unreported"
            assert state & BUDDY
        elif state & ~ORDER_MASK in (ISOLATED, PCP):
            where = "isolated" if state & ~ORDER_MASK == ISOLATED else "pcp"
        if where is not None:
            found["free"] += PAGE_SIZE << size
            found[where] += backed
        pfn += 1 << size
    return found


class Books(RuleBasedStateMachine):
    """The machine; subclasses say which reporter."""

    reporter_name: ClassVar[str]

    allocator: PageAllocator
    reporter: PageReporter
    host: HostMemory

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, int] = {}
        self.worker: Generator[Report, bool, None] | None = None
        self.report: Report | None = None
        self.honest = True
        self.moved = False

    @initialize(
        order=st.sampled_from([0, 3, 5, 9]),
        capacity=st.integers(1, 3),
        zones=st.sampled_from([ONE, TWO]),
        nr_cpus=st.integers(0, 2),
        min_free_kbytes=st.sampled_from([40, 400]),
    )
    def boot(
        self, order: int, capacity: int, zones: tuple[tuple[str, int, int], ...], nr_cpus: int, min_free_kbytes: int
    ) -> None:
        spans = [ZoneSpan(name=name, start_pfn=start, end_pfn=end) for name, start, end in zones]
        self.allocator = PageAllocator(PAGES, zones=spans, nr_cpus=nr_cpus, min_free_kbytes=min_free_kbytes)
        self.host = HostMemory(PAGES)
        self.reporter = make_reporter(
            self.reporter_name,
            self.allocator,
            order=order,
            capacity=capacity,
            high_water_mark=None if self.reporter_name == "rotation" else capacity + 2,
        )
        self.reporter.register(32, 0.0, do_nothing)

    # --- The workload ---

    @rule(order=ORDERS, migratetype=TYPES, count=st.sampled_from([1, 1, 2, 7, 200]))
    def allocate(self, order: int, migratetype: MigrateType, count: int) -> None:
        for _ in range(count):
            pfn = self.allocator.alloc_pages(order, migratetype)
            if pfn is None:
                break
            self.host.fill(pfn, 1 << order, 0)
            self.held[pfn] = order

    @precondition(lambda self: self.held)
    @rule(choice=st.integers(0, 10**6), count=st.sampled_from([1, 3, 64, 500]), stride=st.integers(1, 3))
    def free(self, choice: int, count: int, stride: int) -> None:
        pfns = sorted(self.held)
        for pfn in pfns[choice % len(pfns) :: stride][:count]:
            assert self.host.count_present(pfn, 1 << self.held[pfn]) == 1 << self.held[pfn]
            self.allocator.free_pages(pfn, self.held.pop(pfn))

    @rule()
    def drain(self) -> None:
        self.allocator.drain_all_pages()

    @rule(pfn=st.integers(0, PAGES - 1), migratetype=st.sampled_from([MigrateType.MOVABLE, MigrateType.ISOLATE]))
    def move_pageblock(self, pfn: int, migratetype: MigrateType) -> None:
        self.moved = True
        self.allocator.set_pageblock_migratetype(pfn, migratetype)

    # --- The device ---

    @precondition(lambda self: self.worker is None and self.reporter.due is not None)
    @rule()
    def start(self) -> None:
        self.worker = self.reporter.process(self.reporter.due or 0.0)
        self.take(next(self.worker, None))

    @precondition(lambda self: self.worker is not None)
    @rule(answer=ANSWERS, times=st.sampled_from([1, 1, 5, 100]))
    def answer(self, answer: str, times: int) -> None:
        for _ in range(times):
            if self.worker is None or self.report is None:
                break
            if answer == "discard":
                for pfn, order in self.report.blocks:
                    self.host.discard(pfn, 1 << order)
            else:
                self.honest = False
            try:
                self.take(self.worker.send(answer != "fail"))
            except StopIteration:
                self.take(None)

    def take(self, report: Report | None) -> None:
        self.report = report
        if report is None:
            self.worker = None

    @rule()
    def register_again(self) -> None:
        self.reporter.unregister()
        self.take(None)
        ledger = self.ledger()
        assert ledger.held_bytes[Cause.UNACKNOWLEDGED] == 0
        assert ledger.not_returned_bytes == sum(
            ledger.held_bytes[cause] for cause in (Cause.BELOW_ORDER, Cause.PCP, Cause.INHIBITED, Cause.REFUSED)
        )
        self.reporter.register(32, self.reporter.now, do_nothing)

    @rule()
    def settle(self) -> None:
        """With nothing else going on, passes end, and nothing is left that only time holds."""
        for _ in range(10_000):
            if self.worker is None and self.reporter.due is None:
                break
            if self.worker is None:
                self.start()
            else:
                self.answer("discard", 1)
        held = self.ledger().held_bytes
        assert held[Cause.DELAY] == held[Cause.BUDGET] == held[Cause.UNACKNOWLEDGED] == 0

    # --- What always holds ---

    def ledger(self) -> Ledger:
        return take_ledger(self.allocator, self.reporter, self.host.residency)

    @invariant()
    def books_are_exact(self) -> None:
        if not hasattr(self, "allocator"):
            return
        found = brute_force(self.allocator, self.host.residency, self.reporter.order)
        ledger = self.ledger()
        held = ledger.held_bytes
        assert tuple(held) == CAUSES
        assert min(held.values()) >= 0
        assert ledger.free_bytes == found["free"]
        assert ledger.not_returned_bytes == sum(value for where, value in found.items() if where != "free")
        assert ledger.returned_bytes + ledger.not_returned_bytes == ledger.free_bytes
        assert held[Cause.PCP] == found["pcp"]
        assert held[Cause.BELOW_ORDER] == found["below"]
        assert held[Cause.UNACKNOWLEDGED] >= found["isolated"]
        assert held[Cause.REFUSED] >= found["reported"]

    @invariant()
    def knowing_the_sum_changes_nothing(self) -> None:
        """Where it is known how many pages are backed, the lists that are not counted get what is left of them."""
        if not hasattr(self, "allocator") or not self.honest:
            return
        full = self.ledger()
        pages = full.not_returned_bytes // PAGE_SIZE
        residency = self.host.residency
        assert full == take_ledger(self.allocator, self.reporter, residency, backed_free_pages=pages)

    @invariant()
    def causes_are_those_that_can_be(self) -> None:
        if not hasattr(self, "allocator"):
            return
        held = self.ledger().held_bytes
        assert held[Cause.POISON] == 0
        if not self.moved:
            assert held[Cause.INHIBITED] == 0
            if self.honest:
                assert held[Cause.REFUSED] == 0
        if self.worker is None:
            assert held[Cause.UNACKNOWLEDGED] == 0
            if self.reporter.due is None:
                assert held[Cause.DELAY] == held[Cause.BUDGET] == 0
        assert held[Cause.HIGH_RESIDUE if self.reporter_name == "rotation" else Cause.BUDGET] == 0

    def teardown(self) -> None:
        if hasattr(self, "allocator"):
            self.allocator.validate()


@pytest.mark.long
@pytest.mark.parametrize("name", list(REPORTERS))
def test_ledger_is_exact_through_any_sequence_of_events(name: str) -> None:
    machine = type(f"Books_{name}", (Books,), {"reporter_name": name})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=100, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
        ),
    )
