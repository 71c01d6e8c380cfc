"""A run as one who watches it sees it: at the moment of a call, on the run's own thread."""

from collections.abc import Callable, Sequence
from typing import Protocol

from guest.mm.views.free_lists import FreeListView
from scripts.scenario.run_record import RunRecord, Sample


class Watched(Protocol):
    """A run that goes on, virtual or real."""

    record: RunRecord

    @property
    def now(self) -> float:
        """Seconds since the run began, in its own time."""

    @property
    def swapped_bytes(self) -> int:
        """How much of the machines' memory is in swap."""

    def look(self) -> Sample:
        """Return the machines as they are now. Nothing is recorded."""

    def free_lists(self, vm: str) -> Sequence[FreeListView] | None:
        """Return the free lists of a machine; None where they cannot be seen."""


Watch = Callable[[Watched], None]
"""Called by a run after each of its steps. It may wait, and so slow a virtual run down."""


def unwatched(run: Watched) -> None:
    """Do nothing: a run that is not watched."""
