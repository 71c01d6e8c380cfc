"""A run of a scenario by processes: starts machines when they are due, follows them, and samples until the end.

The clock of the record is real time since the daemon listens. A machine that the host's kernel kills, or that ends with
an error, ends alone: the others go on, and what it held is free.
"""

import contextlib
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol

from guest.mm.views.free_lists import FreeListView
from host.netlink import TaskStatsConnection, delay_accounting_enabled
from protocol.errors import BalloonError
from protocol.units import GIB
from scripts.child_processes import Children, Event, python_module
from scripts.scenario.jitter import jittered
from scripts.scenario.map_series import MapSeries, cells_of_each, first_interval
from scripts.scenario.real.budget import AccountedBudget, Budget
from scripts.scenario.real.guest_lists import GuestLists
from scripts.scenario.real.leftovers import CONTROL, SOCKET
from scripts.scenario.real.pressure import Pressure
from scripts.scenario.real.real_machine import RealMachine, control_socket, event_file, guest_command, parent_of
from scripts.scenario.run_record import RunRecord, Sample, VmState
from scripts.scenario.scenario import Scenario, VmKind, vm_seed
from scripts.scenario.watched import Watch, unwatched

POLL_SECONDS: Final = 0.02
"""Seconds between two looks at the processes."""

START_SECONDS: Final = 15.0
"""Seconds in which the daemon has to listen."""

COST_INTERVAL: Final = 1.0
IDLE_COST_INTERVAL: Final = 5.0
"""Seconds between two questions for what a process has cost, and where the kernel does not tell what it waited."""

MAP_SECONDS: Final = 0.5
"""Seconds between two maps of an emulated guest, at least."""

_SAMPLES: Final = ("memory", "memory_map", "zones")
"""Events of guests that are samples, and are kept as such."""


class PolicyOfRun(Protocol):
    """The policy at work on a run, on a thread of its own."""

    def start(self, control: Path, run: "RealRun") -> None:
        """Begin: the daemon answers at ``control``."""

    def stop(self) -> None:
        """Decide no more; what is under way ends."""


