"""One virtual machine of a real run: its process, what it and the daemon have told, what the host holds for it."""

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from guest.mm.views.memory_map import MemoryMap, cell_order, resident_levels
from host.netlink import ProcessCost, TaskStatsConnection, delay_accounting_enabled, process_cost
from protocol.errors import BalloonError
from protocol.memory import PAGE_SIZE
from protocol.units import GIB
from scripts.child_processes import Child, Event, python_module
from scripts.scenario.real.linux_figures import LinuxFigures
from scripts.scenario.real.residency import MemoryFile
from scripts.scenario.run_record import LedgerEntry, VmOutcome, VmSample, VmState
from scripts.scenario.scenario import VmKind, VmSpec

_CONSTANTS: Final = {
    "order": "--reporting-order",
    "delay": "--reporting-delay",
    "capacity": "--reporting-capacity",
    "high_water_mark": "--high-water-mark",
}
"""The constants of a reporter as a scenario names them, and as options of the emulated guest."""


WAIT4: Final = " and wait4"
"""At the end of a source of costs: peak and faults are those of the whole life of a process that has ended."""

_LONGEST_SOCKET: Final = 107
"""Bytes of the path of a unix socket."""


def event_file(spec: VmSpec) -> str:
    """Return the name of a machine's event file: no machine's name makes it a file of the daemon's or of another."""
    return f"vm-{spec.name}.events"


def control_socket(spec: VmSpec, directory: Path) -> Path | None:
    """Return where an emulated guest answers questions, None where the path would be too long."""
    path = directory / f"vm-{spec.name}.ctl"
    return path if spec.kind is VmKind.EMULATED and len(bytes(path)) <= _LONGEST_SOCKET else None


