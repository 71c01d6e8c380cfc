"""The guest: its allocator, reporter, balloon and hints, which are the real ones, and the programs that run them.

The programs do what the tasks of ``guest.balloon.reporting_worker`` and ``guest.balloon.balloon_worker`` do, and stop
where those wait, and between any two calls between which another processor of the guest or the device may run.
"""

from array import array
from collections.abc import Mapping
from itertools import chain, count
from random import Random
from typing import Final

from guest.balloon.balloon import Balloon, OutOfPuff, TellHost, UpdateSize
from guest.balloon.balloon import Step as BalloonStep
from guest.balloon.free_page_hinting import (
    VIRTIO_BALLOON_CMD_ID_STOP,
    VIRTIO_BALLOON_HINT_BLOCK_ORDER,
    FreePageHinting,
    Hint,
    SendBlock,
)
from guest.balloon.virtio_balloon import report_buffers
from guest.mm.pageblock import MAX_ORDER, MAX_ORDER_NR_PAGES, NR_PAGE_ORDERS
from guest.mm.reporting.page_reporting import Report
from guest.mm.reporting.reporters import make_reporter
from guest.mm.watermark import AllocFlags
from host.balloon.virtio_balloon import VirtioBalloon
from protocol.memory import PAGE_SIZE
from protocol.virtio import has_feature
from protocol.virtio_balloon import CONFIG_ACTUAL, BalloonFeature, BalloonQueue
from scripts.check.ownership.page_owners import PageOwners
from scripts.check.ownership.page_state import PageEvent, PageState
from scripts.check.ownership.pages import Pages, amount, block, runs
from scripts.check.ownership.world.actor import Point, Program, Step
from scripts.check.ownership.world.shared_queue import BUFFERS, RING_SIZE, SharedMemory, SharedQueue
from scripts.check.ownership.world.watched_allocator import WatchedAllocator
from scripts.check.ownership.world.world_options import WorldOptions

TOTAL_PAGES: Final = 4 * MAX_ORDER_NR_PAGES
CPUS: Final = 2
REPORT_CAPACITY: Final = 2
REPORTING_DELAY: Final = 0.1
"""Seconds of virtual time from a request to the work."""

_IN_BALLOON: Final = (PageState.BALLOONED, PageState.KEPT)
_HELD_MAX: Final = 12
_LENGTHS: Final = (1, 1, 4, 16, 64, 256, 512, 512, 1024, 1024)
_BLOCK_LENGTHS: Final = frozenset(1 << order for order in range(NR_PAGE_ORDERS))
_COMMAND: Final = BUFFERS + 2048
_STOP: Final = _COMMAND + 4


