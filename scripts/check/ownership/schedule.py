"""Which actor goes on next: the choices of a seed.

Races need one side to be slow at the right moment. So each run has a theme, the actors differ in speed, one may go on
for some steps without an interruption, and one may be put to sleep between two of its steps, as a thread is that loses
its processor.
"""

from random import Random
from typing import Final

from scripts.check.ownership.world.actor import Point, Step
from scripts.check.ownership.world.world import ACTIONS

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
    "balloon": (0.1, 1.0),
    "stop-hints": (0.03, 0.2),
    "end-hints": (1.0, 10.0),
    "reset": (0.3, 1.0),
}
"""How likely one of the actions is that an actor has a choice of."""

_STAYS: Final = (0.0, 0.25, 0.5, 0.75)
"""How likely an actor that has run runs again, if it can."""

_NAPS: Final = (0.0, 0.05, 0.2)
"""How likely an actor that answers others is put to sleep after a step."""

_NAP_STEPS: Final = (5, 10, 30)

Choices = list[tuple[str, list[Point]]]
"""The actors that can go on, each with what it may do next."""


class Schedule:
    """The choices of one run, made with ``random``."""

    def __init__(self, random: Random) -> None:
        self._random = random
        theme = random.choice(_THEMES)
        self._weights = {name: self._speed(name) * (1.0 if name in theme else _ASLEEP) for name in ACTIONS}
        self._likes = {action: random.choice(choice) for action, choice in _LIKES.items()}
        self._stays = random.choice(_STAYS)
        self._naps = random.choice(_NAPS)
        self._asleep = ""
        self._steps_left = 0
        self._last = ""

    def choose(self, choices: Choices) -> Step:
        """Return the next step, of one of ``choices``."""
        random = self._random
        actor, points = self._choose_actor(choices)
        self._last = actor
        point = points[0]
        if len(points) > 1:
            (point,) = random.choices(points, [self._likes.get(each.action, 1.0) for each in points])
        return Step(actor, point.action, point.propose(random))

    def _choose_actor(self, choices: Choices) -> tuple[str, list[Point]]:
        random = self._random
        answers = self._last and self._last not in _BEGINNERS
        if answers and not self._steps_left and random.random() < self._naps:
            self._asleep, self._steps_left = self._last, random.choice(_NAP_STEPS)
        if self._steps_left:
            self._steps_left -= 1
            choices = [choice for choice in choices if choice[0] != self._asleep]  # the processors never sleep
        if answers and random.random() < self._stays:
            for choice in choices:
                if choice[0] == self._last:
                    return choice
        return random.choices(choices, [self._weights[name] for name, _ in choices])[0]

    def _speed(self, actor: str) -> float:
        if actor in _BEGINNERS:
            return _BEGINNERS[actor] * self._random.choice(_BUSY)
        return self._random.choice(_SPEEDS)
