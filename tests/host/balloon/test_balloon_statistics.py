"""Statistics buffers: every order, subset and damage that a driver can think of."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from host.balloon.balloon_statistics import STATISTICS_BYTES_MAX, BalloonStatistics, parse_statistics

# virtio 1.2, 5.5.6.4, and what Linux 6.12 added.
TAGS = [
    *("swap_in", "swap_out", "majflt", "minflt", "memfree", "memtot", "avail", "caches", "htlb_pgalloc", "htlb_pgfail"),
    *("oom_kill", "alloc_stall", "async_scan", "direct_scan", "async_reclaim", "direct_reclaim"),
]

U16, U64 = st.integers(0, 2**16 - 1), st.integers(0, 2**64 - 1)
ENTRIES = st.lists(st.tuples(st.integers(0, 20) | U16, U64), max_size=60)


def buffer_of(entries: list[tuple[int, int]]) -> bytes:
    """Return entries as a driver writes them."""
    return b"".join(struct.pack("<HQ", tag, value) for tag, value in entries)


def test_tags_are_the_ones_of_the_text() -> None:
    entries = [(tag, 1000 + tag) for tag in range(len(TAGS))]
    assert parse_statistics(buffer_of(entries)).values == {name: 1000 + tag for tag, name in enumerate(TAGS)}


@given(entries=ENTRIES, rest=st.binary(max_size=9))
def test_statistics_entries_come_in_any_order(entries: list[tuple[int, int]], rest: bytes) -> None:
    statistics = parse_statistics(buffer_of(entries) + rest)
    assert statistics.values == {TAGS[tag]: value for tag, value in entries if tag < len(TAGS)}
    assert statistics.unknown == sum(tag >= len(TAGS) for tag, _ in entries)


@given(data=st.binary(max_size=200))
def test_noise_is_never_an_error(data: bytes) -> None:
    statistics = parse_statistics(data)
    assert len(statistics.values) + statistics.unknown <= len(data) // 10
    assert all(0 <= value < 2**64 for value in statistics.values.values())


def test_values_of_64_bits_pass_unchanged() -> None:
    assert parse_statistics(buffer_of([(4, 2**64 - 1), (4, 2**63)])).values == {"memfree": 2**63}


def test_statistics_buffer_is_read_up_to_the_limit() -> None:
    whole = STATISTICS_BYTES_MAX // 10
    entries = [(99, 0)] * whole + [(4, 1)] * 1000
    assert parse_statistics(buffer_of(entries)) == BalloonStatistics({}, unknown=whole)
