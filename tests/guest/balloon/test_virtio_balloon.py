"""The balloon driver: the features that it accepts, the buffers of a report."""

import pytest

from guest.balloon.virtio_balloon import WANTED, accept_features, is_kept_for_poison, report_buffers

REPORTING, POISON = 1 << 5, 1 << 4


def test_driver_wants_what_it_understands() -> None:
    assert WANTED == 0b101111 | 1 << 28 | 1 << 29 | 1 << 32


def test_features_accepted_are_offered_and_understood() -> None:
    assert accept_features(2**64 - 1) == WANTED
    assert accept_features(REPORTING) == REPORTING
    assert accept_features(0) == 0
    assert accept_features(2**64 - 1, wanted=1 << 32) == 1 << 32


@pytest.mark.parametrize("pattern", [0, 0xAAAA_AAAA])
def test_guest_that_fills_free_pages_tells_the_device_or_does_not_report(pattern: int) -> None:
    # virtio 1.2, 5.5.3: a driver that needs its pattern MUST NOT accept PAGE_REPORTING without PAGE_POISON.
    assert accept_features(REPORTING | POISON, page_poison=pattern) == REPORTING | POISON
    assert accept_features(REPORTING, page_poison=pattern) == 0
    assert accept_features(REPORTING | POISON) == REPORTING


@pytest.mark.parametrize(
    ("features", "pattern", "kept"),
    [
        (REPORTING, None, False),
        (0, 0, True),
        (REPORTING | POISON, 0, False),
        (REPORTING | POISON, 0xAAAA_AAAA, True),
        (REPORTING | POISON, None, False),
    ],
)
def test_pattern_for_which_a_device_keeps_free_pages(features: int, pattern: int | None, kept: bool) -> None:
    assert is_kept_for_poison(features, pattern) is kept


def test_report_is_made_of_the_pages_themselves() -> None:
    assert report_buffers([(0x100, 9), (0x40, 0), (0xFFFFF, 10)]) == [
        (0x100000, 2 << 20),
        (0x40000, 4096),
        (0xFFFFF000, 4 << 20),
    ]
