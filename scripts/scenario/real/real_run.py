"""A run of a scenario by processes: starts machines when they are due, follows them, and samples until the end.

The clock of the record is real time since the daemon listens. A machine that the host's kernel kills, or that ends with
an error, ends alone: the others go on, and what it held is free.
"""

import contextlib
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from protocol.errors import BalloonError
from protocol.units import GIB
from scripts.child_processes import Children, Event, python_module
from scripts.demonstration.budget import AccountedBudget, Budget
from scripts.scenario.map_series import MapSeries, cells_of_each, first_interval
from scripts.scenario.real.pressure import Pressure
from scripts.scenario.real.real_machine import RealMachine, guest_command
from scripts.scenario.run_record import RunRecord, Sample, VmState
from scripts.scenario.scenario import Scenario, VmKind, vm_seed

POLL_SECONDS: Final = 0.02
"""Seconds between two looks at the processes."""

START_SECONDS: Final = 15.0
"""Seconds in which the daemon has to listen."""

COST_INTERVAL: Final = 1.0
"""Seconds between two questions for what a process has cost."""

SOCKET: Final = "socket"
CONTROL: Final = "control"

MAP_SECONDS: Final = 0.5
"""Seconds between two maps of an emulated guest, at least."""

_OUTLIVED: Final = ("memory", "memory_map")
"""Events of guests that are samples, and are kept as such."""


class PolicyOfRun(Protocol):
    """The policy at work on a run, on a thread of its own."""

    def start(self, control: Path, run: "RealRun") -> None:
        """Begin: the daemon answers at ``control``."""

    def stop(self) -> None:
        """Decide no more; what is under way ends."""