class RealRun:
    """One run. ``seed`` makes those of the machines (``vm_seed``).

    ``on_sample`` is called after each sample, ``watch`` after each look at the processes; both may end the run by
    KeyboardInterrupt. ``is_over`` says after each look whether the run may end before the scenario does. A machine
    starts when ``is_due`` says so, by default at the scenario's time. ``prefixes`` are words before the command of a
    machine, by its name.
    """

    def __init__(
        self,
        scenario: Scenario,
        budget: Budget,
        directory: Path,
        *,
        seed: int,
        policy: PolicyOfRun | None = None,
        prefixes: Mapping[str, Sequence[str]] = MappingProxyType({}),
        ledger: bool = True,
        maps: bool = False,
        on_sample: Callable[[RunRecord], None] = lambda record: None,
        watch: Watch = unwatched,
        is_over: Callable[["RealRun"], bool] = lambda run: False,
        is_due: Callable[[RealMachine], bool] | None = None,
    ) -> None:
        scenario = jittered(scenario, seed)
        self.record = RunRecord(scenario=scenario, policy=scenario.policy.name, seed=seed, is_virtual=False)
        self.machines = {spec.name: RealMachine(spec=spec) for spec in scenario.vms}
        self._of_sessions: dict[int, RealMachine] = {}
        """The machine of each session, by the daemon's number."""
        self._scenario = scenario
        self._budget = budget
        self._directory = directory
        self._policy = policy
        self._prefixes = prefixes
        self._ledger = ledger
        self._cells = cells_of_each(len(scenario.vms))
        if maps and self._cells:
            self.record.maps = MapSeries(interval=first_interval(scenario))
        self._on_sample = on_sample
        self._watch = watch
        self._lists = GuestLists()
        self._is_over = is_over
        self._is_due = is_due or (lambda machine: machine.spec.start <= self.now)
        self._pressure = Pressure(budget.pressure_file)
        self._begin = self._last_look = self._next_cost = 0.0
        self._booked_kills = 0
        """Kills of the kernel that are known to be those of a machine."""
        self._listening = False
        self._connection = TaskStatsConnection()

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
    def charged_bytes(self) -> int:
        """What counts against the budget: with a cgroup also what the processes themselves have."""
        charged = self._budget.used_bytes()
        return self.used_bytes if charged is None else charged

    @property
    def pressure(self) -> float | None:
        """The host's pressure in percent, None where the kernel does not tell."""
        return self._pressure.some_avg10()

    def play(self) -> RunRecord:
        """Play the scenario to its end, or until a signal or the daemon's end; then the record is partial, and marked
        so. All processes have ended when this returns.

        Raises:
            BalloonError: the daemon or a machine cannot be started.
        """
        with Children(self._directory) as children:
            self._children = children
            try:
                self._start_daemon()
                if self._policy is not None:
                    self._policy.start(self._directory / CONTROL, self)
                self._go_on_until(self._scenario.duration)
            except (KeyboardInterrupt, SystemExit):  # SystemExit is what stop_signals makes of a signal
                self.record.interrupted = True
            finally:
                self.record.seconds = self.now if self._listening else 0.0  # a policy may take long to stop
                if self._policy is not None:
                    self._policy.stop()
                self._finish()
                self._connection.close()
        return self.record

    def _start_daemon(self) -> None:
        command = python_module(
            "host",
            *("--socket-path", str(self._directory / SOCKET)),
            *("--control", str(self._directory / CONTROL)),
            *("--events", str(self._directory / "host")),
            *("--statistics-interval", "1"),
            *(("--features", "page-reporting=off") if self._is_silent() else ()),
        )
        self.daemon = self._children.start("the daemon", command, "host")
        self._begin = self._last_look = time.monotonic()
        end = self._begin + START_SECONDS
        while not self._listening:
            self._read_events()
            if self.daemon.ended():
                raise BalloonError(self.daemon.how_it_ended())
            if time.monotonic() > end:
                raise BalloonError("the daemon does not listen")
            time.sleep(POLL_SECONDS)
        self._begin = self._last_look = time.monotonic()
        # What the daemon has told before the run began.
        self.record.events = [{**event, "t": 0.0} for event in self.record.events]

    def _is_silent(self) -> bool:
        # A real kernel reports wherever the device offers it.
        return needs_linux(self._scenario) and all(spec.reporter is None for spec in self._scenario.vms)

    def _go_on_until(self, duration: float) -> None:
        samples = 0
        while True:
            self._start_what_is_due()
            self._look()
            if self.daemon.ended():
                self.record.interrupted, self.record.problem = True, self.daemon.how_it_ended()
                self._note("daemon_ended", reason=self.record.problem)
                return
            if self.now >= samples * self._scenario.sample_interval:
                samples = int(self.now / self._scenario.sample_interval) + 1
                self._take_sample()
            self._watch(self)
            if self.now >= duration or self._is_over(self):
                return
            time.sleep(POLL_SECONDS)

    def _start_what_is_due(self) -> None:
        for number, machine in enumerate(self.machines.values()):
            if machine.state is not VmState.WAITING or not self._is_due(machine):
                continue
            seed = vm_seed(self.record.seed, number)
            command = guest_command(
                machine.spec,
                self._directory,
                self._directory / SOCKET,
                seed,
                ledger=self._ledger,
                map_interval=None if self.record.maps is None else max(MAP_SECONDS, first_interval(self._scenario)),
            )
            command = [*self._prefixes.get(machine.spec.name, ()), *command]
            command = self._budget.wrap(command, expendable=machine.spec.expendable)
            machine.child = self._children.start(f"vm {machine.spec.name}", command, event_file(machine.spec))
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
        is_time = now >= self._next_cost
        if is_time:
            self._next_cost = now + (COST_INTERVAL if delay_accounting_enabled() else IDLE_COST_INTERVAL)
        for machine in self.machines.values():
            if is_time or machine.cost is None:
                machine.measure_cost(self._connection)
        self._keep_budget()

    def _read_events(self) -> None:
        for event in self.daemon.new_events():
            self._listening = self._listening or event["event"] == "listening"
            if event["event"] == "connected":
                self._connected(int(event["vm"]), int(event["pid"]))
            machine = self.machine_of_session(int(event.get("vm", 0)))
            if machine is not None:
                machine.apply_host(event)
            self._keep(event, None if machine is None else machine.spec.name, "host")
        for machine in self.machines.values():
            self._read_guest(machine)

    def _read_guest(self, machine: RealMachine) -> None:
        if machine.child is None:
            return
        for event in machine.child.new_events():
            machine.apply(event, float(event["t"]) - self._begin)
            if event["event"] not in _SAMPLES:
                self._keep(event, machine.spec.name, "guest")
        if machine.linux is not None:
            # The command of a real kernel tells its phases on its standard output.
            for line in machine.child.output.read():
                word, _, name = line.partition(" ")
                if word == "phase" and name:
                    t = time.monotonic()
                    self._keep({"t": t, "event": "phase", "name": name}, machine.spec.name, "guest")

    def machine_of_session(self, number: int) -> RealMachine | None:
        """Return the machine whose session has this number at the daemon."""
        return self._of_sessions.get(number)

    def _connected(self, number: int, pid: int) -> None:
        # The process is the guest's, or a child of it: a real kernel's.
        for ancestor in (pid, parent_of(pid)):
            for machine in self.machines.values():
                child = machine.child
                if child is not None and child.process.pid == ancestor:
                    self._of_sessions[number] = machine
                    return

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
        if child is None or machine.is_gone or not child.ended():
            return
        # A guest tells its last words before it ends, and they may not be read yet.
        self._read_guest(machine)
        is_linux = machine.spec.kind is VmKind.LINUX
        if self._booked_kills < self._budget.kernel_kills() and (
            is_linux or child.process.returncode == -signal.SIGKILL
        ):
            self._booked_kills += 1
            self._end(machine, VmState.OOM_KILLED, "the kernel's OOM killer: the budget does not suffice")
        elif is_linux and child.process.returncode == 0:
            machine.finished_at = self.now
            machine.went(VmState.FINISHED)
            self._note("finished", vm=machine.spec.name)
        else:
            self._end(machine, VmState.FAILED, machine.reason or child.how_it_ended())

    def _end(self, machine: RealMachine, state: VmState, reason: str) -> None:
        machine.went(state, reason)
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

    def look(self) -> Sample:
        """Return the machines as they are now."""
        vms = {name: machine.sample() for name, machine in self.machines.items()}
        return Sample(t=round(self.now, 3), used_bytes=self.used_bytes, pressure=self.pressure, vms=vms)

    @property
    def swapped_bytes(self) -> int:
        """How much of the machines' memory is in swap: a real run has none."""
        return 0

    def free_lists(self, vm: str) -> tuple[FreeListView, ...] | None:
        """Return the free lists of an emulated guest as it answered last. None for others, or before an answer."""
        machine = self.machines[vm]
        control = control_socket(machine.spec, self._directory)
        if control is None or machine.pid is None or machine.resident_bytes == 0:
            return None
        return self._lists.latest(control)

    def _take_sample(self) -> None:
        self.record.samples.append(self.look())
        self._take_maps()
        self.record.seconds = self.now
        self._on_sample(self.record)

    def _take_maps(self) -> None:
        series = self.record.maps
        if series is not None and series.is_due(self.now):
            maps = {name: machine.take_memory_map(self._cells) for name, machine in self.machines.items()}
            series.add(round(self.now, 3), {name: taken for name, taken in maps.items() if taken is not None})

    def _finish(self) -> None:
        with contextlib.suppress(KeyboardInterrupt, SystemExit):
            for machine in self.machines.values():
                machine.measure_cost(self._connection)
            if self._listening:
                self.record.daemon_cpu_seconds = self.daemon.cpu_seconds()
        self.record.outcomes = {name: machine.outcome() for name, machine in self.machines.items()}


def needs_linux(scenario: Scenario) -> bool:
    """Whether a real kernel plays a part."""
    return any(spec.kind is VmKind.LINUX for spec in scenario.vms)
