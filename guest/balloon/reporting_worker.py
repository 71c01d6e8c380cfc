"""Runs the page reporter when its work is due, and sends its reports to the current device."""

import asyncio
import time

from guest.balloon.initialised_pages import InitialisedPages
from guest.balloon.virtio_balloon import report_buffers
from guest.mm.reporting.page_reporting import PageReporter, Report
from guest.vhost_user.attachment import Attachment
from protocol.balloon_config import BalloonConfig
from protocol.memory import PAGE_SIZE
from protocol.process.events import EventLog
from protocol.virtio import has_feature
from protocol.virtio_balloon import BalloonFeature, BalloonQueue


class ReportingWorker:
    """The delayed work of ``reporter``; None reports nothing. ``initialised`` learns of pages that the device has
    initialised, if it says which (DEVICE_INIT_REPORTED, a draft)."""

    def __init__(
        self, reporter: PageReporter | None, events: EventLog, initialised: InitialisedPages | None = None
    ) -> None:
        self._initialised = initialised
        self._reporter = reporter
        self._events = events
        self._attachment: Attachment | None = None
        self._work_requested = asyncio.Event()

    @property
    def reported_bytes(self) -> int:
        """Bytes in free blocks that are marked reported."""
        return 0 if self._reporter is None else self._reporter.reported_pages() * PAGE_SIZE

    def attach(self, attachment: Attachment) -> None:
        """Report to this device from now on, if it takes reports."""
        self._attachment = attachment
        if self._reporter is not None and BalloonQueue.REPORTING in attachment.queues:
            self._reporter.register(
                attachment.queue_size, time.monotonic(), self._work_requested.set, clock=time.monotonic
            )

    def detach(self) -> None:
        """Stop reporting. Isolated blocks go back to the free lists, unreported."""
        if self._reporter is not None:
            self._reporter.unregister()
        self._attachment = None

    def config_changed(self, _config: BalloonConfig) -> None:
        """Do nothing: the configuration space has no field for reporting."""

    async def run(self) -> None:
        """Run the passes that the reporter asks for; never return."""
        reporter = self._reporter
        if reporter is None:
            return
        while True:
            await self._work_requested.wait()
            self._work_requested.clear()
            while reporter.due is not None:
                delay = reporter.due - time.monotonic()
                if delay > 0:
                    await asyncio.sleep(delay)
                    continue
                await self._one_pass(reporter)

    async def _one_pass(self, reporter: PageReporter) -> None:
        worker = reporter.process(time.monotonic())
        report = next(worker, None)
        while report is not None:
            acknowledged = await self._report(report)
            try:
                report = worker.send(acknowledged)
            except StopIteration:
                return

    async def _report(self, report: Report) -> bool:
        attachment = self._attachment
        if attachment is None:
            return False
        begin = time.monotonic()
        if self._initialised is not None:
            for pfn, order in report.blocks:
                self._initialised.forget(pfn, 1 << order)
        used = await attachment.queues[BalloonQueue.REPORTING].post(writable=report_buffers(report.blocks))
        if used is None:
            return False
        fields: dict[str, int] = {}
        # Without that feature the used length is ignored, as in Linux.
        if self._initialised is not None and has_feature(attachment.features, BalloonFeature.DEVICE_INIT_REPORTED):
            fields["initialised_bytes"] = _note_initialised(self._initialised, report, used)
        self._events.emit(
            "report",
            entries=len(report.blocks),
            bytes=report.pages * PAGE_SIZE,
            seconds=round(time.monotonic() - begin, 6),
            **fields,
        )
        return True


def _note_initialised(initialised: InitialisedPages, report: Report, used: int) -> int:
    # The used length counts the bytes of the report from its first block on. Returns those that the blocks have.
    left = used // PAGE_SIZE
    for pfn, order in report.blocks:
        pages = min(left, 1 << order)
        initialised.add(pfn, pages)
        left -= pages
    return (used // PAGE_SIZE - left) * PAGE_SIZE
