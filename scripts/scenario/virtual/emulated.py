"""An emulated guest of a virtual run: memory manager, reporter and workloads of ``balloon-guest`` in virtual time."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from guest.balloon.balloon_statistics import mem_available
from guest.boot_memory import make_allocator
from guest.linux_profile import PROFILES
from guest.mm.reporting.reporters import make_reporter
from guest.mm.views.free_lists import FreeListView, free_lists
from guest.mm.views.memory_map import take_map
from guest.simulation import DEVICE_CAPACITY, Simulation
from guest.vmm_options import VmmOptions
from guest.workloads.workload_options import parse_workload
from host.policy.observation import VmView
from protocol.memory import PAGE_SIZE
from protocol.units import GIB
from scripts.scenario.run_record import LedgerEntry, VmOutcome, VmSample, VmState
from scripts.scenario.scenario import VmSpec
from scripts.scenario.virtual.balloon import VirtualBalloon
from scripts.scenario.virtual.host_memory import HostBudget, KilledError, SharedMemory
from scripts.scenario.virtual.program import Program
from scripts.scenario.virtual.virtual_vm import Emit, VirtualVm

DISK_BYTES_PER_SECOND: Final = 500e6
"""A page of a file that reclaim has evicted is read again at this rate when it is needed: assumed, a SATA SSD."""

_NO_SAMPLES: Final = 1e9

Change = tuple[int, int, int]

Ledger = Callable[[Simulation, int | None], LedgerEntry]
"""Takes a guest and how many of its free pages the host still backs, None if unknown; returns what holds them."""


class EmulatedVm(VirtualVm):
    """A guest with pages. ``seed`` is that of its first workload. ``ledger`` is called for a sample, if given.

    What is observed of it is kept until it changes: an idle machine costs nothing to look at.

    The first page that is touched again after reclaim evicted a page of a cache counts as that page: which file it was
    is not known here.
    """

    def __init__(
        self, spec: VmSpec, seed: int, budget: HostBudget, emit: Emit, *, ledger: Ledger | None = None
    ) -> None:
        super().__init__(spec, budget, emit)
        profile = PROFILES[spec.profile]
        options = VmmOptions(
            socket_path=Path(),
            memory=spec.memory_bytes,
            reporter=spec.reporter or "",
            cpus=spec.cpus,
            profile=profile,
            seed=seed,
        )
        allocator = make_allocator(options)
        constants = {key: value for key, value in spec.reporting.items() if key != "delay"}
        reporter = spec.reporter and make_reporter(
            spec.reporter,
            allocator,
            delay=spec.reporting.get("delay"),
            keeps_order=profile.keeps_order,
            **{key: int(value) for key, value in constants.items()},
        )
        self._memory = SharedMemory(allocator.end_pfn, budget, self)
        self._program = Program(
            [parse_workload(text) for text in spec.workloads],
            spec.boot_bytes,
            take_stall=self._memory.take_stall,
            on_out_of_memory=self._on_out_of_memory,
            on_finished=lambda: self._finished(self.now),
        )
        self._begin = budget.now
        self._simulation = Simulation(
            allocator,
            reporter or None,
            [self._program],
            seed=seed,
            device_capacity=max(DEVICE_CAPACITY, int(spec.reporting.get("capacity", 0))),
            sample_interval=_NO_SAMPLES,
            host=self._memory,
        )
        self._balloon = VirtualBalloon(self._simulation, spec.memory_bytes, self._on_reclaimed)
        self._ledger = ledger
        self._phases_told = 0
        self._reclaimed_pages = self._cached_pages = self._evicted_pages = 0
        self._cache_refaults = 0
        self._sampled: tuple[Change, VmSample] | None = None
        self._mapped: tuple[Change, int, Mapping[str, Any]] | None = None

    @property
    def now(self) -> float:
        """The time of the whole run, as far as this machine has come."""
        return self._begin + self._simulation.now

    # --- Time ---

    @property
    def next_event(self) -> float:
        """When it does something next."""
        return self._begin + self._simulation.next_event

    def advance(self, now: float) -> None:
        """Let it work until ``now``. The OOM killer may end it meanwhile."""
        try:
            self._simulation.run(max(0.0, now - self._begin - self._simulation.now))
        except KilledError:
            return
        finally:
            self._tell_phases()
        self._count_cache_refaults()

    def _tell_phases(self) -> None:
        phases = self._simulation.phases
        for when, name in phases[self._phases_told :]:
            self.event("phase", name=name, t=self._begin + when)
        self._phases_told = len(phases)

    def _count_cache_refaults(self) -> None:
        # As mm/workingset.c tells refaults from first faults, by sums: pages that came into caches since the last call
        # are pages that reclaim evicted before, as long as there are such.
        machine = self._simulation.machine
        reclaimed, cached = machine.allocator.vmscan.reclaimed_pages, machine.cached_pages
        evicted = reclaimed - self._reclaimed_pages
        read = cached - self._cached_pages + evicted
        refaults = max(0, min(self._evicted_pages, read))
        self._cache_refaults += refaults
        self._evicted_pages = self._evicted_pages + evicted - refaults if cached else 0
        self._reclaimed_pages, self._cached_pages = reclaimed, cached

    def _on_out_of_memory(self, number: int, message: str) -> None:
        workload = "boot" if number < 0 else self.spec.workloads[number]
        self.state, self.reason = VmState.FAILED, f"{workload}: {message}"
        self.event("out_of_memory", t=self.now, workload=workload, message=message)

    def _on_reclaimed(self, size: int) -> None:
        self.event("reclaimed", t=self.now, discarded_bytes=size)

    # --- What the host and a policy see ---

    @property
    def resident_bytes(self) -> int:
        """What the host holds for it, the process that plays it included."""
        return self._memory.present_pages * PAGE_SIZE + self._overhead_bytes

    @property
    def stall_seconds(self) -> float:
        """Waiting for the host, for free memory of the guest, and for evicted files to be read again."""
        disk = self._cache_refaults * PAGE_SIZE / DISK_BYTES_PER_SECOND
        return self._memory.stall_seconds + self._program.waited_seconds + disk

    def view(self, now: float) -> VmView:
        """Return the statistics that the driver would send now, without an age."""
        machine, allocator = self._simulation.machine, self._simulation.allocator
        managed = sum(zone.managed_pages for zone in allocator.zones) * PAGE_SIZE
        return VmView(
            name=self.name,
            memory_bytes=self.spec.memory_bytes,
            balloon_bytes=self._balloon.size,
            target_bytes=self._balloon.target_bytes,
            total_bytes=managed,  # with DEFLATE_ON_OOM the pages in the balloon count
            free_bytes=machine.free_bytes,
            available_bytes=mem_available(allocator, machine.cached_pages) * PAGE_SIZE,
            cache_bytes=machine.cached_pages * PAGE_SIZE,
            statistics_age=0.0,
            host_backed_bytes=self.resident_bytes,
            refaulted_bytes=self._memory.refaults * PAGE_SIZE,
            major_faults=self._cache_refaults,
            minor_faults=self._memory.faults,
            swapped_in_bytes=0,
            swapped_out_bytes=0,
            stall_seconds=self.stall_seconds,
            age=now - self._begin,
        )

    def sample(self) -> VmSample:
        """Return its memory as it is now, with its ledger."""
        if self.alive and self._sampled is not None and self._sampled[0] == self._change:
            return self._sampled[1]
        sample = self._take_sample()
        self._sampled = self._change, sample
        return sample

    def _take_sample(self) -> VmSample:
        simulation = self._simulation
        if not self.alive:
            return VmSample(
                state=self.state,
                refaulted_bytes=self._memory.refaults * PAGE_SIZE,
                stall_seconds=self.stall_seconds,
            )
        reporter = simulation.reporter
        return VmSample(
            state=self.state,
            allocated_bytes=simulation.machine.allocated_bytes,
            free_bytes=simulation.machine.free_bytes,
            reported_bytes=0 if reporter is None else reporter.reported_pages() * PAGE_SIZE,
            resident_bytes=self.resident_bytes,
            balloon_bytes=self._balloon.size,
            target_bytes=self._balloon.target_bytes,
            cache_bytes=simulation.machine.cached_pages * PAGE_SIZE,
            refaulted_bytes=self._memory.refaults * PAGE_SIZE,
            stall_seconds=self.stall_seconds,
            ledger=None if self._ledger is None else self._ledger(simulation, self._backed_free_pages()),
        )

    @property
    def _change(self) -> Change:
        # Another value once anything that is observed may have changed. Between its own events only others act: the
        # host takes pages for swap, and a policy sets the balloon's target.
        return self._simulation.events, self._memory.present_pages, self._balloon.target_bytes

    def _backed_free_pages(self) -> int | None:
        # Pages in use were all written. Of those in swap it is not known which are free.
        if self._memory.swapped_pages:
            return None
        return self._memory.present_pages - self._simulation.machine.allocated_pages - self._balloon.present_pages

    def free_lists(self) -> tuple[FreeListView, ...] | None:
        """Return its free lists, None once it was killed."""
        return free_lists(self._simulation.machine.allocator) if self.alive else None

    def memory_map(self, cells: int) -> Mapping[str, Any] | None:
        """Return the map of its memory, None after its end."""
        if not self.alive:
            return None
        if self._mapped is not None and self._mapped[:2] == (self._change, cells):
            return self._mapped[2]
        reporter = self._simulation.reporter
        taken = take_map(
            self._simulation.allocator,
            self._memory.residency,
            cells=cells,
            ballooned=self._balloon.pfns(),
            in_flight=() if reporter is None else reporter.in_flight,
        ).as_json()
        self._mapped = self._change, cells, taken
        return taken

    def outcome(self) -> VmOutcome:
        """Return how it stands, or how it ended."""
        simulation, memory = self._simulation, self._memory
        overhead = self.spec.overhead_bytes * simulation.now / GIB / 60
        return VmOutcome(
            state=self.state,
            reason=self.reason,
            finished_at=self.finished_at,
            verified_pages=simulation.machine.verified_pages,
            corrupted_pages=simulation.machine.corrupted_pages,
            refaulted_bytes=memory.refaults * PAGE_SIZE,
            stall_seconds=self.stall_seconds,
            peak_bytes=memory.peak_pages * PAGE_SIZE + self.spec.overhead_bytes,
            gib_minutes=simulation.footprint_gib_minutes + overhead,
            reclaim_cpu_seconds=simulation.device_seconds + self._balloon.device_seconds,
        )

    # --- What they do to it ---

    def set_balloon(self, size: int) -> None:
        """Ask its balloon to hold ``size`` bytes."""
        self._balloon.set_target(size)

    def reclaim(self, size: int | None) -> None:
        """Begin a reclaim by inflating, the daemon's."""
        view = self.view(self.now)
        self._balloon.reclaim(size, view.free_bytes or 0, view.total_bytes or self.spec.memory_bytes)

    def swap_out(self, wanted_bytes: int) -> int:
        """Move memory of it to swap; return how many bytes."""
        return self._memory.swap_out(-(-wanted_bytes // PAGE_SIZE)) * PAGE_SIZE

    def _release(self) -> None:
        self._memory.release_all()
