"""Faults of a balloon driver: pages that are used too early or given away twice, statistics, hints, and the size."""

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Any

from guest.balloon import balloon_worker, reporting_worker
from guest.balloon.balloon import TellHost, UpdateSize
from guest.balloon.balloon_worker import BalloonWorker
from guest.balloon.free_page_hinting import VIRTIO_BALLOON_CMD_ID_DONE, FreePageHinting, SendCommand
from guest.balloon.reporting_worker import ReportingWorker
from guest.page_poison import PagePoison
from guest.vhost_user.attached_queue import AttachedQueue
from guest.vhost_user.frontend import Frontend
from protocol.memory import PAGE_SIZE
from protocol.virtio_balloon import CONFIG_ACTUAL, CONFIG_POISON_VAL, BalloonQueue
from scripts.check.broken.driver_fault import driver_fault
from scripts.check.broken.fault import replaced
from scripts.check.driver.scenario import Act

TOUCH_SECONDS = 0.003
"""Seconds between two uses of a page that the device has."""

STATISTICS, REPORTING = 2, 4
"""The numbers of these queues where a driver takes every queue."""


async def _touching(write: Callable[[int, bytes], None], addresses: Iterable[int]) -> None:
    places = list(addresses)
    while True:
        for address in places:
            write(address, b"x")
        await asyncio.sleep(TOUCH_SECONDS)


async def _while_touching(attachment: Any, addresses: Iterable[int], work: Any) -> Any:
    # Do `work`, and use the pages at `addresses` meanwhile.
    touching = asyncio.create_task(_touching(attachment._ram.write, addresses))
    try:
        return await work
    finally:
        touching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await touching


@driver_fault("reported-page-used", caught_by=("driver-report-untouched",))
def _() -> None:
    """The first page of a report is used before the report is acknowledged."""

    def make(original: Any) -> Any:
        async def report(self: Any, report: Any) -> Any:
            first = report.blocks[0][0] * PAGE_SIZE
            return await _while_touching(self._attachment, [first], original(self, report))

        return report

    replaced(ReportingWorker, "_report", make)


@driver_fault("reported-twice", caught_by=("driver-report-once",))
def _() -> None:
    """Each report is sent a second time, although its blocks were not used in between."""

    def make(original: Any) -> Any:
        async def report(self: Any, report: Any) -> Any:
            await original(self, report)
            return await original(self, report)

        return report

    replaced(ReportingWorker, "_report", make)


def _report_buffers(change: Callable[[int, int], tuple[int, int]]) -> None:
    def make(original: Any) -> Any:
        return lambda blocks: [change(*one) for one in original(blocks)]

    replaced(reporting_worker, "report_buffers", make)


@driver_fault("report-ragged", caught_by=("driver-report-ranges",))
def _() -> None:
    """Each reported range is 100 bytes too short."""
    _report_buffers(lambda address, length: (address, length - 100))


@driver_fault("report-outside", caught_by=("driver-report-ranges",))
def _() -> None:
    """The reported ranges are 1 TiB too high, where there is no memory."""
    _report_buffers(lambda address, length: (address + (1 << 40), length))


@driver_fault("report-readable", caught_by=("driver-report-direction",))
def _() -> None:
    """Reports are in device-readable buffers."""

    def make(original: Any) -> Any:
        def post(self: Any, readable: Any = (), writable: Any = ()) -> Any:
            return original(self, writable, ()) if self.index == REPORTING else original(self, readable, writable)

        return post

    replaced(AttachedQueue, "post", make)


@driver_fault(
    "report-not-poisoned",
    caught_by=("driver-report-poisoned",),
    guest=(
        "--page-poison",
        "0xaa",
        "--high-water-mark",
        "4",
        "--workload",
        "pagecache:size=48M,hold=0.2,rest=0.3,repeat=90",
    ),
    seconds=4.0,
)
def _() -> None:
    """Pages are not filled with the poison when they are freed, although PAGE_POISON was negotiated."""
    replaced(PagePoison, "fill", lambda original: lambda self, pfn, pages: None)
    replaced(PagePoison, "restore", lambda original: lambda self, pfn, pages: None)
    replaced(PagePoison, "count_spoilt", lambda original: lambda self, pfn, pages: 0)


