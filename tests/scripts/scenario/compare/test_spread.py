"""Which differences count."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.scenario.compare.spread import MEASURES, deviation, measure, quantile, spread
from scripts.scenario.score import Score

SCORE = Score(
    host_gib_minutes=1.0,
    peak_bytes=0,
    refaulted_bytes=3 << 30,
    stall_seconds=2.0,
    oom_events=1,
    control_actions=4,
    reclaim_cpu_seconds=0.5,
    finished_vms=1,
    killed_vms=0,
    corrupted_pages=0,
)


def scores(*values: float) -> list[Score]:
    return [replace(SCORE, host_gib_minutes=value) for value in values]


def test_every_measure_is_a_number_of_a_score() -> None:
    assert [measure(SCORE, name) for name in MEASURES] == [1.0, 2.0, 3.0, 1.0, 4.0, 0.5]


def test_deviation_is_that_of_a_sample() -> None:
    assert deviation([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]) == pytest.approx(2.13809, rel=1e-5)
    assert deviation([5.0]) == 0.0


def test_steady_difference_counts_although_seeds_differ_more() -> None:
    first, second = scores(1.0, 5.0, 9.0, 13.0), scores(1.2, 5.2, 9.21, 13.19)
    found = spread(second, first, "host_gib_minutes")
    assert found.difference == pytest.approx(0.2)
    assert found.is_different


def test_difference_within_the_spread_does_not_count() -> None:
    found = spread(scores(1.0, 3.0, 2.0, 4.0), scores(3.0, 1.0, 4.0, 1.5), "host_gib_minutes")
    assert not found.is_different


def test_few_seeds_need_a_larger_difference() -> None:
    # Differences of 1, 2 and 3: their mean is 3.46 standard errors from zero. Three seeds need 4.303, four 3.182.
    assert not spread(scores(1.0, 2.0, 3.0), scores(0.0, 0.0, 0.0), "host_gib_minutes").is_different
    assert spread(scores(1.0, 2.0, 3.0, 2.0), scores(0.0, 0.0, 0.0, 0.0), "host_gib_minutes").is_different
    assert [quantile(freedom) for freedom in (1, 30, 39, 40, 119, 120, 9999)] == [
        *(12.706, 2.042, 2.042, 2.021, 2.0, 1.98, 1.98)
    ]


@pytest.mark.parametrize("values", [(1.0,), (1.0, 2.0)])
def test_same_scores_and_single_seeds_never_differ(values: tuple[float, ...]) -> None:
    assert not spread(scores(*values), scores(*values), "host_gib_minutes").is_different
    assert not spread(scores(9.0), scores(1.0), "host_gib_minutes").is_different


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20), st.floats(0, 1e3))
def test_difference_is_that_of_the_means(values: list[float], offset: float) -> None:
    first, second = scores(*values), scores(*(value + offset for value in values))
    assert spread(second, first, "host_gib_minutes").difference == pytest.approx(offset, rel=1e-6, abs=1e-6)
