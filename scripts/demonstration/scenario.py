"""One round of the demonstration: VM A fills and frees its memory, then VM B needs the same amount."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from host.netlink import process_cost
from protocol.errors import BalloonError
from protocol.units import GIB, MIB, format_size
from scripts.child_processes import Child, Children, python_module
from scripts.demonstration.state import TICK_SECONDS, HostState, Picture, Settling, VmState
from scripts.demonstration.summary import RoundResult
from scripts.demonstration.terminal import Display
from scripts.scenario.real.budget import AccountedBudget, make_budget
from scripts.scenario.real.leftovers import SOCKET, run_directory
from scripts.scenario.real.residency import MemoryFile

POLL_SECONDS: Final = 0.01
"""Seconds that a figure of a killed machine may be old: in this time an emulated one grows by 2.5 MiB."""

START_SECONDS: Final = 15.0
BOOT_SECONDS: Final = 75.0
WORK_SECONDS: Final = 60.0
RETURN_SECONDS: Final = 25.0
"""Deadlines, in seconds. Usually a start takes 1 s, the boot of a real kernel 3 s, the return of memory 0.5 s or 6
s."""

UNREPORTED_SECONDS: Final = 2.0
"""Seconds that the round without reporting waits, although memory does not return."""

FILL_SECONDS: Final = 3.0
HOLD_SECONDS: Final = 1.0
"""Seconds in which a machine of 1 GiB fills its memory, slowly enough to be watched, and seconds that it uses it."""

EMULATED_BOOT_SECONDS: Final = 1.0
REAL_BOOT_SECONDS: Final = 4.0
REAL_RETURN_SECONDS: Final = 6.0
"""Seconds that starts and the return of memory usually take, for the time that is left."""

RETURNED: Final = 0.9
RETURNED_REAL: Final = 0.8
"""The part of VM A's freed memory that must be back before VM B starts. A real kernel keeps more fragments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options of the demonstration. ``memory_bytes`` is the memory of each machine."""

    memory_bytes: int
    real: bool
    budget: str

    @property
    def wanted_bytes(self) -> int:
        """What each machine uses at its peak: three quarters of its memory, in whole MiB."""
        return self.memory_bytes * 3 // 4 // MIB * MIB

    @property
    def fill_rate(self) -> int:
        """Bytes a second at which an emulated machine fills: a small one takes less time, a large one no more."""
        return max(round(GIB * 3 / 4 / FILL_SECONDS), round(self.wanted_bytes / FILL_SECONDS))

    def expected_seconds(self, *, reporting: bool) -> float:
        """About how long a round takes: two machines start and fill, one waits to be idle. In the round without
        reporting the second one gets about half."""
        fill = self.wanted_bytes / self.fill_rate
        boot = REAL_BOOT_SECONDS if self.real else EMULATED_BOOT_SECONDS
        first = boot + (fill / 2 if self.real else fill) + HOLD_SECONDS
        if not reporting:
            return first + UNREPORTED_SECONDS + EMULATED_BOOT_SECONDS + fill / 2 + HOLD_SECONDS
        return first + (REAL_RETURN_SECONDS if self.real else 0.5) + EMULATED_BOOT_SECONDS + fill + 2 * HOLD_SECONDS

    @property
    def budget_bytes(self) -> int:
        """The host's memory for both: enough for one machine at its peak and the processes, not for two."""
        return self.memory_bytes * 9 // 8 + 64 * MIB


