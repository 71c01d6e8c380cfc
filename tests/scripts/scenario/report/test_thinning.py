"""What is left out of a long run, and what never is."""

from hypothesis import given
from hypothesis import strategies as st

from scripts.scenario.report.thinning import ALWAYS, chosen_events, chosen_times, thinned_rounds


@given(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=300), st.integers(3, 50))
def test_moments_keep_begin_end_and_peak(used: list[int], most: int) -> None:
    times = chosen_times([(float(t), size) for t, size in enumerate(used)], most)
    assert len(times) == min(len(used), most)
    assert (times[0], times[-1]) == (0.0, len(used) - 1.0)
    assert times == sorted(set(times))
    assert max(used[int(t)] for t in times) == max(used)


def test_the_most_frequent_kinds_are_left_out_first_and_as_a_whole() -> None:
    events = [{"t": 0.0, "event": name} for name in ["report"] * 50 + ["phase"] * 20 + ["oom_killed"] * 60]
    kept, left_out = chosen_events(events, (), 100)
    assert left_out == {"report": 50}
    assert [event["event"] for event in kept] == ["phase"] * 20 + ["oom_killed"] * 60


def test_what_tells_how_a_run_went_stays_as_long_as_there_is_room() -> None:
    assert "oom_killed" in ALWAYS
    kept, left_out = chosen_events([{"t": 0.0, "event": "oom_killed"}] * 12, (), 10)
    assert (len(kept), left_out) == (10, {"oom_killed": 2})


def test_machines_that_are_not_shown_are_left_out_first() -> None:
    events = [{"t": 0.0, "event": "started", "vm": str(number % 10)} for number in range(100)]
    kept, left_out = chosen_events(events, {"3"}, 50)
    assert ({event["vm"] for event in kept}, len(kept), left_out) == ({"3"}, 10, {"started": 90})
    assert len(chosen_events(events, {"3"}, 100)[0]) == 100


def test_samples_are_no_events_for_a_reader() -> None:
    kept, left_out = chosen_events([{"t": 0.0, "event": "statistics"}, {"t": 0.0, "event": "started"}], ())
    assert ([event["event"] for event in kept], left_out) == (["started"], {"statistics": 1})


def test_maps_are_thinned_until_they_fit() -> None:
    rounds = [float(t) for t in range(9)]
    sizes = dict.fromkeys(rounds, 10)
    assert thinned_rounds(rounds, sizes, 90) == rounds
    assert thinned_rounds(rounds, sizes, 89) == rounds[::2]
    assert thinned_rounds(rounds, sizes, 20) == [0.0, 8.0]
    assert thinned_rounds(rounds, sizes, 1) == [0.0]
