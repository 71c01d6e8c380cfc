"""Runs of a world: by a seed, which chooses each step, or by a script, which names it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random

from protocol.errors import BalloonError
from scripts.check.ownership.faults.all_faults import ALL_FAULTS
from scripts.check.ownership.options import STEPS
from scripts.check.ownership.page_owners import Violation
from scripts.check.ownership.schedule import Schedule
from scripts.check.ownership.script import Script
from scripts.check.ownership.world.actor import Step
from scripts.check.ownership.world.world import World
from scripts.check.ownership.world.world_options import WorldOptions, random_options


class ReplayError(BalloonError):
    """A script names a step that cannot be taken here, or pages that it is not about."""


@dataclass(frozen=True, slots=True)
class Run:
    """The steps that were taken, the violation that ended it, None without one, and the virtual time then."""

    options: WorldOptions
    steps: tuple[Step, ...]
    violation: Violation | None
    seconds: float
    fault: str | None = None

    @property
    def script(self) -> Script:
        """The run as a script."""
        expect = None if self.violation is None else (self.violation.race, self.violation.source)
        return Script(options=self.options, steps=self.steps, fault=self.fault, expect=expect)


def _make_world(options: WorldOptions, fault: str | None) -> World:
    world = World(options)
    if fault is not None:
        ALL_FAULTS[fault].break_it(world)
    world.begin()
    return world


def _run(options: WorldOptions, fault: str | None, choose: Callable[[World], Iterable[Step]]) -> Run:
    taken = list[Step]()
    with _make_world(options, fault) as world:
        for step in choose(world):
            try:
                world.take(step)
            except Violation as violation:
                return Run(options, (*taken, world.last), violation, world.now, fault)
            taken.append(world.last)
        return Run(options, tuple(taken), None, world.now, fault)


# --- By a seed ---


def run_seed(seed: int, *, fault: str | None = None, steps: int = STEPS) -> Run:
    """Run a world whose features and steps the seed chooses, until something is wrong or ``steps`` are taken."""
    random = Random(seed)
    options = random_options(random)

    def choose(world: World) -> Iterable[Step]:
        schedule = Schedule(random)
        for _ in range(steps):
            yield schedule.choose(world.choices())

    return _run(options, fault, choose)


# --- By a script ---


def replay(script: Script) -> Run:
    """Run a script, step by step.

    Raises:
        ReplayError: a step cannot be taken, or is about other pages than the script says.
    """

    def choose(world: World) -> Iterable[Step]:
        for number, step in enumerate(script.steps, 1):
            if not world.allows(step):
                raise ReplayError(f"step {number} of {len(script.steps)} cannot be taken: {_words(step)}")
            yield step

    run = _run(script.options, script.fault, choose)
    for number, (wanted, taken) in enumerate(zip(script.steps, run.steps, strict=False), 1):
        if wanted != taken:
            raise ReplayError(f"step {number} is about other pages here: {_words(taken)}, not {_words(wanted)}")
    if len(run.steps) < len(script.steps):
        raise ReplayError(f"step {len(run.steps)} of {len(script.steps)} is the last: {run.violation}")
    return run


def replay_loosely(script: Script) -> Run:
    """Run those steps of a script that can be taken; a block that is allocated elsewhere keeps the script's name."""

    def choose(world: World) -> Iterable[Step]:
        return (step for step in script.steps if world.allows(step))

    return _run(script.options, script.fault, choose)


def _words(step: Step) -> str:
    return " ".join(str(step).split())
