"""The maps of memory that a run keeps: of all machines at the same moments, and never more than fit into a picture."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from guest.mm.views.memory_map import CELLS
from scripts.scenario.scenario import Scenario

ROUNDS_MOST: Final = 120
"""Moments of a run; of a longer one every second moment is dropped, and the next ones are twice as far apart."""

CELLS_LEAST: Final = 64
_CELLS_TOGETHER: Final = 8 * CELLS
_MACHINES_MOST: Final = _CELLS_TOGETHER // CELLS_LEAST


@dataclass(frozen=True, slots=True)
class MapRound:
    """The maps at ``t`` by machine, as JSON values; one that has not started, or was killed, has none.

    A map that a guest's process has told has the ``t`` at which it was taken.
    """

    t: float
    maps: Mapping[str, Mapping[str, Any]]


@dataclass(slots=True, kw_only=True)
class MapSeries:
    """The maps so far. ``interval`` is seconds between two moments, at first."""

    interval: float
    rounds: list[MapRound] = field(default_factory=list)
    _next: float = 0.0

    def is_due(self, t: float) -> bool:
        """Return whether maps are to be taken at ``t``."""
        return t >= self._next

    def add(self, t: float, maps: Mapping[str, Mapping[str, Any]]) -> None:
        """Keep the maps of ``t``, and drop earlier ones where there are too many."""
        self.rounds.append(MapRound(t, maps))
        if len(self.rounds) > ROUNDS_MOST:
            self.rounds = self.rounds[::2]
            self.interval *= 2
        self._next = self.rounds[-1].t + self.interval


def first_interval(scenario: Scenario) -> float:
    """Return the seconds between maps of which none is dropped, at most one for each sample."""
    return max(scenario.sample_interval, scenario.duration / (ROUNDS_MOST - 1))


def cells_of_each(machines: int) -> int:
    """Return how many cells the map of each machine may have where there are so many, 0 for no maps at all."""
    if machines > _MACHINES_MOST:
        return 0
    return min(CELLS, _CELLS_TOGETHER // max(1, machines))
