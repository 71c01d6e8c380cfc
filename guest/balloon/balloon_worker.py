"""Drives the balloon, its statistics and free page hinting over the current device.

:mod:`guest.balloon.balloon` and :mod:`guest.balloon.free_page_hinting` decide the steps; they are written to guest
memory, sent, awaited and reported as events here."""

import asyncio
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from guest.balloon.balloon import VIRTIO_BALLOON_ARRAY_PFNS_MAX, Balloon, OutOfPuff, Step, TellHost, UpdateSize
from guest.balloon.balloon_statistics import balloon_statistics
from guest.balloon.free_page_hinting import (
    VIRTIO_BALLOON_CMD_ID_DONE,
    VIRTIO_BALLOON_CMD_ID_STOP,
    VIRTIO_BALLOON_HINT_BLOCK_ORDER,
    FreePageHinting,
    Hint,
    SendBlock,
)
from guest.balloon.initialised_pages import InitialisedPages, initialised_pfns
from guest.linux_profile import LINUX_7_2
from guest.machine import Machine
from guest.mm.pageblock import MigrateType
from guest.page_poison import PagePoison
from guest.ram import GuestRam
from guest.vhost_user.attachment import Attachment
from guest.virtqueue.virtqueue import Buffer
from protocol.balloon_config import BalloonConfig
from protocol.balloon_statistics import STATISTIC_SIZE, StatisticTag, build_statistics
from protocol.errors import UsageError
from protocol.memory import PAGE_SIZE
from protocol.process.events import EventLog
from protocol.virtio import has_feature
from protocol.virtio_balloon import CONFIG_ACTUAL, PFN_SIZE, BalloonFeature, BalloonQueue

_COMMAND_SIZE = 4


@dataclass(frozen=True, slots=True)
class DriverBuffers:
    """One page of the guest with the driver's buffers. Addresses are guest addresses."""

    pfns: int

    @property
    def statistics(self) -> int:
        """The statistics, after the page frame numbers of one message."""
        return self.pfns + VIRTIO_BALLOON_ARRAY_PFNS_MAX * PFN_SIZE

    @property
    def command(self) -> int:
        """The command id that begins a round of hinting."""
        return self.statistics + len(StatisticTag) * STATISTIC_SIZE

    @property
    def stop(self) -> int:
        """The command id that ends one."""
        return self.command + _COMMAND_SIZE

    @property
    def bitmap(self) -> int:
        """Which pages of one message are initialised (DEVICE_INIT_ON_INFLATE)."""
        return self.stop + _COMMAND_SIZE


