"""What runs in the model world: programs that stop wherever another may run, and the steps that they take."""

from collections.abc import Callable, Generator, Sequence
from random import Random
from typing import NamedTuple, TypeAlias

from scripts.check.ownership.pages import Pages


class Step(NamedTuple):
    """One step of one actor, a line of a script. ``pages`` are those that it is about."""

    actor: str
    action: str
    pages: tuple[Pages, ...] = ()

    def __str__(self) -> str:
        return " ".join([f"{self.actor:<16} {self.action:<11}", *map(str, self.pages)]).rstrip()


def always() -> bool:
    """Return True: a step that waits for nothing."""
    return True


def anything(_pages: tuple[Pages, ...]) -> bool:
    """Return True: a step that is about whatever it finds."""
    return True


def nothing(_random: Random) -> tuple[Pages, ...]:
    """Propose no pages: a step that has no choice."""
    return ()


class Point(NamedTuple):
    """A step that an actor may take next: its name, whether it can be taken now, and with which pages.

    Where an actor has a choice of pages, ``propose`` makes one and ``fits`` says whether another's can be taken.
    """

    action: str
    ready: Callable[[], bool] = always
    propose: Callable[[Random], tuple[Pages, ...]] = nothing
    fits: Callable[[tuple[Pages, ...]], bool] = anything


Program: TypeAlias = Generator[Sequence[Point], Step, None]
"""An actor at work: yields what it may do next, and is sent the step that was chosen."""
