"""The front-end's side of a vhost-user session: its messages, their order, and the checks of the answers.

Each function is a generator of :class:`Call` values. The shell sends a call's bytes with its file descriptors, reads
one reply if ``reply_expected``, and sends the reply's payload back in; the generator checks it and goes on. The order
of messages is User Mode Linux's and QEMU's common part.

Source: vhost-user specification, "Communication", "Ring states", "Multiple queue support", "In-band notifications",
"Inflight I/O tracking", "Migration", VHOST_USER_PROTOCOL_F_REPLY_ACK, _STATUS, _CONFIGURE_MEM_SLOTS.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeAlias

from protocol.balloon_config import BalloonConfig
from protocol.errors import VhostUserError
from protocol.memory import MemoryRegion, UserAddress
from protocol.vhost_user import FrontendRequest, ProtocolFeature, form_of
from protocol.vhost_user_codec import build_message
from protocol.vhost_user_payloads import (
    DeviceConfig,
    InflightDescription,
    LogDescription,
    MemoryTable,
    Payload,
    VringAddress,
    VringAddressFlag,
    VringFile,
    VringState,
)
from protocol.virtio import LOG_ALL, PROTOCOL_FEATURES, DeviceStatus, feature_mask, has_feature
from protocol.virtio_balloon import CONFIG_SIZE

WANTED_PROTOCOL_FEATURES = feature_mask(
    ProtocolFeature.MQ,
    ProtocolFeature.REPLY_ACK,
    ProtocolFeature.BACKEND_REQ,
    ProtocolFeature.CONFIG,
)
"""The protocol features that every session needs or can use."""

IN_BAND = feature_mask(ProtocolFeature.INBAND_NOTIFICATIONS, ProtocolFeature.BACKEND_REQ, ProtocolFeature.REPLY_ACK)
"""In-band notifications and what they depend on: a back-end channel, and replies that order the messages."""


@dataclass(frozen=True, slots=True)
class Call:
    """One message to send: its bytes, the file descriptors sent along (which stay ours), whether a reply follows."""

    request: FrontendRequest
    data: bytes
    fds: tuple[int, ...]
    reply_expected: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSetup:
    """The setup of one virtqueue: where its parts lie (user addresses), its size in entries, its kick and call fds.

    Without a ``kick`` the ring is kicked in-band, without a ``call`` so are the interrupts. ``log`` is the guest
    address at which stores to the used part are logged, None if they are not.
    """

    size: int
    descriptor: UserAddress
    available: UserAddress
    used: UserAddress
    kick: int | None
    call: int | None
    log: int | None = None


Calls: TypeAlias = Generator[Call, Payload, None]


class Frontend:
    """One session with a back-end that negotiates ``wanted`` protocol features where they are offered.

    ``features`` and ``protocol_features`` are what was negotiated so far, ``status`` is the device status last sent.
    """

    def __init__(self, wanted: int = WANTED_PROTOCOL_FEATURES) -> None:
        self._wanted = wanted
        self.features = 0
        self.protocol_features = 0
        self.status = DeviceStatus(0)

    def has(self, feature: ProtocolFeature) -> bool:
        """Whether this protocol feature was negotiated."""
        return has_feature(self.protocol_features, feature)

    def _need(self, feature: ProtocolFeature) -> None:
        if not self.has(feature):
            raise VhostUserError(f"the back-end does not offer {feature.name}")

    def _call(
        self, request: FrontendRequest, payload: Payload = None, fds: tuple[int, ...] = ()
    ) -> Generator[Call, Payload, Payload]:
        own_reply = form_of(request).reply is not None
        need_reply = not own_reply and self.has(ProtocolFeature.REPLY_ACK)
        data = build_message(request, payload, need_reply=need_reply)
        answer = yield Call(request, data, fds, own_reply or need_reply)
        if (need_reply and answer != 0) or (own_reply and answer is None):
            raise VhostUserError(f"the back-end refused {request.name}")
        return answer

    def offer(self) -> Generator[Call, Payload, int]:
        """Begin the session; return the feature bits that the device offers to a driver.

        Raises:
            VhostUserError: the back-end lacks protocol features or configuration space.
        """
        yield from self._call(FrontendRequest.SET_OWNER)
        offered = yield from self._call(FrontendRequest.GET_FEATURES)
        assert isinstance(offered, int)
        if not offered & PROTOCOL_FEATURES:
            raise VhostUserError("the back-end has no protocol features")
        known = yield from self._call(FrontendRequest.GET_PROTOCOL_FEATURES)
        assert isinstance(known, int)
        accepted = known & self._wanted
        if accepted & IN_BAND != IN_BAND:
            accepted &= ~feature_mask(ProtocolFeature.INBAND_NOTIFICATIONS)
        if not has_feature(accepted, ProtocolFeature.CONFIG):
            raise VhostUserError("the back-end has no configuration space")
        yield from self._call(FrontendRequest.SET_PROTOCOL_FEATURES, accepted)
        self.protocol_features = accepted
        return offered & ~PROTOCOL_FEATURES

    def set_backend_channel(self, fd: int) -> Calls:
        """Give the back-end the channel for its own requests, where BACKEND_REQ was negotiated."""
        if self.has(ProtocolFeature.BACKEND_REQ):
            yield from self._call(FrontendRequest.SET_BACKEND_REQ_FD, fds=(fd,))

    # -- the device status ------------------------------------------------------------------------------------------

    def accept(self, features: int) -> Calls:
        """Accept ``features`` for the driver, with the steps of the device status before and after.

        Raises:
            VhostUserError: the device does not take these features (virtio 1.2, 3.1.1, step 6).
        """
        yield from self._add_status(DeviceStatus.ACKNOWLEDGE)
        yield from self._add_status(DeviceStatus.DRIVER)
        yield from self._call(FrontendRequest.SET_FEATURES, features | PROTOCOL_FEATURES)
        self.features = features
        yield from self._add_status(DeviceStatus.FEATURES_OK)
        if self.has(ProtocolFeature.STATUS):
            status = yield from self._call(FrontendRequest.GET_STATUS)
            assert isinstance(status, int)
            if not status & DeviceStatus.FEATURES_OK:
                yield from self._add_status(DeviceStatus.FAILED)
                raise VhostUserError(f"the device does not take the features {features:#x}")

    def driver_ok(self) -> Calls:
        """Set DRIVER_OK, the last step when a device is brought up."""
        yield from self._add_status(DeviceStatus.DRIVER_OK)

    def _add_status(self, status: DeviceStatus) -> Calls:
        if self.has(ProtocolFeature.STATUS):
            yield from self._call(FrontendRequest.SET_STATUS, int(self.status | status))
            self.status |= status

    def reset(self, queues: int) -> Calls:
        """Reset the device; its memory and the session stay, and it can be brought up again.

        A back-end without a message for that has its ``queues`` stopped instead, as QEMU does.
        """
        if self.has(ProtocolFeature.RESET_DEVICE):
            yield from self._call(FrontendRequest.RESET_DEVICE)
        elif not self.has(ProtocolFeature.STATUS):
            for index in range(queues):
                yield from self.stop_queue(index)
        if self.has(ProtocolFeature.STATUS):
            yield from self._call(FrontendRequest.SET_STATUS, 0)
        self.status = DeviceStatus(0)

    # -- memory -----------------------------------------------------------------------------------------------------

    def set_memory(self, regions: tuple[MemoryRegion, ...], fds: tuple[int, ...]) -> Calls:
        """Set the memory table: the regions and one file descriptor for each."""
        yield from self._call(FrontendRequest.SET_MEM_TABLE, MemoryTable(regions), fds)

    def get_memory_slots(self) -> Generator[Call, Payload, int]:
        """Return how many regions the back-end can have at a time.

        Raises:
            VhostUserError: the back-end cannot add single regions.
        """
        self._need(ProtocolFeature.CONFIGURE_MEM_SLOTS)
        slots = yield from self._call(FrontendRequest.GET_MAX_MEM_SLOTS)
        assert isinstance(slots, int)
        return slots

    def add_region(self, region: MemoryRegion, fd: int) -> Calls:
        """Add one region to the memory.

        Raises:
            VhostUserError: the back-end cannot, or refused.
        """
        self._need(ProtocolFeature.CONFIGURE_MEM_SLOTS)
        yield from self._call(FrontendRequest.ADD_MEM_REG, region, (fd,))

    def remove_region(self, region: MemoryRegion) -> Calls:
        """Remove one region from the memory; it has to equal the one that was added.

        Raises:
            VhostUserError: the back-end cannot, or refused.
        """
        self._need(ProtocolFeature.CONFIGURE_MEM_SLOTS)
        yield from self._call(FrontendRequest.REM_MEM_REG, region)

    # -- virtqueues -------------------------------------------------------------------------------------------------

    def start_queue(self, index: int, queue: QueueSetup, base: int = 0) -> Calls:
        """Set one virtqueue up and have it served from ``base``: 0 for an empty ring, or what stopping it gave.

        A ring without a kick descriptor starts with its first kick, which is sent along.
        """
        yield from self._call(FrontendRequest.SET_VRING_NUM, VringState(index, queue.size))
        yield from self._call(FrontendRequest.SET_VRING_BASE, VringState(index, base))
        yield from self.place_queue(index, queue)
        if queue.call is not None:
            yield from self._call(FrontendRequest.SET_VRING_CALL, VringFile(index, True), (queue.call,))
        if queue.kick is not None:
            yield from self._call(FrontendRequest.SET_VRING_KICK, VringFile(index, True), (queue.kick,))
        yield from self._call(FrontendRequest.SET_VRING_ENABLE, VringState(index, 1))
        if queue.kick is None:
            yield from self.kick(index)

    def place_queue(self, index: int, queue: QueueSetup) -> Calls:
        """Set the addresses of a virtqueue and whether its used part is logged, also while it runs."""
        yield from self._call(
            FrontendRequest.SET_VRING_ADDR,
            VringAddress(
                index=index,
                flags=0 if queue.log is None else VringAddressFlag.LOG,
                descriptor=queue.descriptor,
                used=queue.used,
                available=queue.available,
                log=queue.log or 0,
            ),
        )

    def kick(self, index: int) -> Calls:
        """Kick a virtqueue in-band.

        Raises:
            VhostUserError: that was not negotiated, or the back-end refused.
        """
        self._need(ProtocolFeature.INBAND_NOTIFICATIONS)
        yield from self._call(FrontendRequest.VRING_KICK, VringState(index, 0))

    def stop_queue(self, index: int, *, drain: bool = True) -> Generator[Call, Payload, int]:
        """Stop one virtqueue; return its base, to start from again: for a split ring the next available index, for a
        packed one 32 bits (virtio 1.2 has no name for them; vhost-user, "VHOST_USER_GET_VRING_BASE").
        Without ``drain`` the back-end does not finish what it has in hand; that is in the record of inflight requests,
        or is taken again.

        Raises:
            VhostUserError: the back-end refused, or cannot stop without finishing.
        """
        if not drain:
            self._need(ProtocolFeature.GET_VRING_BASE_SKIP_DRAIN)
        request = FrontendRequest.GET_VRING_BASE if drain else FrontendRequest.GET_VRING_BASE_SKIP_DRAIN
        state = yield from self._call(request, VringState(index, 0))
        assert isinstance(state, VringState)
        if state.index != index:
            raise VhostUserError(f"the back-end answered for queue {state.index} instead of {index}")
        return state.num

    # -- inflight tracking ------------------------------------------------------------------------------------------

    def get_inflight(self, queues: int, size: int) -> Generator[Call, Payload, InflightDescription]:
        """Ask for the area in which the back-end records the requests it took; its descriptor comes with the answer.

        Raises:
            VhostUserError: the back-end does not track inflight requests, or refused.
        """
        self._need(ProtocolFeature.INFLIGHT_SHMFD)
        wanted = InflightDescription(mmap_size=0, mmap_offset=0, num_queues=queues, queue_size=size)
        area = yield from self._call(FrontendRequest.GET_INFLIGHT_FD, wanted)
        assert isinstance(area, InflightDescription)
        if not area.mmap_size:
            raise VhostUserError("the back-end refused GET_INFLIGHT_FD")
        return area

    def set_inflight(self, area: InflightDescription, fd: int) -> Calls:
        """Hand the area back, before the queues are started.

        Raises:
            VhostUserError: the back-end does not track inflight requests, or refused.
        """
        self._need(ProtocolFeature.INFLIGHT_SHMFD)
        yield from self._call(FrontendRequest.SET_INFLIGHT_FD, area, (fd,))

    # -- dirty log --------------------------------------------------------------------------------------------------

    def start_logging(self, log: LogDescription, fd: int) -> Calls:
        """Have stores to guest memory logged, one bit for each page. ``QueueSetup.log`` does so for rings.

        Raises:
            VhostUserError: the back-end keeps no log, or refused.
        """
        self._need(ProtocolFeature.LOG_SHMFD)
        answer = yield from self._call(FrontendRequest.SET_LOG_BASE, log, (fd,))
        if answer != 0:
            raise VhostUserError("the back-end refused SET_LOG_BASE")
        yield from self._call(FrontendRequest.SET_FEATURES, self.features | PROTOCOL_FEATURES | LOG_ALL)

    def stop_logging(self) -> Calls:
        """End the log. The queues go on."""
        yield from self._call(FrontendRequest.SET_FEATURES, self.features | PROTOCOL_FEATURES)

    # -- configuration space ----------------------------------------------------------------------------------------

    def get_config(self) -> Generator[Call, Payload, BalloonConfig]:
        """Read the configuration space.

        Raises:
            VhostUserError: the back-end refused.
        """
        request = DeviceConfig(offset=0, flags=0, data=bytes(CONFIG_SIZE))
        config = yield from self._call(FrontendRequest.GET_CONFIG, request)
        assert isinstance(config, DeviceConfig)
        if len(config.data) != CONFIG_SIZE:
            raise VhostUserError(f"{CONFIG_SIZE} bytes of configuration space were asked for, {len(config.data)} came")
        return BalloonConfig.parse(config.data)

    def set_config(self, offset: int, data: bytes) -> Calls:
        """Write ``data`` at byte ``offset`` of the configuration space."""
        yield from self._call(FrontendRequest.SET_CONFIG, DeviceConfig(offset=offset, flags=0, data=data))
