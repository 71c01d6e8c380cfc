"""Plays a run under the eyes of a person: the run on a thread of its own, the view on the terminal in front."""

import os
import sys
import threading
from collections.abc import Callable
from typing import Final, TextIO

from host.terminal_view.bars import ASCII, UNICODE
from scripts.scenario.run_record import RunRecord
from scripts.scenario.scenario import Scenario
from scripts.scenario.view.live_view import LiveView
from scripts.scenario.view.run_clock import RunClock
from scripts.scenario.view.watcher import Watcher

NO_VIEW: Final = (
    "no live view, as Textual is not installed (extra `view`, for example: pip install 'vhost-user-balloon[view]')"
)

JOIN_SECONDS: Final = 0.1
"""Seconds between two questions whether a run that does not end is to be given up."""

Play = Callable[[Watcher], RunRecord]
"""Plays the run, with the watcher as its watch. KeyboardInterrupt of the watch ends it; the record is returned all the
same."""


def is_terminal() -> bool:
    """Whether a view can be shown: input and output are a terminal that knows more than lines."""
    streams = (sys.stdin, sys.stdout, sys.stderr)
    return all(_is_a_tty(stream) for stream in streams) and os.environ.get("TERM", "dumb") not in ("dumb", "")


def _is_a_tty(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()


def can_show() -> bool:
    """Whether what draws the view is installed."""
    try:
        import textual  # noqa: F401
    except ImportError:
        return False
    return True


def watch(
    scenario: Scenario, play: Play, speed: float | None, give_up: Callable[[], RunRecord | None] = lambda: None
) -> tuple[RunRecord, int | None]:
    """Play a run of ``scenario`` and show it; return its record, and the number of a signal that ended it.

    ``speed`` is that of virtual time, None for a real run. What the run raises is raised here, after the terminal was
    given back; so are the lines that it said printed on standard error. ``give_up`` is called when a run that was to
    end does not: it returns the record so far if the run cannot end, and its thread is left then.
    """
    from host.terminal_view.terminal_app import show

    clock = RunClock(speed)
    watcher = Watcher(clock)
    encoding = (getattr(sys.__stderr__, "encoding", None) or "").lower().replace("-", "")
    view = LiveView(scenario, watcher, clock, UNICODE if encoding == "utf8" else ASCII, lambda: give_up() is not None)
    records: list[RunRecord] = []
    faults: list[BaseException] = []

    def work() -> None:
        try:
            records.append(play(watcher))
        except BaseException as fault:
            faults.append(fault)
        finally:
            clock.end()

    # One that is left, in a policy that never returns, keeps the process from nothing.
    thread = threading.Thread(target=work, name="run", daemon=True)
    left: RunRecord | None = None
    number = None
    try:
        number = show(view, thread.start)
    finally:
        # Whatever ended the view: the machines are ended in order.
        clock.leave()
        while thread.is_alive() and (left := give_up()) is None:
            thread.join(JOIN_SECONDS)
        for text in watcher.said:
            print(f"balloon-lab run: {text}", file=sys.stderr, flush=True)
    if left is not None:
        return left, number
    for fault in faults:
        raise fault
    return records[0], number