class RealRun:
    """One run. ``on_sample`` is called after each sample, ``seed`` makes those of the machines (``vm_seed``)."""

    def __init__(
        self,
        scenario: Scenario,
        budget: Budget,
        directory: Path,
        *,
        seed: int,
        policy: PolicyOfRun | None = None,
        ledger: bool = True,
        maps: bool = False,
        on_sample: Callable[[RunRecord], None] = lambda record: None,
    ) -> None:
        self.record = RunRecord(scenario=scenario, policy=scenario.policy.name, seed=seed, is_virtual=False)
        self.machines = {spec.name: RealMachine(spec=spec) for spec in scenario.vms}
        self.pids: dict[int, int] = {}
        """The process of each session, by the daemon's number."""
        self._scenario = scenario
        self._budget = budget
        self._directory = directory
        self._policy = policy
        self._ledger = ledger
        self._cells = cells_of_each(len(scenario.vms))
        if maps and self._cells:
            self.record.maps = MapSeries(interval=first_interval(scenario))
        self._on_sample = on_sample
        self._pressure = Pressure()
        self._begin = self._last_look = self._next_cost = 0.0
        self._kills = 0
        self._listening = False

    @property
    def now(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._begin

    @property
    def budget_bytes(self) -> int:
        """What the machines may have together."""
        return self._budget.limit_bytes

    @property
    def used_bytes(self) -> int:
        """What the host holds for all machines."""
        return sum(machine.resident_bytes for machine in self.machines.values())

    @property
    def pressure(self) -> float | None:
        """The host's pressure in percent, None where the kernel does not tell."""
        return self._pressure.some_avg10()

    def play(self) -> RunRecord:
        """Play the scenario to its end, or until an exception such as KeyboardInterrupt; then the record is as far as
        it came, and marked so. All processes have ended when this returns.

        Raises:
            BalloonError: the daemon ended, or a machine cannot be started.
        """
        with Children(self._directory) as children:
            self._children = children
            self._start_daemon()
            try:
                if self._policy is not None:
                    self._policy.start(self._directory / CONTROL, self)
                self._go_on_until(self._scenario.duration)
            except KeyboardInterrupt:
                self.record.interrupted = True
            finally:
                if self._policy is not None:
                    self._policy.stop()
                self._finish()
        return self.record

    def _start_daemon(self) -> None:
        command = python_module(
            "host",
            *("--socket-path", str(self._directory / SOCKET)),
            *("--control", str(self._directory / CONTROL)),
            *("--events", str(self._directory / "host")),
            *("--statistics-interval", "1"),
        )
        self._daemon = self._children.start("the daemon", command, "host")
        self._begin = self._last_look = time.monotonic()
        end = self._begin + START_SECONDS
        while not self._listening:
            self._read_events()
            if self._daemon.ended():
                raise BalloonError(self._daemon.how_it_ended())
            if time.monotonic() > end:
                raise BalloonError("the daemon does not listen")
            time.sleep(POLL_SECONDS)
        self._begin = self._last_look = time.monotonic()

    def _go_on_until(self, duration: float) -> None:
        samples = 0
        while True:
            self._start_what_is_due()
            self._look()
            if self._daemon.ended():
                raise BalloonError(self._daemon.how_it_ended())
            if self.now >= samples * self._scenario.sample_interval:
                samples = int(self.now / self._scenario.sample_interval) + 1
                self._take_sample()
            if self.now >= duration:
                return
            time.sleep(POLL_SECONDS)

    def _start_what_is_due(self) -> None:
        for number, machine in enumerate(self.machines.values()):
            if machine.state is not VmState.WAITING or machine.spec.start > self.now:
                continue
            ledger = self._ledger and machine.spec.kind is VmKind.EMULATED
            seed = vm_seed(self.record.seed, number)
            command = guest_command(
                machine.spec,
                self._directory,
                self._directory / SOCKET,
                seed,
                ledger=ledger,
                map_interval=None if self.record.maps is None else max(MAP_SECONDS, first_interval(self._scenario)),
            )
            command = self._budget.wrap(command, expendable=machine.spec.expendable)
            machine.child = self._children.start(f"vm {machine.spec.name}", command, machine.spec.name)
            machine.state = VmState.RUNNING
            self._note("started", vm=machine.spec.name)

    # -- looking ------------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        self._read_events()
        now = time.monotonic()
        elapsed, self._last_look = now - self._last_look, now
        for machine in self.machines.values():
            machine.measure(elapsed)
            self._see_the_end(machine)
        self.record.gib_minutes += self.used_bytes * elapsed / GIB / 60
        self.record.peak_bytes = max(self.record.peak_bytes, self.used_bytes)
        if now >= self._next_cost:
            self._next_cost = now + COST_INTERVAL
            for machine in self.machines.values():
                machine.measure_cost()
        self._keep_budget()

    def _read_events(self) -> None:
        for event in self._daemon.new_events():
            self._listening = self._listening or event["event"] == "listening"
            if event["event"] == "connected":
                self.pids[int(event["vm"])] = int(event["pid"])
            machine = self.machine_of_session(int(event.get("vm", 0)))
            if machine is not None:
                machine.apply_host(event)
            self._keep(event, None if machine is None else machine.spec.name, "host")
        for machine in self.machines.values():
            if machine.child is not None:
                for event in machine.child.new_events():
                    machine.apply(event, float(event["t"]) - self._begin)
                    if event["event"] not in _OUTLIVED:
                        self._keep(event, machine.spec.name, "guest")

    def machine_of_session(self, number: int) -> RealMachine | None:
        """Return the machine whose session has this number at the daemon."""
        pid = self.pids.get(number)
        if pid is None:
            return None
        return next((machine for machine in self.machines.values() if self._is_process(machine, pid)), None)

    def _is_process(self, machine: RealMachine, pid: int) -> bool:
        if machine.pid is not None:
            return machine.pid == pid
        # Its own event may come later than the daemon's. A real kernel is a child of the process that was started.
        return machine.child is not None and machine.child.process.pid == pid

    def _keep(self, event: Event, vm: str | None, side: str) -> None:
        kept = {**event, "t": round(float(event["t"]) - self._begin, 6), "side": side}
        if "vm" in event:
            kept["session"] = event["vm"]
            del kept["vm"]
        if vm is not None:
            kept["vm"] = vm
        self.record.events.append(kept)

    def _note(self, name: str, **fields: object) -> None:
        self.record.events.append({"t": round(self.now, 6), "event": name, "side": "run", **fields})

    def _see_the_end(self, machine: RealMachine) -> None:
        child = machine.child
        if child is None or machine.state.has_ended or not child.ended():
            return
        kills, earlier = self._budget.kernel_kills(), self._kills
        self._kills = kills
        if kills and (kills > earlier or child.process.returncode == -signal.SIGKILL):
            self._end(machine, VmState.OOM_KILLED, "the kernel's OOM killer: the budget does not suffice")
        elif machine.state is not VmState.FINISHED:
            if child.process.returncode == 0 and machine.spec.kind is VmKind.LINUX:
                machine.state, machine.finished_at = VmState.FINISHED, self.now
                machine.resident_bytes = 0
                self._note("finished", vm=machine.spec.name)
            else:
                self._end(machine, VmState.FAILED, machine.reason or child.how_it_ended())

    def _end(self, machine: RealMachine, state: VmState, reason: str) -> None:
        machine.state, machine.reason = state, reason
        machine.resident_bytes = 0
        self._note(state.value.replace("-", "_"), vm=machine.spec.name, reason=reason)

    def _keep_budget(self) -> None:
        # Where no cgroup can be had the run itself does what the kernel would.
        if not isinstance(self._budget, AccountedBudget) or self.used_bytes <= self._budget.limit_bytes:
            return
        living = [machine for machine in self.machines.values() if machine.resident_bytes]
        victim = max(living, key=lambda machine: (machine.spec.expendable, machine.resident_bytes))
        assert victim.child is not None
        victim.child.kill()
        self._end(victim, VmState.OOM_KILLED, f"{self._budget.source}: the budget does not suffice")

    def _take_sample(self) -> None:
        vms = {name: machine.sample() for name, machine in self.machines.items()}
        sample = Sample(t=round(self.now, 3), used_bytes=self.used_bytes, pressure=self.pressure, vms=vms)
        self.record.samples.append(sample)
        self._take_maps()
        self.record.seconds = self.now
        self._on_sample(self.record)

    def _take_maps(self) -> None:
        series = self.record.maps
        if series is not None and series.is_due(self.now):
            maps = {name: machine.take_memory_map(self._cells) for name, machine in self.machines.items()}
            series.add(round(self.now, 3), {name: taken for name, taken in maps.items() if taken is not None})

    def _finish(self) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            for machine in self.machines.values():
                machine.measure_cost()
        self.record.seconds = self.now
        self.record.outcomes = {name: machine.outcome() for name, machine in self.machines.items()}


def needs_linux(scenario: Scenario) -> bool:
    """Whether a real kernel plays a part."""
    return any(spec.kind is VmKind.LINUX for spec in scenario.vms)