@driver_fault("poison-late", caught_by=("driver-poison-written",), guest=("--page-poison", "0xaa"))
def _() -> None:
    """The poison is written after DRIVER_OK."""
    kept: list[tuple[int, bytes]] = []

    def keeping(original: Any) -> Any:
        def set_config(self: Any, offset: int, data: bytes) -> Any:
            if offset == CONFIG_POISON_VAL.start and len(data) == len(CONFIG_POISON_VAL):
                kept.append((offset, data))
                return iter(())
            return original(self, offset, data)

        return set_config

    def writing(original: Any) -> Any:
        def driver_ok(self: Any) -> Any:
            yield from original(self)
            yield from set_config(self, *kept.pop())

        return driver_ok

    set_config = Frontend.set_config
    replaced(Frontend, "set_config", lambda original: _generator(keeping(original)))
    replaced(Frontend, "driver_ok", writing)


def _generator(function: Any) -> Any:
    def run(*arguments: Any) -> Any:
        yield from function(*arguments)

    return run


# -- the size ---------------------------------------------------------------------------------------------------------


def _step(change: Callable[[Any, Any, Any, Any], Any]) -> None:
    # Have `change(worker, attachment, step, original)` do a step of the balloon.
    def make(original: Any) -> Any:
        async def do(self: Any, attachment: Any, step: Any) -> bool:
            done: bool = await change(self, attachment, step, original)
            return done

        return do

    replaced(BalloonWorker, "_do", make)


def _use_pages_of(queue: BalloonQueue) -> None:
    async def change(worker: Any, attachment: Any, step: Any, original: Any) -> Any:
        if isinstance(step, TellHost) and step.queue is queue:
            addresses = [pfn * PAGE_SIZE for pfn in step.pfns[:4]]
            return await _while_touching(attachment, addresses, original(worker, attachment, step))
        return await original(worker, attachment, step)

    _step(change)


@driver_fault("inflated-page-used", Act.BALLOON, caught_by=("driver-inflated-untouched",))
def _() -> None:
    """Pages are used before their inflate is acknowledged."""
    _use_pages_of(BalloonQueue.INFLATE)


@driver_fault("deflated-page-used", Act.BALLOON, caught_by=("driver-deflated-untouched",))
def _() -> None:
    """With MUST_TELL_HOST pages are used before their deflate is acknowledged."""
    _use_pages_of(BalloonQueue.DEFLATE)


@driver_fault("actual-not-written", Act.BALLOON, caught_by=("driver-inflates",))
def _() -> None:
    """The driver gives pages and does not update actual."""

    async def change(worker: Any, attachment: Any, step: Any, original: Any) -> Any:
        return True if isinstance(step, UpdateSize) else await original(worker, attachment, step)

    _step(change)


@driver_fault("actual-big-endian", Act.BALLOON, caught_by=("driver-inflates",))
def _() -> None:
    """The driver writes actual big-endian."""

    async def change(worker: Any, attachment: Any, step: Any, original: Any) -> Any:
        if not isinstance(step, UpdateSize):
            return await original(worker, attachment, step)
        await attachment.write_config(CONFIG_ACTUAL.start, step.actual.to_bytes(len(CONFIG_ACTUAL), "big"))
        return True

    _step(change)


@driver_fault("deflated-in-silence", Act.BALLOON, caught_by=("driver-deflates",))
def _() -> None:
    """Pages leave the balloon without a message on the deflate queue."""

    async def change(worker: Any, attachment: Any, step: Any, original: Any) -> Any:
        if isinstance(step, TellHost) and step.queue is BalloonQueue.DEFLATE:
            return True
        return await original(worker, attachment, step)

    _step(change)


@driver_fault(
    "deflated-unasked",
    Act.BALLOON,
    caught_by=("driver-deflates-only-when-asked",),
    features="deflate-on-oom=off",
)
def _() -> None:
    """Without DEFLATE_ON_OOM the driver takes pages back as soon as the balloon has the size that is asked for."""

    async def change(worker: Any, attachment: Any, step: Any, original: Any) -> Any:
        done = await original(worker, attachment, step)
        pages = worker._balloon._pages
        if isinstance(step, UpdateSize) and step.actual == attachment.config.num_pages and len(pages) > 16:
            await asyncio.sleep(0.2)
            await original(worker, attachment, TellHost(BalloonQueue.DEFLATE, pages[-16:]))
        return done

    _step(change)


# -- statistics -------------------------------------------------------------------------------------------------------


