"""Plays hostile sessions while the good machine and the control measure, and says what was seen."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from protocol.errors import BalloonError
from scripts.check.hostile.acts.attack import Attack
from scripts.check.hostile.companion import Companion
from scripts.check.hostile.daemon_state import DaemonState, descriptors_of, state_of
from scripts.check.hostile.other_load import OtherLoad
from scripts.check.hostile.samples import Figures, Sample, between, figures_of, shared_with
from scripts.check.hostile.session import Plan, play
from scripts.check.machine.deadline import becomes_true
from scripts.check.machine.memory_file import MIB
from scripts.check.machine.vhost_user_device import VhostUserDevice
from scripts.check.verdict import TargetError

STALL: Final = 0.05
"""Seconds that no report of the good machine may be delayed by the daemon."""

GROWTH: Final = 4 * MIB
"""Bytes of private memory that the daemon may have more at the end than after the first half of the sessions: the most
that it has needed at a time still grows a little, the longer it is tried."""

SETTLE_SECONDS: Final = 20.0
"""Seconds in which the daemon has to have closed everything of sessions that have ended."""


class Stall(NamedTuple):
    """A report that took long: when it began, seconds in all, for how many of them the machine delayed the control
    too, ``waited`` and ``together`` of its :class:`Sample`, the sessions that were open meanwhile."""

    at: float
    seconds: float
    shared: float
    waited: float
    together: float
    sessions: tuple[str, ...]

    @property
    def own(self) -> float:
        """Seconds that the machine does not explain."""
        return self.seconds - max(self.shared, self.waited)


class Period(NamedTuple):
    """A part of the run: its name, the figures of the good machine and of the control in it, and how many processors
    other processes than those of the run took."""

    name: str
    good: Figures
    control: Figures
    others: float


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What was seen. ``faults`` are one line each, empty for a run in which the bar holds."""

    seed: int
    pid: int
    periods: list[Period] = field(default_factory=list)
    states: list[DaemonState] = field(default_factory=list)
    stalls: list[Stall] = field(default_factory=list)
    not_brought_up: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


class Run:
    """A run against the daemon ``device``, process ``pid``, with the good machine and the control under way."""

    def __init__(self, device: VhostUserDevice, pid: int, seed: int, good: Companion, control: Companion) -> None:
        self.outcome = Outcome(seed=seed, pid=pid)
        self._device = device
        self._good = good
        self._control = control
        self._load = OtherLoad((pid, good.pid, control.pid))
        self._begin = time.monotonic()
        self._mark = self._begin
        self._open: list[tuple[int, float, Plan, Attack]] = []
        self._spans: list[tuple[float, float, Plan]] = []
        self._played = 0
        self._idle = 0

    def measure_alone(self, seconds: float) -> None:
        """Measure the good machine for ``seconds`` without hostile sessions."""
        time.sleep(seconds)
        self._idle = descriptors_of(self.outcome.pid)
        self.mark("alone")

    def play(self, plans: Sequence[Plan]) -> Iterator[int]:
        """Play the sessions; yield the number played so far after each.

        Raises:
            BalloonError: the daemon or the good machine is gone.
        """
        for plan in plans:
            begin = time.monotonic()
            try:
                played = play(self._device, plan)
            except TargetError as error:
                raise BalloonError(f"the daemon is gone with {plan}: {error}") from error
            self._played += 1
            if isinstance(played, str):
                self.outcome.not_brought_up[played] = self.outcome.not_brought_up.get(played, 0) + 1
            else:
                self._open.append((self._played + plan.linger, begin, plan, played))
            self._close_until(self._played)
            if self._good.has_ended:
                raise BalloonError(f"{self._good.complaint} (with {plan})")
            yield self._played

    def _close_until(self, played: int | None) -> None:
        for entry in list(self._open):
            until, begin, plan, attack = entry
            if played is None or until <= played:
                attack.close()
                self._open.remove(entry)
                self._spans.append((begin, time.monotonic(), plan))

    def mark(self, name: str) -> Period:
        """Close what is open, note the state of the daemon, and the figures since the last mark."""
        self._close_until(None)
        pid = self.outcome.pid
        if not becomes_true(lambda: descriptors_of(pid) <= self._idle, SETTLE_SECONDS):
            self.outcome.faults.append(
                f"{name}: {descriptors_of(pid)} descriptors are open {SETTLE_SECONDS:g} s after the sessions' end, "
                f"{self._idle} before"
            )
        self.outcome.states.append(state_of(pid, self._played))
        begin, self._mark = self._mark, time.monotonic()
        period = self._period(name, begin, self._mark)
        self.outcome.periods.append(period)
        return period

    def _period(self, name: str, begin: float, end: float) -> Period:
        both = (between(one.samples(), begin, end) for one in (self._good, self._control))
        good, control = (figures_of(samples) for samples in both)
        return Period(name, good, control, self._load.processors())

    def finish(self) -> None:
        """Judge the whole run."""
        for name, companion in (("the good machine", self._good), ("the control", self._control)):
            if complaint := companion.stop():
                self.outcome.faults.append(f"{name}: {complaint}")
        good, control = self._good.samples(), self._control.samples()
        self.outcome.periods.append(Period("all", figures_of(good), figures_of(control), self._mean_load()))
        self.outcome.stalls = [self._stall(one, control) for one in good if one.seconds >= STALL]
        self.outcome.faults += stall_faults(self.outcome.stalls)
        self.outcome.faults += memory_faults(self.outcome.states)

    def _mean_load(self) -> float:
        # The good machine's reports come at an even pace, so that their number stands for the time.
        periods = self.outcome.periods
        reports = sum(one.good.samples for one in periods)
        return sum(one.others * one.good.samples for one in periods) / max(1, reports)

    def _stall(self, sample: Sample, control: Sequence[Sample]) -> Stall:
        plans = (plan for begin, end, plan in self._spans if begin < sample.end and end > sample.at)
        shared = shared_with(sample, control)
        begin = sample.at - self._begin
        return Stall(begin, sample.seconds, shared, sample.waited, sample.together, tuple(map(str, plans)))


def stall_faults(stalls: Sequence[Stall]) -> list[str]:
    """Return a line if the daemon has held the good machine up for longer than it may."""
    own = [stall for stall in stalls if stall.own >= STALL]
    if not own:
        return []
    worst = max(own, key=lambda stall: stall.own)
    return [
        f"{len(own)} reports of the good machine took over {STALL * 1000:.0f} ms that the machine does not explain, "
        f"one {worst.seconds * 1000:.0f} ms, of which {worst.own * 1000:.0f} ms"
    ]


def memory_faults(states: Sequence[DaemonState]) -> list[str]:
    """Return a line if the daemon's memory grows: from the first mark after half of the sessions to the last."""
    after = [state for state in states if 2 * state.sessions >= states[-1].sessions > 0]
    if len(after) < 2 or (growth := after[-1].private - after[0].private) <= GROWTH:
        return []
    return [
        f"the daemon's private memory has grown by {growth / MIB:.1f} MiB from session {after[0].sessions} to "
        f"session {after[-1].sessions}"
    ]


def open_companions(path: Path, scratch: Path) -> tuple[Companion, Companion]:
    """Start the control and the good machine at the daemon's socket; return the good machine first.

    Raises:
        BalloonError: one of them does not start.
    """
    control = Companion("scripts.check.hostile.control", [], scratch / "control")
    try:
        return Companion("scripts.check.hostile.good_machine", [str(path)], scratch / "good"), control
    except BaseException:
        control.close()
        raise
