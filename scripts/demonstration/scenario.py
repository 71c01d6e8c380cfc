"""One round of the demonstration: VM A fills and frees its memory, then VM B needs the same amount.

The scenario runner plays it; this decides when VM B starts and when the round is over, and tells the story meanwhile.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from protocol.errors import BalloonError
from protocol.units import format_size
from scripts.child_processes import Event
from scripts.demonstration.settings import HOLD_SECONDS, UNREPORTED_SECONDS, Settings
from scripts.demonstration.state import TICK_SECONDS, HostState, Picture, Settling, VmState
from scripts.demonstration.summary import RoundResult
from scripts.demonstration.terminal import Display
from scripts.demonstration.view import REAL_KERNEL
from scripts.scenario.real.budget import Budget, CgroupBudget, make_budget
from scripts.scenario.real.leftovers import run_directory
from scripts.scenario.real.real_machine import RealMachine
from scripts.scenario.real.real_run import RealRun
from scripts.scenario.run_record import VmState as Stage

START_SECONDS: Final = 15.0
BOOT_SECONDS: Final = 75.0
WORK_SECONDS: Final = 60.0
RETURN_SECONDS: Final = 25.0
"""Deadlines, in seconds. Usually a start takes 1 s, the boot of a real kernel 3 s, the return of memory 0.5 s or 6
s."""

RETURNED: Final = 0.9
RETURNED_REAL: Final = 0.8
"""The part of VM A's freed memory that must be back before VM B starts. A real kernel keeps more fragments."""


