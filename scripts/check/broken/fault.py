"""A fault: what is broken, how it is done to our own code, and the case that has to catch it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

Break = Callable[[], None]
"""Breaks the code of this process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault of a device. ``caught_by`` are the cases of the device suite, or of the generic one, each of which has
    to catch it.

    Caught means that the case ends with FAIL or, for what no MUST forbids, with FINDING.
    """

    name: str
    says: str
    caught_by: tuple[str, ...]
    break_it: Break


DEVICE_FAULTS: Final[dict[str, Fault]] = {}
"""All faults of a device by their names. A module of faults adds its own when it is imported: see ``all_faults``."""


def fault(name: str, *, caught_by: Sequence[str]) -> Callable[[Break], Break]:
    """Return a decorator that adds a function as the fault ``name``. Its docstring says what the device does wrong."""
    assert name not in DEVICE_FAULTS, name

    def add(break_it: Break) -> Break:
        assert break_it.__doc__, name
        says = break_it.__doc__.strip().splitlines()[0]
        DEVICE_FAULTS[name] = Fault(name=name, says=says, caught_by=tuple(caught_by), break_it=break_it)
        return break_it

    return add


def replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Put ``make(what is there)`` in the place of an attribute of a class or module."""
    setattr(owner, name, make(getattr(owner, name)))
