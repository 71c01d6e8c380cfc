"""A guest without pages: memory as sums of bytes, for thousands of machines.

Model. What its programs hold follows a curve (``demand``), looked at every :data:`STEP` seconds while it changes. Freed
memory stays with the host until it is reported. All but :data:`RESIDUE` is:

* by ``boundary`` and ``scan`` at once, ``delay`` seconds after a free (rounded up to the next step);
* by ``rotation`` a sixteenth of all that is free in each pass, at least one full report, and passes are ``delay``
  seconds apart.

Memory is taken first from what the host still holds; beyond that, what was given back before and what never was touched
are as likely. A balloon moves at once. It takes free memory, then page cache, but never a program's memory or the
reserve of the watermarks. There is no fragmentation, and nothing is swapped out.
"""

import math
from typing import Final

from guest.mm.page_alloc import PageAllocator
from guest.mm.reporting.reporters import make_reporter
from guest.mm.reporting.rotation import Rotation
from guest.simulation import DeviceCost
from guest.workloads.workload_options import parse_workload
from host.policy.observation import VmView
from protocol.memory import PAGE_SIZE
from protocol.units import GIB, MIB
from scripts.scenario.run_record import VmOutcome, VmSample, VmState
from scripts.scenario.scenario import VmSpec
from scripts.scenario.virtual.balloon import bounded_size, reserve_of
from scripts.scenario.virtual.demand import demand_of
from scripts.scenario.virtual.emulated import DISK_BYTES_PER_SECOND
from scripts.scenario.virtual.host_memory import REFAULT_SECONDS, HostBudget, KilledError
from scripts.scenario.virtual.virtual_vm import Emit, VirtualVm

STEP: Final = 5.0
"""Seconds between two looks at a machine whose memory changes, from the run's beginning on; a shorter peak may be
missed."""

RESIDUE: Final = 8 * MIB
"""Free memory that is not reported: emulated guests of 1 GiB kept 6 to 8 MiB after a build or a large page cache."""

PASSES: Final = 16
"""Passes in which ``rotation`` reports all that is free."""

_WATERMARK_PART: Final = 100
"""One part in so many of a guest's memory stays free, about its high watermark."""

_COST: Final = DeviceCost()
_BLOCK_BYTES: Final = 2 * MIB
_CAPACITY: Final = 32
_LEAST_PASS: Final = _CAPACITY * 4 * MIB


