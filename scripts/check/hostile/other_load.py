"""How many processors the processes take that are no part of a run: a machine that is shared delays everyone.

Source: proc_stat(5), proc_pid_stat(5).
"""

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_IDLE: Final = (3, 4)
"""Places of idle and iowait among a line's times in /proc/stat."""

_GUEST: Final = 8
"""From here on are times that count in others too."""

_UTIME: Final = 11
"""Place of utime after the name of a process in its stat file; stime, and those of its children, follow."""


class OtherLoad:
    """Counts between two looks. ``pids`` are the processes of the run, this one apart."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = (os.getpid(), *pids)
        self._last = self._look()

    def processors(self) -> float:
        """Return how many processors all other processes took on average since the last call."""
        before, self._last = self._last, self._look()
        at, busy, ours = (now - then for now, then in zip(self._last, before, strict=True))
        return max(0.0, (busy - ours) / max(at, 1e-9))

    def _look(self) -> tuple[float, float, float]:
        # Seconds: the time, what all processors were busy, what our processes and their threads took.
        times = [int(word) for word in Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:]]
        busy = sum(time for place, time in enumerate(times[:_GUEST]) if place not in _IDLE)
        return time.monotonic(), busy / _TICKS, sum(map(_taken, self._pids)) / _TICKS


def _taken(pid: int) -> int:
    with contextlib.suppress(OSError):  # it has ended, which its user finds out
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(") ")[2].split()
        return int(fields[_UTIME]) + int(fields[_UTIME + 1])
    return 0
