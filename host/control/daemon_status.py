"""What the daemon says of itself, and how much it logs: ``query-status`` and ``set-log-level``."""

import logging
import os
import time
from collections.abc import Callable
from typing import Any

from host.events.latency import BOUNDS
from host.qmp.qmp import QmpError, shown
from protocol.process.log_lines import LEVELS


class DaemonStatus:
    """The facts of the daemon. ``events`` returns why no events are written, None while they are."""

    def __init__(self, events: Callable[[], str | None] = lambda: None, **options: object) -> None:
        """Take facts that do not change as ``options``: they are in the answer as they are, a dash for each ``_``."""
        self.sessions = 0
        """How many there were so far."""
        self.worker_restarts = 0
        """How many worker processes were replaced."""
        self.sockets: Callable[[], list[dict[str, str | None]]] = list
        """Returns what guests connect to."""
        self._events = events
        self._options = {name.replace("_", "-"): value for name, value in options.items()}
        self._started = time.monotonic()

    @property
    def uptime(self) -> float:
        """Seconds since the daemon has begun."""
        return time.monotonic() - self._started

    def describe(self, vms: int) -> dict[str, Any]:
        """Return the answer to ``query-status`` of a daemon that serves ``vms`` machines."""
        return {
            "pid": os.getpid(),
            "uptime": round(self.uptime, 3),
            "vms": vms,
            "sessions": self.sessions,
            "worker-restarts": self.worker_restarts,
            "events": self._events() or "written",
            "log-level": self.log_level,
            "latency-bounds": list(BOUNDS),
            "sockets": self.sockets(),
            **self._options,
        }

    @property
    def log_level(self) -> str:
        """The name of the level that is in force."""
        level = logging.getLogger().getEffectiveLevel()
        return next((name for name, number in LEVELS.items() if level >= number), "debug")

    def set_log_level(self, name: str) -> None:
        """Log from level ``name`` on. Raises :class:`QmpError` for an unknown one."""
        if name not in LEVELS:
            raise QmpError(f"parameter 'level' has to be {' or '.join(LEVELS)}, not {shown(name)}")
        logging.getLogger().setLevel(LEVELS[name])


def daemon_line(connected: int, *, sessions: int, uptime: float, events: str | None) -> str:
    """Return the line about the daemon.

    ``connected`` is how many virtual machines there are, ``sessions`` how many there were, ``uptime`` how long the
    daemon runs in seconds, ``events`` why none are written, None while they are.
    """
    written = "events are written" if events is None else f"no events: {events}"
    return f"{connected} connected, {sessions} so far, in {uptime:.0f} s; {written}"
