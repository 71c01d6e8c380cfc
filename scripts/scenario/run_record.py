"""What a run of a scenario leaves: samples, events, decisions, and how each virtual machine ended.

A real run and a virtual run fill the same record. ``results`` writes it, ``score`` sums it up, views and reports read
it. Sizes are bytes, times are seconds since the run began.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from host.policy.policy import Action
from scripts.scenario.map_series import MapSeries
from scripts.scenario.scenario import Scenario

LEDGER_CAUSES: Final = (
    "below_order",
    "watermark",
    "high_residue",
    "delay",
    "budget",
    "pcp",
    "poison",
    "inhibited",
    "refused",
    "unacknowledged",
    "unknown",
)
"""Why a byte that the guest has free is still backed by the host; each byte has one cause. The order is that of the
columns of a file. ``unknown`` is for a guest whose statistics do not tell, a real kernel; elsewhere it is 0."""


class VmState(Enum):
    """How far a virtual machine is."""

    WAITING = "waiting"
    """It has not started yet."""
    RUNNING = "running"
    """It works, or is idle with its workloads done and the run still going."""
    FINISHED = "finished"
    """All its workloads ended well. It keeps what it has of the host until the run ends."""
    FAILED = "failed"
    """Its process ended with an error, or one of its workloads ran out of the guest's own memory."""
    OOM_KILLED = "oom-killed"
    """The host's kernel killed it for memory."""

    @property
    def has_ended(self) -> bool:
        """Whether it works no more because it was killed or has failed. A killed one holds no memory."""
        return self in (VmState.FAILED, VmState.OOM_KILLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """The bytes that a guest has free and the host still backs, by cause.

    ``causes`` has some or all of :data:`LEDGER_CAUSES`; those left out are 0. Their sum is ``not_returned_bytes``.
    ``page_cache_bytes`` is not free, and not in the sum.
    """

    causes: Mapping[str, int] = field(default_factory=dict)
    page_cache_bytes: int = 0

    @property
    def not_returned_bytes(self) -> int:
        """The sum of all causes."""
        return sum(self.causes.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class VmSample:
    """One virtual machine at one moment.

    ``allocated_bytes`` is what its programs hold, page cache included; ``free_bytes`` what is on its free lists,
    ``reported_bytes`` the part of it that was reported; ``resident_bytes`` what the host holds for the machine;
    ``balloon_bytes`` what the balloon holds, ``target_bytes`` what it should hold. ``refaulted_bytes`` and
    ``stall_seconds`` are totals since the machine began. ``ledger`` is None where the run keeps none.
    """

    state: VmState
    allocated_bytes: int = 0
    free_bytes: int = 0
    reported_bytes: int = 0
    resident_bytes: int = 0
    balloon_bytes: int = 0
    target_bytes: int = 0
    cache_bytes: int = 0
    refaulted_bytes: int = 0
    stall_seconds: float = 0.0
    ledger: LedgerEntry | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """All virtual machines and the host at ``t``. ``pressure`` is in percent, as in :class:`HostView`."""

    t: float
    used_bytes: int
    pressure: float | None = None
    vms: Mapping[str, VmSample] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedDecision:
    """One decision of the policy.

    ``inputs`` is what the policy saw, as JSON values: ``now``, ``host`` and, by name, ``vms``; of very many machines
    only those that ``actions`` concern. ``error`` is set if the policy raised or answered nonsense; then ``actions``
    are what it last asked for, which stays in force.
    """

    t: float
    policy: str
    reason: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    actions: tuple[Action, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VmOutcome:
    """How one virtual machine ended, and what it cost.

    ``reason`` says why it failed or was killed. ``peak_bytes`` is the most that the host held for it, ``gib_minutes``
    that memory over time. ``reclaim_cpu_seconds`` is the processor time that the host spent on discarding its memory;
    in a real run also what its process spent on reclaim and compaction for its own allocations, where the kernel tells.
    ``process_peak_bytes`` is the peak of a real process with all it needs itself, None where it is unknown.
    ``finished_at`` is when its last workload ended.
    """

    state: VmState
    reason: str = ""
    finished_at: float | None = None
    verified_pages: int = 0
    corrupted_pages: int = 0
    refaulted_bytes: int = 0
    stall_seconds: float = 0.0
    peak_bytes: int = 0
    gib_minutes: float = 0.0
    reclaim_cpu_seconds: float = 0.0
    process_peak_bytes: int | None = None


@dataclass(slots=True, kw_only=True)
class RunRecord:
    """A run, as far as it has come. ``is_virtual`` tells virtual time from real time.

    ``events`` are objects with at least ``t`` and ``event``; one that concerns a machine has ``vm``. ``interrupted``
    is set when the run was ended before the scenario's duration, and ``problem`` says why where it was not the user who
    ended it. ``seconds`` is how long it ran, in its own time. ``peak_bytes`` and ``gib_minutes`` are the host's, of all
    machines together. ``daemon_cpu_seconds`` is the processor time of the daemon, None in a virtual run. ``maps`` are
    None where none are kept.
    """

    scenario: Scenario
    policy: str
    seed: int
    is_virtual: bool
    samples: list[Sample] = field(default_factory=list)
    events: list[Mapping[str, Any]] = field(default_factory=list)
    decisions: list[RecordedDecision] = field(default_factory=list)
    outcomes: dict[str, VmOutcome] = field(default_factory=dict)
    seconds: float = 0.0
    peak_bytes: int = 0
    gib_minutes: float = 0.0
    daemon_cpu_seconds: float | None = None
    interrupted: bool = False
    maps: MapSeries | None = None
    problem: str = ""