class BalloonWorker:
    """The work items of the balloon driver. The page for its buffers is allocated at once, and kept.

    ``oom_kills`` says how many workloads have ended because memory ran out. With ``poison``, pages that the device has
    had are filled with its pattern before they are free (virtio 1.2, 5.5.6.6.1). ``statistics`` are those that the
    driver sends. ``initialised`` has the pages that need no filling, where the device says which (a draft).

    Raises:
        UsageError: the machine has no page for the buffers.
    """

    def __init__(
        self,
        machine: Machine,
        ram: GuestRam,
        events: EventLog,
        oom_kills: Callable[[], int],
        poison: PagePoison | None = None,
        statistics: Sequence[StatisticTag] = LINUX_7_2.statistics,
        initialised: InitialisedPages | None = None,
    ) -> None:
        self._machine = machine
        self._ram = ram
        self._events = events
        self._oom_kills = oom_kills
        self._poison = poison
        self._statistics = statistics
        self._initialised = initialised
        page = machine.allocator.alloc_pages(0, MigrateType.UNMOVABLE)
        if page is None:
            raise UsageError("too little memory for the balloon driver's buffers")
        self._buffers = DriverBuffers(page * PAGE_SIZE)
        self._work = asyncio.Event()
        self._hinting_work = asyncio.Event()
        self._came = asyncio.Event()
        self._balloon = Balloon(machine.allocator, self._work.set, on_release=self._on_pages_released)
        self._hinting: FreePageHinting | None = None
        self._attachment: Attachment | None = None
        machine.allocator.vmscan.on_out_of_memory = self._on_out_of_memory

    @property
    def balloon_bytes(self) -> int:
        """Bytes in the balloon, on their way into it or out of it."""
        return self._balloon.num_pages * PAGE_SIZE

    def pfns(self) -> "array[int]":
        """Return the page frame numbers of these pages."""
        return self._balloon.pfns()

    # -- devices come and go ----------------------------------------------------------------------------------------

    def attach(self, attachment: Attachment) -> None:
        """Serve this device from now on. The balloon keeps its size."""
        self._attachment = attachment
        if self._initialised is not None:
            self._initialised.attach(attachment.features, 0 if self._poison is None else self._poison.byte)
        self._balloon.attach(attachment.features, attachment.config.actual, attachment.config.num_pages)
        if BalloonQueue.FREE_PAGE in attachment.queues:
            self._hinting = FreePageHinting(self._machine.allocator, attachment.queue_size, on_release=self._on_release)
            self._machine.allocator.vmscan.register_shrinker(self._hinting.shrink)
            self._receive_command(self._hinting, attachment.config.free_page_hint_cmd_id)
        self._came.set()

    def detach(self) -> None:
        """Stop. The balloon stays inflated; hinted blocks become free."""
        self._attachment = None
        if self._hinting is not None:
            self._machine.allocator.vmscan.unregister_shrinker(self._hinting.shrink)
            self._hinting.return_free_pages_to_mm()
            self._hinting = None
        self._work.set()
        self._hinting_work.set()

    def config_changed(self, config: BalloonConfig) -> None:
        """Take over the device's target and hinting command."""
        self._balloon.set_target(config.num_pages)
        if self._hinting is not None:
            self._receive_command(self._hinting, config.free_page_hint_cmd_id)

    async def run(self) -> None:
        """Serve one device after another; never return."""
        while True:
            await self._came.wait()
            self._came.clear()
            attachment, hinting = self._attachment, self._hinting
            if attachment is None:
                continue
            async with asyncio.TaskGroup() as group:
                group.create_task(self._adjust(attachment))
                if BalloonQueue.STATS in attachment.queues:
                    group.create_task(self._send_statistics(attachment))
                if hinting is not None:
                    group.create_task(self._hint(attachment, hinting))

    def _on_release(self, pfn: int, pages: int) -> None:
        if self._poison is not None:
            self._poison.fill(pfn, pages)

    def _on_pages_released(self, pfns: "array[int]") -> None:
        poison, known = self._poison, self._initialised
        if poison is not None:
            filled = known if known is not None and known.holds(poison.byte) else ()
            for pfn in pfns:
                if pfn not in filled:
                    poison.fill(pfn, 1)
                    if known is not None:
                        known.forget(pfn, 1)

    # -- the size ---------------------------------------------------------------------------------------------------

    async def _adjust(self, attachment: Attachment) -> None:
        while self._attachment is attachment:
            self._work.clear()
            progress = _Progress(self._events)
            while (step := self._balloon.next_step()) is not None:
                if isinstance(step, OutOfPuff):
                    progress.emit()
                if not await self._do(attachment, step) or self._attachment is not attachment:
                    break  # not acknowledged: the next device gets this step again
                self._balloon.done(step)
                if isinstance(step, TellHost):
                    progress.add(step, self._balloon.num_pages)
            progress.emit()
            await self._work.wait()

    async def _do(self, attachment: Attachment, step: Step) -> bool:
        # False when the device went away first.
        match step:
            case TellHost(queue, pfns):
                data = pfns.tobytes()
                self._ram.write(self._buffers.pfns, data)
                message = [(self._buffers.pfns, len(data))]
                known = self._initialised
                if known is None or queue is not BalloonQueue.INFLATE:
                    return await attachment.queues[queue].post(message) is not None
                return await self._inflate(attachment, known, pfns, message)
            case UpdateSize(actual):
                await attachment.write_config(CONFIG_ACTUAL.start, actual.to_bytes(len(CONFIG_ACTUAL), "little"))
                return not attachment.lost.done()
            case OutOfPuff(seconds):
                await asyncio.sleep(seconds)
                return True

    async def _inflate(
        self, attachment: Attachment, known: InitialisedPages, pfns: "array[int]", message: list[Buffer]
    ) -> bool:
        # As for any message; the bitmap of DEVICE_INIT_ON_INFLATE goes with it where that is negotiated.
        for pfn in pfns:
            known.forget(pfn, 1)
        place = self._buffers.bitmap, -(-len(pfns) // 8)
        has_bitmap = has_feature(attachment.features, BalloonFeature.DEVICE_INIT_ON_INFLATE)
        used = await attachment.queues[BalloonQueue.INFLATE].post(message, [place] if has_bitmap else ())
        if used is None:
            return False
        if has_bitmap:
            for pfn in initialised_pfns(pfns, bytes(self._ram.view(place[0], min(used, place[1])))):
                known.add(pfn, 1)
        return True

    def _on_out_of_memory(self, _order: int, _migratetype: int) -> bool:
        pages = self._balloon.out_of_memory()
        if pages:
            self._events.emit("oom_deflate", pages=pages)
        return pages > 0

    # -- statistics -------------------------------------------------------------------------------------------------

    async def _send_statistics(self, attachment: Attachment) -> None:
        address = self._buffers.statistics
        statistics = balloon_statistics(self._machine, self._balloon, self._oom_kills(), self._statistics)
        while True:
            data = build_statistics(statistics)
            self._ram.write(address, data)
            if await attachment.queues[BalloonQueue.STATS].post([(address, len(data))]) is None:
                return
            # The device asks by giving the buffer back.
            statistics = balloon_statistics(self._machine, self._balloon, self._oom_kills(), self._statistics)
            self._events.emit("statistics", **{tag.name.lower(): value for tag, value in statistics.items()})

    # -- hinting ----------------------------------------------------------------------------------------------------

    def _receive_command(self, hinting: FreePageHinting, command_id: int) -> None:
        freed = hinting.command_id_received(command_id)
        if command_id == VIRTIO_BALLOON_CMD_ID_DONE and freed:
            self._events.emit("hinting", state="done", command_id=hinting.command_id, bytes=_hinted_bytes(freed))
        self._hinting_work.set()

    async def _hint(self, attachment: Attachment, hinting: FreePageHinting) -> None:
        while self._hinting is hinting:
            self._hinting_work.clear()
            while (hint := hinting.next_hint()) is not None:
                used = attachment.queues[BalloonQueue.FREE_PAGE].post(**self._hint_buffers(hint))
                used.add_done_callback(partial(self._on_hint_used, hinting, hint))
                if not isinstance(hint, SendBlock):
                    self._emit_command(hinting, hint.command_id)
            await self._hinting_work.wait()

    def _hint_buffers(self, hint: Hint) -> dict[str, list[Buffer]]:
        if isinstance(hint, SendBlock):
            if self._initialised is not None:
                self._initialised.forget(hint.pfn, 1 << VIRTIO_BALLOON_HINT_BLOCK_ORDER)
            return {"writable": [(hint.pfn * PAGE_SIZE, _hinted_bytes(1))]}
        stops = hint.command_id == VIRTIO_BALLOON_CMD_ID_STOP
        address = self._buffers.stop if stops else self._buffers.command
        self._ram.write(address, hint.command_id.to_bytes(_COMMAND_SIZE, "little"))
        return {"readable": [(address, _COMMAND_SIZE)]}

    def _on_hint_used(self, hinting: FreePageHinting, hint: Hint, used: "asyncio.Future[int | None]") -> None:
        if not used.cancelled() and used.result() is not None:
            hinting.used(hint)
            self._hinting_work.set()

    def _emit_command(self, hinting: FreePageHinting, command_id: int) -> None:
        state = "stop" if command_id == VIRTIO_BALLOON_CMD_ID_STOP else "start"
        held = _hinted_bytes(hinting.held_blocks)
        self._events.emit("hinting", state=state, command_id=hinting.command_id, bytes=held)


def _hinted_bytes(blocks: int) -> int:
    return blocks * PAGE_SIZE << VIRTIO_BALLOON_HINT_BLOCK_ORDER


class _Progress:
    # The content of one event: messages in one direction without a pause.

    def __init__(self, events: EventLog) -> None:
        self._events = events
        self._queue = BalloonQueue.INFLATE
        self._pages = self._actual = 0
        self._begin = time.monotonic()

    def add(self, step: TellHost, actual_pages: int) -> None:
        if step.queue is not self._queue:
            self.emit()
            self._queue = step.queue
        self._pages += len(step.pfns)
        self._actual = actual_pages

    def emit(self) -> None:
        now = time.monotonic()
        if self._pages:
            seconds = round(now - self._begin, 6)
            self._events.emit(self._queue.value, pages=self._pages, actual_pages=self._actual, seconds=seconds)
        self._pages = 0
        self._begin = now
