"""The machine's attachment to a back-end: a session, and the device's virtqueues brought up over the machine's memory.

An attachment lives as long as its connection. When the back-end goes away :attr:`Attachment.lost` is done, and every
request under way completes with None: whether the device has served it is unknown. With the option ``resume`` the
attachment lives on instead: the next back-end continues the same rings, as with QEMU.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Final

from guest.ram import GuestRam
from guest.vhost_user.attached_queue import AttachedQueue
from guest.vhost_user.attachment_options import AttachmentOptions
from guest.vhost_user.frontend import Call
from guest.vhost_user.request_channel import Result
from guest.vhost_user.session import Session, in_time
from guest.virtqueue.ring_memory import RingMemory
from protocol.balloon_config import BalloonConfig
from protocol.errors import SessionEnded, VhostUserError
from protocol.memory import GuestAddress, MemoryRegion, UserAddress
from protocol.vhost_user import BackendRequest, ProtocolFeature
from protocol.vhost_user_codec import Message
from protocol.vhost_user_payloads import InflightDescription, Payload, VringState
from protocol.virtio import has_feature
from protocol.virtio_balloon import CONFIG_POISON_VAL, BalloonFeature, BalloonQueue, queue_order

RESUME_INTERVAL: Final = 0.2
"""Seconds between two attempts to find the back-end again."""

_USER_BASE: Final = 0x7F00_0000_0000
"""User address of guest address 0. User addresses are only names of places in the session, so any value will do."""


class Attachment:
    """A connection to a back-end whose device is up. Make one with :meth:`connect`."""

    def __init__(
        self,
        path: Path,
        ram: GuestRam,
        rings: Sequence[RingMemory],
        options: AttachmentOptions,
        session: Session | None = None,
    ) -> None:
        self._path = path
        self._ram = ram
        self._rings = rings
        self._options = options
        self._session = session or self._new_session()
        self.queues: dict[BalloonQueue, AttachedQueue] = {}
        """The device's virtqueues. After the attachment has ended, their requests complete with None."""
        self._inflight: tuple[InflightDescription, int] | None = None
        self._written: dict[int, bytes] = {}
        self._unsent: dict[int, bytes] = {}
        self._started = self._paused = self._closed = False
        self._kicks: set[asyncio.Task[None]] = set()
        self._resuming: asyncio.Task[None] | None = None
        self.on_interruption: Callable[[str | None], None] = lambda _: None
        """Called with the reason when the back-end goes away and the attachment is to resume, then with None."""
        self.was_reset = False
        """Whether :meth:`reset` ended this attachment, so that :meth:`bind_again` is possible."""
        self.features = 0
        """The negotiated features, as the driver sees them."""
        self.config = BalloonConfig()
        """The configuration space as it was last read."""
        self.config_changed = asyncio.Event()
        """Set when the device says that the configuration space changed. The reader clears it."""
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Done, with the reason, when the back-end is gone for this attachment."""

    @classmethod
    async def connect(
        cls, path: Path, ram: GuestRam, rings: Sequence[RingMemory], options: AttachmentOptions
    ) -> "Attachment":
        """Connect to the back-end that listens at ``path`` and bring its device up over empty ``rings``.

        ``rings`` were allocated with the options' own :class:`RingOptions`.

        Raises:
            SessionEnded: no process listens there, or the back-end went away meanwhile.
            VhostUserError: the back-end refused something that this machine needs.
        """
        attachment = cls(path, ram, rings, options)
        try:
            await attachment._open()
        except BaseException:
            attachment.close()
            raise
        return attachment

    # -- control plane ----------------------------------------------------------------------------------------------

    def _new_session(self) -> Session:
        return Session(self._options.protocol_features, self._take_request, self._on_session_lost)

    async def _open(self) -> None:
        await in_time(self._path, self._bring_up())
        self._session.requests.watch()

    async def _call(self, calls: Generator[Call, Payload, Result]) -> Result:
        # Refused once this attachment is over: its session may belong to another by then.
        return await self._session.requests.call(calls, lambda: not self.lost.done())

    async def _bring_up(self) -> None:
        offered = await self._session.open(self._path)
        if self._options.in_band and not self._session.frontend.has(ProtocolFeature.INBAND_NOTIFICATIONS):
            raise VhostUserError("the back-end does not offer in-band notifications")
        features = self._options.accept(offered)
        if self.queues and features != self.features:
            raise VhostUserError("the back-end does not offer what the last one did")
        self.features = features
        await self._bring_up_device()

    async def _bring_up_device(self) -> None:
        call, frontend = self._call, self._session.frontend
        await call(frontend.accept(self.features))
        if self._options.page_poison is not None and has_feature(self.features, BalloonFeature.PAGE_POISON):
            # Once, before DRIVER_OK (virtio 1.2, 5.5.6.6.1).
            poison = self._options.page_poison.to_bytes(len(CONFIG_POISON_VAL), "little")
            await call(frontend.set_config(CONFIG_POISON_VAL.start, poison))
        regions = tuple(
            MemoryRegion(
                guest_address=GuestAddress(address),
                size=size,
                user_address=UserAddress(_USER_BASE + address),
                mmap_offset=address,
            )
            for address, size in self._ram.regions
        )
        await call(frontend.set_memory(regions, (self._ram.fd,) * len(regions)))
        if frontend.has(ProtocolFeature.INFLIGHT_SHMFD):
            await self._share_inflight()
        if not self.queues:
            self._make_queues()
        if not self._paused:
            await self._start_queues()
        self.config = await call(frontend.get_config())
        await call(frontend.driver_ok())
        while self._unsent:  # last, so that a write during the others is sent too
            await call(frontend.set_config(*self._unsent.popitem()))

    def _make_queues(self) -> None:
        for index, kind in enumerate(queue_order(self.features)):
            self.queues[kind] = AttachedQueue(
                index,
                self._rings[index],
                self._ram,
                self.features,
                on_broken=self._on_broken_ring,
                kick_in_band=self._kick_in_band if self._options.in_band else None,
            )

    async def _start_queues(self) -> None:
        for queue in self.queues.values():
            calls = self._session.frontend.start_queue(queue.index, queue.setup(_USER_BASE), queue.base)
            await self._call(calls)
        self._started = True

    async def _share_inflight(self) -> None:
        call, frontend = self._call, self._session.frontend
        if self._inflight is not None:
            await call(frontend.set_inflight(*self._inflight))
            return
        area = await call(frontend.get_inflight(len(queue_order(self.features)), self.queue_size))
        fd = self._session.requests.take_file()
        if fd is None:
            raise VhostUserError("the back-end's inflight area came without a file")
        self._inflight = area, fd
        await call(frontend.set_inflight(area, fd))

    # -- events of a session ----------------------------------------------------------------------------------------

    @property
    def is_started(self) -> bool:
        """Whether the virtqueues are being served; not between :meth:`stop` and :meth:`start`."""
        return self._started

    async def stop(self) -> dict[BalloonQueue, int]:
        """Stop the device's virtqueues, as for a machine that is paused. Requests wait, also those posted from now on.

        Returns the base of each queue, as the back-end gave it: it will start from there.

        Raises:
            SessionEnded: the back-end is gone. The next one continues the queues.
            VhostUserError: it refused, and is lost.
        """
        self._require_back_end()
        self._started = False
        for queue in self.queues.values():
            queue.base = await self._call(self._session.frontend.stop_queue(queue.index))
            queue.collect()
        self._paused = True  # not before: a queue that was not stopped has no base to go on from
        return {kind: queue.base for kind, queue in self.queues.items()}

    async def start(self) -> None:
        """Start the virtqueues where they were stopped.

        Raises:
            SessionEnded: the back-end is gone.
            VhostUserError: it refused, and is lost.
        """
        self._require_back_end()
        self._paused = False
        await self._start_queues()
        self._kick_all()

    def _kick_all(self) -> None:
        # For requests posted meanwhile, and for a kick that the device did not get.
        for queue in self.queues.values():
            queue.kick()

    async def reset(self) -> None:
        """Reset the device, as a driver does that is removed; this ends the attachment. Every request under way
        completes with None, and the device does not access its buffers any more.

        Raises:
            SessionEnded: the back-end is gone.
            VhostUserError: it refused, and is lost.
        """
        self._require_back_end()
        self._started = False
        await self._call(self._session.frontend.reset(len(self.queues)))
        self.was_reset = True
        self._lose("the driver reset the device")

    async def bind_again(self) -> "Attachment":
        """Close this attachment after :meth:`reset`, and bring the device up again, in the same session over empty
        rings, as a driver does that is inserted again.

        Raises:
            SessionEnded: the back-end went away.
            VhostUserError: it refused.
        """
        assert self.was_reset
        self.close()
        following = Attachment(self._path, self._ram, self._rings, self._options, self._session)
        following.features = self.features
        self._session.hand_over(following._take_request, following._on_session_lost)
        try:
            await in_time(self._path, following._bring_up_device())
        except BaseException:
            following.close()
            raise
        return following

    def _require_back_end(self) -> None:
        if self._resuming is not None or self.lost.done():
            raise SessionEnded("there is no back-end at the moment")

    def _on_session_lost(self, reason: str) -> None:
        if not self._options.resume or self.lost.done():
            self._lose(reason)
        elif self._resuming is None:
            self._started = False
            self._session.requests.end()
            self.on_interruption(reason)
            self._resuming = asyncio.get_running_loop().create_task(self._resume())

    async def _resume(self) -> None:
        """Wait for a back-end, and have it go on with the requests that the last one did not give back."""
        while True:
            if await self._resume_once():
                self._resuming = None
                return
            await asyncio.sleep(RESUME_INTERVAL)

    async def _resume_once(self) -> bool:
        self._session.close()
        self._session = self._new_session()
        for queue in self.queues.values():
            queue.collect()
            if not self._paused:
                queue.rewind()
        if self.lost.done():
            return True
        self._unsent = dict(self._written)
        try:
            await self._open()
        except SessionEnded:
            return False
        except VhostUserError as error:
            self._lose(str(error))
            return True
        self._kick_all()
        self.config_changed.set()
        self.on_interruption(None)
        return True

    async def read_config(self) -> BalloonConfig:
        """Read the configuration space anew, as after a change. Without a back-end it stays as it was last read."""
        with contextlib.suppress(SessionEnded, VhostUserError):
            self._require_back_end()
            self.config = await self._call(self._session.frontend.get_config())
        return self.config

    async def write_config(self, offset: int, data: bytes) -> None:
        """Write ``data`` at byte ``offset`` of the configuration space. A back-end that refuses is lost; when this
        attachment resumes, the next back-end gets the write again."""
        self._written[offset] = self._unsent[offset] = data
        with contextlib.suppress(SessionEnded, VhostUserError):
            self._require_back_end()
            del self._unsent[offset]
            await self._call(self._session.frontend.set_config(offset, data))

    # -- watching ---------------------------------------------------------------------------------------------------

    def _take_request(self, message: Message) -> int:
        match message:
            case Message(request=BackendRequest.CONFIG_CHANGE_MSG):
                self.config_changed.set()
                return 0
            case Message(request=BackendRequest.VRING_CALL, payload=VringState(index=index)) if self._options.in_band:
                for queue in self.queues.values():
                    if queue.index == index:
                        queue.collect()
                        return 0
        return 1

    def _on_broken_ring(self, reason: str) -> None:
        self._session.requests.break_off(reason)  # of the present session: a queue outlives it when this one resumes

    def _lose(self, reason: str) -> None:
        if not self.was_reset:
            self._session.requests.end()
        if not self.lost.done():
            self.lost.set_result(reason)
        for queue in self.queues.values():
            queue.give_up()

    def _close_queues(self) -> None:
        for queue in self.queues.values():
            queue.give_up()
            queue.close()
        if self._inflight is not None:
            os.close(self._inflight[1])
            self._inflight = None

    # -- data plane -------------------------------------------------------------------------------------------------

    @property
    def queue_size(self) -> int:
        """Entries of each virtqueue: the most buffers of one request."""
        return self._options.ring.size

    def _kick_in_band(self, index: int) -> None:
        if self._started:  # a kick would start a ring that is stopped
            kick = asyncio.get_running_loop().create_task(self._send_kick(index))
            self._kicks.add(kick)
            kick.add_done_callback(self._kicks.discard)

    async def _send_kick(self, index: int) -> None:
        with contextlib.suppress(SessionEnded, VhostUserError):
            await self._session.requests.call(self._session.frontend.kick(index), lambda: self._started)

    def close(self) -> None:
        """Detach: close the connection and everything that belonged to it. Without effect the second time."""
        if self._closed:
            return
        self._closed = True
        self._lose("closed")
        for task in (*self._kicks, *([self._resuming] if self._resuming else [])):
            task.cancel()
        if not self.was_reset:
            self._session.close()
        self._close_queues()
