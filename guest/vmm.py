"""The virtual machine monitor of the emulated guest: ties memory, allocator, reporter, driver and workloads together
and gives each of them its turn.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Coroutine
from functools import partial
from typing import Any, Final

from guest.balloon.balloon_worker import BalloonWorker
from guest.balloon.initialised_pages import InitialisedPages
from guest.balloon.reporting_worker import ReportingWorker
from guest.balloon.virtio_balloon import is_kept_for_poison
from guest.balloon_device import BalloonDevice
from guest.boot_memory import make_allocator, memory_hole, shape_free_lists
from guest.control import Answers, ControlServer
from guest.ledger.ledger import take_ledger
from guest.machine import Machine
from guest.mm.reporting.cause import Cause
from guest.mm.reporting.page_reporting import PageReporter
from guest.mm.reporting.reporters import make_reporter
from guest.mm.reporting.rotation import Rotation
from guest.mm.views.free_lists import FREE_LISTS, free_lists_text
from guest.mm.views.memory_map import take_map
from guest.mm.views.vmstat import VIEWS, buddyinfo
from guest.page_poison import PagePoison
from guest.ram import GuestRam
from guest.vhost_user.device_commands import device_commands
from guest.virtqueue.ring_memory import allocate_rings
from guest.vmm_options import VmmOptions
from guest.workloads.allocation_trace import TraceWriter
from guest.workloads.trace_file import RecordFile
from guest.workloads.workload import OutOfMemoryError, Workload
from protocol.memory import PAGE_SIZE
from protocol.process.command_line import give_up_standard_output
from protocol.process.events import EventLog

MEMORY_EVENT_INTERVAL: Final = 0.25
"""Seconds between two ``memory`` events."""

STOPPED_EARLY: Final = 1
"""Exit status of a machine that was stopped before it had a device."""

LATEST: Final = 1.0
"""Most seconds that a workload may lag its own clock and still catch up."""


class VirtualMachine:
    """One emulated guest, from power-on to power-off.

    Raises:
        UsageError: invalid options.
    """

    def __init__(self, options: VmmOptions, events: EventLog) -> None:
        self._options = options
        self._events = events
        self._begin = self._workloads_begin = time.monotonic()
        self._allocator = make_allocator(options)
        self._ram = GuestRam(options.memory, hole=memory_hole(self._allocator.zones))
        self._poison = self._make_poison()
        self._initialised = InitialisedPages(self._ram.view) if options.draft else None
        self._rings = allocate_rings(self._allocator, options.ring)
        if options.buddyinfo is not None:
            shape_free_lists(self._allocator, options.buddyinfo)
        self._record = None if options.record is None else RecordFile(options.record)
        self._machine = Machine(
            self._allocator,
            self._ram,
            self._on_phase,
            self._on_corruption,
            recorder=self._make_recorder(),
            poison=self._poison,
            known=self._initialised,
        )
        self._reporter = self._make_reporter()
        self._reporting = ReportingWorker(self._reporter, events, self._initialised)
        self._balloon = BalloonWorker(
            self._machine,
            self._ram,
            events,
            lambda: self._oom_kills,
            self._poison,
            options.profile.statistics,
            self._initialised,
        )
        self._device = BalloonDevice(options, self._ram, self._rings, events, (self._reporting, self._balloon), _say)
        self._stop = asyncio.Event()
        self._oom_kills = 0

    def _make_reporter(self) -> PageReporter | None:
        options = self._options
        if options.reporter == "off":
            return None
        reporter = make_reporter(
            options.reporter,
            self._allocator,
            order=options.reporting_order,
            delay=options.reporting_delay,
            capacity=options.reporting_capacity,
            high_water_mark=options.high_water_mark,
            keeps_order=options.profile.keeps_order,
        )
        if isinstance(reporter, Rotation):  # the reporters of 2019 take as many entries as there are
            options.profile.check_ring(options.ring.size, reporter.own_capacity)
        return reporter

    def _make_poison(self) -> PagePoison | None:
        pattern = self._options.page_poison
        if pattern is None:
            return None
        poison = PagePoison(self._ram.view, pattern & 0xFF)
        for zone in self._allocator.zones if pattern else ():  # untouched memory is zero already
            poison.fill(zone.start_pfn, zone.managed_pages)
        return poison

    def _make_recorder(self) -> TraceWriter | None:
        if self._record is None:
            return None
        return TraceWriter(self._record.write, lambda: round(time.monotonic() - self._workloads_begin, 6))

    async def run(self) -> int:
        """Run the workloads to their end. Return the exit status: 0, or 1 where a page was corrupted, memory ran out,
        or the machine was stopped before it was up.

        Raises:
            BalloonError: no back-end listens at the start, or the control socket cannot be made.
        """
        async with contextlib.AsyncExitStack() as stack:
            if self._record is not None:
                stack.callback(self._close_record, self._record)
            if self._options.control is not None:
                views = {name: partial(view, self._allocator) for name, view in VIEWS.items()}
                views[FREE_LISTS] = partial(free_lists_text, self._allocator)
                answers: Answers = {**views, **device_commands(lambda: self._device.attachment)}
                stack.push_async_callback((await ControlServer.open(self._options.control, answers)).close)
            return await self._run()

    async def _run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGUSR1, self._print_buddyinfo)
        await self._until_stopped(self._device.attach(), None)
        if self._device.attachment is None:
            return STOPPED_EARLY
        self._events.emit(
            "booted",
            pid=os.getpid(),
            memory_bytes=self._options.memory,
            reporter=self._options.reporter,
            seconds=round(time.monotonic() - self._begin, 6),
        )
        works = [self._device.stay_attached(), self._emit_memory_events(), self._reporting.run(), self._balloon.run()]
        if self._options.memory_map is not None:
            works.append(self._emit_maps(self._options.memory_map))
        background = [asyncio.create_task(work) for work in works]
        try:
            await self._until_stopped(self._run_workloads(), self._options.duration)
            self._finish()
            if self._options.hold:
                await self._until_stopped(asyncio.sleep(float("inf")), None)
            for task in background:
                if task.done():
                    task.result()  # raises what a background task died of
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            self._device.detach("machine powered off")
            self._ram.close()
        return 1 if self._machine.corrupted_pages or self._oom_kills else 0

    async def _until_stopped(self, work: Coroutine[object, object, object], seconds: float | None) -> None:
        task = asyncio.create_task(work)
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait([task, stopped], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
        if not task.cancelled():
            task.result()

    # -- workloads --------------------------------------------------------------------------------------------------

    def _close_record(self, record: RecordFile) -> None:
        record.close()
        if record.broken is not None:
            _say(f"--record {record.path}: {record.broken}; the recording ends there")

    async def _run_workloads(self) -> None:
        self._workloads_begin = time.monotonic()
        seeds = range(self._options.seed, self._options.seed + len(self._options.workloads))
        await asyncio.gather(*map(self._run_workload, self._options.workloads, seeds))

    async def _run_workload(self, workload: Workload, seed: int) -> None:
        # The workload's own clock: the time that its work takes counts as passed, so that durations are kept.
        clock = time.monotonic()
        try:
            for seconds in self._machine.scheduler.run(workload.run(self._machine, seed)):
                clock = max(clock + seconds, time.monotonic() - LATEST)
                await asyncio.sleep(clock - time.monotonic())
        except OutOfMemoryError as error:
            self._oom_kills += 1
            self._events.emit("out_of_memory", reason=str(error))
            _say(str(error))

    def _on_phase(self, name: str) -> None:
        self._events.emit("phase", name=name)

    def _on_corruption(self, pfn: int, order: int, pages: int) -> None:
        self._events.emit("corrupted", pfn=pfn, order=order, pages=pages)
        _say(f"{pages} pages corrupted in the block of order {order} at pfn {pfn:#x}")

    def _finish(self) -> None:
        machine = self._machine
        machine.verify_all()
        self._allocator.validate()
        self._emit_memory()
        draft = {} if self._initialised is None else {"uncleared_pages": self._initialised.uncleared_pages}
        self._events.emit(
            "finished", verified_pages=machine.verified_pages, corrupted_pages=machine.corrupted_pages, **draft
        )
        _print(f"verified {machine.verified_pages} pages, corrupted {machine.corrupted_pages}", self._events)
        for name in self._options.views:
            _print(VIEWS[name](self._allocator).rstrip("\n"), self._events)

    def _print_buddyinfo(self) -> None:
        _print(buddyinfo(self._allocator).rstrip("\n"), self._events)

    # -- memory events ----------------------------------------------------------------------------------------------

    async def _emit_memory_events(self) -> None:
        while True:
            self._emit_memory()
            await asyncio.sleep(MEMORY_EVENT_INTERVAL)

    def _emit_memory(self) -> None:
        self._events.emit(
            "memory",
            free_bytes=self._machine.free_bytes,
            reported_bytes=self._reporting.reported_bytes,
            allocated_bytes=self._machine.allocated_bytes,
            balloon_bytes=self._balloon.balloon_bytes,
            resident_bytes=self._ram.resident_bytes,
            **(self._ledger() if self._options.ledger else {}),
        )

    def _ledger(self) -> dict[str, Any]:
        attachment, poison = self._device.attachment, self._options.page_poison
        is_kept = attachment is not None and is_kept_for_poison(attachment.features, poison)
        kept_for = Cause.POISON if is_kept else None
        ledger = take_ledger(self._allocator, self._reporter, self._ram.residency(), kept_for=kept_for)
        return {
            "ledger": ledger.held_bytes,
            "not_returned_bytes": ledger.not_returned_bytes,
            "returned_bytes": ledger.returned_bytes,
            "page_cache_bytes": self._machine.cached_pages * PAGE_SIZE,
        }

    async def _emit_maps(self, interval: float) -> None:
        while True:
            in_flight = () if self._reporter is None else self._reporter.in_flight
            taken = take_map(
                self._allocator, self._ram.residency(), ballooned=self._balloon.pfns(), in_flight=in_flight
            )
            self._events.emit("memory_map", **taken.as_json())
            await asyncio.sleep(interval)


def _print(text: str, events: EventLog) -> None:
    # Standard output belongs to the event stream if that was asked for there.
    try:
        print(text, file=sys.stderr if events.is_standard_output else sys.stdout, flush=True)
    except OSError as error:
        give_up_standard_output()
        _say(f"standard output: {error.strerror}")


def _say(text: str) -> None:
    print(f"balloon-guest: {text}", file=sys.stderr, flush=True)
