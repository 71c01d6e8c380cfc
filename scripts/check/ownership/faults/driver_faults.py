"""Faults of the driver and of its kernel: what it lends, and when it uses it again."""

from collections.abc import Callable
from typing import Any

from guest.balloon.free_page_hinting import FreePageHinting, Hint, SendBlock
from guest.mm.mmzone import Zone
from guest.mm.page_flags import BUDDY_ORDER, page_reported
from guest.mm.pageblock import MAX_ORDER
from guest.mm.reporting.page_reporting import Report, mark_page_reported
from protocol.memory import PAGE_SIZE
from protocol.virtio_balloon import BalloonQueue
from scripts.check.broken.fault import replaced
from scripts.check.ownership.faults.fault import fault
from scripts.check.ownership.page_state import PageEvent, PageState
from scripts.check.ownership.pages import Pages, block
from scripts.check.ownership.world.actor import Program, Step
from scripts.check.ownership.world.guest_side import TOTAL_PAGES
from scripts.check.ownership.world.shared_queue import RING_SIZE
from scripts.check.ownership.world.world import World


def _not_awaited(world: World, queue: BalloonQueue) -> None:
    def make(original: Any) -> Any:
        def await_used(which: BalloonQueue, head: int) -> Program:
            full = world.queues[which].driver.outstanding == RING_SIZE
            if which is not queue or full:
                yield from original(which, head)

        return await_used

    replaced(world.guest, "await_used", make)


@fault("report-not-awaited", "free-before-acknowledgement")
def _(world: World) -> None:
    """Reported blocks go back to the free lists before the device has acknowledged the report."""
    _not_awaited(world, BalloonQueue.REPORTING)


@fault("inflate-not-awaited", "deflate-before-acknowledgement", "free-before-acknowledgement")
def _(world: World) -> None:
    """The deflate of a page is asked for before its inflate is acknowledged."""
    _not_awaited(world, BalloonQueue.INFLATE)


@fault("deflate-not-awaited", "deflate-before-reply")
def _(world: World) -> None:
    """With MUST_TELL_HOST a page is free before the device has acknowledged its deflate."""
    if world.options.must_tell_host == "on":
        _not_awaited(world, BalloonQueue.DEFLATE)


@fault("out-of-memory-not-told", "deflate-not-told")
def _(world: World) -> None:
    """With MUST_TELL_HOST pages leave the balloon untold when memory runs out."""

    def make(original: Any) -> Any:
        def attach() -> None:
            original()
            world.guest.balloon._must_tell_host = False

        return attach

    replaced(world.guest, "attach", make)


def _stale_pointer(world: World, state: PageState) -> None:
    # Have a task that frees a block write to it once more when it is in this state.
    freed: list[Pages] = []

    def make(original: Any) -> Any:
        def do(step: Step, held: dict[int, Pages]) -> None:
            if step.action == "free":
                freed.append(held[step.pages[0].first])
            stale = [pages for pages in freed if world.owners.state(pages.first) is state]
            if step.action == "touch" and stale:
                world.owners.note(PageEvent.TOUCH, Pages(stale[-1].first, 1))
            original(step, held)

        return do

    replaced(world.guest, "do", make)


@fault("touched-in-flight", "touch-before-acknowledgement")
def _(world: World) -> None:
    """A task writes to a block that it has freed, while it is being reported."""
    _stale_pointer(world, PageState.IN_FLIGHT)


@fault("touched-while-hinted", "hint-reuse")
def _(world: World) -> None:
    """A task writes to a block that it has freed, while it is hinted."""
    _stale_pointer(world, PageState.HINTED)


@fault("allocated-in-flight", "touch-before-acknowledgement")
def _(world: World) -> None:
    """An allocation that fails is served from the report in flight."""
    owners = world.owners

    def make(original: Any) -> Any:
        def alloc_pages(order: int, *rest: Any, **named: Any) -> int | None:
            pfn: int | None = original(order, *rest, **named)
            lent = next((pfn for pfn in range(0, TOTAL_PAGES, 512) if owners.state(pfn) is PageState.IN_FLIGHT), None)
            if pfn is None and lent is not None:
                owners.note(PageEvent.ALLOCATE, Pages(lent, 1))
            return pfn

        return alloc_pages

    replaced(world.guest.allocator, "alloc_pages", make)


def _report(world: World, change: Callable[[Report], Report]) -> None:
    replaced(world.guest, "send_report", lambda original: lambda report: original(change(report)))


@fault("reported-twice", "double-report")
def _(world: World) -> None:
    """Each report is sent twice."""

    def make(original: Any) -> Any:
        def send_report(report: Report) -> int:
            original(report)
            head: int = original(report)
            return head

        return send_report

    replaced(world.guest, "send_report", make)


@fault("block-twice-in-report", "double-report")
def _(world: World) -> None:
    """The first block of a report stands in it twice."""
    _report(world, lambda report: Report((*report.blocks, report.blocks[0])))


