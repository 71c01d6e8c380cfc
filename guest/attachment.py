"""The machine's attachment to a back-end: a session, and the device's virtqueues brought up over the machine's memory.

An attachment lives as long as its connection. When the back-end goes away it says so through :attr:`Attachment.lost`,
and every request under way comes back as None: whether the device did anything to it is unknown.

Must not know: how free pages are found, what a request is about, what programs run in the guest.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from guest.attached_queue import AttachedQueue
from guest.frontend import IN_BAND, WANTED_PROTOCOL_FEATURES, Frontend
from guest.ram import GuestRam
from guest.ring_memory import RING_FEATURES, RingMemory, RingOptions
from guest.session_channel import BackendChannel, RequestChannel
from guest.virtio_balloon import WANTED, accept_features
from guest.virtqueue import Buffer
from protocol.errors import SessionEnded, VhostUserError, VirtqueueError
from protocol.memory import GuestAddress, MemoryRegion, UserAddress
from protocol.vhost_user import BackendRequest, ProtocolFeature, VringState
from protocol.vhost_user_codec import Message
from protocol.virtio import FeatureBit, feature_mask, has_feature
from protocol.virtio_balloon import CONFIG_POISON_VAL, BalloonConfig, BalloonFeature, BalloonQueue, queue_order

ANSWER_TIMEOUT: Final = 10.0
"""Seconds that a back-end may take to bring its device up."""

_USER_BASE: Final = 0x7F00_0000_0000
"""Where the guest's memory pretends to be mapped. User addresses are names only; any will do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachmentOptions:
    """What the machine's driver wants of a device, and ``in_band``, whether kicks and interrupts travel as messages.

    ``wanted`` are the features that the driver understands; those of rings are decided by ``ring`` alone.
    ``page_poison`` is the pattern of free pages, one byte four times, as :func:`guest.virtio_balloon.accept_features`
    takes it.
    """

    wanted: int = WANTED
    ring: RingOptions = field(default_factory=RingOptions)
    page_poison: int | None = None
    in_band: bool = False

    @property
    def protocol_features(self) -> int:
        """The protocol features to negotiate where they are offered."""
        events = feature_mask(ProtocolFeature.STATUS, ProtocolFeature.RESET_DEVICE)
        return WANTED_PROTOCOL_FEATURES | events | (IN_BAND if self.in_band else 0)

    def accept(self, offered: int) -> int:
        """Return the features to accept of those offered.

        Raises:
            VhostUserError: the device does not offer rings of the kind that was asked for.
        """
        missing = self.ring.required & ~offered
        if missing:
            kind = "packed rings" if missing & feature_mask(FeatureBit.RING_PACKED) else "use in order"
            raise VhostUserError(f"the back-end does not offer {kind}")
        wanted = self.wanted & ~RING_FEATURES | self.ring.features
        return accept_features(offered, wanted=wanted, page_poison=self.page_poison)