class GuestSide:
    """The guest. ``device`` stands for the configuration space, which it reads and writes."""

    def __init__(
        self,
        options: WorldOptions,
        owners: PageOwners,
        memory: SharedMemory,
        queues: Mapping[BalloonQueue, SharedQueue],
        device: VirtioBalloon,
    ) -> None:
        self.now = 0.0
        """Virtual time in seconds."""
        self.block: Pages | None = None
        """The block that the task's last step was about, None for an allocation that failed."""
        self._owners = owners
        self._memory = memory
        self._has_lists = options.per_cpu_lists == "on"
        self.queues = queues
        self._device = device
        self.allocator = WatchedAllocator(TOTAL_PAGES, owners, nr_cpus=CPUS if self._has_lists else 0)
        self.reporter = make_reporter(
            options.reporter,
            self.allocator,
            delay=REPORTING_DELAY,
            capacity=REPORT_CAPACITY,
            high_water_mark=None if options.reporter == "rotation" else REPORT_CAPACITY,
        )
        self.balloon = Balloon(self.allocator, self._on_balloon_work)
        self.allocator.vmscan.on_out_of_memory = lambda _order, _migratetype: self.balloon.out_of_memory() > 0
        self.hinting: FreePageHinting
        self.attached = False
        self._balloon_work = self._hinting_work = False
        self._seen_id = VIRTIO_BALLOON_CMD_ID_STOP

    # --- Devices come and go ---

    def attach(self) -> None:
        """Begin with a device, as the workers do when they are given an attachment."""
        self.attached = True
        self.reporter.register(RING_SIZE, self.now, lambda: None, clock=lambda: self.now)
        config = self._device.config
        self.balloon.attach(self._device.features, config.actual, config.num_pages)
        self.hinting = self.make_hinting()
        self.allocator.vmscan.register_shrinker(self.hinting.shrink)
        self._seen_id = VIRTIO_BALLOON_CMD_ID_STOP

    def make_hinting(self) -> FreePageHinting:
        """Return the driver's half of hinting for a device."""
        return FreePageHinting(self.allocator, RING_SIZE)

    def detach(self) -> None:
        """Stop, as they do when the device is gone: what they hold for it is free, and the balloon stays inflated."""
        self.attached = False
        self.reporter.unregister()
        self.allocator.vmscan.unregister_shrinker(self.hinting.shrink)
        self.hinting.return_free_pages_to_mm()

    # --- A task on a processor ---

    def run_cpu(self, cpu: int) -> Program:
        """Allocate, touch and free blocks on processor ``cpu``.

        Scripts name a block by the first page that it had when it was allocated.
        """
        held = dict[int, Pages]()

        def any_held(random: Random) -> tuple[Pages, ...]:
            return (held[random.choice(list(held))],)

        def any_length(random: Random) -> tuple[Pages, ...]:
            return (amount(random.choice(_LENGTHS)),)

        def is_held(pages: tuple[Pages, ...]) -> bool:
            return len(pages) == 1 and pages[0].first in held

        points = (
            Point("allocate", lambda: len(held) < _HELD_MAX, any_length, _is_block),
            Point("touch", lambda: bool(held), any_held, is_held),
            Point("free", lambda: bool(held), any_held, is_held),
            Point("exhaust"),
        )
        while True:
            step = yield points
            self.block = held[step.pages[0].first] if step.action in ("touch", "free") else None
            if self._has_lists:
                self.allocator.run_on_cpu(cpu)
            self.do(step, held)
            if self._has_lists:
                self.allocator.run_on_cpu(0)  # where the driver's tasks run

    def do(self, step: Step, held: dict[int, Pages]) -> None:
        """Take one step of a task that holds the blocks ``held``, by their names."""
        if step.action == "exhaust":
            self.block = amount(self._exhaust())
            return
        wanted = step.pages[0]
        if step.action == "allocate":
            order = wanted.length.bit_length() - 1
            pfn = self.allocator.alloc_pages(order)
            if pfn is not None:
                names = chain((wanted.first, pfn), count(TOTAL_PAGES))
                held[next(name for name in names if name >= 0 and name not in held)] = self.block = block(pfn, order)
        elif step.action == "touch":
            self._owners.note(PageEvent.TOUCH, held[wanted.first])
        else:
            pages = held.pop(wanted.first)
            self.allocator.free_pages(pages.first, pages.length.bit_length() - 1)

    def _exhaust(self) -> int:
        # Take all memory, ask for one page more, and end, which gives all of it back. Returns the pages.
        taken = list[tuple[int, int]]()
        for order in range(MAX_ORDER, -1, -1):
            while (pfn := self.allocator.alloc_pages(order, flags=AllocFlags.NORETRY)) is not None:
                taken.append((pfn, order))
        if (pfn := self.allocator.alloc_pages(0)) is not None:
            taken.append((pfn, 0))
        for pfn, order in taken:
            self.allocator.free_pages(pfn, order)
        return sum(1 << order for _, order in taken)

    # --- Reports ---

    def run_reporter(self) -> Program:
        """Run each pass of the reporter when it is due, and send its reports one after the other."""
        reporter = self.reporter
        while True:
            yield (Point("begin", lambda: reporter.due is not None),)
            assert reporter.due is not None
            self.now = max(self.now, reporter.due)
            worker = reporter.process(self.now)
            report = next(worker, None)
            while report is not None:
                yield (Point("report"),)
                head = self.send_report(report)
                yield from self.await_used(BalloonQueue.REPORTING, head)
                yield (Point("return"),)
                try:
                    report = worker.send(True)
                except StopIteration:
                    report = None

    def send_report(self, report: Report) -> int:
        """Lend the blocks of a report to the device; return the head of the request."""
        pages = tuple(block(pfn, order) for pfn, order in report.blocks)
        return self.queues[BalloonQueue.REPORTING].post(PageEvent.REPORT, pages, (), report_buffers(report.blocks))

    def await_used(self, queue: BalloonQueue, head: int) -> Program:
        """Wait until the request ``head``, the one that is under way, has come back."""
        used = self.queues[queue]
        collected = list[int]()
        while head not in collected:
            yield (Point("collect", lambda: used.waiting > 0),)
            collected += used.collect()

    # --- The balloon ---

    def _on_balloon_work(self) -> None:
        self._balloon_work = True

    def set_target(self, pages: int) -> None:
        """Take over the device's wish for the size of the balloon."""
        self.balloon.set_target(pages)

    def run_balloon(self) -> Program:
        """Take the steps to the balloon's target."""
        while True:
            yield (Point("adjust", lambda: self._balloon_work),)
            with self.allocator.for_the_driver():
                step = self.balloon.next_step()
            if step is None:
                self._balloon_work = False
            elif isinstance(step, TellHost):
                yield (Point("tell"),)
                head = self.tell_host(step)
                yield from self.await_used(step.queue, head)
                yield (Point("told"),)
                self.balloon.done(step)
            else:
                self._complete(step)

    def _complete(self, step: BalloonStep) -> None:
        if isinstance(step, UpdateSize):
            data = step.actual.to_bytes(len(CONFIG_ACTUAL), "little")
            self._device.write_config(CONFIG_ACTUAL.start, data, poison_offered=False)
        elif isinstance(step, OutOfPuff):
            self.now += step.seconds
        self.balloon.done(step)

    def tell_host(self, step: TellHost) -> int:
        """Send the page frame numbers of one message; return the head of the request."""
        data = array("I", step.pfns).tobytes()
        self._memory.write(BUFFERS, data)
        pages = runs(step.pfns)
        event = PageEvent.INFLATE
        if step.queue is BalloonQueue.DEFLATE:
            event = PageEvent.DEFLATE
            if not has_feature(self._device.features, BalloonFeature.MUST_TELL_HOST):
                # Pages that have left the balloon already are told late: that changes nothing of them.
                pages = runs(pfn for pfn in step.pfns if self._owners.state(pfn) in _IN_BALLOON)
        return self.queues[step.queue].post(event, pages, [(BUFFERS, len(data))], ())

    # --- Hints ---

    def run_hinting(self) -> Program:
        """Follow the device's command ids, send blocks, and take back what the device has used."""
        queue = self.queues[BalloonQueue.FREE_PAGE]
        sent = dict[int, Hint]()
        points = (
            Point("see", lambda: self._seen_id != self._device.config.free_page_hint_cmd_id),
            Point("hint", lambda: self._hinting_work),
            Point("collect", lambda: queue.waiting > 0),
        )
        while True:
            step = yield points
            if step.action == "see":
                self._seen_id = self._device.config.free_page_hint_cmd_id
                self.hinting.command_id_received(self._seen_id)
            elif step.action == "hint":
                with self.allocator.for_the_driver():
                    hint = self.hinting.next_hint()
                if hint is None:
                    self._hinting_work = False
                    continue
                sent[self.send_hint(hint)] = hint
                continue
            else:
                for head in queue.collect():
                    self.hinting.used(sent.pop(head))
            self._hinting_work = True

    def send_hint(self, hint: Hint) -> int:
        """Send a block or a command id; return the head of the request."""
        queue = self.queues[BalloonQueue.FREE_PAGE]
        if isinstance(hint, SendBlock):
            pages = block(hint.pfn, VIRTIO_BALLOON_HINT_BLOCK_ORDER)
            buffer = pages.first * PAGE_SIZE, pages.length * PAGE_SIZE
            return queue.post(PageEvent.HINT, (pages,), (), [buffer], command_id=self.hinting.command_id)
        address = _STOP if hint.command_id == VIRTIO_BALLOON_CMD_ID_STOP else _COMMAND
        self._memory.write(address, hint.command_id.to_bytes(4, "little"))
        return queue.post(PageEvent.HINT, (), [(address, 4)], ())


def _is_block(pages: tuple[Pages, ...]) -> bool:
    # Whether so many pages can be one block of the buddy allocator.
    return len(pages) == 1 and pages[0].length in _BLOCK_LENGTHS
