"""The live view at a moment of a virtual run, as an SVG picture: drawn by Textual without a terminal."""

import itertools
from typing import Final

from host.terminal_view.bars import UNICODE
from scripts.scenario.view.live_view import LiveView
from scripts.scenario.view.run_clock import NO_LIMIT, RunClock, watching_speed
from scripts.scenario.view.watcher import Watcher
from scripts.scenario.virtual.fleet import Fleet
from scripts.scenario.watched import Watched

COLUMNS: Final = 100
LINES: Final = 28


def screenshot(fleet: Fleet, at: float) -> str:
    """Play ``fleet`` up to ``at`` seconds, or to its end, and return the view at that moment as SVG."""
    from host.terminal_view.terminal_app import picture

    # The time of the watcher goes on with each look, so that no picture is left out.
    watcher = Watcher(RunClock(NO_LIMIT), itertools.count(1.0).__next__)

    def watch(run: Watched) -> None:
        watcher(run)
        if run.now >= at:
            raise KeyboardInterrupt

    fleet.run(watch=watch)
    scenario = fleet.scenario
    view = LiveView(scenario, watcher, RunClock(watching_speed(scenario.duration)), UNICODE)
    return picture(view, COLUMNS, LINES, f"balloon-lab run {scenario.name}")
