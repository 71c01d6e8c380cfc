"""What a keeper keeps for a daemon, and when it starts the daemon again."""

from typing import Final

KEPT_MAX: Final = 65536
"""Most descriptors that are kept."""

LIVED: Final = 5.0
"""Seconds after which the end of a daemon is not one at its start."""

ENDS_FREE: Final = 3
"""Ends at the start, in a row, after which there is no wait yet."""

AFTER_READY: Final = 0.1
"""What the end of a daemon counts that was ready: something else may kill it."""

BACK_OFF_FIRST: Final = 0.1
BACK_OFF_LONGEST: Final = 10.0
"""Seconds until a daemon that ends at its start again is started, twice as long each time, up to the longest."""


class KeptDescriptors:
    """Descriptors by name, in the order in which they came. Several may have one name."""

    def __init__(self) -> None:
        self._kept: dict[str, list[int]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, name: str, fd: int) -> bool:
        """Keep ``fd``, unless there are too many; return whether it is kept."""
        if self._count >= KEPT_MAX:
            return False
        self._kept.setdefault(name, []).append(fd)
        self._count += 1
        return True

    def remove(self, name: str) -> list[int]:
        """Forget what has this name, and return it."""
        fds = self._kept.pop(name, [])
        self._count -= len(fds)
        return fds

    def all(self) -> list[tuple[str, int]]:
        """Return each descriptor with its name."""
        return [(name, fd) for name, fds in self._kept.items() for fd in fds]


class Restarts:
    """How long to wait until a daemon that has ended is started again."""

    def __init__(self) -> None:
        self._ends = 0.0

    def after(self, lived: float, *, was_ready: bool) -> float:
        """Return the seconds to wait after the end of a daemon that lived so many seconds."""
        weight = AFTER_READY if was_ready else 1.0
        self._ends = self._ends + weight if lived < LIVED else 0.0
        if self._ends <= ENDS_FREE:
            return 0.0
        return float(min(BACK_OFF_FIRST * 2 ** (int(self._ends) - ENDS_FREE), BACK_OFF_LONGEST))
