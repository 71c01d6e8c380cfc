"""What is read from a run, in the thread of the run."""

import itertools
from typing import Any

import pytest

from host.policy.observation import Observation
from host.policy.policy import Decision, SetBalloon
from protocol.units import GIB, MIB
from scripts.scenario.scenario import Scenario, VmSpec
from scripts.scenario.view.picture import Picture
from scripts.scenario.view.run_clock import NO_LIMIT, RunClock
from scripts.scenario.view.watcher import PICTURE_SECONDS, Watcher
from scripts.scenario.virtual.fleet import Fleet
from scripts.scenario.watched import Watched

SCENARIO = Scenario(
    name="s",
    title="s",
    budget_bytes=160 * MIB,
    duration=12.0,
    sample_interval=1.0,
    vms=(
        VmSpec(name="a", memory_bytes=128 * MIB, workloads=("memhog:size=64M,hold=4",)),
        VmSpec(name="b", memory_bytes=256 * MIB, workloads=("memhog:size=192M,hold=4",), start=2.0),
    ),
)


class Balloons:
    """A policy with an action in each decision."""

    name = "balloons"
    interval = 4.0

    def decide(self, seen: Observation) -> Decision:
        return Decision(tuple(SetBalloon(name, MIB) for name in seen.vms), f"{len(seen.vms)} live")


class Eyes:
    """Watches with a clock of ours that a picture is always due, and keeps all pictures."""

    def __init__(self, wanted: str | None = None) -> None:
        self.time = 0.0
        self.clock = RunClock(NO_LIMIT, lambda: self.time)
        self.watcher = Watcher(self.clock, lambda: self.time)
        self.watcher.wanted = wanted
        self.pictures: list[Picture] = []

    def __call__(self, run: Watched) -> None:
        self.time += PICTURE_SECONDS
        self.watcher(run)
        if self.watcher.picture is not None:
            self.pictures.append(self.watcher.picture)

    def last(self, t: float) -> Picture:
        """Return the last picture whose sample is not after ``t``."""
        return [picture for picture in self.pictures if picture.sample.t <= t][-1]


def played(eyes: Any, **more: Any) -> Fleet:
    fleet = Fleet(SCENARIO, Balloons(), **more)
    fleet.run(watch=eyes)
    return fleet


def test_pictures_follow_the_run() -> None:
    eyes = Eyes()
    fleet = played(eyes)
    early, late = eyes.last(1.0), eyes.pictures[-1]
    assert (early.state_of("a")[0], early.state_of("b")[0]) == ("hold", "waiting")
    assert late.state_of("b")[0] == "OOM-killed"
    assert late.decision is not None
    assert [note.text for note in late.notes][:3] == ["a started memory 128M", late.decision.text, "a phase boot"]
    assert any(note.text.startswith("b oom killed") for note in late.notes)
    assert late.decision.text == "balloons: a balloon 1M: 1 live"
    assert late.figures.oom_events == 1
    assert late.figures.peak_bytes == fleet.record.peak_bytes
    assert late.sample is fleet.record.samples[-1]


def test_score_so_far_is_that_of_the_samples() -> None:
    eyes = Eyes()
    samples = played(eyes).record.samples
    area = sum(a.used_bytes * (b.t - a.t) for a, b in itertools.pairwise(samples))
    assert eyes.pictures[-1].figures.gib_minutes == pytest.approx(area / GIB / 60)
    assert area > 0


def test_free_lists_are_those_of_the_machine_that_is_wanted() -> None:
    eyes = Eyes("a")
    played(eyes)
    picture = eyes.pictures[-1]
    assert picture.lists_of == "a"
    assert picture.lists is not None
    assert sum(view.blocks << view.order for view in picture.lists) * 4096 == picture.sample.vms["a"].free_bytes
    killed = Eyes("b")
    played(killed)
    assert killed.last(1.0).lists is None
    assert next(picture for picture in killed.pictures if picture.sample.t == 2.0).lists
    assert killed.pictures[-1].lists is None


def test_watching_changes_nothing() -> None:
    watched = played(Eyes("a")).record
    alone = Fleet(SCENARIO, Balloons()).run()
    assert watched.samples == alone.samples
    assert watched.events == alone.events
    assert watched.decisions == alone.decisions


def test_single_steps_are_seen_between_two_samples() -> None:
    eyes = Eyes()
    seen: list[float] = []

    def step(run: Watched) -> None:
        if run.now >= 4.0:
            eyes.clock.step()
            eyes.clock.step()
        eyes(run)
        seen.append(eyes.pictures[-1].sample.t)
        if run.now >= 5.0:
            raise KeyboardInterrupt

    record = played(step).record
    assert record.interrupted
    assert {t for t in seen if 4.0 < t < 5.0} == {4.05}  # what the guest freed at 4 s is reported
    assert [sample.t for sample in record.samples] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_last_picture_is_that_of_the_end() -> None:
    eyes = Eyes()
    played(lambda run: eyes.watcher(run))
    assert eyes.time == 0.0
    assert eyes.watcher.picture is not None
    assert eyes.watcher.picture.sample.t == SCENARIO.duration


def test_what_is_said_is_shown_and_kept() -> None:
    eyes = Eyes()
    eyes.watcher.say("policy: raised\n")
    played(eyes)
    assert eyes.pictures[0].notes[0].text == "policy: raised?"
    assert eyes.watcher.said == ["policy: raised\n"]


def test_the_clock_ends_the_run() -> None:
    eyes = Eyes()
    eyes.clock.leave()
    record = played(eyes).record
    assert record.interrupted
    assert record.seconds == 0.0
    assert len(eyes.pictures) == 0
    assert eyes.watcher.picture is not None