class Attachment:
    """A connection to a back-end whose device is up. Make one with :meth:`connect`."""

    def __init__(
        self, sock: socket.socket, ram: GuestRam, rings: Sequence[RingMemory], options: AttachmentOptions
    ) -> None:
        self._socket = sock
        self._ram = ram
        self._rings = rings
        self._options = options
        self._frontend = Frontend(options.protocol_features)
        self._requests = RequestChannel(sock, self._lose)
        self._channel: BackendChannel | None = None
        self._queues: dict[BalloonQueue, AttachedQueue] = {}
        self._started = False
        self._closed = False
        self._kicks: set[asyncio.Task[None]] = set()
        self.features = 0
        """The negotiated features, as the driver sees them."""
        self.config = BalloonConfig()
        """The configuration space as it was last read."""
        self.config_changed = asyncio.Event()
        """Set when the device says that the configuration space changed. Whoever reads it clears it."""
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Done, with the reason, when the back-end is gone."""

    @classmethod
    async def connect(
        cls, path: Path, ram: GuestRam, rings: Sequence[RingMemory], options: AttachmentOptions | None = None
    ) -> "Attachment":
        """Connect to the back-end that listens at ``path`` and bring its device up over empty ``rings``.

        ``rings`` were allocated with the options' own :class:`RingOptions`.

        Raises:
            SessionEnded: nobody listens, or the back-end went away meanwhile.
            VhostUserError: the back-end refused something that this machine cannot do without.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        attachment = cls(sock, ram, rings, options or AttachmentOptions())
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await asyncio.get_running_loop().sock_connect(sock, os.fspath(path))
                await attachment._bring_up()
        except TimeoutError as error:
            attachment.close()
            raise SessionEnded(f"the back-end at {path} does not answer") from error
        except OSError as error:
            attachment.close()
            raise SessionEnded(f"no back-end at {path}: {error.strerror or error}") from error
        except BaseException:
            attachment.close()
            raise
        attachment._requests.watch()
        return attachment

    # -- control plane ----------------------------------------------------------------------------------------------

    async def _bring_up(self) -> None:
        offered = await self._requests.call(self._frontend.offer())
        if self._options.in_band and not self._frontend.has(ProtocolFeature.INBAND_NOTIFICATIONS):
            raise VhostUserError("the back-end does not offer in-band notifications")
        ours, theirs = socket.socketpair()
        self._channel = BackendChannel(ours, self._take_request, self._lose)
        self._channel.watch()
        with theirs:
            await self._requests.call(self._frontend.set_backend_channel(theirs.fileno()))
        self.features = self._options.accept(offered)
        await self._bring_up_device()

    async def _bring_up_device(self) -> None:
        call, frontend = self._requests.call, self._frontend
        await call(frontend.accept(self.features))
        if self._options.page_poison is not None and has_feature(self.features, BalloonFeature.PAGE_POISON):
            # Before DRIVER_OK, and never again (virtio 1.2, 5.5.6.6.1).
            poison = self._options.page_poison.to_bytes(len(CONFIG_POISON_VAL), "little")
            await call(frontend.set_config(CONFIG_POISON_VAL.start, poison))
        region = MemoryRegion(
            guest_address=GuestAddress(0), size=self._ram.size, user_address=UserAddress(_USER_BASE), mmap_offset=0
        )
        await call(frontend.set_memory((region,), (self._ram.fd,)))
        for index, kind in enumerate(queue_order(self.features)):
            queue = self._queues[kind] = AttachedQueue(
                index, self._rings[index], self._ram, self.features, in_band=self._options.in_band
            )
            queue.watch(self._collect)
            await call(frontend.start_queue(index, queue.setup(_USER_BASE)))
        self.config = await call(frontend.get_config())
        await call(frontend.driver_ok())
        self._started = True

    @property
    def is_started(self) -> bool:
        """Whether the virtqueues are being served; not between :meth:`stop` and :meth:`start`."""
        return self._started

    async def stop(self) -> dict[BalloonQueue, int]:
        """Stop the device's virtqueues, as for a machine that is paused. Requests wait, also those posted from now on.

        Returns where each of them stopped, in the back-end's words: the base that it will start from.

        Raises:
            SessionEnded: the back-end is gone.
            VhostUserError: it refused, and is lost.
        """
        self._started = False
        for queue in self._queues.values():
            queue.base = await self._requests.call(self._frontend.stop_queue(queue.index))
            self._collect(queue)
        return {kind: queue.base for kind, queue in self._queues.items()}

    async def start(self) -> None:
        """Start the virtqueues where they were stopped.

        Raises:
            SessionEnded: the back-end is gone.
            VhostUserError: it refused, and is lost.
        """
        for queue in self._queues.values():
            await self._requests.call(self._frontend.start_queue(queue.index, queue.setup(_USER_BASE), queue.base))
        self._started = True
        for queue in self._queues.values():
            self._kick(queue)  # for what was posted meanwhile, and for a kick that the device never saw

    async def reset(self) -> None:
        """Reset the device and bring it up anew over empty rings, as a driver does that is removed and inserted again.

        Every request under way comes back as None: the device has forgotten it.

        Raises:
            SessionEnded: the back-end is gone.
            VhostUserError: it refused, and is lost.
        """
        self._started = False
        await self._requests.call(self._frontend.reset(len(self._queues)))
        self._close_queues()
        await self._bring_up_device()

    async def read_config(self) -> BalloonConfig:
        """Read the configuration space anew, as after a change. Without a back-end it stays as it was last read."""
        with contextlib.suppress(SessionEnded, VhostUserError):
            self.config = await self._requests.call(self._frontend.get_config())
        return self.config

    async def write_config(self, offset: int, data: bytes) -> None:
        """Write ``data`` at byte ``offset`` of the configuration space. A back-end that refuses or is gone is lost."""
        with contextlib.suppress(SessionEnded, VhostUserError):
            await self._requests.call(self._frontend.set_config(offset, data))

    # -- watching ---------------------------------------------------------------------------------------------------

    def _take_request(self, message: Message) -> int:
        match message:
            case Message(request=BackendRequest.CONFIG_CHANGE_MSG):
                self.config_changed.set()
                return 0
            case Message(request=BackendRequest.VRING_CALL, payload=VringState(index=index)) if self._options.in_band:
                for queue in self._queues.values():
                    if queue.index == index:
                        self._collect(queue)
                        return 0
        return 1

    def _collect(self, queue: AttachedQueue) -> None:
        try:
            queue.collect()
        except VirtqueueError as error:
            self._lose(str(error))

    def _lose(self, reason: str) -> None:
        self._requests.end()
        if not self.lost.done():
            self.lost.set_result(reason)
        for queue in self._queues.values():
            queue.give_up()

    def _close_queues(self) -> None:
        for queue in self._queues.values():
            queue.give_up()
            queue.close()
        self._queues.clear()

    # -- data plane -------------------------------------------------------------------------------------------------

    @property
    def queue_size(self) -> int:
        """Entries of each virtqueue: the most buffers of one request."""
        return self._options.ring.size

    def has_queue(self, queue: BalloonQueue) -> bool:
        """Whether the device has this queue."""
        return queue in self._queues

    def post(
        self, queue: BalloonQueue, readable: Sequence[Buffer] = (), writable: Sequence[Buffer] = ()
    ) -> "asyncio.Future[int | None]":
        """Hand a request to the device and return at once; several may be under way on one queue.

        The future's result is the used length that the device gave, which means something on few queues, or None when
        the back-end went away first. Until it is done, the device may do to ``writable`` buffers what it likes.

        Raises:
            QueueFullError: the queue has too few descriptors free. Nothing was added.
        """
        if self.lost.done() or not self._queues:
            gone: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
            gone.set_result(None)
            return gone
        attached = self._queues[queue]
        future = attached.post(readable, writable, lambda: self._kick(attached))
        self._collect(attached)  # the device may sleep on a ring that it was done with before we asked for interrupts
        return future

    def _kick(self, queue: AttachedQueue) -> None:
        if not self._options.in_band:
            os.eventfd_write(queue.kick_fd, 1)
        elif self._started:  # a kick would start a ring that is stopped
            kick = asyncio.get_running_loop().create_task(self._kick_in_band(queue.index))
            self._kicks.add(kick)
            kick.add_done_callback(self._kicks.discard)

    async def _kick_in_band(self, index: int) -> None:
        with contextlib.suppress(SessionEnded, VhostUserError):
            if self._started:
                await self._requests.call(self._frontend.kick(index))

    async def request(
        self, queue: BalloonQueue, readable: Sequence[Buffer] = (), writable: Sequence[Buffer] = ()
    ) -> int | None:
        """Hand a request to the device and wait, however long it takes, as Linux does. See :meth:`post`."""
        return await self.post(queue, readable, writable)

    def close(self) -> None:
        """Detach: close the connection and everything that belonged to it. Without effect the second time."""
        if self._closed:
            return
        self._closed = True
        self._lose("closed")
        for kick in self._kicks:
            kick.cancel()
        if self._channel is not None:
            self._channel.close()
        self._close_queues()
        self._socket.close()
