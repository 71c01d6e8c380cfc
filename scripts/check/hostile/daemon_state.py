"""What the daemon takes of the machine, as the kernel counts it."""

import os
from pathlib import Path
from typing import NamedTuple

from protocol.errors import BalloonError
from scripts.check.machine.memory_file import MIB

_KIB = 1024


class DaemonState(NamedTuple):
    """Memory in bytes: resident, its proportional share, what no other process shares; open files, threads."""

    sessions: int
    resident: int
    proportional: int
    private: int
    descriptors: int
    threads: int

    def __str__(self) -> str:
        memory = "".join(f"{one / MIB:9.1f}" for one in (self.resident, self.proportional, self.private))
        return f"{memory}{self.descriptors:8}{self.threads:9}"


def descriptors_of(pid: int) -> int:
    """Return how many descriptors a process has open. Raises :class:`BalloonError` if it cannot be told."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError as error:
        raise _gone(pid, error) from error


def state_of(pid: int, sessions: int) -> DaemonState:
    """Return the state of process ``pid`` after so many sessions.

    Raises:
        BalloonError: it has ended, or is another user's.
    """
    directory = Path(f"/proc/{pid}")
    try:
        sizes: dict[str, int] = {}
        for line in (directory / "smaps_rollup").read_text(encoding="ascii").splitlines()[1:]:
            name, value = line.split()[:2]
            sizes[name.rstrip(":")] = int(value) * _KIB
        threads = len(os.listdir(directory / "task"))
    except OSError as error:
        raise _gone(pid, error) from error
    return DaemonState(
        sessions=sessions,
        resident=sizes["Rss"],
        proportional=sizes["Pss"],
        private=sizes["Private_Clean"] + sizes["Private_Dirty"],
        descriptors=descriptors_of(pid),
        threads=threads,
    )


def _gone(pid: int, error: OSError) -> BalloonError:
    return BalloonError(f"the daemon, process {pid}, cannot be looked at: {error.strerror}")