def guest_command(
    spec: VmSpec, directory: Path, socket: Path, seed: int, *, ledger: bool, map_interval: float | None = None
) -> list[str]:
    """Return the command that is the virtual machine, with its :func:`event_file` in ``directory``.

    An emulated guest tells the map of its memory every ``map_interval`` seconds, None for never.

    Raises:
        BalloonError: a coarse machine, which only a virtual run has.
    """
    attachment = (
        *("--socket-path", str(socket)),
        *("--memory", str(spec.memory_bytes)),
        *("--events", str(directory / event_file(spec))),
    )
    if spec.kind is VmKind.LINUX:
        zones = ("--zones",) if ledger else ()
        return python_module("guest.linux", *attachment, *zones, "--", "sh", "-c", spec.command or "sleep 1000000")
    if spec.kind is VmKind.COARSE:
        raise BalloonError(f"vm {spec.name}: a coarse machine has no process: it needs --virtual")
    constants = [word for name, value in spec.reporting.items() for word in (_CONSTANTS[name], str(value))]
    control = control_socket(spec, directory)
    workloads = [word for workload in spec.workloads for word in ("--workload", workload)]
    return python_module(
        "guest",
        *attachment,
        *(("--control", str(control)) if control is not None else ()),
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


def why_costs_are_unknown() -> str | None:
    """Return why the kernel does not tell how long a process has waited for memory, None if it does."""
    source = process_cost(os.getpid()).source
    if not source.startswith("taskstats"):
        return source.removeprefix("/proc (").removesuffix(")")
    return None if delay_accounting_enabled() else "the sysctl kernel.task_delayacct is 0"


def parent_of(pid: int, proc: Path = Path("/proc")) -> int | None:
    """Return the parent of a process, None if that is gone."""
    try:
        # The name in parentheses may itself hold spaces and parentheses.
        return int((proc / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except OSError:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inside:
    """What a guest has told of its memory, in bytes; all 0 if it runs no more."""

    allocated_bytes: int = 0
    free_bytes: int = 0
    reported_bytes: int = 0
    balloon_bytes: int = 0
    cache_bytes: int = 0
    ledger: LedgerEntry | None = None


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
    is_gone: bool = False
    """Whether its process has ended, and what it held is free."""
    figures: dict[str, Any] = field(default_factory=dict)
    """The last ``memory`` event of an emulated guest."""
    latest_map: Mapping[str, Any] | None = None
    """The last ``memory_map`` event of an emulated guest, with the time of the run as its ``t``."""
    linux: LinuxFigures | None = None
    """What a real kernel has told, None for an emulated guest."""
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

    def __post_init__(self) -> None:
        if self.spec.kind is VmKind.LINUX:
            self.linux = LinuxFigures(memory_bytes=self.spec.memory_bytes)

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
            case "zones" if self.linux is not None:
                self.linux.zones(event)
            case "out_of_memory":
                self.reason = "a workload ran out of the guest's memory"
            case "finished" if self.linux is None:  # what a real kernel's means says the status of its process
                self.verified_pages = int(event.get("verified_pages", 0))
                self.corrupted_pages = int(event.get("corrupted_pages", 0))
                self._end_of_work(t)

    def _end_of_work(self, t: float) -> None:
        self.finished_at = t
        if self.is_gone:  # killed before it was read
            return
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
        if self.linux is not None:
            self.linux.host_event(event)

    def measure(self, elapsed: float) -> None:
        """Read what the host holds for it now, ``elapsed`` seconds since the last time."""
        resident = self._resident_bytes()
        self.gib_minutes += self.resident_bytes * elapsed / GIB / 60
        self.grown_bytes += max(0, resident - self.resident_bytes)
        self.resident_bytes = resident
        self.peak_bytes = max(self.peak_bytes, resident)

    def _resident_bytes(self) -> int:
        if self.pid is None or self.is_gone:
            return 0
        if self._memory is None:
            self._memory = MemoryFile(self.spec.memory_bytes)
        resident = self._memory.resident_bytes(self.pid)
        if resident is None:
            return self.resident_bytes
        if self.linux is not None:
            self.linux.resident_bytes = resident
        return resident

    def went(self, state: VmState, reason: str = "") -> None:
        """Take note that its process has ended, and how."""
        self.state, self.reason, self.is_gone = state, reason, True
        self.resident_bytes = 0

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

    def measure_cost(self, connection: TaskStatsConnection) -> None:
        """Read what its process has cost, over ``connection``. Of one that was killed the last delays stay."""
        child = self.child
        if self.pid is None or child is None:
            return
        if not child.ended():
            with contextlib.suppress(BalloonError):
                cost = process_cost(self.pid, connection=connection)
                if cost.peak_resident_bytes is not None:  # else it has just ended
                    self.cost = cost
        elif self.linux is None and self.cost is not None and not self.cost.source.endswith(WAIT4):
            # Not of a real kernel, which is a child of the process that was started.
            self.cost = replace(
                self.cost,
                source=self.cost.source + WAIT4,
                peak_resident_bytes=max(child.peak_resident_bytes or 0, self.cost.peak_resident_bytes or 0),
                minor_faults=child.minor_faults,
                major_faults=child.major_faults,
            )

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

    @property
    def _reclaim_seconds(self) -> float:
        if self.cost is None:
            return 0.0
        return (self.cost.direct_reclaim_seconds or 0.0) + (self.cost.compaction_seconds or 0.0)

    def sample(self) -> VmSample:
        """Return the machine as it is now; one that is gone has no memory, whatever it told last."""
        inside = _Inside() if self.is_gone else self._inside()
        return VmSample(
            state=self.state,
            allocated_bytes=inside.allocated_bytes,
            free_bytes=inside.free_bytes,
            reported_bytes=inside.reported_bytes,
            resident_bytes=self.resident_bytes,
            balloon_bytes=inside.balloon_bytes,
            target_bytes=0 if self.is_gone else self.target_bytes,
            cache_bytes=inside.cache_bytes,
            refaulted_bytes=self.refaulted_bytes,
            stall_seconds=self.stall_seconds,
            ledger=inside.ledger,
        )

    def _inside(self) -> "_Inside":
        linux, figures = self.linux, self.figures
        if linux is not None:
            return _Inside(
                allocated_bytes=linux.allocated_bytes,
                free_bytes=linux.free_bytes,
                reported_bytes=linux.reported_bytes,
                balloon_bytes=linux.balloon_bytes,
                cache_bytes=linux.page_cache_bytes,
                ledger=linux.entry,
            )
        ledger, cache_bytes = figures.get("ledger"), int(figures.get("page_cache_bytes", 0))
        return _Inside(
            allocated_bytes=int(figures.get("allocated_bytes", 0)),
            free_bytes=int(figures.get("free_bytes", 0)),
            reported_bytes=int(figures.get("reported_bytes", 0)),
            balloon_bytes=int(figures.get("balloon_bytes", 0)),
            cache_bytes=cache_bytes,
            ledger=None if ledger is None else LedgerEntry(causes=ledger, page_cache_bytes=cache_bytes),
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
            reclaim_cpu_seconds=self.discard_seconds + self._reclaim_seconds,
            process_peak_bytes=None if self.cost is None else self.cost.peak_resident_bytes,
        )
