"""protocol/balloon_statistics.py: ten bytes an entry."""

from hypothesis import given
from hypothesis import strategies as st

from host.balloon.balloon_statistics import parse_statistics
from protocol.balloon_statistics import STATISTIC_SIZE, StatisticTag, build_statistics


def test_entry_is_ten_bytes_little_endian() -> None:
    data = build_statistics({StatisticTag.MEMFREE: 0x0102, StatisticTag.SWAP_IN: 2**64 - 1})
    assert data == bytes.fromhex("0400 0201000000000000 0000 ffffffffffffffff")
    assert len(data) == 2 * STATISTIC_SIZE


@given(st.dictionaries(st.sampled_from(StatisticTag), st.integers(0, 2**64 - 1)))
def test_device_reads_what_the_driver_wrote(statistics: dict[StatisticTag, int]) -> None:
    parsed = parse_statistics(build_statistics(statistics))
    assert parsed.values == {tag.name.lower(): value for tag, value in statistics.items()}
    assert parsed.unknown == 0
