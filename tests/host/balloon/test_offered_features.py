"""``--features``: names to bits, and what is refused."""

import pytest

from host.balloon.offered_features import (
    FEATURE_NAMES,
    OFFERED,
    check_dependencies,
    feature_names,
    parse_features,
    switch_features,
)
from protocol.errors import UsageError
from protocol.virtio_balloon import feature_bit_names

# The numbers as the specification gives them (virtio 1.2, 5.5.3 and 6).
NUMBERS = {
    "must-tell-host": 0,
    "statistics": 1,
    "deflate-on-oom": 2,
    "free-page-hint": 3,
    "page-poison": 4,
    "page-reporting": 5,
    "draft-init-reported": 6,
    "draft-init-on-inflate": 7,
    "indirect": 28,
    "event-idx": 29,
    "packed": 34,
    "in-order": 35,
}


def test_device_offers_what_it_can_do() -> None:
    assert OFFERED == 1 << 1 | 1 << 2 | 1 << 5 | 1 << 26 | 1 << 28 | 1 << 29 | 1 << 30 | 1 << 32


def test_names_have_the_specifications_numbers() -> None:
    assert dict(FEATURE_NAMES) == NUMBERS


@pytest.mark.parametrize("name", NUMBERS)
def test_features_are_switched_one_by_one(name: str) -> None:
    bit = 1 << NUMBERS[name]
    assert switch_features(OFFERED, parse_features(f"{name}=on")) == OFFERED | bit
    assert switch_features(OFFERED, parse_features(f"{name}=off")) == OFFERED & ~bit


def test_list_of_features_may_have_spaces() -> None:
    switches = parse_features("packed=on, in-order=on,indirect=off")
    assert switches == {"packed": True, "in-order": True, "indirect": False}
    assert switch_features(1 << 32 | 1 << 28, switches) == 1 << 32 | 1 << 34 | 1 << 35


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no feature ''"),
        ("packed=on,", "no feature ''"),
        ("page_reporting=on", "no feature 'page_reporting', known are page-reporting, "),
        ("version-1=off", "no feature 'version-1'"),
        ("packed", "write packed=on or packed=off, not 'packed'"),
        ("packed=", "not 'packed='"),
        ("packed=yes", "not 'packed=yes'"),
        ("packed=on=off", "not 'packed=on=off'"),
        ("packed=on,packed=off", "packed comes twice"),
    ],
)
def test_list_of_features_that_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_features(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bits_without_a_name_are_left_out() -> None:
    assert feature_names(1 << 32 | 1 << 30 | 1 << 34 | 1 << 5) == ["page-reporting", "packed"]


def test_events_name_features_as_the_option_does() -> None:
    assert all(feature_bit_names(1 << bit) == [name] for name, bit in FEATURE_NAMES.items())


def test_feature_needs_the_one_that_it_is_about() -> None:
    check_dependencies(1 << 5 | 1 << 6)
    check_dependencies(1 << 7)
    with pytest.raises(UsageError, match="draft-init-reported needs page-reporting"):
        check_dependencies(1 << 6)
