"""The pace of a run that is watched: speed, pause, single steps, and the end before its time.

The run's thread waits here after each step; keys come from the thread of the view. A real run goes on in real time: it
cannot be paced, only ended.
"""

import threading
import time
from collections.abc import Callable
from typing import Final

SPEEDS: Final = tuple(digit * 10.0**power for power in range(-1, 4) for digit in (1, 2, 5))
"""Seconds of virtual time in a second, from one ``+`` or ``-`` to the next. After the last one there is no limit."""

NO_LIMIT: Final = float("inf")

WATCHING_SECONDS: Final = 30.0
"""A virtual run without a given speed lasts about this long."""

LEAVE_SECONDS: Final = 2.0
"""A virtual run that was asked to end takes at most this long, unless its policy does not answer."""

_REFRESH_SECONDS: Final = 0.2
_LATE_SECONDS: Final = 0.25


def watching_speed(duration: float) -> float:
    """Return the speed at which a virtual run of ``duration`` seconds can be watched: one of :data:`SPEEDS`."""
    return next((speed for speed in SPEEDS if speed >= 1.0 and duration / speed <= WATCHING_SECONDS), SPEEDS[-1])


class RunClock:
    """Paces one run. ``speed`` is None for real time, which cannot be changed."""

    def __init__(self, speed: float | None, now: Callable[[], float] = time.monotonic) -> None:
        self._speed = speed
        self._now = now
        self._changed = threading.Condition()
        self._paused = self._ended = False
        self._left_at: float | None = None
        self._steps = 0
        self._base: tuple[float, float] | None = None
        """The run's time and ours from which the pace is counted; None begins anew."""

    # --- What the view reads and asks ---

    @property
    def speed(self) -> float | None:
        """Seconds of virtual time in a second; None in real time."""
        return self._speed

    @property
    def is_paused(self) -> bool:
        """Whether virtual time stands still."""
        return self._paused

    @property
    def is_leaving(self) -> bool:
        """Whether the run was asked to end."""
        return self._left_at is not None

    @property
    def is_overdue(self) -> bool:
        """Whether a virtual run was asked to end :data:`LEAVE_SECONDS` ago, and goes on. A real run takes its time."""
        left = self._left_at
        return left is not None and self._speed is not None and not self._ended and self._now() > left + LEAVE_SECONDS

    @property
    def is_ended(self) -> bool:
        """Whether the run is over."""
        return self._ended

    def toggle_pause(self) -> None:
        """Stop virtual time, or let it go on."""
        if self._speed is not None:
            with self._changed:
                self._paused = not self._paused
                self._steps = 0
                self._notify()

    def step(self) -> None:
        """Let virtual time go on by one step of the run, and stop it there."""
        if self._speed is not None:
            with self._changed:
                self._steps += 1 if self._paused else 0
                self._paused = True
                self._notify()

    def change_speed(self, *, faster: bool) -> None:
        """Take the next of :data:`SPEEDS`."""
        speed = self._speed
        if speed is None:
            return
        with self._changed:
            if faster:
                self._speed = next((other for other in SPEEDS if other > speed * 1.001), NO_LIMIT)
            else:
                self._speed = next((other for other in reversed(SPEEDS) if other < speed * 0.999), SPEEDS[0])
            self._notify()

    def leave(self) -> None:
        """End the run at its next step. What it has recorded stays."""
        with self._changed:
            self._left_at = self._now() if self._left_at is None else self._left_at
            self._notify()

    def end(self) -> None:
        """Note that the run is over."""
        self._ended = True

    def _notify(self) -> None:
        self._base = None
        self._changed.notify_all()

    # --- What the run's thread does ---

    def wait(self, t: float, refresh: Callable[[], None]) -> None:
        """Wait until the run may go on from ``t``, its own time. Meanwhile ``refresh`` is called now and then.

        Raises:
            KeyboardInterrupt: the run is to end.
        """
        while (seconds := self._seconds_left(t)) > 0:
            refresh()
            with self._changed:
                self._changed.wait(min(seconds, _REFRESH_SECONDS))
        if self.is_leaving:
            raise KeyboardInterrupt

    def _seconds_left(self, t: float) -> float:
        with self._changed:
            if self.is_leaving or self._speed is None:
                return 0.0
            if self._paused:
                if self._steps == 0:
                    return _REFRESH_SECONDS
                self._steps -= 1
                return 0.0
            if self._speed == NO_LIMIT:
                return 0.0
            now = self._now()
            if self._base is None:
                self._base = t, now
            begun_at, begun = self._base
            seconds = begun + (t - begun_at) / self._speed - now
            if seconds < -_LATE_SECONDS:  # the run is slower than this: it does not catch up later
                self._base = t, now
            return seconds
