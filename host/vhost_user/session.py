"""The negotiated and configured state of one session, and how the parts of its state machine fit together.

Each group of messages has a file of its own (``feature_requests``, ``device_requests``, ``config_requests``,
``memory_requests``, ``migration_requests``, ``ring_requests``): functions over a :class:`Session` and a message. The
table of :mod:`host.vhost_user.backend` says which one carries out which request.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from host.balloon.virtio_balloon import VirtioBalloon
from host.vhost_user.actions import Action, ActionResult
from host.vhost_user.device_setup import RingFormat
from host.vhost_user.queue_numbers import QueueNumbers
from host.vhost_user.vring import Vring
from protocol.errors import VhostUserError
from protocol.memory import RegionTable
from protocol.vhost_user import ProtocolFeature
from protocol.vhost_user_codec import Message
from protocol.vhost_user_payloads import Payload, VringState
from protocol.virtio import PROTOCOL_FEATURES, DeviceStatus, FeatureBit, feature_mask, has_feature
from protocol.virtio_balloon import QUEUES_MAX

OFFERED_PROTOCOL_FEATURES: Final = feature_mask(
    ProtocolFeature.MQ,
    ProtocolFeature.LOG_SHMFD,
    ProtocolFeature.REPLY_ACK,
    ProtocolFeature.BACKEND_REQ,
    ProtocolFeature.CONFIG,
    ProtocolFeature.INFLIGHT_SHMFD,
    ProtocolFeature.RESET_DEVICE,
    ProtocolFeature.INBAND_NOTIFICATIONS,
    ProtocolFeature.CONFIGURE_MEM_SLOTS,
    ProtocolFeature.STATUS,
    ProtocolFeature.DEVICE_STATE,
    ProtocolFeature.GET_VRING_BASE_INFLIGHT,
    ProtocolFeature.GET_VRING_BASE_SKIP_DRAIN,
)
"""Protocol features that the daemon can do."""


class MustClose(VhostUserError):
    """The connection has to be closed, for example because the front-end waits for a reply that cannot be given."""


class RefusedDriver(VhostUserError):
    """A refusal that leaves the driver with rings that are never served: it loses the memory that it puts on them.

    Where the front-end cannot be told of it the connection is closed.
    """


@dataclass(frozen=True, slots=True)
class Answer:
    """The payload of a request's own reply together with the file descriptors that ride on it."""

    payload: Payload
    fds: tuple[int, ...] = ()


Handling: TypeAlias = Generator[Action, ActionResult, Payload | Answer]
"""Carries out one message: yields its effects and returns the payload of the reply that the request has by itself, None
for a request that has none. Raises :class:`VhostUserError` to refuse the message."""

Handler: TypeAlias = "Callable[[Session, Message], Handling]"


@dataclass(slots=True)
class Session:
    """Everything that the front-end negotiated and configured, without the file descriptors: one plain record.

    ``features_accepted`` says that a SET_FEATURES has come and the last one was not refused.
    ``config_change_pending`` says that the configuration space may have changed while the rings stood still, so that
    the driver has still to be told.
    ``owned`` says that SET_OWNER has come. ``is_quiet`` says that every ring has stopped running, and none has gone on
    where it was since: a driver that begins its rings anew is then another one.
    ``needs_reset_pending`` says that DEVICE_NEEDS_RESET was set in ``status`` and the driver has not been told.
    """

    offered: int
    balloon: VirtioBalloon
    offered_protocol_features: int = OFFERED_PROTOCOL_FEATURES
    features: int = 0
    protocol_features: int = 0
    table: RegionTable = field(default_factory=RegionTable)
    vrings: list[Vring] = field(default_factory=lambda: [Vring(index) for index in range(QUEUES_MAX)])
    has_backend_channel: bool = False
    queue_numbers: QueueNumbers = field(default_factory=QueueNumbers)
    status: int = 0
    features_accepted: bool = False
    config_change_pending: bool = False
    needs_reset_pending: bool = False
    owned: bool = False
    is_quiet: bool = False

    def has_protocol_feature(self, feature: ProtocolFeature) -> bool:
        """Return whether ``feature`` was negotiated."""
        return has_feature(self.protocol_features, feature)

    @property
    def can_notify_config_change(self) -> bool:
        """Whether the front-end can be told that the configuration space has changed."""
        return self.has_backend_channel and self.has_protocol_feature(ProtocolFeature.CONFIG)

    @property
    def has_driver(self) -> bool:
        """Whether a driver is in control. One that kicks in-band has rings that wait for their first kick."""
        in_band = self.has_protocol_feature(ProtocolFeature.INBAND_NOTIFICATIONS)
        return any(vring.running or (in_band and vring.enabled and vring.is_set_up) for vring in self.vrings)

    @property
    def has_driver_ok(self) -> bool:
        """Whether the driver has said that it is ready, where the front-end passes the device status on."""
        return self.has_protocol_feature(ProtocolFeature.STATUS) and bool(self.status & DeviceStatus.DRIVER_OK)

    @property
    def has_features(self) -> bool:
        """Whether a driver has accepted features: a legacy driver may accept none of them."""
        return self.features_accepted or self.features != 0

    @property
    def lost_bit_30(self) -> bool:
        """Whether the driver runs without VHOST_USER_F_PROTOCOL_FEATURES although protocol features are in use.

        So does User Mode Linux when its virtio core sets the features a second time.
        """
        return self.has_features and self.protocol_features != 0 and not self.features & PROTOCOL_FEATURES

    @property
    def packed(self) -> bool:
        """Whether the rings are packed."""
        return has_feature(self.features, FeatureBit.RING_PACKED)

    @property
    def ring_format(self) -> RingFormat | None:
        """The format of the rings, None while no features are negotiated."""
        if not self.has_features:
            return None
        return RingFormat.PACKED if self.packed else RingFormat.SPLIT

    def forget_places(self) -> None:
        """Forget where the rings were left: it does not tell whether the next driver is the same one."""
        for vring in self.vrings:
            vring.left_at = 0

    def state_restored(self) -> None:
        """Take note that the device's state is now another back-end's: its driver's places, and a configuration that
        the driver is to read again once a queue runs."""
        self.forget_places()
        self.config_change_pending = True

    def vring(self, index: int) -> Vring:
        """Return queue ``index`` of a message.

        Raises:
            VhostUserError: a balloon has no such queue.
        """
        # The whole 32-bit number is compared: a truncated one once let DPDK index out of bounds (CVE-2020-10723).
        if index >= QUEUES_MAX:
            raise VhostUserError(f"queue {index} does not exist, {QUEUES_MAX} is the most a balloon has")
        return self.vrings[index]


def u64_of(message: Message) -> int:
    """Return the payload of a message whose form says that it is one 64-bit number."""
    assert isinstance(message.payload, int)
    return message.payload


def vring_state_of(message: Message) -> VringState:
    """Return the payload of a message whose form says that it is a vring state."""
    assert isinstance(message.payload, VringState)
    return message.payload
