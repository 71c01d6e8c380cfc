"""Watches a run on its own thread: makes a picture of it four times a second, and lets its clock pace it."""

import time
from collections import deque
from collections.abc import Callable
from typing import Final

from host.terminal_view.styled_line import Style, printable
from protocol.units import GIB
from scripts.scenario.run_record import Sample
from scripts.scenario.view.picture import Figures, Note, Picture
from scripts.scenario.view.run_clock import RunClock
from scripts.scenario.view.words import decision_note, event_note
from scripts.scenario.watched import Watched

PICTURE_SECONDS: Final = 0.25
"""Seconds between two pictures of a run that is not paused."""

_OLD_SECONDS: Final = 1.5 * PICTURE_SECONDS
"""The age at which the last sample of a run is too old to be shown."""

_MOST_NOTES: Final = 100
_OOM: Final = ("oom_killed", "out_of_memory")


class Watcher:
    """Called by the run after each step. ``picture`` is the last one, None before the first step.

    ``wanted`` is the machine whose free lists the pictures have.
    """

    def __init__(self, clock: RunClock, now: Callable[[], float] = time.monotonic) -> None:
        self.picture: Picture | None = None
        self.wanted: str | None = None
        self.said: list[str] = []
        """What was said while the terminal was taken."""
        self._clock = clock
        self._now = now
        self._next = 0.0
        self._shown: tuple[float, str | None] | None = None
        self._notes: deque[Note] = deque(maxlen=_MOST_NOTES)
        self._decision: Note | None = None
        self._phases: dict[str, str] = {}
        self._gib_minutes = 0.0
        self._oom_events = 0
        self._samples = self._events = self._decisions = 0

    def __call__(self, run: Watched) -> None:
        """Look at the run, and wait until it may go on.

        Raises:
            KeyboardInterrupt: the run is to end.
        """
        self._refresh(run)
        self._clock.wait(run.now, lambda: self._refresh(run))

    def say(self, text: str) -> None:
        """Show a line that concerns the run as a whole, and keep it."""
        self.said.append(text)
        self._notes.append(Note(0.0 if self.picture is None else self.picture.sample.t, printable(text), Style.WARNING))

    def _refresh(self, run: Watched) -> None:
        if self._clock.is_paused:
            if self._shown == (run.now, self.wanted):
                return
        elif self._now() < self._next and not _is_over(run):
            return
        self._next = self._now() + PICTURE_SECONDS
        self._shown = run.now, self.wanted
        self._read(run)
        self.picture = self._picture(run)

    def _read(self, run: Watched) -> None:
        record = run.record
        for event in record.events[self._events :]:
            self._events += 1
            self._oom_events += event["event"] in _OOM
            if event["event"] == "phase" and "vm" in event:
                self._phases[str(event["vm"])] = printable(str(event.get("name", "")))
            if (note := event_note(event)) is not None:
                self._notes.append(note)
        for decision in record.decisions[self._decisions :]:
            self._decisions += 1
            self._decision = decision_note(decision)
            if decision.actions or decision.error is not None:
                self._notes.append(self._decision)
        for before, sample in zip(
            record.samples[max(0, self._samples - 1) :], record.samples[self._samples or 1 :], strict=False
        ):
            self._gib_minutes += before.used_bytes * (sample.t - before.t) / GIB / 60
        self._samples = len(record.samples)

    def _picture(self, run: Watched) -> Picture:
        record, wanted = run.record, self.wanted
        sample = self._sample(run)
        figures = Figures(
            peak_bytes=max(record.peak_bytes, sample.used_bytes),
            gib_minutes=self._gib_minutes,
            refaulted_bytes=sum(vm.refaulted_bytes for vm in sample.vms.values()),
            stall_seconds=sum(vm.stall_seconds for vm in sample.vms.values()),
            oom_events=self._oom_events,
            swapped_bytes=run.swapped_bytes,
        )
        return Picture(
            scenario=record.scenario,
            policy=record.policy,
            sample=sample,
            figures=figures,
            phases=dict(self._phases),
            notes=tuple(self._notes),
            decision=self._decision,
            lists_of=wanted,
            lists=None if wanted is None else run.free_lists(wanted),
        )

    def _sample(self, run: Watched) -> Sample:
        samples = run.record.samples
        if not samples:
            return run.look()
        age = run.now - samples[-1].t
        speed = self._clock.speed
        oldest = 0.0 if self._clock.is_paused or _is_over(run) else _OLD_SECONDS * (1.0 if speed is None else speed)
        return run.look() if age > oldest else samples[-1]


def _is_over(run: Watched) -> bool:
    # The last picture is that of the end.
    return run.now >= run.record.scenario.duration
