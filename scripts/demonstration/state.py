"""The state of the host and the two virtual machines, built from their events. Pure: no clock, no files.

Sizes are bytes, times are seconds since the round began.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from scripts.child_processes import Event

TICK_SECONDS: Final = 0.25
HISTORY: Final = 240
"""The view is drawn once a tick; this many ticks of the past are kept, one minute."""

SETTLE_SECONDS: Final = 2.5
"""Seconds without a change after which a machine has settled. A real kernel makes a pass every two seconds."""

STATUS_OF_PHASE: Final = {
    "fill": "filling its memory",
    "hold": "using its memory",
    "free": "freeing its memory",
    "rest": "idle",
    "idle": "idle",
}


@dataclass(slots=True, kw_only=True)
class VmState:
    """One virtual machine. What a guest has not told yet is ``None``.

    ``resident_bytes`` is of this moment wherever the host can read it. What is inside (allocated, free, reported) is as
    the guest last told, and so is ``carried_bytes``: freed there, and yet resident.
    """

    name: str
    kind: str
    memory_bytes: int
    status: str = "not started"
    phase: str | None = None
    phase_time: float = 0.0
    pid: int | None = None
    resident_bytes: int = 0
    peak_bytes: int = 0
    carried_bytes: int | None = None
    allocated_bytes: int | None = None
    free_bytes: int | None = None
    reported_bytes: int | None = None
    reports: int = 0
    discarded_bytes: int = 0
    report_time: float = 0.0
    verified_pages: int | None = None
    corrupted_pages: int | None = None
    out_of_memory: bool = False
    report_history: deque[int] = field(default_factory=lambda: deque(maxlen=HISTORY))
    _reports_at_tick: int = 0

    def apply(self, event: Event) -> None:
        """Take an event of the guest. Unknown events are ignored."""
        match event["event"]:
            case "booted":
                self.pid = int(event["pid"])
                self.status = "running"
            case "phase":
                self.phase = str(event["name"])
                self.phase_time = float(event["t"])
                self.status = STATUS_OF_PHASE.get(self.phase, self.phase)
            case "memory":
                self.measured(int(event["resident_bytes"]))
                self.allocated_bytes = event.get("allocated_bytes")
                if self.allocated_bytes is not None:
                    self.carried_bytes = max(0, self.resident_bytes - self.allocated_bytes)
                self.free_bytes = event.get("free_bytes")
                self.reported_bytes = event.get("reported_bytes")
            case "out_of_memory":
                self.out_of_memory = True
                self.status = "out of memory"
            case "finished":
                self.verified_pages = event.get("verified_pages")
                self.corrupted_pages = event.get("corrupted_pages")
            case _:
                pass

    def measured(self, resident_bytes: int) -> None:
        """Take what the host carries for this machine."""
        self.resident_bytes = resident_bytes
        self.peak_bytes = max(self.peak_bytes, resident_bytes)

    def inside(self, allocated_bytes: int, free_bytes: int, reported_bytes: int) -> None:
        """Take what a real kernel has told of its memory. It is too old to say what the host carries for it now."""
        self.allocated_bytes, self.free_bytes, self.reported_bytes = allocated_bytes, free_bytes, reported_bytes

    def apply_host(self, event: Event) -> None:
        """Take an event of the daemon about this machine."""
        if event["event"] == "report":
            self.reports += int(event.get("chains", 1))
            self.discarded_bytes += int(event["discarded_bytes"])
            self.report_time = float(event["t"])

    def power_off(self, phase: str, status: str) -> None:
        """Take note that the process has ended, and its memory is free."""
        self.phase, self.status, self.pid = phase, status, None
        self.resident_bytes = 0
        self.carried_bytes = self.allocated_bytes = self.free_bytes = self.reported_bytes = None

    def tick(self) -> None:
        """Close the current tick of the history of reports."""
        self.report_history.append(self.reports - self._reports_at_tick)
        self._reports_at_tick = self.reports

    @property
    def reports_per_second(self) -> float:
        """Reports that the daemon acknowledged in the last second."""
        ticks = round(1 / TICK_SECONDS)
        return float(sum(list(self.report_history)[-ticks:]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a machine costs the host, and its reports that led there: all of one moment."""

    resident_bytes: int
    reports: int
    discarded_bytes: int
    report_time: float


class Settling:
    """Follows an idle machine until nothing changes any more, and keeps that state."""

    def __init__(self, vm: VmState, now: float) -> None:
        self._vm = vm
        self._since = now
        self.settled = False
        self.standing = self._look()

    def follow(self, now: float) -> bool:
        """Compare with the last call, unless the machine has settled; return whether it has settled just now."""
        if self.settled:
            return False
        standing = self._look()
        if standing != self.standing:
            self.standing, self._since = standing, now
        self.settled = now - self._since >= SETTLE_SECONDS
        return self.settled

    def _look(self) -> Standing:
        vm = self._vm
        return Standing(
            resident_bytes=vm.resident_bytes,
            reports=vm.reports,
            discarded_bytes=vm.discarded_bytes,
            report_time=vm.report_time,
        )


@dataclass(slots=True, kw_only=True)
class HostState:
    """The host's budget for both machines and how much of it they use."""

    budget_bytes: int
    budget_source: str
    used_bytes: int = 0
    peak_bytes: int = 0
    history: deque[int] = field(default_factory=lambda: deque(maxlen=HISTORY))

    def apply(self, used_bytes: int) -> None:
        """Take a measurement."""
        self.used_bytes = used_bytes
        self.peak_bytes = max(self.peak_bytes, used_bytes)

    def tick(self) -> None:
        """Close the current tick of the history."""
        self.history.append(self.used_bytes)


@dataclass(slots=True, kw_only=True)
class Picture:
    """Everything that a view shows: one round of the demonstration at one moment."""

    title: str
    round_title: str
    host: HostState
    vms: tuple[VmState, ...]
    story: list[tuple[float, str]] = field(default_factory=list)
    seconds: float = 0.0
    expected_seconds: float = 0.0
    seconds_after: float = 0.0
    """About how long this round takes, and the rounds after it."""

    @property
    def seconds_left(self) -> int:
        """About how many seconds are left of the whole demonstration, at least 1."""
        return max(1, round(max(self.expected_seconds - self.seconds, 0.0) + self.seconds_after))

    def tick(self) -> None:
        """Close the current tick of every history."""
        self.host.tick()
        for vm in self.vms:
            vm.tick()
