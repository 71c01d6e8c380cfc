"""Numbers that all virtio devices share, against the specification's own numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.virtio import (
    DEVICE_ID_BALLOON,
    LOG_ALL,
    PROTOCOL_FEATURES,
    DeviceStatus,
    FeatureBit,
    feature_mask,
    has_feature,
    status_names,
)


def test_status_has_the_names_of_the_specification() -> None:
    assert status_names(0) == []
    assert status_names(0x4F) == ["ACKNOWLEDGE", "DRIVER", "DRIVER_OK", "FEATURES_OK", "DEVICE_NEEDS_RESET"]
    assert status_names(0x80 | 0x20) == ["FAILED"]


def test_balloon_is_device_5() -> None:
    assert DEVICE_ID_BALLOON == 5  # virtio 1.2, section 5: "5  memory ballooning"


# virtio 1.2, 2.1
STATUS = {
    "ACKNOWLEDGE": 1,
    "DRIVER": 2,
    "DRIVER_OK": 4,
    "FEATURES_OK": 8,
    "DEVICE_NEEDS_RESET": 64,
    "FAILED": 128,
}


def test_device_status_bits_are_the_ones_of_the_text() -> None:
    assert {bit.name: int(bit) for bit in DeviceStatus} == STATUS


# virtio 1.2, 6; bits 26 and 30 are vhost's (vhost-user specification, VHOST_F_LOG_ALL, VHOST_USER_F_PROTOCOL_FEATURES).
FEATURES = {
    "VHOST_F_LOG_ALL": 26,
    "RING_INDIRECT_DESC": 28,
    "RING_EVENT_IDX": 29,
    "VHOST_USER_F_PROTOCOL_FEATURES": 30,
    "VERSION_1": 32,
    "ACCESS_PLATFORM": 33,
    "RING_PACKED": 34,
    "IN_ORDER": 35,
    "NOTIFICATION_DATA": 38,
}


def test_feature_bits_are_the_ones_of_the_text() -> None:
    assert {bit.name: int(bit) for bit in FeatureBit} == FEATURES


def test_bit_30_and_bit_26_as_masks() -> None:
    assert PROTOCOL_FEATURES == 0x4000_0000
    assert LOG_ALL == 0x0400_0000


@pytest.mark.parametrize(
    ("bits", "mask"),
    [
        ((), 0),
        ((0,), 1),
        ((63,), 0x8000_0000_0000_0000),
        # What User Mode Linux was seen to send, first and second time.
        ((5, 28, 29, 30, 32), 0x1_7000_0020),
        ((5, 29, 32), 0x1_2000_0020),
    ],
)
def test_feature_word_has_exactly_the_named_bits(bits: tuple[int, ...], mask: int) -> None:
    assert feature_mask(*bits) == mask


@given(bits=st.sets(st.integers(0, 63)))
def test_features_that_were_set_are_found_and_no_others(bits: set[int]) -> None:
    word = feature_mask(*bits)
    assert {bit for bit in range(64) if has_feature(word, bit)} == bits


def test_bit_named_twice_is_set_once() -> None:
    assert feature_mask(5, 5) == 0x20
