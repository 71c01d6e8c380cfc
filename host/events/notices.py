"""What clients of the control socket are told of one virtual machine: its events, and once a second what it gave back.

The event stream has a line for each report. A client that watches hundreds of machines is told sums instead.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

from host.events.metrics import VmMetrics
from host.events.vm_events import Emit

TRAFFIC_INTERVAL: Final = 1.0
"""Least seconds between two VM_TRAFFIC events of one machine."""

NOTICES: Final[Mapping[str, str]] = {
    "features": "VM_FEATURES",
    "hinting": "VM_HINTING",
    "inhibited": "VM_INHIBITED",
    "allowed": "VM_ALLOWED",
    "memory": "VM_MEMORY",
    "message_refused": "VM_MESSAGE_REFUSED",
    "queue_stopped": "VM_QUEUE_STOPPED",
    "queue_unknown": "VM_QUEUE_UNKNOWN",
    "reclaim": "VM_RECLAIMED",
    "reclaim_progress": "VM_RECLAIM_PROGRESS",
    "refused": "VM_REFUSED",
    "reset": "VM_RESET",
    "signal_failed": "VM_SIGNAL_FAILED",
    "state_loaded": "VM_STATE_LOADED",
    "status": "VM_STATUS",
    "target": "VM_TARGET",
}
"""The control socket's name of each event that is passed on."""

_COUNTERS: Final = (
    "reports",
    "reported_bytes",
    "discarded_bytes",
    "inflated_pages",
    "deflated_pages",
    "hinted_bytes",
)


class Notices:
    """Passes on the events of one machine. ``tell`` is called with a name and its data, on the event loop; it may be
    replaced at any time."""

    def __init__(self, metrics: VmMetrics) -> None:
        self.tell: Callable[[str, Mapping[str, Any]], None] | None = None
        self._metrics = metrics
        self._told = dict.fromkeys(_COUNTERS, 0)
        self._timer: asyncio.TimerHandle | None = None

    def passing_on(self, emit: Emit) -> Emit:
        """Return what writes an event by ``emit`` and tells it as well."""

        def emit_and_tell(event: str, **fields: object) -> None:
            emit(event, **fields)
            if self.tell is not None and event in NOTICES:
                fields.pop("t", None)
                self.tell(NOTICES[event], {name.replace("_", "-"): value for name, value in fields.items()})

        return emit_and_tell

    def chain_served(self) -> None:
        """Take note that the counters have changed."""
        if self._timer is None and self.tell is not None:
            self._timer = asyncio.get_running_loop().call_later(TRAFFIC_INTERVAL, self.flush)

    def flush(self) -> None:
        """Tell now what has become of the machine's chains since this was last done."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._counters()
        grown = {name.replace("_", "-"): value - self._told[name] for name, value in now.items()}
        self._told = now
        if self.tell is not None and any(grown.values()):
            self.tell("VM_TRAFFIC", grown)

    def caught_up(self) -> None:
        """Take the counters as told: what they have now is what another process has counted, and told."""
        self._told = self._counters()

    def _counters(self) -> dict[str, int]:
        return {name: int(getattr(self._metrics, name)) for name in _COUNTERS}

    def close(self) -> None:
        """Tell what is pending, and nothing after that."""
        self.flush()
        self.tell = None
