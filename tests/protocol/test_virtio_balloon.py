"""The balloon on the wire: numbers, queue numbering and configuration space against the specification's text."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.balloon_config import BalloonConfig
from protocol.virtio_balloon import (
    CONFIG_ACTUAL,
    CONFIG_POISON_VAL,
    CONFIG_SIZE,
    DRIVER_FIELDS,
    PFN_SHIFT,
    PFN_SIZE,
    QUEUES_MAX,
    BalloonFeature,
    BalloonQueue,
    feature_bit_names,
    queue_order,
)

U32 = st.integers(0, 2**32 - 1)
CONFIGS = st.builds(BalloonConfig, num_pages=U32, actual=U32, free_page_hint_cmd_id=U32, poison_val=U32)

# virtio 1.2, 5.5.3
FEATURES = {
    "MUST_TELL_HOST": 0,
    "STATS_VQ": 1,
    "DEFLATE_ON_OOM": 2,
    "FREE_PAGE_HINT": 3,
    "PAGE_POISON": 4,
    "PAGE_REPORTING": 5,
}
# oasis-tcs/virtio-spec #244 and #242.
DRAFTS = {"DEVICE_INIT_REPORTED": 6, "DEVICE_INIT_ON_INFLATE": 7}


def test_feature_bits_are_the_ones_of_the_text() -> None:
    assert {bit.name: int(bit) for bit in BalloonFeature} == FEATURES | DRAFTS


def test_page_frame_numbers_are_32_bits_and_count_4096_bytes() -> None:
    assert (PFN_SHIFT, PFN_SIZE) == (12, 4)


@pytest.mark.parametrize(
    ("statistics", "hinting", "reporting", "queues"),
    [
        (False, False, False, "inflate deflate"),
        (True, False, False, "inflate deflate stats"),
        (False, True, False, "inflate deflate free_page"),
        (False, False, True, "inflate deflate reporting"),
        (True, True, False, "inflate deflate stats free_page"),
        (True, False, True, "inflate deflate stats reporting"),
        (False, True, True, "inflate deflate free_page reporting"),
        (True, True, True, "inflate deflate stats free_page reporting"),
    ],
)
def test_absent_queue_takes_no_number(statistics: bool, hinting: bool, reporting: bool, queues: str) -> None:
    features = statistics << 1 | hinting << 3 | reporting << 5
    assert " ".join(queue.value for queue in queue_order(features)) == queues


def test_numbering_depends_on_the_three_queue_features_alone() -> None:
    for statistics, hinting, reporting in product((0, 1), repeat=3):
        features = statistics << 1 | hinting << 3 | reporting << 5
        others = ~(1 << 1 | 1 << 3 | 1 << 5) & (2**64 - 1)
        assert queue_order(features | others) == queue_order(features)


def test_queues_are_five_at_most() -> None:
    assert QUEUES_MAX == 5 == len(queue_order(2**64 - 1))
    assert queue_order(0x2A)[4] is BalloonQueue.REPORTING


def test_configuration_space_is_four_little_endian_words_in_the_order_of_the_text() -> None:
    assert CONFIG_SIZE == 16
    config = BalloonConfig(
        num_pages=0x04030201, actual=0x08070605, free_page_hint_cmd_id=0x0C0B0A09, poison_val=0x100F0E0D
    )
    assert config.build() == bytes(range(1, 17))
    assert BalloonConfig.parse(bytes(range(1, 17))) == config


def test_fields_that_a_driver_writes_lie_at_4_and_12() -> None:
    assert (list(CONFIG_ACTUAL), list(CONFIG_POISON_VAL)) == ([4, 5, 6, 7], [12, 13, 14, 15])


@given(config=CONFIGS)
def test_configuration_survives_the_wire(config: BalloonConfig) -> None:
    assert BalloonConfig.parse(config.build()) == config


@given(config=CONFIGS, length=st.integers(0, 15))
def test_short_configuration_reads_as_zero_past_its_end(config: BalloonConfig, length: int) -> None:
    short = config.build()[:length]
    assert BalloonConfig.parse(short).build() == short + bytes(16 - length)


def test_bytes_past_the_configuration_are_ignored() -> None:
    assert BalloonConfig.parse(bytes(16) + b"\xff" * 240) == BalloonConfig()


def test_user_mode_linux_writes_actual_alone() -> None:
    config = BalloonConfig(num_pages=7, poison_val=9)
    written = config.written_by_driver(4, (256).to_bytes(4, "little"), writable=CONFIG_ACTUAL)
    assert written == BalloonConfig(num_pages=7, actual=256, poison_val=9)


def test_qemu_writes_the_whole_window_and_only_actual_changes() -> None:
    config = BalloonConfig(num_pages=7, actual=1, free_page_hint_cmd_id=2, poison_val=9)
    written = config.written_by_driver(0, b"\xff" * 16, writable=CONFIG_ACTUAL)
    assert written == BalloonConfig(num_pages=7, actual=0xFFFF_FFFF, free_page_hint_cmd_id=2, poison_val=9)


def test_whole_window_changes_the_poison_value_too_where_that_is_writable() -> None:
    written = BalloonConfig(num_pages=7, free_page_hint_cmd_id=2).written_by_driver(
        0, b"\xaa" * 16, writable=DRIVER_FIELDS
    )
    assert written == BalloonConfig(num_pages=7, actual=0xAAAA_AAAA, free_page_hint_cmd_id=2, poison_val=0xAAAA_AAAA)


@given(config=CONFIGS, offset=st.integers(0, 300), data=st.binary(max_size=256), poison=st.booleans())
def test_write_changes_exactly_the_writable_bytes_it_covers(
    config: BalloonConfig, offset: int, data: bytes, poison: bool
) -> None:
    before = config.build()
    after = config.written_by_driver(offset, data, writable=DRIVER_FIELDS if poison else CONFIG_ACTUAL).build()
    for position in range(16):
        writable = 4 <= position <= 7 or (poison and 12 <= position <= 15)
        covered = offset <= position < offset + len(data)
        expected = data[position - offset] if writable and covered else before[position]
        assert after[position] == expected


def test_feature_bits_all_have_a_name() -> None:
    assert feature_bit_names(0) == []
    assert feature_bit_names(1 << 5 | 1 << 1 | 1 << 28 | 1 << 32 | 1 << 34) == [
        "statistics",
        "page-reporting",
        "indirect",
        "version-1",
        "packed",
    ]
    assert feature_bit_names(1 << 63) == ["bit-63"]