class Round:
    """One round, with reporting or without. :meth:`run` is called once."""

    def __init__(self, settings: Settings, display: Display, *, reporting: bool) -> None:
        self._settings = settings
        self._display = display
        self._reporting = reporting
        size = settings.memory_bytes
        kind = REAL_KERNEL if settings.real else "emulated guest"
        self._a = VmState(name="A", kind=kind, memory_bytes=size)
        self._b = VmState(name="B", kind="emulated guest", memory_bytes=size)
        self._b_is_due = False
        self._settling: Settling | None = None
        self._goal_bytes = 0
        self._freed_time = 0.0
        self._stopped_by: str | None = None
        self._story = self._tell_story()
        self._events_seen = 0
        self._figures: dict[str, Event] = {}
        """The last figures of each emulated guest that are shown."""
        self._next_tick = 0.0

    def run(self, directory: Path) -> RoundResult:
        """Play the round with its files in ``directory`` and return how it went. All its processes have ended then.

        Raises:
            BalloonError: a process ended that should not have, or something took far too long.
            SystemExit: a signal ended it.
        """
        settings, reporting = self._settings, self._reporting
        with make_budget(settings.budget, settings.budget_bytes) as budget:
            self._picture = Picture(
                title=f"Two VMs of {format_size(settings.memory_bytes)}, {format_size(settings.budget_bytes)} for both",
                round_title=f"{'1 of 2: WITH' if reporting else '2 of 2: WITHOUT'} free page reporting",
                expected_seconds=settings.expected_seconds(reporting=reporting),
                seconds_after=settings.expected_seconds(reporting=False) if reporting else 0.0,
                host=HostState(budget_bytes=budget.limit_bytes, budget_source=budget.source),
                vms=(self._a, self._b),
            )
            self._display.show(self._picture)
            self._budget: Budget = budget
            self._run = RealRun(
                settings.scenario(reporting=reporting),
                budget,
                directory,
                seed=0,
                ledger=settings.real,  # a real kernel tells what is free in it only when it is asked
                is_over=self._look,
                is_due=self._is_due,
            )
            self._machines = tuple(self._run.machines.values())
            record = self._run.play()
        if record.problem:
            raise BalloonError(record.problem)
        if record.interrupted:
            sys.exit(1)  # the status is the signal's
        return self._result()

    def _is_due(self, machine: RealMachine) -> bool:
        return machine is self._machines[0] or self._b_is_due

    # -- the story --------------------------------------------------------------------------------------------------

    def _tell_story(self) -> Iterator[None]:
        # Goes on with each look at the processes; the round is over when it ends.
        size = format_size(self._settings.wanted_bytes)
        self._tell(f"VM A starts, fills {size}, uses it for a second.")
        self._a.status = "starting"
        yield from self._watch_a()
        self._tell(f"VM B starts and wants {size} too.")
        self._b.status = "starting"
        self._b_is_due = True
        machine = self._machines[1]
        yield from self._until(
            lambda: machine.state not in (Stage.WAITING, Stage.RUNNING),
            START_SECONDS + WORK_SECONDS,
            "VM B fills its memory and frees it",
        )
        self._see_b(machine)
        yield from self._pass(HOLD_SECONDS)

    def _watch_a(self) -> Iterator[None]:
        a = self._a
        yield from self._until(
            lambda: a.phase == "rest", BOOT_SECONDS + WORK_SECONDS, "VM A fills its memory and frees it"
        )
        self._freed_time = a.phase_time
        self._tell("VM A has freed it all and is idle.")
        share = RETURNED_REAL if self._settings.real else RETURNED
        self._goal_bytes = a.peak_bytes - round(share * self._settings.wanted_bytes)
        self._settling = Settling(a, self._run.now)
        if not self._reporting:
            yield from self._pass(UNREPORTED_SECONDS)
            self._tell(f"Nothing came back: the host still carries {format_size(a.resident_bytes)} for VM A.")
            return
        try:
            yield from self._until(
                lambda: a.resident_bytes <= self._goal_bytes, RETURN_SECONDS, "VM A's memory comes back"
            )
        except TimeoutError:
            self._tell(f"Only {format_size(a.peak_bytes - a.resident_bytes)} came back.")
            return
        # Enough for VM B to start. How much it is, and when it was back, is known once nothing changes any more.
        self._tell("Its memory is coming back to the host: enough for VM B by now.")

    def _tell_settled(self, settling: Settling) -> None:
        back = self._a.peak_bytes - settling.standing.resident_bytes
        if self._reporting:
            seconds = max(0.0, settling.standing.report_time - self._freed_time)
            self._tell(f"VM A has settled: {format_size(back)} came back within {seconds:.1f} s.")

    def _see_b(self, machine: RealMachine) -> None:
        b = self._b
        if machine.state is Stage.OOM_KILLED:
            is_kernel = isinstance(self._budget, CgroupBudget)
            self._stopped_by = "the kernel's OOM killer" if is_kernel else self._budget.source
            b.power_off("killed", "KILLED: out of memory")
            size = format_size(b.peak_bytes)
            self._tell(f"VM B was stopped at {size} by {self._stopped_by}: no memory left.")
        else:
            b.status = "done, all intact" if b.corrupted_pages == 0 else "done, PAGES LOST"
            self._tell(f"VM B got it all: {b.verified_pages} pages verified, {b.corrupted_pages} corrupted.")

    def _result(self) -> RoundResult:
        a, b, host = self._a, self._b, self._picture.host
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
            stopped_by=self._stopped_by,
            a_cost=self._machines[0].cost,
            b_cost=self._machines[1].cost,
        )

    # -- time -------------------------------------------------------------------------------------------------------

    def _tell(self, text: str) -> None:
        seconds = self._run.now
        self._picture.story.append((seconds, text))
        self._display.tell(seconds, text)

    def _pass(self, seconds: float) -> Iterator[None]:
        end = self._run.now + seconds
        while self._run.now < end:
            yield

    def _until(self, done: Callable[[], bool], seconds: float, what: str) -> Iterator[None]:
        """Go on with the round until ``done``.

        Raises:
            TimeoutError: it did not happen within ``seconds``.
        """
        end = self._run.now + seconds
        while not done():
            if self._run.now > end:
                raise TimeoutError(f"waited {seconds:.0f} s in vain: {what}")
            yield

    def _look(self, run: RealRun) -> bool:
        # Called some fifty times a second, after the runner has looked at its processes. Returns whether all is told.
        self._take_events(run)
        for machine, vm in zip(self._machines, (self._a, self._b), strict=True):
            if machine.state is Stage.FAILED and not vm.corrupted_pages:
                raise BalloonError(machine.reason)
            if not machine.is_gone:
                self._measure(machine, vm)
            elif vm.pid is not None:
                vm.measured(machine.peak_bytes)  # the most that it ever had, from before its end
        self._picture.host.apply(run.charged_bytes)
        if self._settling is not None and self._settling.follow(run.now):
            self._tell_settled(self._settling)
        if run.now >= self._next_tick:
            self._next_tick = max(self._next_tick + TICK_SECONDS, run.now)
            self._picture.seconds = run.now
            self._picture.tick()
            self._display.show(self._picture)
        return next(self._story, self) is self

    def _take_events(self, run: RealRun) -> None:
        events = run.record.events
        for event in events[self._events_seen :]:
            for machine, vm in zip(self._machines, (self._a, self._b), strict=True):
                if event.get("vm") == machine.spec.name:
                    (vm.apply_host if event["side"] == "host" else vm.apply)(event)
        self._events_seen = len(events)

    def _measure(self, machine: RealMachine, vm: VmState) -> None:
        if machine.linux is not None and machine.linux.ledger is not None:
            vm.inside(machine.linux.allocated_bytes, machine.linux.free_bytes, machine.linux.reported_bytes)
        elif machine.figures and machine.figures is not self._figures.get(vm.name):
            self._figures[vm.name] = machine.figures
            vm.apply(machine.figures)
        vm.measured(machine.resident_bytes)


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