def _statistics(change: Callable[[bytes, int], bytes]) -> None:
    # Have `change(data, number)` say what buffer `number` holds.
    count = [0]

    def make(original: Any) -> Any:
        def build(statistics: Any) -> bytes:
            count[0] += 1
            return change(original(statistics), count[0])

        return build

    replaced(balloon_worker, "build_statistics", make)


@driver_fault("statistics-set-changes", Act.STATISTICS, caught_by=("driver-statistics-form",))
def _() -> None:
    """Every second statistics buffer lacks the last statistic."""
    _statistics(lambda data, number: data[: -10 * (number % 2)] or data)


@driver_fault("statistics-cut", Act.STATISTICS, caught_by=("driver-statistics-form",))
def _() -> None:
    """A statistics buffer ends in the middle of an entry."""
    _statistics(lambda data, number: data[:-4])


@driver_fault("statistics-never", Act.STATISTICS, caught_by=("driver-statistics",))
def _() -> None:
    """No statistics buffer is ever made available."""

    async def send(self: Any, attachment: Any) -> None:
        await attachment.lost

    replaced(BalloonWorker, "_send_statistics", lambda original: send)


@driver_fault("statistics-once", Act.STATISTICS, caught_by=("driver-statistics",))
def _() -> None:
    """The statistics buffer is not made available again after the device has used it."""

    def make(original: Any) -> Any:
        def post(self: Any, *buffers: Any, **named: Any) -> Any:
            if self.index == STATISTICS and self._virtqueue._avail_index:
                return self._loop.create_future()
            return original(self, *buffers, **named)

        return post

    replaced(AttachedQueue, "post", make)


@driver_fault("statistics-two-buffers", Act.STATISTICS, caught_by=("driver-statistics-one",))
def _() -> None:
    """Two statistics buffers are available at a time."""

    def make(original: Any) -> Any:
        async def send(self: Any, attachment: Any) -> None:
            await asyncio.gather(original(self, attachment), original(self, attachment))

        return send

    replaced(BalloonWorker, "_send_statistics", make)


# -- hints ------------------------------------------------------------------------------------------------------------


@driver_fault("hint-id-wrong", Act.HINTS, caught_by=("driver-hint-commands",))
def _() -> None:
    """A round of hints begins with an id that is one more than the device's."""

    def make(original: Any) -> Any:
        return lambda self: SendCommand(hint.command_id + 1) if (hint := original(self)) is not None else None

    replaced(FreePageHinting, "_start", make)


@driver_fault("hints-not-released", Act.STATISTICS, Act.HINTS, caught_by=("driver-hints-released",))
def _() -> None:
    """Hinted pages are kept after the command id has become DONE."""
    replaced(FreePageHinting, "return_free_pages_to_mm", lambda original: lambda self: 0)


@driver_fault("hints-after-done", Act.HINTS, caught_by=("driver-hints-stop",), seconds=2.5)
def _() -> None:
    """A hint comes a second after the command id has become DONE."""

    def make(original: Any) -> Any:
        def received(self: Any, hinting: Any, command_id: int) -> None:
            original(self, hinting, command_id)
            attachment = self._attachment
            if command_id == VIRTIO_BALLOON_CMD_ID_DONE and attachment is not None:
                queue = attachment.queues[BalloonQueue.FREE_PAGE]
                asyncio.get_running_loop().call_later(1.0, queue.post, (), [(self._buffers.pfns, PAGE_SIZE)])

        return received

    replaced(BalloonWorker, "_receive_command", make)


@driver_fault("hints-none", Act.HINTS, caught_by=("driver-hints-given",))
def _() -> None:
    """A round of hints has its two commands and no page."""

    def make(original: Any) -> Any:
        def next_hint(self: Any) -> Any:
            self._entries, entries = min(self._entries, 1), self._entries
            hint = original(self)
            self._entries = entries
            return hint

        return next_hint

    replaced(FreePageHinting, "next_hint", make)


@driver_fault("buffer-changed", Act.BALLOON, caught_by=("driver-buffers-unchanged",))
def _() -> None:
    """The page frame numbers of an inflate are overwritten while the device has them."""

    async def change(worker: Any, attachment: Any, step: Any, original: Any) -> Any:
        if isinstance(step, TellHost):
            return await _while_touching(attachment, [worker._buffers.pfns], original(worker, attachment, step))
        return await original(worker, attachment, step)

    _step(change)
