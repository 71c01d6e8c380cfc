"""Which call is a helper's next: the line of one user's processes, without threads."""

from collections import Counter, deque
from collections.abc import Callable
from typing import Final, NamedTuple

HELPERS_MAX: Final = 4
"""Most calls of one process at a time."""


class Call(NamedTuple):
    """A call for a helper, which raises nothing, and the number of the process that it is made for."""

    process: int
    action: Callable[[], None]


class HelperLine:
    """Calls that wait, in turns of their processes: each process that waits has one call before another has its second.

    A process with :data:`HELPERS_MAX` calls under way is passed over.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, deque[Call]] = {}
        self._under_way: Counter[int] = Counter()

    def add(self, call: Call) -> None:
        """Put ``call`` at the end of its process's line."""
        self._waiting.setdefault(call.process, deque()).append(call)

    @property
    def ready(self) -> int:
        """How many calls helpers may begin now."""
        return sum(min(len(calls), self._may_begin(process)) for process, calls in self._waiting.items())

    def take(self, process: int | None = None) -> Call | None:
        """Return the next call, of ``process`` alone if it is given, and count it as under way. None if there is none
        that may begin."""
        candidates = self._waiting if process is None else {process} & self._waiting.keys()
        taken = next((candidate for candidate in candidates if self._may_begin(candidate)), None)
        if taken is None:
            return None
        calls = self._waiting.pop(taken)
        call = calls.popleft()
        if calls:
            self._waiting[taken] = calls  # at the end: the others come first
        self._under_way[taken] += 1
        return call

    def done(self, call: Call) -> None:
        """Take note that ``call`` has returned."""
        self._under_way[call.process] -= 1
        if not self._under_way[call.process]:
            del self._under_way[call.process]

    def _may_begin(self, process: int) -> int:
        return HELPERS_MAX - self._under_way[process]
