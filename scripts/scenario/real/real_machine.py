"""One virtual machine of a real run: its process, what it and the daemon have told, what the host holds for it."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from guest.mm.views.memory_map import MemoryMap, cell_order, resident_levels
from host.netlink import ProcessCost, process_cost
from protocol.errors import BalloonError
from protocol.memory import PAGE_SIZE
from protocol.units import GIB
from scripts.child_processes import Child, Event, python_module
from scripts.demonstration.residency import MemoryFile
from scripts.scenario.run_record import LedgerEntry, VmOutcome, VmSample, VmState
from scripts.scenario.scenario import VmKind, VmSpec

_CONSTANTS: Final = {
    "order": "--reporting-order",
    "delay": "--reporting-delay",
    "capacity": "--reporting-capacity",
    "high_water_mark": "--high-water-mark",
}
"""The constants of a reporter as a scenario names them, and as options of the emulated guest."""


def guest_command(
    spec: VmSpec, directory: Path, socket: Path, seed: int, *, ledger: bool, map_interval: float | None = None
) -> list[str]:
    """Return the command that is the virtual machine, with its event file ``directory/NAME``.

    An emulated guest tells the map of its memory every ``map_interval`` seconds, None for never.

    Raises:
        BalloonError: a coarse machine, which only a virtual run has.
    """
    attachment = (
        *("--socket-path", str(socket)),
        *("--memory", str(spec.memory_bytes)),
        *("--events", str(directory / spec.name)),
    )
    if spec.kind is VmKind.LINUX:
        return python_module("guest.linux", *attachment, "--", "sh", "-c", spec.command or "sleep 1000000")
    if spec.kind is VmKind.COARSE:
        raise BalloonError(f"vm {spec.name}: a coarse machine has no process: it needs --virtual")
    constants = [word for name, value in spec.reporting.items() for word in (_CONSTANTS[name], str(value))]
    workloads = [word for workload in spec.workloads for word in ("--workload", workload)]
    return python_module(
        "guest",
        *attachment,
        *("--reporter", spec.reporter or "off"),
        *constants,
        *("--cpus", str(spec.cpus)) if spec.cpus > 1 else (),
        *("--profile", spec.profile),
        *("--seed", str(seed)),
        *workloads,
        "--in-turn",
        "--hold",
        *("--ledger",) if ledger else (),
        *("--memory-map", str(map_interval)) if map_interval is not None else (),
    )


@dataclass(slots=True, kw_only=True)
class RealMachine:
    """One virtual machine. Sizes are bytes, ``started`` and ``finished`` seconds since the run began."""

    spec: VmSpec
    number: int | None = None
    """Its number at the daemon, once its session is known."""
    child: Child | None = None
    pid: int | None = None
    state: VmState = VmState.WAITING
    reason: str = ""
    finished_at: float | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    """The last ``memory`` event of an emulated guest."""
    latest_map: Mapping[str, Any] | None = None
    """The last ``memory_map`` event of an emulated guest, with the time of the run as its ``t``."""
    resident_bytes: int = 0
    peak_bytes: int = 0
    gib_minutes: float = 0.0
    verified_pages: int = 0
    corrupted_pages: int = 0
    target_bytes: int = 0
    discard_seconds: float = 0.0
    discarded_bytes: int = 0
    grown_bytes: int = 0
    """Bytes that the host has provided in all, as far as its samples tell: growth from one to the next."""
    cost: ProcessCost | None = None
    _memory: MemoryFile | None = None

    def apply(self, event: Event, t: float) -> None:
        """Take an event of the guest's process, read at ``t``."""
        match event["event"]:
            case "booted":
                self.pid = int(event["pid"])
            case "memory":
                self.figures = dict(event)
            case "memory_map":
                taken = {key: value for key, value in event.items() if key not in ("t", "time", "event")}
                self.latest_map = {"t": round(t, 3), **taken}
            case "out_of_memory":
                self.reason = "a workload ran out of the guest's memory"
            case "finished":
                self.verified_pages = int(event.get("verified_pages", 0))
                self.corrupted_pages = int(event.get("corrupted_pages", 0))
                self._end_of_work(t)

    def _end_of_work(self, t: float) -> None:
        self.finished_at = t
        if self.corrupted_pages:
            self.state, self.reason = VmState.FAILED, f"{self.corrupted_pages} pages lost their content"
        elif self.reason:
            self.state = VmState.FAILED
        else:
            self.state = VmState.FINISHED

    def apply_host(self, event: Event) -> None:
        """Take an event of the daemon about this machine."""
        match event["event"]:
            case "report" | "inflate" | "hint":
                self.discarded_bytes += int(event.get("discarded_bytes", 0))
                self.discard_seconds += float(event.get("seconds", 0.0))

    def measure(self, elapsed: float) -> None:
        """Read what the host holds for it now, ``elapsed`` seconds since the last time."""
        resident = self._resident_bytes()
        self.gib_minutes += self.resident_bytes * elapsed / GIB / 60
        self.grown_bytes += max(0, resident - self.resident_bytes)
        self.resident_bytes = resident
        self.peak_bytes = max(self.peak_bytes, resident)

    def _resident_bytes(self) -> int:
        if self.pid is None or self.state.has_ended:
            return 0
        if self._memory is None:
            self._memory = MemoryFile(self.spec.memory_bytes)
        resident = self._memory.resident_bytes(self.pid)
        return self.resident_bytes if resident is None else resident

    def take_memory_map(self, cells: int) -> Mapping[str, Any] | None:
        """Return the map of its memory as JSON values, of a real kernel the host's side alone; None if unknown.

        The map that a guest has told is returned once.
        """
        if self.pid is None or self.state.has_ended or self.child is None or self.child.ended():
            return None
        if self.spec.kind is not VmKind.LINUX:
            taken, self.latest_map = self.latest_map, None
            return taken
        residency = None if self._memory is None else self._memory.residency(self.pid)
        if residency is None:
            return None
        order = cell_order(len(residency), cells)
        return MemoryMap(cell_bytes=PAGE_SIZE << order, resident=resident_levels(residency, order)).as_json()

    def measure_cost(self) -> None:
        """Read what its process has cost. Of a killed process the last figures stay."""
        if self.pid is not None and self.child is not None and not self.child.ended():
            with contextlib.suppress(BalloonError):
                self.cost = process_cost(self.pid)

    @property
    def refaulted_bytes(self) -> int:
        """Bytes that the host had to provide again, at least: what it provided beyond the machine's peak."""
        return max(0, min(self.grown_bytes - self.peak_bytes, self.discarded_bytes))

    @property
    def stall_seconds(self) -> float:
        """Seconds that its process waited for memory, 0 where the kernel does not tell."""
        if self.cost is None:
            return 0.0
        return (self.cost.direct_reclaim_seconds or 0.0) + (self.cost.thrashing_seconds or 0.0)

    def sample(self) -> VmSample:
        """Return the machine as it is now."""
        ledger = self.figures.get("ledger")
        return VmSample(
            state=self.state,
            allocated_bytes=int(self.figures.get("allocated_bytes", 0)),
            free_bytes=int(self.figures.get("free_bytes", 0)),
            reported_bytes=int(self.figures.get("reported_bytes", 0)),
            resident_bytes=self.resident_bytes,
            balloon_bytes=int(self.figures.get("balloon_bytes", 0)),
            target_bytes=self.target_bytes,
            cache_bytes=int(self.figures.get("page_cache_bytes", 0)),
            refaulted_bytes=self.refaulted_bytes,
            stall_seconds=self.stall_seconds,
            ledger=None
            if ledger is None or self.state.has_ended
            else LedgerEntry(causes=ledger, page_cache_bytes=int(self.figures.get("page_cache_bytes", 0))),
        )

    def outcome(self) -> VmOutcome:
        """Return how it ended, or how far it is."""
        return VmOutcome(
            state=self.state,
            reason=self.reason,
            finished_at=self.finished_at,
            verified_pages=self.verified_pages,
            corrupted_pages=self.corrupted_pages,
            refaulted_bytes=self.refaulted_bytes // PAGE_SIZE * PAGE_SIZE,
            stall_seconds=self.stall_seconds,
            peak_bytes=self.peak_bytes,
            gib_minutes=self.gib_minutes,
            reclaim_cpu_seconds=self.discard_seconds,
        )