def _with_page_in(world: World, state: PageState) -> None:
    def change(report: Report) -> Report:
        other = next((pfn for pfn in range(TOTAL_PAGES) if world.owners.state(pfn) is state), None)
        return report if other is None else Report((*report.blocks, (other, 0)))  # type: ignore[arg-type]

    _report(world, change)


@fault("balloon-reported", "report-of-ballooned")
def _(world: World) -> None:
    """A page in the balloon is reported."""
    _with_page_in(world, PageState.BALLOONED)


@fault("in-use-reported", "report-in-use")
def _(world: World) -> None:
    """A page in use is reported."""
    _with_page_in(world, PageState.IN_USE)


@fault("reported-not-isolated", "report-not-isolated")
def _(world: World) -> None:
    """A block is reported that is still on the free list."""
    _with_page_in(world, PageState.FREE)


@fault("flag-ignored", "double-report")
def _(world: World) -> None:
    """Blocks that are marked as reported are reported again."""
    allocator = world.guest.allocator

    def change(report: Report) -> Report:
        for pages in allocator.reported_blocks():
            allocator.isolate_free_page(allocator.zones[0], pages.first, pages.length.bit_length() - 1)
        return report

    _report(world, change)


@fault("flag-kept", "stale-reported-flag")
def _(world: World) -> None:
    """A reported block that was used and freed is still marked as reported."""
    allocator = world.guest.allocator
    were_reported: set[Pages] = set()

    def make_alloc(original: Any) -> Any:
        def alloc_pages(order: int, *rest: Any, **named: Any) -> int | None:
            reported = allocator.reported_blocks()
            pfn: int | None = original(order, *rest, **named)
            if pfn is not None and block(pfn, order) in reported:
                were_reported.add(block(pfn, order))
            return pfn

        return alloc_pages

    def make_free(original: Any) -> Any:
        def free_pages(pfn: int, order: int) -> None:
            original(pfn, order)
            if block(pfn, order) in were_reported and BUDDY_ORDER[allocator.mem_map[pfn]] == order:
                mark_page_reported(allocator, allocator.zones[0], pfn, order)

        return free_pages

    replaced(allocator, "alloc_pages", make_alloc)
    replaced(allocator, "free_pages", make_free)


@fault("merged-block-marked", "stale-reported-flag")
def _(world: World) -> None:
    """A block that merges on its return from a report has the larger one marked as reported."""
    allocator = world.guest.allocator

    def drain(original: Any) -> Any:
        def drain(zone: Zone, report: Report, acknowledged: bool) -> None:
            original(zone, report, acknowledged)
            for pfn, least in report.blocks if acknowledged else ():
                for order in range(least + 1, MAX_ORDER + 1):
                    head = pfn & -(1 << order)
                    if BUDDY_ORDER[allocator.mem_map[head]] == order and not page_reported(allocator.mem_map, head):
                        mark_page_reported(allocator, zone, head, order)

        return drain

    replaced(world.guest.reporter, "_drain", drain)


@fault("hinted-after-release", "hint-after-release", "double-hint", "hint-of-lent", "report-of-hinted")
def _(world: World) -> None:
    """A block that was released after a round of hints is hinted again with the next."""
    sent: list[Pages] = []

    def make(original: Any) -> Any:
        def send_hint(hint: Hint) -> int:
            head: int = original(hint)
            if isinstance(hint, SendBlock):
                sent.append(block(hint.pfn, MAX_ORDER))
            elif hint.command_id and sent:
                pages = sent.pop()
                buffer = pages.first * PAGE_SIZE, pages.length * PAGE_SIZE
                world.queues[BalloonQueue.FREE_PAGE].post(PageEvent.HINT, (pages,), (), [buffer])
            return head

        return send_hint

    replaced(world.guest, "send_hint", make)


class _EagerShrinker(FreePageHinting):
    def shrink(self, nr_pages: int) -> int:
        freed = super().shrink(nr_pages)
        while freed < nr_pages and self._unused:
            block_, _ = self._unused.popitem()
            self._free(block_)
            freed += 1 << MAX_ORDER
        return freed


@fault("hint-released-early", "hint-released-early")
def _(world: World) -> None:
    """When memory is short a hinted block is released that the device has not used (Linux does this)."""
    guest = world.guest
    replaced(guest, "make_hinting", lambda original: lambda: _EagerShrinker(guest.allocator, RING_SIZE))


@fault("detached-first", "free-before-acknowledgement")
def _(world: World) -> None:
    """The driver takes its reports back before the device has answered that it has stopped."""

    def make(original: Any) -> Any:
        def request_stop() -> None:
            original()
            if world.owners.count(PageState.IN_FLIGHT):
                world.guest.reporter.unregister()

        return request_stop

    replaced(world.device, "request_stop", make)
