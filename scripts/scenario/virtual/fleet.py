"""A scenario in virtual time: all machines on one host, step by step.

The machines share one clock. It goes in steps of :data:`STEP` seconds or, where nothing happens, up to the next event.
Within a step each machine works in turn, in the order of the scenario, so two that want memory in the same step get it
in that order; the budget is kept at every page. The same scenario, policy and seed give the same record.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

from guest.mm.views.free_lists import FreeListView
from host.policy.observation import HostView, Observation
from host.policy.policy import Policy
from protocol.errors import UsageError
from scripts.scenario.jitter import jittered
from scripts.scenario.map_series import MapSeries, cells_of_each, first_interval
from scripts.scenario.run_record import RecordedDecision, RunRecord, Sample, VmOutcome, VmSample, VmState
from scripts.scenario.scenario import Scenario, VmKind, VmSpec, vm_seed
from scripts.scenario.virtual.coarse import CoarseVm
from scripts.scenario.virtual.emulated import EmulatedVm, Ledger
from scripts.scenario.virtual.host_memory import HostBudget
from scripts.scenario.virtual.ledger import ledger_entry
from scripts.scenario.virtual.policy_steps import PolicySteps
from scripts.scenario.virtual.virtual_vm import VirtualVm
from scripts.scenario.watched import Watch, unwatched

STEP: Final = 0.05
"""Seconds; those of the shortest pause that workloads usually make."""
PRESSURE_WINDOW: Final = 10.0
"""Seconds over which pressure is averaged, as avg10 of /proc/pressure/memory."""

_WAITING: Final = VmSample(state=VmState.WAITING)


class Fleet:
    """One run. :meth:`steps` plays it; ``record`` has what has happened so far.

    Args:
        policy: a fresh object; None decides nothing.
        policy_name: as it is recorded.
        seed: instead of the scenario's own.
        ledger: called for each sample of an emulated machine; None keeps none.
        maps: whether the record keeps maps of the machines' memory.

    Raises:
        UsageError: the scenario has a machine that only a real run can play.
    """

    def __init__(
        self,
        scenario: Scenario,
        policy: Policy | None = None,
        *,
        policy_name: str | None = None,
        seed: int | None = None,
        ledger: Ledger | None = ledger_entry,
        maps: bool = False,
    ) -> None:
        for vm in scenario.vms:
            if vm.kind is VmKind.LINUX:
                raise UsageError(f"{vm.name} is a real kernel, which does not run in virtual time")
        seed = scenario.seed if seed is None else seed
        scenario = self.scenario = jittered(scenario, seed)
        self.record = RunRecord(
            scenario=scenario, policy=policy_name or scenario.policy.name, seed=seed, is_virtual=True
        )
        self._cells = cells_of_each(len(scenario.vms))
        if maps and self._cells:
            self.record.maps = MapSeries(interval=first_interval(scenario))
        self.budget = HostBudget(scenario.budget_bytes, scenario.swap_bytes)
        self.vms: dict[str, VirtualVm] = {}
        """Those that have started, those that were killed too."""
        self.now = 0.0
        self._policy = None if policy is None else PolicySteps(policy, self._emit)
        self._ledger = ledger
        self._watch: Watch = unwatched
        self._starts = deque(sorted(((vm.start, number, vm) for number, vm in enumerate(scenario.vms)), key=_by_start))
        self._stepping: list[VirtualVm] = []
        self._looks: list[tuple[float, int, VirtualVm]] = []
        """Machines without pages by when they are looked at next: each has one entry that is not out of date."""
        self._serial = itertools.count()
        self._samples = 0
        self._decisions = 0
        self._stalls: deque[tuple[float, float]] = deque([(0.0, 0.0)])

    def run(self, on_sample: Callable[[Sample], None] | None = None, watch: Watch = unwatched) -> RunRecord:
        """Play to the end and return the record; after KeyboardInterrupt, what there is, marked as interrupted.

        ``watch`` is called after each step; it may take its time, and ends the run by KeyboardInterrupt.
        """
        self._watch = watch
        try:
            for sample in self.steps():
                if on_sample is not None:
                    on_sample(sample)
        except KeyboardInterrupt:
            self.record.interrupted = True
            self._close()
        return self.record

    def give_up(self) -> bool:
        """End a run that waits for its policy, from another thread. Return whether it does; then ``record`` has what
        there is, marked as interrupted, and the thread of the run changes it no more."""
        if self._policy is None or not self._policy.give_up():
            return False
        if not self.record.interrupted:
            problem = f"decide() had not returned when the run was ended at {self.now:.6g} s"
            self.record.decisions.append(
                RecordedDecision(t=self.now, policy=self.record.policy, reason="", error=problem)
            )
            self._emit("policy_fault", message=f"policy {self.record.policy}: {problem}")
            self.record.interrupted = True
            self._close()
        return True

    def steps(self) -> Iterator[Sample]:
        """Play; each sample is yielded when it is taken, and the run goes on when the next one is asked for."""
        while True:
            self._start_machines()
            if self._policy is not None and self.now >= self._next_decision:
                self._decide(self._policy)
            if self.now >= self._next_sample:
                yield self._sample()
            self._watch(self)
            if self.now >= self.scenario.duration:
                break
            self._advance(self._next_time())
        self._close()

    # --- Time ---

    @property
    def _next_sample(self) -> float:
        # Computed from the count, so that rounding errors do not add up.
        return self._samples * self.scenario.sample_interval

    @property
    def _next_decision(self) -> float:
        return float("inf") if self._policy is None else self._decisions * self._policy.interval

    def _next_time(self) -> float:
        event = min((vm.next_event for vm in self._stepping if vm.alive), default=float("inf"))
        looks, starts = self._looks, self._starts
        event = max(min(event, looks[0][0]) if looks else event, self.now + STEP)
        start = starts[0][0] if starts else float("inf")
        return min(event, start, self._next_sample, self._next_decision, self.scenario.duration)

    def _advance(self, now: float) -> None:
        for vm in self._stepping:
            if vm.alive:  # one before it may have caused its end
                vm.advance(now)
        self.now = self.budget.now = now
        looks = self._looks
        while looks and looks[0][0] <= now:
            when, _, vm = heapq.heappop(looks)
            if vm.alive and when == vm.next_event:  # otherwise there is a later entry
                vm.advance(now)
                self._look_later(vm)

    def _look_later(self, vm: VirtualVm) -> None:
        if vm.alive and vm.next_event < float("inf"):
            heapq.heappush(self._looks, (vm.next_event, next(self._serial), vm))

    def _start_machines(self) -> None:
        while self._starts and self._starts[0][0] <= self.now:
            _, number, spec = self._starts.popleft()
            vm = self.vms[spec.name] = self._make(spec, vm_seed(self.record.seed, number))
            vm.start()
            if isinstance(vm, CoarseVm):
                self._look_later(vm)
            else:
                self._stepping.append(vm)

    def _make(self, spec: VmSpec, seed: int) -> VirtualVm:
        if spec.kind is VmKind.COARSE:
            return CoarseVm(spec, seed, self.budget, self._emit)
        return EmulatedVm(spec, seed, self.budget, self._emit, ledger=self._ledger)

    # --- What is recorded ---

    def _emit(self, event: str, /, **fields: Any) -> None:
        t = round(float(fields.pop("t", self.now)), 6)
        self.record.events.append({"t": t, "event": event, **fields})

    def _sample(self) -> Sample:
        sample = self._look(self._pressure())
        self.record.samples.append(sample)
        self._samples += 1
        self._take_maps()
        self._update()
        return sample

    def look(self) -> Sample:
        """Return the machines as they are now. Nothing is recorded; pressure is that of the last sample."""
        samples = self.record.samples
        return self._look(samples[-1].pressure if samples else None)

    def _look(self, pressure: float | None) -> Sample:
        vms = {}
        for spec in self.scenario.vms:
            vm = self.vms.get(spec.name)
            vms[spec.name] = _WAITING if vm is None else vm.sample()
        return Sample(t=self.now, used_bytes=self.budget.used_bytes, pressure=pressure, vms=vms)

    @property
    def swapped_bytes(self) -> int:
        """How much of the machines' memory is in swap."""
        return self.budget.swapped_bytes

    def free_lists(self, vm: str) -> tuple[FreeListView, ...] | None:
        """Return the free lists of a machine; None where it has no pages, or does not live."""
        machine = self.vms.get(vm)
        return None if machine is None else machine.free_lists()

    def _take_maps(self) -> None:
        series = self.record.maps
        if series is not None and series.is_due(self.now):
            maps = {name: vm.memory_map(self._cells) for name, vm in self.vms.items()}
            series.add(self.now, {name: taken for name, taken in maps.items() if taken is not None})

    def _pressure(self) -> float:
        # The share of the last seconds in which some program waited. The seconds of several machines add up, to 100 %
        # at most: whether they waited at the same time is not known.
        stalls = self._stalls
        stalls.append((self.now, sum(vm.stall_seconds for vm in self.vms.values())))
        while len(stalls) > 2 and stalls[1][0] <= self.now - PRESSURE_WINDOW:
            stalls.popleft()
        waited = stalls[-1][1] - stalls[0][1]
        return min(100.0, 100.0 * waited / PRESSURE_WINDOW)

    def _update(self) -> None:
        self.record.seconds = self.now
        self.record.peak_bytes = self.budget.peak_bytes

    def _close(self) -> None:
        self._update()
        record = self.record
        record.events.sort(key=lambda event: float(event["t"]))
        for spec in self.scenario.vms:
            vm = self.vms.get(spec.name)
            record.outcomes[spec.name] = VmOutcome(state=VmState.WAITING) if vm is None else vm.outcome()
        record.gib_minutes = sum(outcome.gib_minutes for outcome in record.outcomes.values())

    # --- The policy ---

    def observe(self) -> Observation:
        """Return what a policy sees now: the machines that are alive."""
        host = HostView(
            budget_bytes=self.budget.limit_bytes, used_bytes=self.budget.used_bytes, pressure=self._pressure()
        )
        views = {name: vm.view(self.now) for name, vm in self.vms.items() if vm.alive}
        return Observation(now=self.now, host=host, vms=views)

    def _decide(self, policy: PolicySteps) -> None:
        alive = {name: vm for name, vm in self.vms.items() if vm.alive}
        decision = policy.step(self.observe(), alive)
        self.record.decisions.append(decision)
        for name in dict.fromkeys(action.vm for action in decision.actions):
            if isinstance(vm := self.vms[name], CoarseVm):
                self._look_later(vm)
        self._decisions += 1


def _by_start(entry: tuple[float, int, VmSpec]) -> tuple[float, int]:
    return entry[:2]
