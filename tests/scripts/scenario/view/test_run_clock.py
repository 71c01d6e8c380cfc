"""The pace of a run that is watched."""

import threading

import pytest

from scripts.scenario.view.run_clock import NO_LIMIT, SPEEDS, RunClock, watching_speed
from tests.harness.processes import DEADLINE


class Time:
    """Our time: it goes on while the run waits, as :meth:`refresh` is called."""

    def __init__(self) -> None:
        self.now = 100.0

    def refresh(self) -> None:
        self.now += 0.01


def waited(clock: RunClock, time: Time, t: float) -> float:
    before = time.now
    clock.wait(t, time.refresh)
    return time.now - before


def test_a_run_that_is_paced_waits_for_our_time() -> None:
    time = Time()
    clock = RunClock(20.0, lambda: time.now)
    assert waited(clock, time, 5.0) == 0.0
    assert waited(clock, time, 6.0) == pytest.approx(0.05, abs=0.011)
    assert waited(clock, time, 6.1) == pytest.approx(0.005, abs=0.011)


def test_a_run_that_was_late_does_not_hurry_afterwards() -> None:
    time = Time()
    clock = RunClock(20.0, lambda: time.now)
    clock.wait(0.0, time.refresh)
    time.now += 10.0
    assert waited(clock, time, 1.0) == 0.0
    assert waited(clock, time, 2.0) == pytest.approx(0.05, abs=0.011)


@pytest.mark.parametrize("speed", [None, NO_LIMIT])
def test_real_time_and_unlimited_time_do_not_wait(speed: float | None) -> None:
    time = Time()
    clock = RunClock(speed, lambda: time.now)
    assert [waited(clock, time, t) for t in (0.0, 1.0, 1e6)] == [0.0, 0.0, 0.0]


def test_speeds_go_from_one_to_the_next() -> None:
    clock = RunClock(3.0)
    seen = []
    for faster in (True, True, False, False, False):
        clock.change_speed(faster=faster)
        seen.append(clock.speed)
    assert seen == [5.0, 10.0, 5.0, 2.0, 1.0]


def test_speeds_have_ends() -> None:
    clock = RunClock(SPEEDS[-1])
    clock.change_speed(faster=True)
    assert clock.speed == NO_LIMIT
    clock.change_speed(faster=True)
    assert clock.speed == NO_LIMIT
    clock.change_speed(faster=False)
    assert clock.speed == SPEEDS[-1]
    clock = RunClock(SPEEDS[0])
    clock.change_speed(faster=False)
    assert clock.speed == SPEEDS[0]


@pytest.mark.parametrize(("duration", "speed"), [(5.0, 1.0), (20.0, 1.0), (3600.0, 200.0), (28800.0, 1000.0)])
def test_a_run_can_be_watched_without_asking(duration: float, speed: float) -> None:
    assert watching_speed(duration) == speed


def test_real_time_cannot_be_changed() -> None:
    clock = RunClock(None)
    clock.toggle_pause()
    clock.step()
    clock.change_speed(faster=True)
    assert (clock.is_paused, clock.speed) == (False, None)


def test_paused_run_takes_single_steps_and_goes_on() -> None:
    clock = RunClock(NO_LIMIT)
    clock.step()
    assert clock.is_paused
    clock.step()
    clock.step()
    done: list[float] = []
    stands_still = threading.Event()

    def run() -> None:
        for t in range(5):
            clock.wait(float(t), stands_still.set)
            done.append(float(t))

    thread = threading.Thread(target=run)
    thread.start()
    assert stands_still.wait(DEADLINE)
    assert done == [0.0, 1.0]
    clock.toggle_pause()
    thread.join(DEADLINE)
    assert done == [0.0, 1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("speed", [None, 1.0, NO_LIMIT])
def test_leaving_ends_the_run_also_where_it_stands_still(speed: float | None) -> None:
    clock = RunClock(speed)
    clock.toggle_pause()
    clock.leave()
    with pytest.raises(KeyboardInterrupt):
        clock.wait(5.0, lambda: None)
