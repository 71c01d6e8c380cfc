"""A fault of a driver: what our emulated guest does wrong, how, and the cases of the driver suite that catch it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from scripts.check.broken.fault import Break, Fault
from scripts.check.driver.scenario import Act


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverFault(Fault):
    """One fault of a driver. ``guest`` are options of the guest that has it, ``features`` switches in what the device
    offers, ``acts`` what the device has to ask for, and ``seconds`` how long the driver is watched."""

    guest: tuple[str, ...] = ()
    features: str = ""
    acts: frozenset[Act] = frozenset()
    seconds: float = 1.0


DRIVER_FAULTS: Final[dict[str, DriverFault]] = {}
"""All faults of a driver by their names."""


def driver_fault(
    name: str,
    *acts: Act,
    caught_by: Sequence[str],
    guest: Sequence[str] = (),
    features: str = "",
    seconds: float = 1.0,
) -> Callable[[Break], Break]:
    """Return a decorator that adds a function as the fault ``name``. Its docstring says what the driver does wrong."""
    assert name not in DRIVER_FAULTS, name

    def add(break_it: Break) -> Break:
        assert break_it.__doc__, name
        DRIVER_FAULTS[name] = DriverFault(
            name=name,
            says=break_it.__doc__.strip().splitlines()[0],
            caught_by=tuple(caught_by),
            break_it=break_it,
            guest=tuple(guest),
            features=features,
            acts=frozenset(acts),
            seconds=seconds,
        )
        return break_it

    return add
