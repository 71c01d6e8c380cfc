"""What is done wrong is found, within few seeds, as the race that it is, and shrinks to a script that repeats it."""

from dataclasses import replace

import pytest

from scripts.check.ownership.faults.all_faults import ALL_FAULTS
from scripts.check.ownership.runs import Run, replay, replay_loosely, run_seed
from scripts.check.ownership.search import SHORT, search
from scripts.check.ownership.shrink import shrunk

SEEDS_MAX = 200
"""Seeds within which each fault has to be found."""

SELDOM = {"done-too-early", "out-of-memory-not-told", "stop-not-awaited", "touched-while-hinted"}
"""Faults that take more seeds than a quick test has time for."""

LONGER = {"deflate-discards": 14, "deflate-not-awaited": 13}
"""The page has to go into the balloon and out again: more steps than a short script has."""

SAMPLE = (
    "acknowledged-first",
    "report-not-awaited",
    "reported-twice",
    "in-use-reported",
    "one-page-early",
    "acknowledged-twice",
    "hint-released-early",
)
"""Faults that shrink at once."""


def find(name: str) -> None:
    """Look for a fault, and check what it is found as."""
    outcome = search(1, SEEDS_MAX, steps=300, fault=name)
    assert outcome.found is not None
    small = outcome.found.small
    assert small.violation is not None
    assert small.violation.race in ALL_FAULTS[name].found_as
    assert len(small.steps) <= LONGER.get(name, SHORT)
    assert str(replay(small.script).violation) == str(small.violation)


def first_violation(name: str) -> Run:
    """Return the first of a few seeds that ends in a violation."""
    runs = (run_seed(seed, fault=name) for seed in range(1, 21))
    return next(run for run in runs if run.violation is not None)


def test_there_are_faults_of_both_sides() -> None:
    assert len(ALL_FAULTS) >= 25
    assert SELDOM | LONGER.keys() | {*SAMPLE} <= ALL_FAULTS.keys()


@pytest.mark.parametrize("name", sorted(ALL_FAULTS.keys() - SELDOM))
def test_fault_is_found_as_its_race(name: str) -> None:
    violation = first_violation(name).violation
    assert violation is not None
    assert violation.race in ALL_FAULTS[name].found_as


@pytest.mark.parametrize("name", SAMPLE)
def test_run_shrinks_to_a_script_that_repeats_it(name: str) -> None:
    small = shrunk(first_violation(name))
    assert small.violation is not None
    assert small.violation.race in ALL_FAULTS[name].found_as
    assert len(small.steps) <= SHORT
    for again in (replay(small.script), replay_loosely(small.script)):
        assert (again.steps, str(again.violation)) == (small.steps, str(small.violation))


def test_run_without_a_violation_does_not_shrink() -> None:
    run = run_seed(1, steps=30)
    assert shrunk(run) is run


def test_shrunk_script_needs_each_of_its_steps() -> None:
    script = shrunk(first_violation("acknowledged-first")).script
    for without in range(len(script.steps)):
        steps = script.steps[:without] + script.steps[without + 1 :]
        assert replay_loosely(replace(script, steps=steps)).violation is None


# ``balloon-check ownership --fault all`` finds all of them, which takes a minute: continuous integration does.
@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["acknowledged-first", "discarded-twice", "flag-kept", "inflate-not-awaited", "reported-twice"]
)
def test_fault_is_found_and_shrinks(name: str) -> None:
    find(name)