class Machine:
    """A virtual machine of the round: its process once started, its state, and its number at the daemon."""

    def __init__(self, state: VmState, number: int) -> None:
        self.state = state
        self.number = number
        self.child: Child | None = None
        self._memory = MemoryFile(state.memory_bytes)

    def measure_memory(self) -> None:
        """Read what the host carries for it now. Where that cannot be read, the guest's last event counts."""
        if self.state.pid is not None:
            resident = self._memory.resident_bytes(self.state.pid)
            if resident is not None:
                self.state.measured(resident)

    def measure_cost(self) -> None:
        """Read what its process has cost. Of a killed process only the peak can be read."""
        child, state = self.child, self.state
        if child is None or state.pid is None:
            return
        if not child.ended():
            with contextlib.suppress(BalloonError):
                cost = process_cost(state.pid)
                if cost.peak_resident_bytes is not None:
                    state.cost = cost
        elif state.cost is not None and (child.peak_resident_bytes or 0) > (state.cost.peak_resident_bytes or 0):
            source = f"{state.cost.source} and wait4"
            state.cost = replace(state.cost, peak_resident_bytes=child.peak_resident_bytes, source=source)


class Round:
    """One round, with reporting or without. :meth:`run` is called once."""

    def __init__(self, settings: Settings, display: Display, *, reporting: bool) -> None:
        self._settings = settings
        self._display = display
        self._reporting = reporting
        size = settings.memory_bytes
        kind_a = "real Linux kernel" if settings.real else "emulated guest"
        self._a = Machine(VmState(name="A", kind=kind_a, memory_bytes=size), 1)
        self._b = Machine(VmState(name="B", kind="emulated guest", memory_bytes=size), 2)
        self._listening = False
        self._settling: Settling | None = None
        self._goal_bytes = 0
        self._freed_time = 0.0
        self._started = time.monotonic()
        self._next_tick = self._started

    def run(self, directory: Path) -> RoundResult:
        """Play the round with its files in ``directory`` and return how it went. All its processes have ended then.

        Raises:
            BalloonError: a process ended that should not have, or something took far too long.
        """
        settings = self._settings
        with make_budget(settings.budget, settings.budget_bytes) as budget, Children(directory) as children:
            self._budget = budget
            self._children = children
            self._picture = Picture(
                title=f"Two VMs of {format_size(settings.memory_bytes)}, {format_size(settings.budget_bytes)} for both",
                round_title=f"{'1 of 2: WITH' if self._reporting else '2 of 2: WITHOUT'} free page reporting",
                expected_seconds=settings.expected_seconds(reporting=self._reporting),
                seconds_after=settings.expected_seconds(reporting=False) if self._reporting else 0.0,
                host=HostState(budget_bytes=budget.limit_bytes, budget_source=budget.source),
                vms=(self._a.state, self._b.state),
            )
            self._start_daemon(directory)
            self._start_a(directory)
            self._watch_a()
            stopped_by = self._run_b(directory)
            return self._result(stopped_by)

    # -- the steps --------------------------------------------------------------------------------------------------

    def _start_daemon(self, directory: Path) -> None:
        # A real kernel always reports: in the round without reporting the daemon acknowledges and discards nothing.
        discard = "punch" if self._reporting or not self._settings.real else "none"
        command = python_module(
            "host",
            *("--socket-path", str(directory / SOCKET)),
            *("--discard", discard),
            *("--events", str(directory / "host")),
        )
        self._daemon = self._children.start("the daemon", command, "host")
        self._wait(lambda: self._listening, START_SECONDS, "the daemon listens")

    def _start_a(self, directory: Path) -> None:
        size = self._settings.wanted_bytes
        if self._settings.real:
            # The guest writes its phases to standard output; its /tmp is a tmpfs, in its memory.
            fill = f"dd if=/dev/zero of=/tmp/fill bs=1M count={size // MIB} status=none"
            script = (
                f"set -e; echo phase fill; {fill}; echo phase hold; sleep {HOLD_SECONDS};"
                " echo phase free; rm /tmp/fill; echo phase rest; sleep 3600"
            )
            arguments = self._attachment(directory, "a")
            command = python_module("guest.linux", *arguments, "--", "sh", "-c", script)
        else:
            command = self._emulated(directory, "a")
        self._tell(f"VM A starts, fills {format_size(size)}, uses it for a second.")
        self._a.child = self._children.start("VM A", self._budget.wrap(command, expendable=False), "a")
        self._a.state.status = "starting"

    def _watch_a(self) -> None:
        a = self._a.state
        self._wait(lambda: a.phase == "rest", BOOT_SECONDS + WORK_SECONDS, "VM A fills its memory and frees it")
        self._freed_time = a.phase_time
        self._tell("VM A has freed it all and is idle.")
        share = RETURNED_REAL if self._settings.real else RETURNED
        self._goal_bytes = a.peak_bytes - round(share * self._settings.wanted_bytes)
        self._settling = Settling(a, time.monotonic())
        if not self._reporting:
            self._pass(UNREPORTED_SECONDS)
            self._tell(f"Nothing came back: the host still carries {format_size(a.resident_bytes)} for VM A.")
            return
        try:
            self._wait(lambda: a.resident_bytes <= self._goal_bytes, RETURN_SECONDS, "VM A's memory comes back")
        except TimeoutError:
            self._tell(f"Only {format_size(a.peak_bytes - a.resident_bytes)} came back.")
            return
        # Enough for VM B to start. How much it is, and when it was back, is known once nothing changes any more.
        self._tell("Its memory is coming back to the host: enough for VM B by now.")

    def _tell_settled(self, settling: Settling) -> None:
        back = self._a.state.peak_bytes - settling.standing.resident_bytes
        if self._reporting:
            seconds = max(0.0, settling.standing.report_time - self._freed_time)
            self._tell(f"VM A has settled: {format_size(back)} came back within {seconds:.1f} s.")

    def _run_b(self, directory: Path) -> str | None:
        # Returns what stopped VM B when memory ran out, or None if it ended by itself.
        b = self._b
        self._tell(f"VM B starts and wants {format_size(self._settings.wanted_bytes)} too.")
        command = self._budget.wrap(self._emulated(directory, "b"), expendable=True)
        b.child = child = self._children.start("VM B", command, "b")
        b.state.status = "starting"

        exceeded = False

        def b_is_over() -> bool:
            nonlocal exceeded
            exceeded = isinstance(self._budget, AccountedBudget) and self._used_bytes() > self._budget.limit_bytes
            return exceeded or b.state.verified_pages is not None or child.ended()

        self._wait(b_is_over, START_SECONDS + WORK_SECONDS, "VM B fills its memory and frees it", allowed=child)
        stopped_by = None
        if exceeded:
            b.measure_cost()
            b.measure_memory()
            child.kill()
            stopped_by = self._budget.source
        elif child.ended():
            if self._budget.kernel_kills() == 0:
                raise BalloonError(child.how_it_ended())
            stopped_by = "the kernel's OOM killer"
        b.measure_cost()
        if stopped_by is not None:
            for event in child.new_events():  # the last ones: none may come after its end
                b.state.apply(event)
            b.state.power_off("killed", "KILLED: out of memory")
            self._tell(f"VM B was stopped at {format_size(b.state.peak_bytes)} by {stopped_by}: no memory left.")
        else:
            b.state.status = "done, all intact" if b.state.corrupted_pages == 0 else "done, PAGES LOST"
            self._tell(
                f"VM B got it all: {b.state.verified_pages} pages verified, {b.state.corrupted_pages} corrupted."
            )
        self._pass(HOLD_SECONDS, allowed=child)
        return stopped_by

    def _attachment(self, directory: Path, name: str) -> list[str]:
        return [
            *("--socket-path", str(directory / SOCKET)),
            *("--memory", str(self._settings.memory_bytes)),
            *("--events", str(directory / name)),
        ]

    def _emulated(self, directory: Path, name: str) -> list[str]:
        size = self._settings.wanted_bytes
        workload = f"memhog:size={size},hold={HOLD_SECONDS},rate={self._settings.fill_rate}"
        reporter = "boundary" if self._reporting else "off"
        return python_module(
            "guest",
            *self._attachment(directory, name),
            *("--reporter", reporter),
            *("--workload", workload),
            "--hold",
        )

    def _result(self, stopped_by: str | None) -> RoundResult:
        a, b, host = self._a.state, self._b.state, self._picture.host
        assert self._settling is not None
        # All figures are of one moment: when VM A had settled, or else now.
        idle = self._settling.standing
        returned = self._reporting and idle.resident_bytes <= self._goal_bytes
        return RoundResult(
            reporting=self._reporting,
            real=self._settings.real,
            memory_bytes=self._settings.memory_bytes,
            budget_bytes=host.budget_bytes,
            budget_source=host.budget_source,
            host_peak_bytes=host.peak_bytes,
            wanted_bytes=self._settings.wanted_bytes,
            a_peak_bytes=a.peak_bytes,
            a_after_bytes=idle.resident_bytes,
            a_returned_seconds=max(0.0, idle.report_time - self._freed_time) if returned else None,
            a_reports=idle.reports,
            a_discarded_bytes=idle.discarded_bytes,
            b_peak_bytes=b.peak_bytes,
            b_verified_pages=b.verified_pages,
            b_corrupted_pages=b.corrupted_pages,
            stopped_by=stopped_by,
            a_cost=a.cost,
            b_cost=b.cost,
        )

    # -- time -------------------------------------------------------------------------------------------------------

    def _used_bytes(self) -> int:
        charged = self._budget.used_bytes()
        return sum(vm.resident_bytes for vm in self._picture.vms) if charged is None else charged

    def _tell(self, text: str) -> None:
        seconds = time.monotonic() - self._started
        self._picture.story.append((seconds, text))
        self._display.tell(seconds, text)

    def _pass(self, seconds: float, allowed: Child | None = None) -> None:
        with contextlib.suppress(TimeoutError):
            self._wait(lambda: False, seconds, "time passes", allowed)

    def _wait(self, done: Callable[[], bool], seconds: float, what: str, allowed: Child | None = None) -> None:
        """Keep the state and the view going until ``done``.

        Raises:
            BalloonError: a process other than ``allowed`` ended.
            TimeoutError: it did not happen within ``seconds``.
        """
        end = time.monotonic() + seconds
        while True:
            self._pump()
            if done():
                return
            problem = self._children.unexpected_end(allowed)
            if problem is not None:
                raise BalloonError(problem)
            if time.monotonic() > end:
                raise TimeoutError(f"waited {seconds:.0f} s in vain: {what}")
            time.sleep(POLL_SECONDS)

    def _pump(self) -> None:
        for machine in (self._a, self._b):
            if machine.child is None:
                continue
            for event in machine.child.new_events():
                machine.state.apply(event)
            for line in machine.child.output.read():
                word, _, phase = line.partition(" ")
                if word == "phase":
                    machine.state.apply({"t": time.monotonic(), "event": "phase", "name": phase})
        for event in self._daemon.new_events():
            self._listening = self._listening or event["event"] == "listening"
            for machine in (self._a, self._b):
                # The daemon numbers machines in the order in which they come; here one comes after the other.
                if event.get("vm") == machine.number:
                    machine.state.apply_host(event)
        for machine in (self._a, self._b):
            machine.measure_memory()
        self._picture.host.apply(self._used_bytes())
        now = time.monotonic()
        if self._settling is not None and self._settling.follow(now):
            self._tell_settled(self._settling)
        if now < self._next_tick:
            return
        self._next_tick = max(self._next_tick + TICK_SECONDS, now)
        self._picture.seconds = now - self._started
        for machine in (self._a, self._b):
            machine.measure_cost()
        self._picture.tick()
        self._display.show(self._picture)


def run_round(settings: Settings, display: Display, *, reporting: bool) -> RoundResult:
    """Play one round in a temporary directory of its own.

    Raises:
        BalloonError: it could not be played to its end.
    """
    with run_directory() as directory:
        try:
            return Round(settings, display, reporting=reporting).run(directory)
        except TimeoutError as error:
            raise BalloonError(str(error)) from error
