"""A fault of a world: what is done wrong in it, and as which race it has to be found."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from scripts.check.ownership.world.world import World

Break = Callable[[World], None]
"""Breaks a world that has not begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault. ``found_as`` are the races that it ends in, one of them in each run that finds it."""

    name: str
    says: str
    found_as: frozenset[str]
    break_it: Break


FAULTS: Final[dict[str, Fault]] = {}
"""All faults by their names. A module of faults adds its own when it is imported: see ``all_faults``."""


def fault(name: str, *found_as: str) -> Callable[[Break], Break]:
    """Return a decorator that adds a function as the fault ``name``. Its docstring says what is done wrong."""
    assert name not in FAULTS, name

    def add(break_it: Break) -> Break:
        assert break_it.__doc__, name
        says = break_it.__doc__.strip().splitlines()[0]
        FAULTS[name] = Fault(name=name, says=says, found_as=frozenset(found_as), break_it=break_it)
        return break_it

    return add
