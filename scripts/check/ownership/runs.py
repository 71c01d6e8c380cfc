"""Runs of a world: by a seed, which chooses each step, or by a script, which names it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Final

from protocol.errors import BalloonError
from scripts.check.ownership.actor import Point, Step
from scripts.check.ownership.all_faults import ALL_FAULTS
from scripts.check.ownership.options import STEPS
from scripts.check.ownership.page_owners import Violation
from scripts.check.ownership.script import Script
from scripts.check.ownership.world import ACTIONS, World
from scripts.check.ownership.world_options import WorldOptions, random_options

_SPEEDS: Final = (0.2, 1.0, 5.0)
"""How fast an actor is that answers others. A slow one leaves time for them between any two of its steps."""

_BEGINNERS: Final = {"cpu1": 0.2, "cpu2": 0.2, "operator": 0.3, "front-end": 0.06}
"""Actors that can always go on, and how fast they are: slower, so that what they begin goes on, too."""

_BUSY: Final = (0.5, 1.0, 2.0)

_THEMES: Final = (
    frozenset(ACTIONS),
    frozenset({"cpu1", "cpu2", "reporter", "device-reporting", "front-end"}),
    frozenset({"cpu1", "operator", "balloon", "device-inflate", "device-deflate", "front-end"}),
    frozenset({"cpu1", "operator", "hinting", "device-hinting", "front-end"}),
)
"""The actors that a run is about: all, or those of one way to lend a page. The others are as good as asleep."""

_ASLEEP: Final = 0.02

_LIKES: Final = {
    "allocate": (0.1, 0.5, 6.0),
    "touch": (0.25, 1.0),
    "free": (0.3, 1.0),
    "exhaust": (0.0, 0.05, 0.3),
    "balloon": (0.05, 0.5),
    "stop-hints": (0.1, 1.0),
    "end-hints": (1.0, 4.0),
    "reset": (0.3, 1.0),
}
"""How likely one of the actions is that an actor has a choice of."""

_STAYS: Final = (0.0, 0.25, 0.5, 0.75)
"""How likely an actor that has run runs again, if it can."""


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
        theme = random.choice(_THEMES)
        weights = {name: _speed(name, random) * (1.0 if name in theme else _ASLEEP) for name in ACTIONS}
        likes = {action: random.choice(choice) for action, choice in _LIKES.items()}
        stays = random.choice(_STAYS)
        last = ""
        for _ in range(steps):
            choices = world.choices()
            points = _same_again(choices, last) if last not in _BEGINNERS and random.random() < stays else None
            if points is None:
                likely = [weights[name] for name, _ in choices]
                last, points = random.choices(choices, likely)[0]
            point = points[0]
            if len(points) > 1:
                (point,) = random.choices(points, [likes.get(each.action, 1.0) for each in points])
            yield Step(last, point.action, point.propose(random))

    return _run(options, fault, choose)


def _speed(actor: str, random: Random) -> float:
    if actor in _BEGINNERS:
        return _BEGINNERS[actor] * random.choice(_BUSY)
    return random.choice(_SPEEDS)


def _same_again(choices: list[tuple[str, list[Point]]], last: str) -> list[Point] | None:
    return next((points for name, points in choices if name == last), None)


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