class CoarseVm(VirtualVm):
    """One machine. ``seed`` varies its workloads' sizes and durations."""

    def __init__(self, spec: VmSpec, seed: int, budget: HostBudget, emit: Emit) -> None:
        super().__init__(spec, budget, emit)
        self._begin = self._looked = self._next_look = budget.now
        self._reserve = spec.memory_bytes // _WATERMARK_PART
        workloads = [parse_workload(text) for text in spec.workloads]
        self._demand = demand_of(workloads, spec.memory_bytes - spec.boot_bytes - self._reserve, seed)
        self._is_rotation = spec.reporter == Rotation.name
        self._delay = float("inf")
        if spec.reporter is not None:
            reporter = make_reporter(spec.reporter, PageAllocator(1024), delay=spec.reporting.get("delay"))
            self._delay = reporter.delay
        self._programs = self._cache = 0
        self._kept = 0
        """Free bytes that the host still holds."""
        self._returned = 0
        """Free bytes that were touched before, and that the host does not hold."""
        self._balloon = self._target = 0
        self._wanted_cache = 0
        self._absent = 0
        """Bytes of the cache that is wanted that were evicted, and were not read since."""
        self._evicted = 0
        """Bytes that were evicted and may be read again."""
        self._freed_at = float("inf")
        self._stall_seconds = 0.0
        self._cpu_seconds = 0.0
        self._refaulted = self._faulted = 0
        self._byte_seconds = 0.0
        self._sample: VmSample | None = None

    # --- Time ---

    @property
    def next_event(self) -> float:
        """When it has to be looked at next."""
        return self._next_look

    def advance(self, now: float) -> None:
        """Bring its memory to ``now``, if that is due. The OOM killer may end it meanwhile."""
        if now < self._next_look:
            return
        self._integrate(now)
        try:
            self._follow(now)
        except KilledError:
            return
        if self._kept > RESIDUE and self._delay < float("inf"):
            self._report(now)
        if self.finished_at is None and now - self._begin >= self._demand.end:
            self._finished(self._begin + self._demand.end)
        self._plan(now)

    def _integrate(self, now: float) -> None:
        self._byte_seconds += (now - self._looked) * self.resident_bytes
        self._looked = now

    def _plan(self, now: float) -> None:
        # The next look: while memory changes or waits to be reported with every step, otherwise at the next change.
        local = now - self._begin
        change = self._demand.next_change(local)
        if self._kept > RESIDUE and self._delay < float("inf"):
            change = min(change, local)
        if self.finished_at is None:
            change = min(change, self._demand.end)
        due = max(math.nextafter(now, math.inf), self._begin + change)
        self._next_look = math.ceil(due / STEP) * STEP if due < math.inf else due

    def _follow(self, now: float) -> None:
        programs, cache = self._demand.at(now - self._begin)
        programs += self.spec.boot_bytes
        most = self.spec.memory_bytes - self._reserve
        if programs > most:
            if self.state is VmState.RUNNING:
                self.state, self.reason = VmState.FAILED, f"out of memory: {programs} bytes are more than {most}"
                self.event("out_of_memory", t=now, message=self.reason)
            programs = most
        self._balloon = min(max(self._balloon, self._target), most - programs)  # DEFLATE_ON_OOM
        self._balloon = min(self._balloon, max(self._target, 0))
        room = most - programs - self._balloon
        self._read(cache)
        evicted = max(0, cache - self._absent - room)
        self._absent += evicted
        self._evicted += evicted
        self._hold(now, programs, cache - self._absent)
        self._squeeze()

    def _read(self, cache: int) -> None:
        # Files are read up to so many bytes of cache, or dropped. What was evicted comes back when it is read again, as
        # in a guest with pages, not when there is room again.
        again = max(0, min(self._evicted, cache - self._wanted_cache))
        self._stall_seconds += again / DISK_BYTES_PER_SECOND
        self._evicted = self._evicted - again if cache else 0
        self._absent = min(self._absent, cache)
        self._wanted_cache = cache

    def _hold(self, now: float, programs: int, cache: int) -> None:
        # Programs and cache come to hold so much. What grows takes kept memory first.
        more = programs + cache - self._programs - self._cache
        if more > 0:
            new = more - min(more, self._kept)
            if new:
                self._provide(now, new)
            self._kept -= more - new
        elif more < 0:
            self._kept -= more
            self._freed_at = now
        if more or programs != self._programs:
            self._sample = None
        self._programs, self._cache = programs, cache

    def _provide(self, now: float, size: int) -> None:
        waited = self._budget.claim(self, size)
        untouched = max(0, self._free_bytes - self._kept - self._returned)
        share = size * self._returned // max(1, self._returned + untouched)
        refaulted = min(self._returned, max(share, size - untouched))
        self._returned -= refaulted
        self._refaulted += refaulted
        self._faulted += size
        self._stall_seconds += waited + refaulted / PAGE_SIZE * REFAULT_SECONDS
        self.last_touch = now

    def _report(self, now: float) -> None:
        if now - self._freed_at < self._delay:
            return
        size = self._kept - RESIDUE
        if self._is_rotation:
            passes = min(PASSES, max(1, int(STEP / self._delay) if self._delay else PASSES))
            size = min(size, max(self._free_bytes // PASSES, _LEAST_PASS) * passes)
        self._give_back(size)

    def _squeeze(self) -> None:
        # The balloon's pages are not the host's: what does not fit beside it was discarded.
        self._give_back(self._kept - max(0, self._free_bytes))

    def _give_back(self, size: int) -> None:
        if size <= 0:
            return
        self._kept -= size
        self._returned += size
        self._budget.release(size)
        blocks = -(-size // _BLOCK_BYTES)
        self._cpu_seconds += -(-blocks // _CAPACITY) * _COST.per_report
        self._cpu_seconds += blocks * _COST.per_range + size // PAGE_SIZE * _COST.per_present_page
        self._sample = None

    # --- What the host and a policy see ---

    @property
    def _free_bytes(self) -> int:
        return self.spec.memory_bytes - self._programs - self._cache - self._balloon

    @property
    def resident_bytes(self) -> int:
        """What the host holds for it, the process that plays it included."""
        resident = self._programs + self._cache + self._kept + self._overhead_bytes
        if resident > self.peak_bytes:
            self.peak_bytes = resident
        return resident

    @property
    def stall_seconds(self) -> float:
        """Waiting for pages that come back, and for evicted files to be read again."""
        return self._stall_seconds

    def view(self, now: float) -> VmView:
        """Return the statistics as they are now."""
        memory, free = self.spec.memory_bytes, self._free_bytes
        return VmView(
            name=self.name,
            memory_bytes=memory,
            balloon_bytes=self._balloon,
            target_bytes=self._target,
            total_bytes=memory,
            free_bytes=free,
            available_bytes=max(0, free - self._reserve) + self._cache,
            cache_bytes=self._cache,
            statistics_age=0.0,
            host_backed_bytes=self.resident_bytes,
            refaulted_bytes=self._refaulted,
            minor_faults=self._faulted // PAGE_SIZE,
            stall_seconds=self._stall_seconds,
            age=now - self._begin,
        )

    def sample(self) -> VmSample:
        """Return its memory as it is now; the same object as long as nothing has changed."""
        if self._sample is None or self._sample.state is not self.state:
            if not self.alive:
                self._sample = VmSample(
                    state=self.state, refaulted_bytes=self._refaulted, stall_seconds=self._stall_seconds
                )
                return self._sample
            self._sample = VmSample(
                state=self.state,
                allocated_bytes=self._programs + self._cache,
                free_bytes=self._free_bytes,
                reported_bytes=0 if self.spec.reporter is None else max(0, self._free_bytes - self._kept),
                resident_bytes=self.resident_bytes,
                balloon_bytes=self._balloon,
                target_bytes=self._target,
                cache_bytes=self._cache,
                refaulted_bytes=self._refaulted,
                stall_seconds=self._stall_seconds,
            )
        return self._sample

    def outcome(self) -> VmOutcome:
        """Return how it stands, or how it ended."""
        if self.alive:
            self._integrate(self._budget.now)
        return VmOutcome(
            state=self.state,
            reason=self.reason,
            finished_at=self.finished_at,
            refaulted_bytes=self._refaulted,
            stall_seconds=self._stall_seconds,
            peak_bytes=self.peak_bytes,
            gib_minutes=self._byte_seconds / GIB / 60,
            reclaim_cpu_seconds=self._cpu_seconds,
        )

    # --- What they do to it ---

    def set_balloon(self, size: int) -> None:
        """Ask its balloon to hold ``size`` bytes; it does at the next look, which is now."""
        size = bounded_size(self.spec.memory_bytes, size)
        if size != self._target:
            self._target = size
            self._next_look = self._budget.now
            self._sample = None

    def reclaim(self, size: int | None) -> None:
        """Give back what the host holds for free memory, but a reserve and at most ``size`` bytes."""
        spare = min(self._kept, self._free_bytes - reserve_of(self.spec.memory_bytes))
        self._integrate(self._budget.now)
        before = self._kept
        self._give_back(spare if size is None else min(spare, size))
        self.event("reclaimed", discarded_bytes=before - self._kept)

    def swap_out(self, wanted_bytes: int) -> int:
        """Return 0: nothing is swapped out."""
        return 0

    def _release(self) -> None:
        self._integrate(self._budget.now)
        self._budget.release(self._programs + self._cache + self._kept)
        self._programs = self._cache = self._kept = self._balloon = 0
        self._sample = None
