"""The maps of a run stay few, evenly apart, and of the whole run."""

from itertools import pairwise

import pytest

from guest.mm.views.memory_map import CELLS
from scripts.scenario.map_series import CELLS_LEAST, ROUNDS_MOST, MapSeries, cells_of_each, first_interval
from scripts.scenario.scenario import Scenario


@pytest.mark.parametrize("samples", [10, ROUNDS_MOST, 1000, 14_400])
def test_a_long_run_has_as_many_maps_as_a_short_one_may_have(samples: int) -> None:
    series = MapSeries(interval=0.25)
    for number in range(samples):
        if series.is_due(number * 0.25):
            series.add(number * 0.25, {})
    times = [moment.t for moment in series.rounds]
    assert min(samples, ROUNDS_MOST // 2) <= len(times) <= ROUNDS_MOST
    assert times[0] == 0.0
    assert {after - before for before, after in pairwise(times)} == {series.interval}
    assert times[-1] > (samples - 1) * 0.25 - series.interval


@pytest.mark.parametrize(
    ("duration", "sample"), [(20.0, 0.25), (300.0, 1.0), (600.0, 1.0), (3600.0, 5.0), (60.0, 60.0)]
)
def test_all_maps_of_a_run_to_its_end_are_kept(duration: float, sample: float) -> None:
    scenario = Scenario(name="s", title="s", budget_bytes=1, vms=(), duration=duration, sample_interval=sample)
    interval = first_interval(scenario)
    series = MapSeries(interval=interval)
    taken = 0
    for number in range(int(duration / sample) + 1):
        if series.is_due(number * sample):
            series.add(number * sample, {})
            taken += 1
    assert taken == len(series.rounds)
    assert len(series.rounds) >= min(ROUNDS_MOST // 2, duration / sample)
    assert series.interval == interval


@pytest.mark.parametrize(
    ("machines", "cells"), [(1, CELLS), (8, CELLS), (16, CELLS // 2), (128, CELLS_LEAST), (129, 0)]
)
def test_many_machines_have_coarser_maps(machines: int, cells: int) -> None:
    assert cells_of_each(machines) == cells
