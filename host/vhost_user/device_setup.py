"""The setup of a device by its driver, for ``query-vms``."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from protocol.virtio_balloon import BalloonQueue, QueueDialect


class RingFormat(StrEnum):
    """Formats of virtqueues (virtio 1.2, 2.7 and 2.8)."""

    SPLIT = "split"
    PACKED = "packed"


class KickMethod(StrEnum):
    """How the device learns of available chains in a ring."""

    EVENTFD = "eventfd"
    """By the descriptor of SET_VRING_KICK."""
    IN_BAND = "in-band"
    """By VRING_KICK messages."""
    POLLING = "polling"
    """By polling the ring at intervals."""

    @staticmethod
    def of(*, has_descriptor: bool, in_band: bool) -> "KickMethod":
        """Return the method for a queue with or without a descriptor, in a session whose notifications are messages or
        are not: a descriptor comes first."""
        if has_descriptor:
            return KickMethod.EVENTFD
        return KickMethod.IN_BAND if in_band else KickMethod.POLLING


@dataclass(frozen=True, slots=True)
class DeviceSetup:
    """``ring`` is None while no features are negotiated, ``queue_numbers`` the dialect in force, and ``kicks`` has
    the queues that run at the moment."""

    ring: RingFormat | None
    queue_numbers: QueueDialect
    kicks: Mapping[BalloonQueue, KickMethod]
