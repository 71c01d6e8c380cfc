"""Numbers that every virtio device shares: device ids, device status, feature bits.

Source: virtio 1.2, section 2.1 (device status), section 6 (reserved feature bits), section 5 (device ids).
"""

from enum import IntEnum, IntFlag
from typing import Final

DEVICE_ID_BALLOON: Final = 5


class DeviceStatus(IntFlag):
    """The device status field (virtio 1.2, 2.1)."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    DEVICE_NEEDS_RESET = 64
    FAILED = 128


class FeatureBit(IntEnum):
    """Bit numbers of the features that all device types share (virtio 1.2, 6), and the two of vhost itself."""

    VHOST_F_LOG_ALL = 26
    RING_INDIRECT_DESC = 28
    RING_EVENT_IDX = 29
    VHOST_USER_F_PROTOCOL_FEATURES = 30
    VERSION_1 = 32
    ACCESS_PLATFORM = 33
    RING_PACKED = 34
    IN_ORDER = 35
    NOTIFICATION_DATA = 38


def feature_mask(*bits: int) -> int:
    """Return the 64-bit feature word in which exactly ``bits`` (bit numbers) are set."""
    mask = 0
    for bit in bits:
        mask |= 1 << bit
    return mask


def has_feature(features: int, bit: int) -> bool:
    """Return whether bit number ``bit`` is set in the 64-bit feature word ``features``."""
    return bool(features >> bit & 1)


def status_names(status: int) -> list[str]:
    """Return the names of the bits that are set in a device status, as in the specification."""
    return [str(bit.name) for bit in DeviceStatus if status & bit]


LOG_ALL: Final = feature_mask(FeatureBit.VHOST_F_LOG_ALL)
PROTOCOL_FEATURES: Final = feature_mask(FeatureBit.VHOST_USER_F_PROTOCOL_FEATURES)
"""Bit 30 belongs to vhost-user: the driver in the guest never sees it."""
