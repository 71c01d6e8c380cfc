"""The limit of events that the messages of one front-end and the chains of its driver may cause: the refusals of a
hostile one must not fill a disk.
"""

from collections import Counter
from typing import Final

EVENTS_PER_SECOND: Final = 50
"""Most events of one name in a second. A front-end that sets up a whole device causes about a dozen, and a driver that
is well has nothing refused."""


class EventLimit:
    """Counts the events of one virtual machine by name, second by second, and allows ``per_second`` of each."""

    __slots__ = ("_per_second", "_second", "_seen", "_suppressed")

    def __init__(self, per_second: int = EVENTS_PER_SECOND) -> None:
        self._per_second = per_second
        self._second = 0
        self._seen: Counter[str] = Counter()
        self._suppressed: Counter[str] = Counter()

    def allows(self, event: str, now: float) -> bool:
        """Return whether ``event`` may be written at ``now`` (seconds, any clock that goes on); count it if not."""
        if int(now) != self._second:
            self._second = int(now)
            self._seen.clear()
        self._seen[event] += 1
        if self._seen[event] <= self._per_second:
            return True
        self._suppressed[event] += 1
        return False

    def suppress(self, event: str) -> None:
        """Count ``event``, which was allowed, as not written for another reason."""
        self._suppressed[event] += 1

    def take_suppressed(self, event: str) -> int:
        """Return how many events of this name were not written since this was last asked."""
        return self._suppressed.pop(event, 0)

    @property
    def suppressed(self) -> tuple[str, ...]:
        """Names of the events that were not written and not yet accounted for."""
        return tuple(self._suppressed)
