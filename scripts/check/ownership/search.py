"""Tries seeds until one ends in a violation, and shrinks that run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from scripts.check.ownership.runs import Run, run_seed
from scripts.check.ownership.shrink import shrunk

SHORT: Final = 12
"""Steps of a script that a person reads at once."""

OTHERS_MAX: Final = 3
"""Further violations that are shrunk when the first does not become short: another way to it may be shorter."""

_FURTHER_SEEDS: Final = 30


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a search is: seeds that were tried, the replays of a shrinking and the steps that it has come down to."""

    seeds: int
    replays: int = 0
    steps: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """What a search has found: the run of ``seed``, and what it was shrunk to. ``replays`` is what that took."""

    seed: int
    run: Run
    small: Run
    replays: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a search: seeds that were tried until the first violation, their steps, and the violation."""

    seeds: int
    steps: int
    found: Found | None


def search(
    first: int,
    runs: int,
    *,
    steps: int,
    fault: str | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Outcome:
    """Try the ``runs`` seeds from ``first`` on, until one ends in a violation."""
    taken = 0
    for seed in range(first, first + runs):
        on_progress(Progress(seed - first))
        run = run_seed(seed, fault=fault, steps=steps)
        taken += len(run.steps)
        if run.violation is not None:
            found = _shrink_best(_shrink(seed, run, seed - first + 1, on_progress), first + runs, steps, on_progress)
            return Outcome(seed - first + 1, taken, found)
    return Outcome(runs, taken, None)


def _shrink(seed: int, run: Run, seeds: int, on_progress: Callable[[Progress], None]) -> Found:
    replays = 0

    def on_try(tries: int, steps: int) -> None:
        nonlocal replays
        replays = tries
        on_progress(Progress(seeds, tries, steps))

    small = shrunk(run, on_try)
    return Found(seed, run, small, replays)


def _shrink_best(found: Found, end: int, steps: int, on_progress: Callable[[Progress], None]) -> Found:
    # Where the first script stays long, the shortest of some more.
    others = 0
    for seed in range(found.seed + 1, min(end, found.seed + 1 + _FURTHER_SEEDS)):
        if len(found.small.steps) <= SHORT or others == OTHERS_MAX:
            break
        run = run_seed(seed, fault=found.run.fault, steps=steps)
        if run.violation is not None:
            others += 1
            other = _shrink(seed, run, found.seed, on_progress)
            if len(other.small.steps) < len(found.small.steps):
                found = other
    return found
