"""The machine's balloon device: attached to one back-end after another, and the driver's work items for it."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from guest.balloon.balloon_worker import BalloonWorker
from guest.balloon.reporting_worker import ReportingWorker
from guest.balloon.virtio_balloon import WANTED, accept_features
from guest.ram import GuestRam
from guest.vhost_user.attachment import Attachment
from guest.vhost_user.attachment_options import AttachmentOptions
from guest.virtqueue.ring_memory import RingMemory
from guest.vmm_options import VmmOptions
from protocol.errors import BalloonError
from protocol.process.events import EventLog
from protocol.virtio_balloon import feature_bit_names

RECONNECT_INTERVAL: Final = 0.2
"""Seconds between two attempts to find the back-end again."""


class BalloonDevice:
    """Attaches ``ram`` with its ``rings`` to the back-end that ``options`` name, and hands the device to ``workers``.

    ``notice`` prints one line about a back-end that went away or came back.
    """

    def __init__(
        self,
        options: VmmOptions,
        ram: GuestRam,
        rings: Sequence[RingMemory],
        events: EventLog,
        workers: Sequence[ReportingWorker | BalloonWorker],
        notice: Callable[[str], None],
    ) -> None:
        self._path = options.socket_path
        self._ram = ram
        self._rings = rings
        self._events = events
        self._workers = workers
        self._notice = notice
        self._options = AttachmentOptions(
            accept_features=partial(accept_features, wanted=WANTED | options.draft, page_poison=options.page_poison),
            ring=options.ring,
            page_poison=options.page_poison,
            in_band=options.in_band,
            resume=options.resume,
        )
        self.attachment: Attachment | None = None
        """The current attachment, None without a back-end."""

    async def attach(self, before: Attachment | None = None) -> Attachment:
        """Attach to the back-end, or bring the device of ``before``, which was reset, up again in its session.

        Raises:
            BalloonError: no back-end answers, or it refused.
        """
        attachment = self.attachment = await (
            Attachment.connect(self._path, self._ram, self._rings, self._options)
            if before is None
            else before.bind_again()
        )
        attachment.on_interruption = self._on_interruption
        names = feature_bit_names(attachment.features)
        num_pages = attachment.config.num_pages
        self._events.emit("attached", features=attachment.features, feature_names=names, num_pages=num_pages)
        for worker in self._workers:
            worker.attach(attachment)
        return attachment

    def _on_interruption(self, reason: str | None) -> None:
        if reason is None:
            self._events.emit("resumed")
            self._notice("resumed")
        else:
            self._events.emit("interrupted", reason=reason)
            self._notice(f"{reason}; waiting to resume with a back-end at {self._path}")

    def detach(self, reason: str) -> None:
        """Close the attachment. The workers stop first: the memory that they hold for the device becomes free."""
        for worker in self._workers:
            worker.detach()
        if self.attachment is not None:
            self.attachment.close()
            self.attachment = None
        self._events.emit("detached", reason=reason)

    async def stay_attached(self) -> None:
        """Attach again each time that the back-end goes away; never return.

        Call it when attached.
        """
        attachment = self.attachment
        while attachment is not None:
            reason = await self._wait_lost(attachment)
            self.detach(reason)
            if attachment.was_reset:
                try:
                    attachment = await self.attach(before=attachment)
                    continue
                except BalloonError as error:
                    reason = str(error)
            self._notice(f"{reason}; waiting for a back-end at {self._path}")
            attachment = await self._attach_again()
            self._notice("attached again")

    async def _attach_again(self) -> Attachment:
        while True:
            await asyncio.sleep(RECONNECT_INTERVAL)
            with contextlib.suppress(BalloonError):
                return await self.attach()

    async def _wait_lost(self, attachment: Attachment) -> str:
        while not attachment.lost.done():
            changed = asyncio.create_task(attachment.config_changed.wait())
            lost: asyncio.Future[Any] = attachment.lost
            await asyncio.wait({lost, changed}, return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
            if attachment.config_changed.is_set() and not attachment.lost.done():
                attachment.config_changed.clear()
                config = await attachment.read_config()
                self._events.emit("config", num_pages=config.num_pages)
                for worker in self._workers:
                    worker.config_changed(config)
        return attachment.lost.result()
