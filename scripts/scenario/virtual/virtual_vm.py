"""A virtual machine of a virtual run, whatever plays it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

from guest.mm.views.free_lists import FreeListView
from host.policy.observation import VmView
from scripts.scenario.run_record import VmOutcome, VmSample, VmState
from scripts.scenario.scenario import VmSpec
from scripts.scenario.virtual.host_memory import HostBudget, KilledError


class Emit(Protocol):
    """Takes an event. Without a field ``t`` its time is that of the budget."""

    def __call__(self, event: str, /, **fields: Any) -> None:
        """Record ``event`` with its fields."""


class VirtualVm(ABC):
    """One machine from its start on: it advances in time, is observed, and obeys a policy.

    ``emit`` takes its events. Times are those of the whole run.
    """

    def __init__(self, spec: VmSpec, budget: HostBudget, emit: Emit) -> None:
        self.spec = spec
        self.name = spec.name
        self.expendable = spec.expendable
        self.last_touch = budget.now
        self.state = VmState.RUNNING
        self.reason = ""
        self.finished_at: float | None = None
        self.peak_bytes = 0
        self._budget = budget
        self._emit = emit
        self._overhead_bytes = spec.overhead_bytes

    def start(self) -> None:
        """Join the tenants of the host, and be charged for the process. It may be killed for that."""
        self._budget.tenants.append(self)
        self._emit("started", vm=self.name, memory_bytes=self.spec.memory_bytes)
        try:
            self._budget.claim(self, self.spec.overhead_bytes)
        except KilledError:
            self._overhead_bytes = 0

    @property
    def alive(self) -> bool:
        """Whether it has not been killed."""
        return self.state is not VmState.OOM_KILLED

    @property
    @abstractmethod
    def resident_bytes(self) -> int:
        """What the host holds for it, the process that plays it included."""

    @property
    @abstractmethod
    def stall_seconds(self) -> float:
        """Seconds that its programs have waited for memory."""

    @property
    @abstractmethod
    def next_event(self) -> float:
        """When it does something next, infinity for never."""

    @abstractmethod
    def advance(self, now: float) -> None:
        """Let it work until ``now``."""

    @abstractmethod
    def view(self, now: float) -> VmView:
        """Return what a policy sees of it."""

    @abstractmethod
    def sample(self) -> VmSample:
        """Return its memory as it is now."""

    def free_lists(self) -> tuple[FreeListView, ...] | None:
        """Return its free lists as they are now, None for a machine without pages."""
        return None

    def memory_map(self, cells: int) -> Mapping[str, Any] | None:
        """Return the map of its memory in at most ``cells`` cells as JSON values, None where there is none."""
        return None

    @abstractmethod
    def set_balloon(self, size: int) -> None:
        """Ask its balloon to hold ``size`` bytes."""

    @abstractmethod
    def reclaim(self, size: int | None) -> None:
        """Have it give up memory that it does not use, at most ``size`` bytes, once."""

    @abstractmethod
    def outcome(self) -> VmOutcome:
        """Return how it stands, or how it ended."""

    @abstractmethod
    def swap_out(self, wanted_bytes: int) -> int:
        """Move memory of it to swap; return how many bytes, 0 where nothing can be."""

    @abstractmethod
    def _release(self) -> None:
        # Give all memory back to the host.
        ...

    def kill(self, reason: str) -> None:
        """End it: the host's OOM killer has chosen it."""
        self.state, self.reason = VmState.OOM_KILLED, reason
        self._budget.tenants.remove(self)
        resident_bytes = self.resident_bytes
        self._release()
        self._budget.release(self._overhead_bytes)
        self._overhead_bytes = 0
        self._emit("oom_killed", vm=self.name, resident_bytes=resident_bytes, reason=reason)

    def _finished(self, now: float) -> None:
        # All its workloads have ended.
        self.finished_at = now
        if self.state is VmState.RUNNING:
            self.state = VmState.FINISHED
        self._emit("finished", vm=self.name, t=now)

    def event(self, event: str, /, **fields: Any) -> None:
        """Emit an event of this machine."""
        self._emit(event, vm=self.name, **fields)
