"""protocol/balloon_statistics.py: ten bytes an entry, in any order, with whatever else is in the buffer."""

from hypothesis import given
from hypothesis import strategies as st

from protocol.balloon_statistics import STATISTIC_SIZE, StatisticTag, build_statistics, parse_statistics


def test_an_entry_is_ten_bytes_little_endian() -> None:
    data = build_statistics({StatisticTag.MEMFREE: 0x0102, StatisticTag.SWAP_IN: 2**64 - 1})
    assert data == bytes.fromhex("0400 0201000000000000 0000 ffffffffffffffff")
    assert len(data) == 2 * STATISTIC_SIZE


def test_unknown_tags_and_a_torn_entry_are_ignored() -> None:
    known = build_statistics({StatisticTag.AVAIL: 7})
    unknown = bytes.fromhex("1000 0100000000000000 ffff 0200000000000000")
    assert parse_statistics(unknown + known + known[:9]) == {StatisticTag.AVAIL: 7}
    assert parse_statistics(b"") == {}


def test_the_last_one_counts() -> None:
    twice = build_statistics({StatisticTag.MAJFLT: 1}) + build_statistics({StatisticTag.MAJFLT: 2})
    assert parse_statistics(twice) == {StatisticTag.MAJFLT: 2}


@given(st.dictionaries(st.sampled_from(StatisticTag), st.integers(0, 2**64 - 1)))
def test_what_was_built_is_parsed(statistics: dict[StatisticTag, int]) -> None:
    assert parse_statistics(build_statistics(statistics)) == statistics


@given(st.binary(max_size=400))
def test_any_bytes_are_a_buffer(data: bytes) -> None:
    assert len(parse_statistics(data)) <= len(data) // STATISTIC_SIZE
